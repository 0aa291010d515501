"""The planner on the true simulator, for reward: what a perfect model would earn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from gymnasium.vector import VectorEnv
from torch import Generator, Tensor

from gjwm.data.acting import Moment, as_array, make_vec
from gjwm.planning import Planner
from gjwm.planning.controller import RecedingHorizon


class RewardOracle:
    """An actor that plans on copies of the played environments, whose states it is shown, until
    `close`.

    Args:
        env_id, env_kwargs: of the environments played, which must have `get_state` and whose copies
            observe "state".
        planner: with the same number of candidates in each round the copies are made once, else
            again for each larger number.
        horizon, replan_every, generator: see `gjwm.planning.RecedingHorizon`.
        discount: g per step.

    Raises (when first called):
        ValueError: for environments without `get_state`.
    """

    def __init__(
        self,
        env_id: str,
        env_kwargs: Mapping[str, Any],
        planner: Planner,
        *,
        horizon: int = 40,
        replan_every: int = 4,
        discount: float = 0.99,
        generator: Generator | None = None,
    ):
        self.env_id, self.env_kwargs = env_id, {**env_kwargs, "obs": "state"}
        self.planner, self.discount = planner, discount
        self.options = dict(horizon=horizon, replan_every=replan_every, generator=generator)
        self.controller: RecedingHorizon | None = None
        self.copies: VectorEnv | None = None

    def act(self, o: Any, info: Moment) -> Tensor:
        envs = info.envs
        if not hasattr(envs, "get_state"):
            raise ValueError(
                f"an oracle needs environments whose states can be read and set; {self.env_id} has "
                f"no get_state."
            )
        if self.controller is None:
            action_dim = envs.single_action_space.shape[0]
            self.controller = RecedingHorizon(self.planner, action_dim=action_dim, **self.options)
        states = as_array(envs.get_state()) if self.controller.needs_plan else None
        return self.controller.act(lambda a: self._score(states, a), envs.num_envs)

    def reset(self, mask: Any = None) -> None:
        if self.controller is not None:
            self.controller.reset(mask)

    def _score(self, states: np.ndarray, a: Tensor) -> Tensor:
        """States (B, X), plans (B, N, H, A) -> minus what they earn (B, N)."""
        count, candidates = a.shape[0] * a.shape[1], a.shape[1]
        copies = self._copies(count)
        # Copies that have no candidate of their own play the last one again.
        rows = np.minimum(np.arange(copies.num_envs), count - 1)
        # A reset also sets the clock back: no copy runs into its time limit.
        copies.reset(options={"state": repeat(states, "b x -> (b n) x", n=candidates)[rows]})
        actions = rearrange(a, "b n h a -> (b n) h a").cpu().numpy()[rows]
        earned, going = np.zeros(len(rows)), np.ones(len(rows))
        for h in range(a.shape[2]):
            _, r, terminated, _, _ = copies.step(actions[:, h])
            earned += self.discount**h * going * r
            going *= ~terminated
        return -torch.from_numpy(earned[:count]).float().view(a.shape[:2])

    def _copies(self, count: int) -> VectorEnv:
        if self.copies is None or self.copies.num_envs < count:
            self.close()
            self.copies = make_vec(self.env_id, count, workers=0, **self.env_kwargs)
        return self.copies

    def close(self) -> None:
        """Let go of the copies."""
        if self.copies is not None:
            self.copies.close()
            self.copies = None
