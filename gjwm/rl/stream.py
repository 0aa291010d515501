"""Environments that a learner acts in, and how to come back to one moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from gjwm.data.acting import Transition, advance, make_vec, shows_pictures


class Stream:
    """N lanes of an environment, with the moment they are at as something that can be kept and come
    back to.

    All lanes start anew with fresh seeds whenever their episodes end on the same step, as those of
    tasks of one length always do. The actions since then are remembered, and `load_state_dict`
    takes them again: a simulator's future depends on more than it shows. Where episodes end on
    their own those may be all actions of the run. What follows the death of a worker process cannot
    be come back to exactly.

    Args:
        env_id, env_kwargs: see `gjwm.envs.vector.make_vec`; observations must be one array.
        lanes: N.
        seed: of all episodes.
        workers: see `make_vec`.

    `overlaps` says whether `step` may be called from another thread than the one that made the
    stream.

    Raises:
        ValueError: for observations that are no single array, and for discrete actions.
    """

    def __init__(
        self,
        env_id: str,
        env_kwargs: Mapping[str, Any],
        *,
        lanes: int,
        seed: int,
        workers: int | None = None,
    ):
        self.envs = make_vec(env_id, lanes, workers=workers, **env_kwargs)
        self.observation_space = self.envs.single_observation_space
        self.action_space = self.envs.single_action_space
        unfit = ""
        if self.observation_space.shape is None:
            unfit = (
                f"a learner acts on one array of observations and {env_id} gives "
                f"{self.observation_space}; set obs=state or obs=pixels."
            )
        elif getattr(self.envs, "action_groups", ()):
            unfit = (
                f"{env_id} has discrete actions, and values and policy are for actions in [-1, 1]."
            )
        if unfit:
            self.envs.close()
            raise ValueError(unfit)
        self.lanes, self.seed = lanes, seed
        self.earned: list[float] = []  # returns of the episodes that ended on the last step
        # An OpenGL context belongs to the thread that made it.
        self.overlaps = bool(getattr(self.envs, "workers", 0)) or not shows_pictures(
            self.observation_space
        )
        self._rounds = -1
        self._begin()

    def _begin(self) -> None:
        self._rounds += 1
        seeds = np.random.SeedSequence([self.seed, self._rounds]).generate_state(self.lanes) >> 1
        self.observation, _ = self.envs.reset(seed=[int(s) for s in seeds])
        self._actions: list[np.ndarray] = []
        self._returns = np.zeros(self.lanes)

    def step(self, a: np.ndarray) -> Transition:
        """Actions (N, A) -> what happened; `observation` and `earned` then say what came of it."""
        a = np.array(a, np.float32)
        self._actions.append(a)
        seen = advance(self.envs, self.observation, a)
        self._returns += seen.r
        self.earned = self._returns[seen.ended & seen.valid].tolist()
        self._returns[seen.ended] = 0
        self.observation = seen.following
        if seen.ended.all():
            self._begin()
        return seen

    def state_dict(self) -> dict[str, Any]:
        """The seeds' place, and the actions since they were set (T, N, A)."""
        a = np.array(self._actions, np.float32).reshape(-1, *self.envs.action_space.shape)
        return {"rounds": self._rounds, "actions": torch.from_numpy(a)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Come back to the moment of `state_dict`."""
        self._rounds = state["rounds"] - 1
        self._begin()
        for a in state["actions"].numpy():
            self.step(a)

    def close(self) -> None:
        """Free the environments."""
        self.envs.close()
