"""What the torch-native swing-ups share: a pole that is pumped up, then held by a regulator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from scipy.linalg import solve_discrete_are
from torch import Tensor

from .common import check_choices
from .torch_world import Planes, World

GRAVITY = 9.81  # m/s^2
FASTEST = 100.0  # rad/s and m/s that a state may have


class SwingUp(World):
    """A world whose state is positions, then as many velocities, and whose goal is to stand upright
    at 0."""

    costs: ClassVar[tuple[float, ...]]  # of the regulator, one for each number of a state

    def __init__(self, *, reward: str, success_radius: float = 0.1, **common):
        super().__init__(success_radius=success_radius, **common)
        check_choices(reward=(reward, ("sparse", "smooth")))
        self.smooth = reward == "smooth"

    def goal_state_of(self, state: Planes) -> Planes:
        return (torch.zeros_like(state[0]),) * len(state)

    def vectors_of(self, state: Planes) -> Planes:
        return *self.position_of(state), *state[len(state) // 2 :]

    def shown_by(self, state: Planes) -> dict[str, Planes]:
        shown = {"position": self.position_of(state)}
        return shown | {"velocity": state[len(state) // 2 :]} if self.frame_stack > 1 else shown

    def valid(self, state: Planes) -> Tensor:
        slow = [v.abs() <= FASTEST for v in state[len(state) // 2 :]]
        return super().valid(state) & torch.stack(slow).all(0)

    @functools.cached_property
    def _gains(self) -> list[float]:
        return lqr_gains(self.advance, self.costs, self.action_repeat).tolist()

    def hold(self, state: Planes) -> Tensor:
        """The action that keeps a pole upright which is so nearly. The angle must be wrapped."""
        return -sum(gain * value for gain, value in zip(self._gains, state))


def lqr_gains(
    advance: Callable[[Planes, Planes], Planes], costs: tuple[float, ...], repeat: int
) -> np.ndarray:
    """Gains K (X,) of a = -K s, which minimise the sum of s' diag(costs) s + a^2 in the world
    linearised at 0. advance: a control step, as `World.advance`; repeat: of them per action."""

    def stepped(joint: Tensor) -> Tensor:
        s = tuple(joint[:-1])
        for _ in range(repeat):
            s = advance(s, (joint[-1],))
        return torch.stack(s)

    at = torch.zeros(len(costs) + 1, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(stepped, at).numpy()  # (X, X+1)
    a, b = slope[:, :-1], slope[:, -1:]
    value = solve_discrete_are(a, b, np.diag(costs), np.eye(1))
    return np.linalg.solve(1.0 + b.T @ value @ b, b.T @ value @ a)[0]
