"""Training by several processes is that by one: the same losses, one log, one model, and it goes on
after one of them has died.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from gymnasium import spaces

import gjwm
from gjwm.cli.app import main
from gjwm.data.replay import ReplayBuffer
from gjwm.models import MLPEncoder
from gjwm.models.dynamics import (
    DeterministicDynamics,
    GaussianDynamics,
    LinearGaussianDynamics,
    MixtureDynamics,
)
from gjwm.models.world_model import WorldModel
from gjwm.objectives import EpisodeObjective, GaussianTarget, JointEmbeddingObjective, SIGReg
from gjwm.training.recipe import CalibrateSettings, Recipe, RefineSettings, TrainSettings
from gjwm.training.train import check_batches

needs_gloo = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"
)

STEPS, EVERY = 50, 10
SMALL = [
    *("experiment=two_room", "env.obs=state", "latent_dim=4", "dataset=data/small", "threads=1"),
    *("encoder=mlp", "encoder.hidden=[16]", "dynamics.hidden=16", "dynamics.std_hidden=8"),
    *("collect.episodes=16", "collect.length=20", "collect.workers=0", "train.batch=8"),
    *(f"train.steps={STEPS}", "logger.every=1", f"checkpoint.every={EVERY}", "report.every=0"),
    *("refine.steps=0", "reach.steps=0", "decode.steps=0", "calibrate.episodes=0"),
    *("logger.wandb=disabled", "discrepancy.num_slices=16"),
]


def in_double(set_attribute):
    """Train in double precision, in which 50 steps do not make a rounding error visible."""
    loss = WorldModel.loss

    def of_doubles(model, batch, *rest, **given):
        return loss(model, replace(batch, a=batch.a.double()), *rest, **given)

    set_attribute(WorldModel, "loss", of_doubles)
    set_attribute(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)


def torchrun(*arguments, folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, __file__, *arguments], cwd=folder, capture_output=True, text=True, timeout=500
    )


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(run, other):
    """Every logged figure but speeds, and every weight."""
    for row, expected in zip(metrics(run), metrics(other), strict=True):
        assert row.keys() == expected.keys()
        for name in row.keys() - {"frames_per_second"}:
            assert row[name] == pytest.approx(expected[name], rel=1e-8, abs=1e-8), (name, row)
    ours, theirs = (torch.load(folder / "checkpoint.pt")["state"] for folder in (run, other))
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        torch.testing.assert_close(x, theirs[name], rtol=1e-7, atol=1e-7, msg=name)


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A folder with data and what one process makes of them, runs/alone."""
    monkeypatch.chdir(tmp_path)
    assert main(["collect", *SMALL, "name=alone"]) == 0
    in_double(monkeypatch.setattr)
    try:
        assert main(["train", *SMALL, "name=alone"]) == 0
    finally:
        torch.set_default_dtype(torch.float32)
    return tmp_path


@needs_gloo
def test_two_processes_have_the_losses_of_one_and_the_first_alone_writes(alone):
    done = torchrun("train", *SMALL, "name=two", folder=alone)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("checkpoint.pt") == 1
    runs = alone / "runs"
    assert len(metrics(runs / "two")) == STEPS
    assert_same_training(runs / "two", runs / "alone")
    names = [{path.name for path in (runs / name).iterdir()} for name in ("two", "alone")]
    assert names[0] == names[1] and "lock" not in names[0]


@needs_gloo
def test_a_killed_process_ends_all_and_a_resumed_training_comes_to_the_same_end(alone):
    failed = torchrun("fail", "train", *SMALL, "name=two", folder=alone)
    assert failed.returncode != 0 and "process 1 of 2: on purpose" in failed.stderr
    run = alone / "runs" / "two"
    assert (run / "metrics.jsonl.partial").exists() and not (run / "checkpoint.pt").exists()
    assert sorted(path.name for path in (run / "state").glob("state-*.pt"))[-1] == (
        f"state-{2 * EVERY:09d}.pt"
    )
    done = torchrun("train", *SMALL, "name=two", "resume=true", folder=alone)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_training(run, alone / "runs" / "alone")


@needs_gloo
@pytest.mark.slow
def test_submitit_starts_a_training_of_two_processes(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    assert main(["collect", *SMALL, "name=two"]) == 0
    executor = submitit.AutoExecutor(folder="slurm-logs", cluster="local")
    executor.update_parameters(timeout_min=5)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node=2", "-m", "gjwm", "train", *SMALL, "name=two"]
    said = executor.submit(submitit.helpers.CommandFunction(command)).result()
    assert said.count("checkpoint.pt") == 1
    assert len(metrics(tmp_path / "runs" / "two")) == STEPS


LAWS = {
    "deterministic": partial(DeterministicDynamics, hidden=16),
    "full": partial(GaussianDynamics, hidden=16, covariance="full"),
    "linear": LinearGaussianDynamics,
    "mixture": partial(MixtureDynamics, hidden=16, mixture_hidden=8, components=2, entropy=1.0),
}


def trained(dynamics, refine=0):
    """One training of several in a script: on states, whose encoder has a second BatchNorm, with a
    target that is learned.
    """
    target = partial(GaussianTarget, "learned", dim=4)
    recipe = Recipe(
        latent_dim=4,
        encoder=partial(MLPEncoder, hidden=[16]),
        dynamics=dynamics,
        discrepancy=lambda: SIGReg(16, target=target()),
        train=TrainSettings(steps=8, batch=6, length=3, episodes=4),
        refine=RefineSettings(steps=refine, batch=8, length=3),
        calibrate=CalibrateSettings(episodes=0),
    )
    return gjwm.train("data/states", recipe, threads=1).state_dict()


@needs_gloo
def test_what_dynamics_count_is_counted_over_all_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = dict(episodes=6, length=10, workers=0, path="data/states")
    gjwm.collect("gjwm/two-room-v0", obs="state", **small)
    done = torchrun("laws", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    in_double(monkeypatch.setattr)
    try:
        expected = {name: trained(dynamics) for name, dynamics in LAWS.items()}
    finally:
        torch.set_default_dtype(torch.float32)
    for name, state in expected.items():
        for key, x in state.items():
            assert torch.equal(ours[name][key], theirs[name][key]), (name, key)
            torch.testing.assert_close(ours[name][key], x, rtol=1e-7, atol=1e-7)
    # Refining is the first's alone.
    ours, theirs = ours["refined"], theirs["refined"]
    same = {key: torch.equal(ours[key], theirs[key]) for key in ours}
    assert all(same[key] for key in same if key.startswith("encoder"))
    assert not any(same[key] for key in same if key.startswith("dynamics.body"))


@pytest.fixture
def launched(monkeypatch):
    """As if torchrun had started this process, the first of three."""
    values = dict(RANK=0, WORLD_SIZE=3, LOCAL_RANK=0, MASTER_ADDR="localhost", MASTER_PORT=1)
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def test_other_commands_say_that_they_share_nothing(launched, monkeypatch, capsys):
    assert main(["collect"]) == 1
    said = capsys.readouterr().err
    assert "only `gjwm train` shares" in said and "3 processes" in said
    assert len(said.splitlines()) == 1
    monkeypatch.setenv("RANK", "1")
    assert main(["collect"]) == 0 and capsys.readouterr() == ("", "")


def test_what_processes_cannot_share_is_refused_before_they_meet(
    launched, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK")
    assert main(["collect", *SMALL]) == 0
    monkeypatch.setenv("RANK", "0")
    assert main(["train", *SMALL]) == 1
    assert "train.batch=8 windows cannot be shared evenly among 3" in capsys.readouterr().err
    objective = EpisodeObjective(JointEmbeddingObjective(), law="within")
    with pytest.raises(ValueError, match="3 processes would hold apart"):
        check_batches(objective, TrainSettings(batch=6, episodes=3), 3)


def test_a_part_of_a_batch_is_that_part_of_the_whole():
    box = spaces.Box(-1, 1, (2,))
    buffer = ReplayBuffer(20, box, box, episodes=2)
    for _ in range(2):
        nothing = torch.zeros(10)
        buffer.add_episode(
            torch.rand(11, 2), torch.rand(10, 2), nothing, nothing.bool(), nothing.bool()
        )

    def draw(**part):
        generator = torch.Generator().manual_seed(0)
        return buffer.sample(6, 3, generator=generator, episodes=2, **part)

    whole, part = draw(), draw(part=slice(2, 4))
    assert torch.equal(part.o, whole.o[2:4]) and torch.equal(part.episode, whole.episode[2:4])


def fail_at(step):
    """The second process raises there."""
    loss, calls = WorldModel.loss, []

    def failing(*arguments, **given):
        calls.append(1)
        if dist.get_rank() == 1 and len(calls) == step:
            raise RuntimeError("on purpose")
        return loss(*arguments, **given)

    WorldModel.loss = failing


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "laws":
        found = {"refined": trained(LAWS["deterministic"], refine=2)}
        in_double(setattr)
        found |= {name: trained(dynamics) for name, dynamics in LAWS.items()}
        torch.save(found, Path(f"{os.environ['RANK']}.pt"))
    else:
        in_double(setattr)
        if sys.argv[1] == "fail":
            fail_at(2 * EVERY + 5)
        sys.exit(main([argument for argument in sys.argv[1:] if argument != "fail"]))
