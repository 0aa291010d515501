"""Two processes with half of the batch each hold the loss and, after DDP's mean, the parameter
gradient of the whole batch.
"""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gjwm.objectives import (
    BHEP,
    GaussianKL,
    GaussianTarget,
    JointEmbeddingObjective,
    NoRegularizer,
    SIGReg,
    SlicedEnergy,
    SlicedWasserstein,
    Subspaces,
    VICReg,
    projections,
)

ROWS = 11  # split 6 and 5: processes need not hold equally many


def cases():
    mask = torch.rand(ROWS, 3, generator=torch.Generator().manual_seed(5)) < 0.8
    ids = torch.tensor([0, 1, 2, 2, 3, 4, 4, 0, 5, 6, 7])  # episodes 0 and 4 are on both processes
    every = {
        "sigreg": SIGReg(16),
        "sigreg_pooled_u": SIGReg(16, time="pooled"),
        "sigreg_lewm": SIGReg.lewm(num_slices=16),
        "sigreg_shrunk": SIGReg(16, target=GaussianTarget("shrunk", momentum=0.5)),
        "wasserstein": SlicedWasserstein(16),
        "energy": SlicedEnergy(16),
        "bhep": BHEP(),
        "kl": GaussianKL(),
        "kl_per_step": GaussianKL(time="per_step"),
        "vicreg": VICReg(),
        "subspaces": Subspaces(SIGReg(8), dim=2),
        "none": NoRegularizer(),
    }
    for name, discrepancy in every.items():
        yield name, discrepancy, {}
        yield f"{name} clusters mask", discrepancy, {"clusters": ids, "mask": mask}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def results(rows, wrap, seed):
    x = torch.randn(ROWS, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = {}
    for name, discrepancy, given in cases():
        model = wrap(net())
        given = {key: value[rows] for key, value in given.items()}
        value = discrepancy(model(x[rows]), generator=torch.Generator().manual_seed(seed), **given)
        value.backward()
        found[name] = [value.detach(), *(p.grad for p in model.parameters())]
    # The joint alignment's moments are those of the whole batch as well.
    model = wrap(net())
    z = model(x[rows])
    joint = JointEmbeddingObjective(NoRegularizer(), lam=0.0, align="joint")(
        z[:, :-1], z[:, 1:], z
    )["loss"]
    joint.backward()
    found["joint"] = [joint.detach(), *(p.grad for p in model.parameters())]
    return found


def edges(rank):
    """What happens where processes differ: per case a value, or the error's first words."""
    x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    spoiled = x.clone()
    spoiled[0, 0] = torch.nan
    every = {"energy": SlicedEnergy(8), "bhep": BHEP(), "sigreg": SIGReg(8), "kl": GaussianKL()}
    none = torch.zeros(ROWS, dtype=torch.bool)
    given = {
        "NaN on one": (spoiled if rank else x, None),
        "one sample": (x[: 1 - rank], None),
        "no sample": (x, none),
        "samples on one": (x, none if rank else ~none),
    }
    found = {}
    for name, discrepancy in every.items():
        for case, (z, mask) in given.items():
            try:
                value = discrepancy(z, mask=mask, generator=torch.Generator().manual_seed(0)).item()
            except ValueError as error:
                value = str(error).replace(str(tuple(z.shape)), "(N, D)")
            found[f"{name}, {case}"] = value
    apart = SIGReg(8, target=GaussianTarget("shrunk", momentum=0.5), distributed=False)
    apart(
        (1 + 4 * rank) * x[rank:] * torch.arange(1, 5), generator=torch.Generator().manual_seed(0)
    )
    found["target"] = apart.target.running
    return found


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    # Chunks of another size, as from more threads, must not keep the processes from meeting.
    projections.CHUNK = {"cpu": 200 * (1 + rank)}
    # Another seed on the other process: its slices must be those of the first all the same.
    found = results(
        slice(0, 6) if rank == 0 else slice(6, ROWS), DistributedDataParallel, seed=3 + rank
    )
    torch.save((found, edges(rank)), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_equal_one(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, __file__, str(rank), tmp_path]) for rank in range(2)
    ]
    alone = results(slice(None), lambda model: model, seed=3)
    assert [process.wait(timeout=120) for process in workers] == [0, 0]
    (_, ours), (_, theirs) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    expected, target = edges(0), theirs.pop("target")
    # distributed=False sees its own samples only
    torch.testing.assert_close(ours.pop("target"), expected.pop("target"))
    torch.testing.assert_close(target, edges(1)["target"])
    assert ours == theirs
    for case, value in ours.items():
        words = {
            "NaN": "1 NaN or infinite",
            "one": "at least two samples",
            "no ": "leaves no sample",
        }
        if "samples on one" in case:
            assert value == pytest.approx(expected[case], abs=1e-9)
        else:
            assert words[case.split(", ")[1][:3]] in value
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt")[0]
        assert together.keys() == alone.keys()
        for name, tensors in alone.items():
            for got, expected in zip(together[name], tensors):
                torch.testing.assert_close(
                    got, expected, atol=1e-6, rtol=1e-6, msg=f"{name} on process {rank}"
                )


def test_subspaces_share_or_not_as_their_base_does():
    """The joint alignment reads the flag there, so that both sums run over the same samples."""
    assert Subspaces(SIGReg()).distributed and not Subspaces(SIGReg(distributed=False)).distributed


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]))
