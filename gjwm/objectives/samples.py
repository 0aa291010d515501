"""Discrepancies of plain samples: sliced Wasserstein and energy distances, and BHEP without slices.

Unlike the Epps-Pulley statistic, the sliced distances are exact per slice, by sorting, and keep
pulling on far outliers and on a collapsed batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import repeat
from torch import Generator, Tensor

from gjwm._core import distributed, draws
from gjwm.objectives.base import ONE_EPISODE, Discrepancy
from gjwm.objectives.target import check_choice


def random_directions(dim: int, count: int, generator: Generator | None, *, like: Tensor) -> Tensor:
    """`count` directions, each uniform on the unit sphere of R^dim, as the columns of a (dim,
    count) matrix, drawn on the generator's device and moved to that of `like`.
    """
    directions = draws.normal((dim, count), generator, device=like.device, dtype=like.dtype)
    return directions / directions.norm(dim=0, keepdim=True)


def check_slices(name: str, num_slices: int) -> None:
    """Raise where there is nothing to project on."""
    if num_slices < 1:
        raise ValueError(f"{name} needs at least one slice, got num_slices={num_slices}.")


class SampleDiscrepancy(Discrepancy):
    """A discrepancy of plain samples x (n, D), with pairs of one group left out where groups are
    given.

    Samples of other processes are gathered. Subclasses define `_statistic(x, group, draw)`, whose
    `draw` is what `_draw` returns, the same for all laws.
    """

    def _discrepancy(
        self, z: Tensor, mask: Tensor | None, clusters: Tensor | None, generator: Generator | None
    ) -> Tensor:
        if self.synchronize:
            z = distributed.gather(z)
            mask = None if mask is None else distributed.gather(mask.to(torch.uint8)).bool()
            clusters = None if clusters is None else distributed.gather(clusters)
        draw = self._draw(z, generator)
        if self._pairs_clusters(z, clusters):
            return self._statistic(*_grouped(z, mask, clusters), draw)
        laws = [self._statistic(x, None, draw) for x, _ in self._laws(z, mask, False)]
        return torch.stack(laws).mean()

    def _draw(self, z: Tensor, generator: Generator | None) -> Tensor | None:
        return None

    def _statistic(self, x: Tensor, group: Tensor | None, draw: Tensor | None) -> Tensor:
        raise NotImplementedError


def _grouped(z: Tensor, mask: Tensor | None, clusters: Tensor | None) -> tuple[Tensor, Tensor]:
    """The samples (n, D) that count, and the cluster of each (n,)."""
    group = torch.arange(len(z), device=z.device)
    if clusters is not None:
        group = clusters.unique(return_inverse=True)[1]
    if z.dim() == 3:
        group = repeat(group, "b -> b t", t=z.shape[1])
    x, group = (y.flatten(0, -2) if mask is None else y[mask] for y in (z, group[..., None]))
    group = group[:, 0]
    if (group == group[0]).all():
        raise ValueError(ONE_EPISODE)
    return x, group


def wasserstein_1d(x: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of samples x (N, S) to N(0, 1), per slice -> (S,).

    The semi-discrete distance mean x^2 - 2 sum_i x_(i) c_i + 1, where c_i is the integral of the
    Gaussian quantile over the i-th of N equal shares of probability.

    >>> round(wasserstein_1d(torch.tensor([[-1.0], [1.0]])).item(), 4)
    0.4042
    """
    n = x.shape[0]
    edges = torch.special.ndtri(torch.arange(n + 1, dtype=torch.float64, device=x.device) / n)
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)  # 0 at the infinite ends
    c = (density[:-1] - density[1:]).to(x.dtype)
    return x.square().mean(0) - 2 * (x.sort(0).values * c[:, None]).sum(0) + 1


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


class _Sliced(SampleDiscrepancy):
    def __init__(self, num_slices: int, **common: Any):
        super().__init__(**common)
        check_slices(type(self).__name__, num_slices)
        self.num_slices = num_slices

    def _draw(self, z: Tensor, generator: Generator | None) -> Tensor:
        directions = random_directions(z.shape[-1], self.num_slices, generator, like=z)
        return distributed.broadcast(directions) if self.synchronize else directions


class SlicedWasserstein(_Sliced):
    """Mean over random slices of the squared 2-Wasserstein distance to N(0, 1).

    For N(m, s^2) it is m^2 + (s - 1)^2: the distance grows without bound and its gradient does not
    vanish far away, which makes it a good start from a bad encoder. A finite Gaussian batch does
    not reach 0: N times its value is about 3 at N = 500.

    Args:
        num_slices: random directions per call.
        time: "pooled" or "per_step". There is no cross-trajectory form: the distance is not made of
            pairs.
        **common: target and distributed of `Discrepancy`.
    """

    times = ("per_step", "pooled")

    def __init__(self, num_slices: int = 256, *, time: str = "pooled", **common: Any):
        super().__init__(num_slices, time=time, **common)

    def _statistic(self, x: Tensor, group: Tensor | None, draw: Tensor) -> Tensor:
        return wasserstein_1d(x @ draw).mean()


class SlicedEnergy(_Sliced):
    """Mean over random slices of the energy distance to N(0, 1); no bandwidth, no bound, no
    vanishing gradient.

    It equals the energy distance in R^D up to the factor sqrt(pi) Gamma((D+1)/2) / Gamma(D/2).

    Args:
        num_slices: random directions per call.
        time: see `Discrepancy`; "cluster" uses pairs of different trajectories only.
        estimator: "u" leaves out the pairs (i, i), so a Gaussian batch has mean 0; "v" keeps them.
            "cluster" is always "u".
        **common: target and distributed of `Discrepancy`.
    """

    def __init__(
        self,
        num_slices: int = 256,
        *,
        time: str = "cluster",
        estimator: str = "u",
        **common: Any,
    ):
        super().__init__(num_slices, time=time, **common)
        check_choice("SlicedEnergy", "estimator", estimator, ("u", "v"))
        self.estimator = estimator

    def _statistic(self, x: Tensor, group: Tensor | None, draw: Tensor) -> Tensor:
        return energy_1d(x @ draw, group, unbiased=self.estimator == "u").mean()


def bhep(x: Tensor, beta: float, group: Tensor | None = None, *, unbiased: bool = False) -> Tensor:
    """MMD^2 of samples x (N, D) to N(0, I) with kernel exp(-beta^2 |x - y|^2 / 2) -> scalar, O(N^2
    D).

    mean_ij k(x_i, x_j) - 2 (1 + b^2)^{-D/2} mean_i exp(-b^2 |x_i|^2 / (2 (1 + b^2))) + (1 + 2
    b^2)^{-D/2}.

    Args:
        group: (N,) ids; pairs of one group do not count.
        unbiased: without groups, leave out the pairs (i, i).
    """
    n, d = x.shape
    b = beta * beta
    norm = x.square().sum(1)
    # |x_i - x_j|^2, without cdist's square root, whose derivative fails on the diagonal.
    pairs = torch.exp(-b / 2 * (norm[:, None] + norm - 2 * x @ x.T).clamp(min=0))
    if group is None:
        near = (pairs.sum() - n) / (n * n - n) if unbiased else pairs.mean()
    else:
        other = group[:, None] != group
        near = (pairs * other).sum() / other.sum()
    cross = torch.exp(-b * norm / (2 * (1 + b))).mean()
    return near - 2 * (1 + b) ** (-d / 2) * cross + (1 + 2 * b) ** (-d / 2)


class BHEP(SampleDiscrepancy):
    """Gaussian-kernel MMD to N(0, I), without slices.

    A kernel width of order 1 makes all pairs of a high-dimensional batch strangers: the value is a
    constant and its gradient gone. The width therefore follows the dimension.

    Args:
        beta: inverse width; "auto" is D^{-1/2}.
        time, estimator: see `SlicedEnergy`.
        **common: target and distributed of `Discrepancy`.
    """

    def __init__(
        self,
        beta: float | str = "auto",
        *,
        time: str = "cluster",
        estimator: str = "u",
        **common: Any,
    ):
        super().__init__(time=time, **common)
        check_choice("BHEP", "estimator", estimator, ("u", "v"))
        if beta != "auto" and (isinstance(beta, str) or not beta > 0):
            raise ValueError(f"BHEP's beta must be 'auto' or a positive number, got {beta!r}.")
        self.beta, self.estimator = beta, estimator

    def _statistic(self, x: Tensor, group: Tensor | None, draw: Tensor | None) -> Tensor:
        beta = x.shape[1] ** -0.5 if self.beta == "auto" else float(self.beta)
        return bhep(x, beta, group, unbiased=self.estimator == "u")
