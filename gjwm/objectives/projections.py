"""The Epps-Pulley statistic of many projections, with its gradient, masks, clusters and processes.

T is known the moment its characteristic function is, and its gradient with it. So both are computed
in the forward pass, one cache-sized chunk of slices after the other: nothing of size N * S * knots,
nor (for `sliced_epps_pulley`) N * S, is kept. The sums of sines and cosines come from
`gjwm.objectives.harmonics`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from gjwm._core import distributed
from gjwm.objectives.base import ONE_EPISODE
from gjwm.objectives.harmonics import Compiled, Factored

# Angles per chunk and thread: on a CPU the dozen arrays of a chunk should stay in the cores'
# caches, compiled kernels have two arrays only, and a GPU (one thread here) wants large launches.
CHUNK = {"cpu": 1 << 15}
CHUNK_COMPILED = {"cpu": 1 << 18}
CHUNK_ELSEWHERE = 1 << 24


@dataclass(frozen=True)
class Quadrature:
    """The trapezoid rule at t = linspace(0, t_max, knots). The integrand is even, so [0, t_max]
    counts twice.
    """

    t_max: float = 5.0
    knots: int = 17

    def __post_init__(self) -> None:
        if self.knots < 2 or self.t_max <= 0:
            raise ValueError(
                f"expected knots >= 2 and t_max > 0 for the quadrature, got knots={self.knots} and "
                f"t_max={self.t_max}."
            )

    @property
    def dt(self) -> float:
        """Distance of two knots."""
        return self.t_max / (self.knots - 1)

    def tables(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Columns (K, 1): weights times exp(-t^2/2), the Gaussian's characteristic function, and
        the knots' numbers.
        """
        k = torch.arange(self.knots, dtype=like.dtype, device=like.device)[:, None]
        phi = torch.exp(-(self.dt * k).square() / 2)
        weight = torch.full_like(k, 2 * self.dt)
        weight[0] = weight[-1] = self.dt
        return weight * phi, phi, k


class _Known(torch.autograd.Function):
    """A value whose gradient by z was computed beside it: (z, value, gradient) -> value."""

    @staticmethod
    def forward(ctx, z: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None


def _attached(z: Tensor, value: Tensor, gradient: Tensor | None) -> Tensor:
    return value if gradient is None else _Known.apply(z, value, gradient)


def _gradient_of(z: Tensor) -> Tensor | None:
    """Zeros to add z's gradient up in, or None where nobody asks for it."""
    if not (z.requires_grad and torch.is_grad_enabled()):
        return None
    if z.dim() == 2:
        return torch.zeros_like(z)
    return z.new_zeros(z.transpose(0, 1).shape).transpose(0, 1)  # time first in memory


def sliced_epps_pulley(
    z: Tensor,
    directions: Tensor,
    *,
    quadrature: Quadrature,
    clusters: Clusters | None = None,
    unbiased: bool = False,
    compiled: bool = False,
    synchronize: bool = False,
) -> Tensor:
    """Mean of T over the projections z @ directions -> scalar, with first derivatives only.

    Args:
        z: (N, D) independent samples, or (B, T, D) with `clusters`.
        directions: (D, S), not differentiated.
        clusters: estimate |phi|^2 from pairs of different clusters only.
        unbiased: without clusters, leave out the pairs (i, i).
        compiled: use Inductor's kernels instead of eager ones.
        synchronize: take the samples of all processes together. The gradient is then multiplied by
            their number, so that the mean over processes which DistributedDataParallel takes of
            parameter gradients is the gradient of the joint loss.
    """
    gradient = _gradient_of(z)
    with torch.no_grad():
        kernel = (Compiled if compiled else Factored)(quadrature.knots)
        slices = directions.T.contiguous()
        if clusters is None:
            total = _add_samples(z, slices, gradient, kernel, quadrature, unbiased, synchronize)
        else:
            total = _add_clusters(z, slices, gradient, kernel, quadrature, clusters, synchronize)
        if gradient is not None and synchronize:
            gradient = gradient * distributed.world_size()
    return _attached(z, total / len(slices), gradient)


def _samples_statistic(
    cos: Tensor, sin: Tensor, n: int, quadrature: Quadrature, unbiased: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """T per slice from sums over n samples (K, S), and the coefficients of its derivative by each
    sample's angle.
    """
    weight, phi, k = quadrature.tables(cos)
    cos, sin = cos / n, sin / n
    gap = cos - phi
    error = gap.square() + sin.square()
    up, sideways = gap, sin
    if unbiased:
        # |E phi|^2 without the diagonal pairs; in this form small differences of large numbers do
        # not cancel.
        error = error - (1 - cos.square() - sin.square()) / (n - 1)
        up, sideways = gap + cos / (n - 1), sin * (n / (n - 1))
    slope = 2 * weight * k / n
    return (weight * error).sum(0), slope * sideways, -slope * up


def _clusters_statistic(
    cos: Tensor, sin: Tensor, layout: Clusters, quadrature: Quadrature, synchronize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The cross-cluster T per slice, from row sums (K, B, S): pairs within a cluster are left
    out.
    """
    weight, phi, k = quadrature.tables(cos)
    rows = torch.stack([cos, sin])  # (2, K, B, S)
    if layout.index is None:
        within = rows.square().sum((0, 2))
        total = rows.sum(2)
        if synchronize:
            within, total = distributed.sum_(within), distributed.sum_(total)
        merged = rows
    else:
        merged = rows.new_zeros(2, rows.shape[1], layout.count, rows.shape[3]).index_add_(
            2, layout.index, rows
        )
        if synchronize:
            merged = distributed.sum_(merged)
        within, total = merged.square().sum((0, 2)), merged.sum(2)
        merged = merged.index_select(2, layout.index)
    n, same, pairs = layout.samples, layout.same, layout.samples**2 - layout.same
    total = total / n
    gap = total[0] - phi
    square = total.square().sum(0)
    error = gap.square() + total[1].square() - (within - same * square) / pairs
    slope = 2 * weight * k
    a = slope[:, None] * ((total[1] * ((1 + same / pairs) / n))[:, None] - merged[1] / pairs)
    b = -slope[:, None] * (((gap + total[0] * (same / pairs)) / n)[:, None] - merged[0] / pairs)
    return (weight * error).sum(0), a, b


@dataclass(frozen=True)
class Clusters:
    """Which samples may not be paired: `rows` of samples, and rows that share a cluster.

    mask: (B, T) or None, the samples that count. index: (B,) cluster of each row among `count`, or
    None when all differ.
    samples: how many count, over all processes. same: sum over clusters of (samples in it)^2.
    independent: clusters with samples, over all processes.
    """

    mask: Tensor | None
    index: Tensor | None
    count: int
    samples: int
    same: int
    independent: int

    @classmethod
    def of(
        cls, z: Tensor, mask: Tensor | None, clusters: Tensor | None, synchronize: bool
    ) -> Clusters:
        """Of z (B, T, D); rows that share an id of `clusters` (B,) are one cluster."""
        rows, length = z.shape[:2]
        counts = torch.full((rows,), length, device=z.device) if mask is None else mask.sum(1)
        index, number = None, rows
        if clusters is not None:
            ids = distributed.gather(clusters) if synchronize else clusters
            unique = ids.unique()
            number = len(unique)
            if number < len(ids):  # else every row has a cluster of its own
                index = torch.searchsorted(unique, clusters)
                counts = counts.new_zeros(number).index_add_(0, index, counts)
        if synchronize and index is not None:
            counts = distributed.sum_(counts)
        sums = torch.stack([counts.sum(), counts.square().sum(), (counts > 0).sum()])
        if synchronize and index is None:
            sums = distributed.sum_(sums)
        samples, same, independent = sums.tolist()
        if independent < 2:
            raise ValueError(ONE_EPISODE)
        return cls(mask, index, number, samples, same, independent)


def _chunks(
    total: int, width: int, like: Tensor, compiled: bool, synchronize: bool
) -> Iterator[slice]:
    """Slices of [0, total) such that a chunk holds a cache-sized number of angles; `width` angles
    per slice. Processes that add up chunk by chunk take the first one's, as their numbers of rows
    and of threads may differ.
    """
    per_thread = (CHUNK_COMPILED if compiled else CHUNK).get(like.device.type)
    size = CHUNK_ELSEWHERE if per_thread is None else per_thread * torch.get_num_threads()
    step = max(1, min(total, size // max(width, 1)))
    step = math.ceil(total / math.ceil(total / step))  # equal chunks
    if synchronize:
        step = int(distributed.broadcast(torch.tensor(step, device=like.device)))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def _add_samples(
    z: Tensor,
    slices: Tensor,
    gradient: Tensor | None,
    kernel: Factored | Compiled,
    q: Quadrature,
    unbiased: bool,
    synchronize: bool,
) -> Tensor:
    """The sum over slices (S, D) of T for samples z (N, D); adds to the mean's gradient (N, D)."""
    compiled = isinstance(kernel, Compiled)
    count = distributed.count(len(z), z.device) if synchronize else len(z)
    total = z.new_zeros(())
    for part in _chunks(len(slices), len(z), z, compiled, synchronize):
        a = slices[part]
        theta = (z @ a.T if compiled else a @ z.T).mul_(q.dt)
        cos, sin = kernel.columns(theta)
        if synchronize:
            cos, sin = distributed.sum_(torch.stack([cos, sin]))
        statistic, to_cos, to_sin = _samples_statistic(cos, sin, count, q, unbiased)
        total += statistic.sum()
        if gradient is not None:
            slope = kernel.columns_series(to_cos, to_sin)
            gradient.addmm_(slope if compiled else slope.T, a, alpha=q.dt / len(slices))
    return total


def _add_clusters(
    z: Tensor,
    slices: Tensor,
    gradient: Tensor | None,
    kernel: Factored | Compiled,
    q: Quadrature,
    layout: Clusters,
    synchronize: bool,
) -> Tensor:
    """The sum over slices (S, D) of the cross-cluster T for trajectories z (B, T, D); adds to the
    mean's gradient (B, T, D).
    """
    batch, length, _ = z.shape
    compiled = isinstance(kernel, Compiled)
    # time first: sums over time then run along memory
    steps = rearrange(z, "b t d -> (t b) d")
    mask = None if layout.mask is None else rearrange(layout.mask, "b t -> t b 1").to(z.dtype)
    total = z.new_zeros(())
    slopes = None if gradient is None else gradient.transpose(0, 1).flatten(0, 1)  # a view
    # Compiled kernels still return sums and take coefficients per row and knot: as many numbers
    # again, unless T >> knots.
    width = len(steps) * (4 if compiled else 1)
    for part in _chunks(len(slices), width, z, compiled, synchronize):
        a = slices[part]
        theta = (steps @ a.T).mul_(q.dt).view(length, batch * len(a))
        wide = None if mask is None else mask.expand(-1, -1, len(a)).reshape(theta.shape)
        cos, sin = (x.view(-1, batch, len(a)) for x in kernel.rows(theta, wide))
        statistic, to_cos, to_sin = _clusters_statistic(cos, sin, layout, q, synchronize)
        total += statistic.sum()
        if slopes is not None:
            slope = kernel.rows_series(to_cos.flatten(1), to_sin.flatten(1))
            slopes.addmm_(slope.view(len(steps), len(a)), a, alpha=q.dt / len(slices))
    return total


def epps_pulley_per_slice(x: Tensor, q: Quadrature, unbiased: bool) -> Tensor:
    """T of every slice of x (N, S) -> (S,)."""
    result, gradient = x.new_empty(x.shape[1]), _gradient_of(x)
    kernel = Factored(q.knots)
    with torch.no_grad():
        for part in _chunks(x.shape[1], len(x), x, False, False):
            cos, sin = kernel.columns((x[:, part].T * q.dt).contiguous())
            result[part], to_cos, to_sin = _samples_statistic(cos, sin, len(x), q, unbiased)
            if gradient is not None:
                gradient[:, part] = kernel.columns_series(to_cos, to_sin).T.mul_(q.dt)
    return _attached(x, result, gradient)
