"""Laws whose characteristic function is known, and what each discrepancy of the package would be
there with infinitely many samples: its value, and its gradient field g.

With N independent samples of a law, N dD/dz_i tends to g(z_i) as N grows: g is the gradient of the
functional derivative of D at that law. The mean over directions of sliced discrepancies is taken
over many orthogonal ones, twice, from independent draws. What is measured against them can then
use <g, g'> for |g|^2, so that the error of the reference adds no bias. Everything else is exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
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

Field = tuple[Tensor, Tensor]  # the gradient at the points, twice
CLUSTERS = math.sqrt(0.91)  # two clusters of standard deviation 0.3 at +- this, variance 1

# E exp(i t x) of symmetric laws with variance 1
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "Gaussian": lambda t: torch.exp(-t.square() / 2),
    "uniform": lambda t: torch.sinc(t * (math.sqrt(3) / math.pi)),
    "Laplace": lambda t: 1 / (1 + t.square() / 2),
    "clusters": lambda t: (CLUSTERS * t).cos() * torch.exp(-(1 - CLUSTERS**2) * t.square() / 2),
}
LAWS = ("Gaussian", "decaying", "uniform", "Laplace", "clusters")


@dataclass(frozen=True)
class Law:
    """Independent coordinates with mean 0: standard deviations `scale` (D,) times a shape, which
    the first coordinate may have of its own.
    """

    scale: Tensor
    first: str = "Gaussian"
    others: str = "Gaussian"

    @classmethod
    def of(cls, name: str, dim: int) -> Law:
        """One of LAWS. Decaying: standard deviations from 1 to 0.03, evenly in their logarithm;
        clusters: two along the first axis; all but decaying have mean 0 and covariance I.
        """
        one = torch.ones(dim, dtype=torch.float64)
        if name == "decaying":
            return cls(torch.logspace(0, -1.5, dim, dtype=torch.float64))
        return cls(one, name) if name == "clusters" else cls(one, name, name)

    @property
    def dim(self) -> int:
        """D."""
        return len(self.scale)

    def sample(self, *shape: int, generator: Generator) -> Tensor:
        """(*shape, D)."""

        def draw(kind: str, *shape: int) -> Tensor:
            if kind == "uniform":
                return math.sqrt(3) * (2 * torch.rand(*shape, generator=generator) - 1)
            z = torch.randn(*shape, generator=generator)
            if kind == "Laplace":  # the difference of two exponential variables
                rest = [torch.randn(*shape, generator=generator) for _ in range(3)]
                return (
                    z.square() + rest[0].square() - rest[1].square() - rest[2].square()
                ) / 8**0.5
            if kind == "clusters":
                side = torch.randn(*shape, generator=generator).sign()
                return CLUSTERS * side + (1 - CLUSTERS**2) ** 0.5 * z
            return z

        z = [draw(self.first, *shape, 1), draw(self.others, *shape, self.dim - 1)]
        return torch.cat(z, -1) * self.scale.float()

    def transforms(self, t: Tensor) -> Tensor:
        """E exp(i t_j z_j) of every coordinate, t (..., D) -> (..., D)."""
        t = t * self.scale
        both = SHAPES[self.first](t[..., :1]), SHAPES[self.others](t[..., 1:])
        return torch.cat(both, -1)

    def along(self, directions: Tensor, t: Tensor) -> Tensor:
        """E exp(i t z.a) for directions a (S, D) at t (S, K) -> (S, K)."""
        parts = zip(directions.split(64), t.split(64))
        return torch.cat([self.transforms(s[..., None] * a[:, None]).prod(-1) for a, s in parts])


def orthogonal(
    dim: int, count: int, generator: Generator | None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """At least `count` directions (S, dim), uniform on the sphere, those of one block of `dim` at
    right angles.
    """
    blocks = torch.randn(-(-count // dim), dim, dim, generator=generator, dtype=dtype)
    return torch.linalg.qr(blocks)[0].mT.reshape(-1, dim)


# -- sliced ones -----------------------------------------------------------------------------------

TOP, STEP = 8.0, 0.02  # the grid of places in a slice, in standard deviations of the slice


def _tails(law: Law, directions: Tensor, scale: Tensor) -> Tensor:
    """P(z.a > v * scale) on the grid of v (G,) -> (S, G), by inverting the characteristic function
    with the midpoint rule.
    """
    t = (torch.arange(120, dtype=torch.float64) + 0.5) * 0.25
    v = torch.arange(0, TOP + STEP / 2, STEP, dtype=torch.float64)
    phi = law.along(directions, t / scale[:, None])
    return 0.5 - (0.25 / math.pi) * (phi / t) @ (t[:, None] * v).sin()


def sigreg_slices(law: Law, directions: Tensor, scale: Tensor, sigreg: SIGReg) -> Field:
    """Value (S,) of each slice, and the derivative of its functional derivative on the grid
    (S, G).
    """
    weight, phi, k = (x[:, 0] for x in sigreg.quadrature.tables(law.scale))
    t = k * sigreg.quadrature.dt
    gap = law.along(directions, t.expand(len(directions), -1)) - phi
    u = scale[:, None] * torch.arange(0, TOP + STEP / 2, STEP, dtype=torch.float64)
    slope = -torch.einsum("sk,skg->sg", gap * (2 * weight * t), (t[:, None] * u[:, None]).sin())
    return gap.square() @ weight, slope


def wasserstein_slices(law: Law, directions: Tensor, scale: Tensor) -> Field:
    """See `sigreg_slices`: 2 (u - T(u)) with T the monotone map of the slice to N(0, 1)."""
    tail = _tails(law, directions, scale).clamp(1e-14, 0.5)
    u = scale[:, None] * torch.arange(0, TOP + STEP / 2, STEP, dtype=torch.float64)
    apart = u + torch.special.ndtri(tail)
    middle = (apart[:, 1:] + apart[:, :-1]).square() / 4
    return 2 * (middle * (tail[:, :-1] - tail[:, 1:])).sum(1), 2 * apart


def energy_slices(law: Law, directions: Tensor, scale: Tensor) -> Field:
    """See `sigreg_slices`: 4 (Phi(u) - F(u)) with F the slice's distribution."""
    u = scale[:, None] * torch.arange(0, TOP + STEP / 2, STEP, dtype=torch.float64)
    slope = 4 * (_tails(law, directions, scale) - torch.special.ndtr(-u))
    t = (torch.arange(240, dtype=torch.float64) + 0.5) * 0.25
    gap = law.along(directions, t.expand(len(directions), -1)) - torch.exp(-t.square() / 2)
    return 0.5 / math.pi * (gap / t).square().sum(1), slope


def averaged(points: Tensor, directions: Tensor, scale: Tensor, slopes: list[Tensor]) -> list:
    """Mean over directions (S, D) of a * slope(z.a) at points (n, D), for each table of slopes
    (S, G), odd functions read off by linear interpolation.
    """
    grid, tables = slopes[0].shape[1], [slope.float().flatten() for slope in slopes]
    first = torch.arange(len(directions)) * grid
    a, scale = directions.float(), scale.float()
    out = [[] for _ in slopes]
    for part in points.split(1024):
        u = part @ a.T
        place = (u.abs() / (scale * STEP)).clamp(max=grid - 1.001)
        at = place.long()
        place -= at
        at += first
        for table, total in zip(tables, out):
            low = table[at]
            value = low.lerp(table[at + 1], place).mul_(u.sign())
            total.append(value @ a / len(a))
    return [torch.cat(total) for total in out]


# -- closed ones -----------------------------------------------------------------------------------


def _bhep(discrepancy: BHEP, law: Law, points: Tensor) -> tuple[float, Tensor]:
    d = law.dim
    b = 1 / d if discrepancy.beta == "auto" else float(discrepancy.beta) ** 2
    # the kernel is E exp(i t.(x - y)) over t ~ N(0, b I), by Gauss and Hermite's rule
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(48))
    t, weight = nodes[24:] * math.sqrt(b), 2 * weights[24:] / math.sqrt(2 * math.pi)
    phi = law.transforms(t[:, None].expand(-1, d))
    with_target = (weight[:, None] * phi * torch.exp(-t.square() / 2)[:, None]).sum(0).prod()
    value = (weight[:, None] * phi.square()).sum(0).prod() - 2 * with_target
    gradients = []
    for part in points.double().split(512):
        angle = part[:, None] * t[:, None]  # (n, Q, D)
        near = torch.einsum("q,qd,nqd->nd", weight, phi, angle.cos())
        fall = torch.einsum("q,qd,nqd->nd", weight * t, phi, angle.sin())
        to_law = -near.prod(1, keepdim=True) * fall / near
        norm = part.square().sum(1, keepdim=True)
        to_target = -b / (1 + b) * part * (1 + b) ** (-d / 2) * torch.exp(-b * norm / (2 + 2 * b))
        gradients.append(2 * (to_law - to_target).float())
    return value.item() + (1 + 2 * b) ** (-d / 2), torch.cat(gradients)


def _kl(discrepancy: GaussianKL, law: Law, points: Tensor) -> tuple[float, Tensor]:
    keep, share = 1 - discrepancy.shrinkage, law.dim if discrepancy.per_dimension else 1
    variance = keep * law.scale.square() + discrepancy.shrinkage
    value = 0.5 * (variance - 1 - variance.log()).sum() / share
    return value.item(), points * (keep * (1 - 1 / variance) / share).float()


def _vicreg(discrepancy: VICReg, law: Law, points: Tensor) -> tuple[float, Tensor]:
    std = (law.scale.square() + 1e-4).sqrt()
    weight = discrepancy.std_weight / law.dim
    value = weight * (1 - std).clamp(min=0).sum()  # covariances are 0, and at their minimum
    return value.item(), points * torch.where(std < 1, -weight / std, 0).float()


def population(
    discrepancies: Mapping[str, Discrepancy],
    law: Law,
    points: Tensor,
    *,
    directions: int,
    generator: Generator,
) -> dict[str, tuple[float, Field]]:
    """The value of every discrepancy at the law, and twice its gradient field at points (n, D).

    Args:
        directions: of each of the two draws, for sliced ones.
        generator: draws them.

    Raises:
        ValueError: for a class that has no formula here.
    """
    exact: dict[type, Callable] = {BHEP: _bhep, GaussianKL: _kl, VICReg: _vicreg}
    found, sliced, inside = {}, {}, {}
    for name, d in discrepancies.items():
        if type(d) in exact:
            value, gradient = exact[type(d)](d, law, points)
            found[name] = value, (gradient, gradient)
        elif isinstance(d, Subspaces) and isinstance(d.base, SIGReg):
            inside[name] = d
        elif isinstance(d, SIGReg | SlicedWasserstein | SlicedEnergy):
            sliced[name] = d
        else:
            raise ValueError(f"there is no formula for {name}, a {type(d).__name__}: add one.")
    twice: dict[str, list] = {}
    for _ in range(2):
        if sliced:
            a = orthogonal(law.dim, directions, generator)
            _of_slices(twice, sliced, law, points, a)
        for name, d in inside.items():
            d(points[:2])  # draws the subspaces, if that was not done yet
            spans: Tensor = d.get_buffer("projections").mT  # (K, d, D)
            each = -(-directions // len(spans))
            a = torch.cat([orthogonal(len(p), each, generator) @ p for p in spans])
            _of_slices(twice, {name: d.base}, law, points, a)
    for name, ((value, gradient), (again, other)) in twice.items():
        found[name] = (value + again) / 2, (gradient, other)
    return {name: found[name] for name in discrepancies}


def _of_slices(twice: dict, sliced: Mapping[str, Discrepancy], law: Law, points: Tensor, a: Tensor):
    scale = (a * law.scale).norm(dim=1)
    made = []
    for d in sliced.values():
        if isinstance(d, SIGReg):
            made.append(sigreg_slices(law, a, scale, d))
        else:
            of = wasserstein_slices if isinstance(d, SlicedWasserstein) else energy_slices
            made.append(of(law, a, scale))
    gradients = averaged(points, a, scale, [slope for _, slope in made])
    for name, (value, _), gradient in zip(sliced, made, gradients):
        twice.setdefault(name, []).append((value.mean().item(), gradient))
