"""Costs of imagined trajectories: (z (B, N, H+1, D), a (B, N, H, A)) -> (B, N); lower is better.

z may also hold particles, (B, N, P, H+1, D): samples of an uncertain rollout, or one member of an
ensemble each. A plain cost is then averaged over the particles, and the risk costs at the end of
this module look at their spread."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from einops import rearrange, repeat
from torch import Tensor

from gjwm._core.settings import NonNegative, check
from gjwm.models.reach import Reach

Cost = Callable[[Tensor, Tensor], Tensor]
Head = Callable[[Tensor, Tensor], Tensor]  # z (..., D), a (..., A) -> (...)


class GoalCost:
    """Nearest approach to the goal plus a small share of the mean distance, both squared and
    averaged over D.

    The nearest approach alone lets a plan wander before and after; the mean alone prefers to hover
    near the start of a detour (through a door, say) instead of taking it. z may be latents, or
    positions when the true simulator is planned on.

    Args:
        goal: (B, D), or (1, D) for all envs.
        nearest: weight of min_h d_h, over h = 1..H, with d_h = |z_h - goal|^2 / D.
        mean: weight of mean_h d_h.
        final: weight of d_H.
        last: S, compare the last S latents alone, such as a model's slow ones (`slow_dim`), where
            a goal is about what they show; None: all.
    """

    def __init__(
        self,
        goal: Tensor,
        *,
        nearest: float = 1.0,
        mean: float = 0.1,
        final: float = 0.0,
        last: int | None = None,
    ):
        if goal.dim() != 2:
            raise ValueError(
                f"{type(self).__name__} expects one goal per env (B, D), got {tuple(goal.shape)}."
            )
        if last is not None and not (isinstance(last, int) and 0 < last <= goal.shape[-1]):
            raise ValueError(
                f"{type(self).__name__} compares the last 1 to {goal.shape[-1]} latents of these "
                f"goals, got last={last}."
            )
        self.goal, self.nearest, self.mean, self.final = goal, nearest, mean, final
        self.first = 0 if last is None else goal.shape[-1] - last  # of those compared

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        d = self.distance(z[..., 1:, :], self._goal_beside(z))  # (B, N, [P,] H)
        cost = self.nearest * d.amin(-1) + self.mean * d.mean(-1)
        if self.final:
            cost = cost + self.final * d[..., -1]
        return cost.mean(2) if cost.dim() == 3 else cost

    def distance(self, z: Tensor, goal: Tensor) -> Tensor:
        """z (B, N, [P,] H, D), goal broadcast against it -> (B, N, [P,] H)."""
        return (z[..., self.first :] - goal[..., self.first :]).square().mean(-1)

    def _goal_beside(self, z: Tensor) -> Tensor:
        """The goals, to be broadcast against z (B, N, [P,] H+1, D)."""
        goals, dim = self.goal.shape
        if z.dim() not in (4, 5) or goals not in (1, len(z)) or dim != z.shape[-1]:
            raise ValueError(
                f"{type(self).__name__} with goals {(goals, dim)} expects trajectories "
                f"({goals}, N, [P,] H+1, {dim}), got {tuple(z.shape)}; goals are latents of the "
                "model that plans, model.encode(goal)."
            )
        return self.goal.view(goals, *[1] * (z.dim() - 2), dim)


class ReachCost(GoalCost):
    """How hard the goal is to reach, by a fitted `gjwm.models.Reach`, on the mean over a plan, plus
    a share of `GoalCost`, which tells apart states from which the goal is reached as easily. Two
    states at random are 1 apart by reach and 2 by latents.

    Reach falls along the way round a wall, so its mean may count. Its nearest approach would trust
    the one step at which the model errs most in the plan's favour.

    Args:
        goal: latents (B, D), or (1, D) for all envs.
        reach: fitted on the latents of the same model.
        latent: weight of `GoalCost`.
    """

    def __init__(self, goal: Tensor, reach: Reach, *, latent: float = 0.1):
        super().__init__(goal)
        check("ReachCost's reach", reach, Reach)
        check("ReachCost's latent", latent, NonNegative)
        if not reach.fitted or goal.shape[-1] != reach.latent_dim:
            raise ValueError(
                f"ReachCost expects a fitted Reach and goals (B, {reach.latent_dim}), got goals "
                f"{tuple(goal.shape)}{'' if reach.fitted else ' and a Reach that is not fitted'}."
            )
        if not goal.isfinite().all():
            raise ValueError("ReachCost's goals hold NaN or infinity; check the encoder's latents.")
        self.reach, self.latent = reach, latent

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        way = self.reach.distance(z[..., 1:, :], self._goal_beside(z)).mean(-1)  # (B, N, [P])
        way = way.mean(2) if way.dim() == 3 else way
        return way + self.latent * super().__call__(z, a) if self.latent else way


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
        self.reward, self.discount = reward, discount
        self.termination, self.value = termination, value

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
            beyond = _per_step(self.value(z[..., -1, :]), z.shape[:-2], "value")
            total = total + weight[..., -1] * beyond
        return -(total.mean(2) if total.dim() == 3 else total)


def _per_step(x: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    if tuple(x.shape) != tuple(shape):
        raise ValueError(
            f"expected the {name} head to return {tuple(shape)}, got {tuple(x.shape)}."
        )
    return x


def per_particle(cost: Cost, z: Tensor, a: Tensor) -> Tensor:
    """`cost` of every particle's own trajectory: z (B, N, P, H+1, D) -> (B, N, P)."""
    if z.dim() != 5:
        raise ValueError(
            "a risk cost looks at the spread of particles (B, N, P, H+1, D), got trajectories "
            f"{tuple(z.shape)}: plan with particles=..."
        )
    p = z.shape[2]
    plans = repeat(a, "b n h a -> b (n p) h a", p=p)
    return rearrange(cost(rearrange(z, "b n p h d -> b (n p) h d"), plans), "b (n p) -> b n p", p=p)


class RiskCost:
    """mean + kappa * std of a cost over the particles. kappa > 0 avoids risk, < 0 seeks it, 0 is
    the mean.

    Args:
        cost: of one trajectory, such as `GoalCost`.
        kappa: price of one standard deviation.
    """

    def __init__(self, cost: Cost, *, kappa: float = 1.0):
        self.cost, self.kappa = cost, kappa

    @classmethod
    def to_goal(
        cls,
        goal: Tensor,
        *,
        kappa: float = 1.0,
        nearest: float = 1.0,
        mean: float = 0.1,
        final: float = 0.0,
        last: int | None = None,
    ) -> RiskCost:
        """Of a `GoalCost` with these arguments: goal (B, D)."""
        return cls(GoalCost(goal, nearest=nearest, mean=mean, final=final, last=last), kappa=kappa)

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        c = per_particle(self.cost, z, a)
        return c.mean(-1) + self.kappa * c.std(-1, correction=0) if self.kappa else c.mean(-1)


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
