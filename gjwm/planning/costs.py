"""Costs of imagined trajectories: (z (B, N, H+1, D), a (B, N, H, A)) -> (B, N); lower is better.

z may also hold particles, (B, N, P, H+1, D): samples of an uncertain rollout, or one member of an
ensemble each. A plain cost is then averaged over the particles, and the risk costs at the end of
this module look at their spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Cost = Callable[[Tensor, Tensor], Tensor]
Head = Callable[[Tensor, Tensor], Tensor]  # z (..., D), a (..., A) -> (...)


# --  ----------------------------------------------------------------------------------------------
# goals


class GoalCost:
    """Nearest approach to the goal plus a small share of the mean distance, both squared and
    averaged over D.

    The nearest approach alone lets a plan wander before and after; the mean alone prefers to hover
    near the start of a detour (through a door, say) instead of taking it. z may be latents, or
    positions when the true simulator is planned on.

    Args:
        goal: (B, D).
        nearest: weight of min_h d_h, over h = 1..H, with d_h = |z_h - goal|^2 / D.
        mean: weight of mean_h d_h.
        final: weight of d_H.
    """

    def __init__(
        self, goal: Tensor, *, nearest: float = 1.0, mean: float = 0.1, final: float = 0.0
    ):
        if goal.dim() != 2:
            raise ValueError(
                f"{type(self).__name__} expects one goal per env (B, D), got {tuple(goal.shape)}."
            )
        self.goal, self.nearest, self.mean, self.final = goal, nearest, mean, final

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        if z.dim() not in (4, 5) or (z.shape[0], z.shape[-1]) != tuple(self.goal.shape):
            raise ValueError(
                f"{type(self).__name__} with goals {tuple(self.goal.shape)} expects trajectories "
                f"({self.goal.shape[0]}, N, [P,] H+1, {self.goal.shape[1]}), got {tuple(z.shape)}."
            )
        # (B, N, [P,] H)
        d = self.distance(z[..., 1:, :], self.goal.view(len(z), *[1] * (z.dim() - 2), -1))
        cost = self.nearest * d.amin(-1) + self.mean * d.mean(-1)
        if self.final:
            cost = cost + self.final * d[..., -1]
        return cost.mean(2) if cost.dim() == 3 else cost

    def distance(self, z: Tensor, goal: Tensor) -> Tensor:
        """z (B, N, [P,] H, D), goal broadcast against it -> (B, N, [P,] H), or (B, N, H) where
        particles are joined.
        """
        return (z - goal).square().mean(-1)


class SaturatingGoalCost(GoalCost):
    """`GoalCost` with d = 1 - exp(-|z - goal|^2 / (2 width^2)), as in PILCO (Deisenroth &
    Rasmussen, 2011): there or not.

    Beyond a few widths all misses are alike, so an outcome that ends stuck near the goal is as bad
    as one that never left. Far
    from the goal it leads nowhere: add a `GoalCost` to guide the search.

    Args:
        width: distance at which the cost is 0.39, in the units of z.
        **weights: nearest, mean, final of `GoalCost`.
    """

    def __init__(self, goal: Tensor, *, width: float, **weights: float):
        super().__init__(goal, **weights)
        if not width > 0:
            raise ValueError(f"SaturatingGoalCost expects width > 0, got {width}.")
        self.width = width

    def distance(self, z: Tensor, goal: Tensor) -> Tensor:
        return 1 - torch.exp(-0.5 * (z - goal).square().sum(-1) / self.width**2)


class CosineGoalCost(GoalCost):
    """`GoalCost` with d = 1 - cos(z, goal): direction only, for encoders whose norm carries
    nothing.
    """

    def distance(self, z: Tensor, goal: Tensor) -> Tensor:
        return 1 - torch.cosine_similarity(z, goal, dim=-1)


class ExpectedGoalCost(GoalCost):
    """`GoalCost` with d = E|z - goal|^2 / D = (|E z - goal|^2 + tr Var z) / D over the particles.

    Variance counts at each step before the nearest one is taken: a step that is near the goal on
    average, and nowhere near it for sure, is no approach."""

    def distance(self, z: Tensor, goal: Tensor) -> Tensor:
        d = (z - goal).square().mean(-1)
        return d.mean(2) if d.dim() == 4 else d


class MahalanobisGoalCost(GoalCost):
    """`GoalCost` with d = mean_D [(mu - goal)^2 / v + log v]: minus twice the log-density of the
    goal, up to a constant.

    Without the log-determinant a plan could buy nearness with uncertainty.

    Args:
        variance: (D,) or (B, D), known; None: the particles' own, per step, with a floor of
            `min_variance`.
        **goal: see `GoalCost`.
    """

    def __init__(
        self,
        goal: Tensor,
        *,
        variance: Tensor | None = None,
        min_variance: float = 1e-4,
        **weights: float,
    ):
        super().__init__(goal, **weights)
        if variance is not None and not (variance > 0).all():
            raise ValueError("MahalanobisGoalCost expects variances above 0.")
        self.variance, self.min_variance = variance, min_variance

    def distance(self, z: Tensor, goal: Tensor) -> Tensor:
        if self.variance is not None:
            known = self.variance.expand_as(self.goal)
            v = known.view(len(z), *[1] * (z.dim() - 2), -1)
            return ((z - goal).square() / v + v.log()).mean(-1)
        if z.dim() != 5 or z.shape[2] < 2:
            raise ValueError(
                "MahalanobisGoalCost without a variance needs at least two particles to estimate "
                f"it from, got trajectories {tuple(z.shape)}: plan with particles=..., or pass "
                "variance."
            )
        mu, v = z.mean(2), z.var(2).clamp(min=self.min_variance)
        return ((mu - goal.squeeze(2)).square() / v + v.log()).mean(-1)


# --  ----------------------------------------------------------------------------------------------
# reward


class RewardCost:
    """Minus the predicted discounted return: -(sum_h g^h s_h r(z_h, a_h) + g^H s_H V(z_H)), h =
    0..H-1.

    s_h = prod_{k < h} (1 - p(z_k, a_k)) is the probability that the episode still goes on at step h
    (s_0 = 1).

    Args:
        reward: head (z (..., D), a (..., A)) -> (...), of the step that leaves z by a.
        discount: g per step, in (0, 1].
        termination: head (z (..., D), a (..., A)) -> (...), probability that the episode ends on
            that step; None: nothing ends.
        value: (z (..., D)) -> (...) return beyond the horizon; None: 0.
    """

    def __init__(
        self,
        reward: Head,
        *,
        discount: float = 0.99,
        termination: Head | None = None,
        value: Callable[[Tensor], Tensor] | None = None,
    ):
        if not 0 < discount <= 1:
            raise ValueError(f"RewardCost expects 0 < discount <= 1, got {discount}.")
        self.reward, self.discount, self.termination, self.value = (
            reward,
            discount,
            termination,
            value,
        )

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        if z.dim() == 5:
            a = a[:, :, None].expand(*z.shape[:3], *a.shape[2:])
        horizon = a.shape[-2]
        r = _per_step(self.reward(z[..., :-1, :], a), (*z.shape[:-2], horizon), "reward")
        weight = self.discount ** torch.arange(horizon + 1, device=z.device, dtype=z.dtype)
        if self.termination is not None:
            going = 1 - _per_step(self.termination(z[..., :-1, :], a), r.shape, "termination")
            going = torch.cat([torch.ones_like(going[..., :1]), going], -1).cumprod(-1)
            weight = weight * going
        total = (weight[..., :-1] * r).sum(-1)
        if self.value is not None:
            total = total + weight[..., -1] * _per_step(
                self.value(z[..., -1, :]), z.shape[:-2], "value"
            )
        return -(total.mean(2) if total.dim() == 3 else total)


def _per_step(x: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    if tuple(x.shape) != tuple(shape):
        raise ValueError(
            f"expected the {name} head to return {tuple(shape)}, got {tuple(x.shape)}."
        )
    return x


# --  ----------------------------------------------------------------------------------------------
# actions


class SmoothnessCost:
    """mean_h |a_{h+1} - a_h|^2 / A: the change between consecutive actions."""

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        if a.shape[-2] < 2:
            return a.new_zeros(a.shape[:2])
        return a.diff(dim=-2).square().mean((-2, -1))


class EffortCost:
    """mean_h |a_h|^2 / A."""

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        return a.square().mean((-2, -1))


# --  ----------------------------------------------------------------------------------------------
# risk


def _per_particle(cost: Cost, z: Tensor, a: Tensor) -> Tensor:
    """`cost` of every particle's own trajectory: z (B, N, P, H+1, D) -> (B, N, P)."""
    if z.dim() != 5:
        raise ValueError(
            "a risk cost looks at the spread of particles (B, N, P, H+1, D), got trajectories "
            f"{tuple(z.shape)}: plan with particles=..."
        )
    particles = z.shape[2]
    spread = a[:, :, None].expand(-1, -1, particles, -1, -1).flatten(1, 2)
    return cost(z.flatten(1, 2), spread).unflatten(1, (-1, particles))


class RiskCost:
    """mean + kappa * std of a cost over the particles. kappa > 0 avoids risk, < 0 seeks it, 0 is
    the mean.

    Args:
        cost: of one trajectory, such as `GoalCost`.
        kappa: price of one standard deviation.
    """

    def __init__(self, cost: Cost, *, kappa: float = 1.0):
        self.cost, self.kappa = cost, kappa

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        c = _per_particle(self.cost, z, a)
        return c.mean(-1) + self.kappa * c.std(-1, correction=0) if self.kappa else c.mean(-1)


class CVaRCost:
    """Conditional value at risk: the mean of the worst share of the particles' costs.

    Args:
        cost: of one trajectory, such as `GoalCost`.
        alpha: the share, in (0, 1]; 1 is the mean. At least one particle counts.
    """

    def __init__(self, cost: Cost, *, alpha: float = 0.25):
        if not 0 < alpha <= 1:
            raise ValueError(f"CVaRCost expects 0 < alpha <= 1, got {alpha}.")
        self.cost, self.alpha = cost, alpha

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        c = _per_particle(self.cost, z, a)
        return c.topk(math.ceil(self.alpha * c.shape[-1]), dim=-1).values.mean(-1)


class DisagreementCost:
    """Variance between particles, averaged over steps and dimensions: with one ensemble member per
    particle its disagreement.

    As a cost it keeps plans where the model knows; with a negative weight in `SumCost` it is
    curiosity."""

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        if z.dim() != 5 or z.shape[2] < 2:
            raise ValueError(
                f"DisagreementCost needs two or more particles (B, N, P, H+1, D), got "
                f"{tuple(z.shape)}."
            )
        return z[..., 1:, :].var(2, correction=0).mean((-2, -1))


class ShellCost:
    """How far a plan leaves the data: latents of N(0, I) lie on a shell, |z| = sqrt(D - 1/2) with
    std sqrt(1/2).

    mean_h max(0, |deviation in standard deviations| - tolerance)^2. A mean rollout under
    uncertainty shrinks towards the origin by right, so only the outside counts unless `inside` is
    set.

    Args:
        tolerance: free standard deviations.
        inside: also penalise norms that are too small.
    """

    def __init__(self, *, tolerance: float = 2.0, inside: bool = False):
        if tolerance < 0:
            raise ValueError(f"ShellCost expects tolerance >= 0, got {tolerance}.")
        self.tolerance, self.inside = tolerance, inside

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        radius = math.sqrt(z.shape[-1] - 0.5)
        deviation = (z[..., 1:, :].norm(dim=-1) - radius) * math.sqrt(2)
        if self.inside:
            deviation = deviation.abs()
        cost = (deviation - self.tolerance).clamp(min=0).square().mean(-1)
        return cost.mean(2) if cost.dim() == 3 else cost


# --  ----------------------------------------------------------------------------------------------
# sum


class SumCost:
    """Weighted sum of named costs; `terms` gives each apart, weighted, for the log.

    Args:
        terms: name -> cost, or name -> (weight, cost).
    """

    def __init__(self, terms: Mapping[str, Cost | tuple[float, Cost]]):
        if not terms:
            raise ValueError("SumCost expects at least one term.")
        self._terms = {
            name: term if isinstance(term, tuple) else (1.0, term) for name, term in terms.items()
        }

    def terms(self, z: Tensor, a: Tensor) -> dict[str, Tensor]:
        """Every term by name, (B, N) each; they sum to the cost."""
        return {name: weight * cost(z, a) for name, (weight, cost) in self._terms.items()}

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        return sum(self.terms(z, a).values())
