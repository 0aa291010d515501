"""Print how every discrepancy values batches of six laws, as the Markdown tables of
docs/objective.md.

    python scripts/discrepancy_table.py [--samples 512] [--dim 4 32] [--seeds 10]

Each entry is the mean over seeds of the value on that batch, minus the mean on Gaussian batches, in
units of the
standard deviation on Gaussian batches: how many times the noise of a perfectly Gaussian batch the
departure stands out."""

from __future__ import annotations

import argparse
import time

import torch
from benchmarks import table
from torch import Generator, Tensor

from gjwm.objectives import (
    BHEP,
    Discrepancy,
    GaussianKL,
    SIGReg,
    SlicedEnergy,
    SlicedWasserstein,
    Subspaces,
    VICReg,
)

LAWS = (
    "collapsed",
    "rank-deficient",
    "anisotropic",
    "heavy-tailed",
    "mixture",
    "whitened mixture",
    "shifted",
    "Gaussian",
)


def discrepancies(slices: int = 512) -> dict[str, Discrepancy]:
    """Fresh ones for each dimension, as subspaces are drawn for one. Each subspace has a quarter of
    the slices.
    """
    return {
        "SIGReg": SIGReg(slices),
        "SlicedWasserstein": SlicedWasserstein(slices),
        "SlicedEnergy": SlicedEnergy(slices),
        "BHEP": BHEP(),
        "GaussianKL": GaussianKL(),
        "VICReg": VICReg(),
        "Subspaces(SIGReg)": Subspaces(SIGReg(slices // 4)),
    }


def batch(law: str, samples: int, dim: int, generator: Generator) -> Tensor:
    """Samples (N, D) of one of LAWS."""

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    z = gaussian(samples, dim)
    if law == "collapsed":
        return 0.1 * z
    if law == "rank-deficient":  # half of the directions are copies of the other half
        half = z[:, : dim // 2]
        return torch.cat([half, half], 1)
    if law == "anisotropic":  # standard deviations from 0.5 to 1.5
        return z * torch.linspace(0.5, 1.5, dim)
    # Student's t with 5 degrees of freedom, one scale for all dimensions; identity covariance
    if law == "heavy-tailed":
        chi2 = gaussian(samples, 5).square().sum(1, keepdim=True)
        return z * (3 / chi2).sqrt()
    if law == "mixture":  # two clusters along one diagonal of the cube
        sign = gaussian(samples, 1).sign()
        return 0.6 * z + 0.8 * sign
    # two clusters along every axis, with mean zero and identity covariance
    if law == "whitened mixture":
        sign = gaussian(samples, dim).sign()
        return 0.3 * z + (1 - 0.09) ** 0.5 * sign
    if law == "shifted":  # mean 0.3 in every dimension, identity covariance
        return z + 0.3
    return z


def rows(samples: int, dim: int, seeds: int) -> list[dict]:
    """One row per discrepancy: its departures in null standard deviations, and milliseconds of
    forward and backward.
    """
    table = []
    for name, discrepancy in discrepancies().items():
        values = {
            law: torch.tensor(
                [
                    discrepancy(
                        batch(law, samples, dim, Generator().manual_seed(seed)),
                        generator=Generator().manual_seed(seed),
                    ).item()
                    for seed in range(seeds if law != "Gaussian" else 4 * seeds)
                ]
            )
            for law in LAWS
        }
        null = values["Gaussian"]
        row = {"discrepancy": name}
        for law in LAWS[:-1]:
            row[law] = ((values[law].mean() - null.mean()) / null.std()).item()
        row["Gaussian, value"] = null.mean().item()
        row["its std"] = null.std().item()
        row["ms"] = _milliseconds(discrepancy, samples, dim)
        table.append(row)
    return table


def _milliseconds(discrepancy: Discrepancy, samples: int, dim: int, repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        z = torch.randn(samples, dim, requires_grad=True)
        since = time.perf_counter()
        discrepancy(z).backward()
        times.append(time.perf_counter() - since)
    return 1e3 * sorted(times)[repeats // 2]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--dim", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    for dim in options.dim:
        print(f"D = {dim}\n\n{table(rows(options.samples, dim, options.seeds))}\n")
