"""Paths between two latents that stay where latents live.

N(0, I) in D dimensions is a shell of radius sqrt(D). Halfway between two independent samples,
linear interpolation has lost half of the variance and lies off the shell, where no encoder output
ever was. The variance-preserving path has the law N(0, I) at every point. Slerp keeps |z| between
those of its ends, and so on the shell, but not the law: the radius midway is a mean of two, so
|z|^2 varies about half as much as chi-squared's (0.46 of it at D = 4).

t is the share of the way on each of them: a path from z1 to z0 is the same backwards, and at
t = 0.5 both ends weigh alike, so that paths can be compared at equal t."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _ends(z0: Tensor, z1: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if z0.shape != z1.shape or t.dim() != 1:
        raise ValueError(
            f"expected two latents of one shape (..., D) and times (S,), got {tuple(z0.shape)}, "
            f"{tuple(z1.shape)} and {tuple(t.shape)}."
        )
    return z0.unsqueeze(-2), z1.unsqueeze(-2), t.to(z0)[:, None]


def linear(z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:
    """(1-t) z0 + t z1, whose variance t^2 + (1-t)^2 falls to one half: z0, z1 (..., D), t (S,) ->
    (..., S, D).

    >>> linear(torch.tensor([0.0, 2.0]), torch.tensor([2.0, 0.0]), torch.tensor([0.5])).tolist()
    [[1.0, 1.0]]
    """
    z0, z1, t = _ends(z0, z1, t)
    return (1 - t) * z0 + t * z1


def variance_preserving(z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:
    """cos(pi t / 2) z0 + sin(pi t / 2) z1: N(0, I) at every t for independent ends; z0, z1
    (..., D), t (S,) -> (..., S, D).

    The points are those of sqrt(1 - w^2) z0 + w z1, whose w is no share of the way: at w = 0.5 the
    ends weigh 0.87 and 0.5. For ends of one length at right angles the path is slerp's.

    >>> variance_preserving(torch.tensor([3.0]), torch.tensor([3.0]), torch.tensor([0.5])).round()
    tensor([[4.]])
    """
    z0, z1, t = _ends(z0, z1, t)
    angle = t * (math.pi / 2)
    return angle.cos() * z0 + angle.sin() * z1


def slerp(z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:
    """Along the great circle at constant angular speed, the radius going linearly from |z0| to |z1|
    (Shoemake, 1985; White, 2016).

    z0, z1 (..., D), t (S,) -> (..., S, D). Ends in exactly opposite directions have no one great
    circle; the path is then linear."""
    z0, z1, t = _ends(z0, z1, t)
    r0, r1 = (
        z0.norm(dim=-1, keepdim=True).clamp(min=1e-12),
        z1.norm(dim=-1, keepdim=True).clamp(min=1e-12),
    )
    u0, u1 = z0 / r0, z1 / r1
    angle = torch.acos((u0 * u1).sum(-1, keepdim=True).clamp(-1, 1))
    sine = angle.sin()
    straight = sine < 1e-4
    safe = torch.where(straight, torch.ones_like(sine), sine)
    w0 = torch.where(straight, 1 - t, torch.sin((1 - t) * angle) / safe)
    w1 = torch.where(straight, t, torch.sin(t * angle) / safe)
    return ((1 - t) * r0 + t * r1) * (w0 * u0 + w1 * u1)
