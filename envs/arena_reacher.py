"""stable-worldmodel's Reacher in the terms of this package. It is dm_control's, so that nothing
but dm_control is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gjwm.envs.control_suite import ControlSuiteEnv


class ArenaReacherEnv(ControlSuiteEnv):
    """stable-worldmodel's `swm/ReacherDMControl-v0`: a pose of dm_control's reacher.

    Physics, action, state and state vector are those of `gjwm/reacher-hard-v0` with the arguments
    that its wrapper sets: two control steps to an action, the target left out of pictures. They
    are the wrapper's in every bit; starts have the same law and are other draws.

    - Success: each joint less than 0.05 rad from the goal's at any step, as its task `qpos_match`
      says: `position` is both joint angles (2,), in radians and not wrapped, `goal_distance` the
      larger difference, `success_radius` 0.05.
    - Pictures: without shadows and reflections, drawn at their size; its own are dm_control's at
      224, scaled. `renderer="faithful"` is dm_control's at their size.
    - Limit: 200 actions, where its data are collected, by uniform random actions: the behaviour
      `uniform`. It never ends by itself; the reward is that of reacher-hard.
    - Arguments: those of `ControlSuiteEnv`.

    Raises:
        ValueError, RuntimeError: as `ControlSuiteEnv`."""

    def __init__(
        self,
        *,
        action_repeat: int = 2,
        max_episode_steps: int | None = 200,
        hidden: Sequence[str] = ("target",),
        **kwargs: Any,
    ):
        super().__init__(
            domain="reacher",
            task="hard",
            action_repeat=action_repeat,
            max_episode_steps=max_episode_steps,
            hidden=hidden,
            **kwargs,
        )
        self._position_of, self.success_radius = _joints, 0.05

    def goal_distance(self, positions: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """How far positions (..., 2) are from goals (..., 2): the larger of both joints' -> (...),
        radians."""
        return np.abs(positions - goals).max(-1)

    def image_position(self, position: np.ndarray) -> None:
        """None: joint angles are no place in the picture."""
        return None


def _joints(model: Any, qpos: np.ndarray) -> np.ndarray:
    return qpos
