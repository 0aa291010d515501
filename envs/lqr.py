"""Linear-quadratic regulators around an equilibrium of a torch-native world: the last part of a
swing-up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.linalg import solve_discrete_are
from torch import Tensor

Planes = tuple[Tensor, ...]


def lqr_gains(
    advance: Callable[[Planes, Planes], Planes],
    state: Sequence[float],
    *,
    state_cost: Sequence[float],
    action_cost: float,
    repeat: int = 1,
) -> np.ndarray:
    """Gains K of a = -K (s - state), which minimises the sum of s' Q s + R a^2 of the linearised
    world.

    Args:
        advance: one control step, as `World.advance`, with one action.
        state: X numbers at rest under the action 0.
        state_cost: the diagonal of Q, X numbers. action_cost: R.
        repeat: control steps per action.

    Returns:
        (X,) float64."""

    def stepped(joint: Tensor) -> Tensor:
        s = tuple(joint[:-1])
        for _ in range(repeat):
            s = advance(s, (joint[-1],))
        return torch.stack(s)

    at = torch.tensor([*state, 0.0], dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(stepped, at).numpy()  # (X, X+1)
    a, b = slope[:, :-1], slope[:, -1:]
    value = solve_discrete_are(a, b, np.diag(state_cost), np.array([[action_cost]]))
    return np.linalg.solve(action_cost + b.T @ value @ b, b.T @ value @ a)[0]
