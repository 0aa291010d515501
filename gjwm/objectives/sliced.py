"""Sliced Wasserstein and energy distances to a Gaussian: exact per slice by sorting, with gradients
that never vanish.

Unlike the Epps-Pulley statistic, both keep pulling on far outliers and on a collapsed batch.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from gjwm.objectives import distributed
from gjwm.objectives.base import SampleDiscrepancy, check_choice
from gjwm.objectives.slices import SLICES, random_directions
from gjwm.objectives.target import GaussianTarget


def wasserstein_1d(x: Tensor, *, form: str = "exact") -> Tensor:
    """Squared 2-Wasserstein distance of samples x (N, S) to N(0, 1), per slice -> (S,).

    "exact" is the semi-discrete distance mean x^2 - 2 sum_i x_(i) c_i + 1, where c_i is the
    integral of the Gaussian quantile over the i-th of N equal shares of probability. "midpoint"
    compares x_(i) with the quantile at (i - 1/2) / N and is 0 on that grid.

    >>> samples = torch.tensor([[-0.6745], [0.6745]])  # quartiles of N(0, 1)
    >>> wasserstein_1d(samples, form="midpoint").abs().item() < 1e-8
    True
    """
    n = x.shape[0]
    ordered = x.sort(0).values
    if form == "midpoint":
        share = (torch.arange(n, dtype=torch.float64, device=x.device) + 0.5) / n
        return (ordered - torch.special.ndtri(share).to(x.dtype)[:, None]).square().mean(0)
    edges = torch.special.ndtri(torch.arange(n + 1, dtype=torch.float64, device=x.device) / n)
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)  # 0 at the infinite ends
    c = (density[:-1] - density[1:]).to(x.dtype)
    return x.square().mean(0) - 2 * (ordered * c[:, None]).sum(0) + 1


def energy_1d(x: Tensor, group: Tensor | None = None, *, unbiased: bool = False) -> Tensor:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| of samples x (N, S) to Y ~ N(0, 1), per
    slice -> (S,).

    Args:
        group: (N,) ids; pairs (i, j) of one group do not count towards E|X - X'|.
        unbiased: without groups, leave out the pairs (i, i).
    """
    n = x.shape[0]
    # E|x - Y|
    cross = x * torch.erf(x / math.sqrt(2)) + math.sqrt(2 / math.pi) * torch.exp(-x.square() / 2)
    order = x.argsort(0)
    rank = torch.arange(1, n + 1, dtype=x.dtype, device=x.device)
    # sum_ij |x_i - x_j| = 2 sum_r (2r - n - 1) x_(r)
    pairs = 2 * ((2 * rank - n - 1)[:, None] * x.gather(0, order)).sum(0)
    number = n * n - n if unbiased else n * n
    if group is not None:
        _, ids, counts = group.unique(return_inverse=True, return_counts=True)
        # A stable sort by group of what is already sorted by value: every group's samples in order,
        # at the same place in every slice, so that the same formula applies to each.
        by_group = order.gather(0, ids[order].argsort(dim=0, stable=True))
        first = counts.cumsum(0) - counts
        own = torch.repeat_interleave(counts, counts)
        r = torch.arange(1, n + 1, device=x.device) - torch.repeat_interleave(first, counts)
        pairs = pairs - 2 * ((2 * r - own - 1).to(x.dtype)[:, None] * x.gather(0, by_group)).sum(0)
        number = n * n - int(counts.square().sum())
    return 2 * cross.mean(0) - pairs / number - 2 / math.sqrt(math.pi)


def energy_factor(dim: int) -> float:
    """Energy distance in R^dim = this factor times the mean of one-dimensional ones over all
    directions.
    """
    return math.sqrt(math.pi) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))


class _Sliced(SampleDiscrepancy):
    def __init__(self, num_slices: int, slices: str, **kwargs):
        super().__init__(**kwargs)
        check_choice(type(self).__name__, "slices", slices, SLICES)
        if num_slices < 1:
            raise ValueError(
                f"{type(self).__name__} needs at least one slice, got num_slices={num_slices}."
            )
        self.num_slices, self.slices = num_slices, slices

    def _draw(self, z: Tensor, generator: Generator | None) -> Tensor:
        directions = random_directions(
            z.shape[-1], self.num_slices, generator, like=z, slices=self.slices
        )
        return distributed.broadcast(directions) if self.synchronize else directions


class SlicedWasserstein(_Sliced):
    """Mean over random slices of the squared 2-Wasserstein distance to N(0, 1).

    For N(m, s^2) it is m^2 + (s - 1)^2: the distance grows without bound and its gradient does not
    vanish far away,
    which makes it a good start from a bad encoder. A finite Gaussian batch does not reach 0: N
    times its value is about 3 at N = 500. Args:
        num_slices, slices: random directions per call, "gaussian" or "orthogonal".
        form: "exact" (semi-discrete) or "midpoint", see `wasserstein_1d`.
        time: "pooled" or "per_step". There is no cross-trajectory form: the distance is not made of
            pairs.
        target, distributed: see `Discrepancy`. Processes gather samples, as order is not additive.
    """

    times = ("per_step", "pooled")

    def __init__(
        self,
        num_slices: int = 256,
        *,
        slices: str = "gaussian",
        form: str = "exact",
        time: str = "pooled",
        target: GaussianTarget | None = None,
        distributed: bool = True,
    ):
        super().__init__(num_slices, slices, time=time, target=target, distributed=distributed)
        check_choice("SlicedWasserstein", "form", form, ("exact", "midpoint"))
        self.form = form

    def _statistic(self, x: Tensor, group: Tensor | None, draw: Tensor) -> Tensor:
        return wasserstein_1d(x @ draw, form=self.form).mean()


class SlicedEnergy(_Sliced):
    """Mean over random slices of the energy distance to N(0, 1); no bandwidth, no bound, no
    vanishing gradient.

    It equals the energy distance in R^D up to the constant `energy_factor(D)`.

    Args:
        num_slices, slices: random directions per call, "gaussian" or "orthogonal".
        time: see `Discrepancy`; "cluster" uses pairs of different trajectories only.
        estimator: "u" leaves out the pairs (i, i), so a Gaussian batch has mean 0; "v" keeps them.
            "cluster" is always "u".
        target, distributed: see `Discrepancy`. Processes gather samples, as order is not additive.
    """

    def __init__(
        self,
        num_slices: int = 256,
        *,
        slices: str = "gaussian",
        time: str = "cluster",
        estimator: str = "u",
        target: GaussianTarget | None = None,
        distributed: bool = True,
    ):
        super().__init__(num_slices, slices, time=time, target=target, distributed=distributed)
        check_choice("SlicedEnergy", "estimator", estimator, ("u", "v"))
        self.estimator = estimator

    def _statistic(self, x: Tensor, group: Tensor | None, draw: Tensor) -> Tensor:
        return energy_1d(x @ draw, group, unbiased=self.estimator == "u").mean()
