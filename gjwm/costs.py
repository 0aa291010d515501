"""Costs of imagined trajectories: (z (B, N, H+1, D), a (B, N, H, A)) -> (B, N); lower is better."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Cost = Callable[[Tensor, Tensor], Tensor]


class GoalCost:
    """Nearest approach to the goal plus a small share of the mean distance, both squared and averaged over D.

    The nearest approach alone lets a plan wander before and after; the mean alone prefers to hover near the start of a detour
    (through a door, say) instead of taking it. z may be latents, or positions when the true simulator is planned on.

    Args:
        goal: (B, D).
        nearest: weight of min_h |z_h - goal|^2 / D, over h = 1..H.
        mean: weight of mean_h |z_h - goal|^2 / D.
    """

    def __init__(self, goal: Tensor, *, nearest: float = 1.0, mean: float = 0.1):
        if goal.dim() != 2:
            raise ValueError(f"GoalCost expects one goal per env (B, D), got {tuple(goal.shape)}.")
        self.goal, self.nearest, self.mean = goal, nearest, mean

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        if z.dim() != 4 or (z.shape[0], z.shape[-1]) != tuple(self.goal.shape):
            raise ValueError(
                f"GoalCost with goals {tuple(self.goal.shape)} expects trajectories "
                f"({self.goal.shape[0]}, N, H+1, {self.goal.shape[1]}), got {tuple(z.shape)}."
            )
        squared = (z[:, :, 1:] - self.goal[:, None, None]).square().mean(-1)  # (B, N, H)
        return self.nearest * squared.amin(-1) + self.mean * squared.mean(-1)
