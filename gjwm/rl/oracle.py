"""The planner on the true simulator, for reward: what it could earn if its model were perfect and
its horizon all it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Generator, Tensor

from gjwm.envs.vector import make_vec
from gjwm.planning import Planner
from gjwm.planning.controller import RecedingHorizon
from gjwm.rl.returns import Act


@contextmanager
def simulator_actor(
    env_id: str,
    env_kwargs: Mapping[str, Any],
    planner: Planner,
    *,
    horizon: int = 40,
    replan_every: int = 4,
    discount: float = 0.99,
    generator: Generator | None = None,
) -> Iterator[Act]:
    """For `play_returns`: plans on copies of the played environments, whose states it is shown;
    they close with the block.

    Args:
        env_id, env_kwargs: of the environments played, which must have `get_state` and whose copies
            observe "state".
        planner: with the same number of candidates in each round the copies are made once, else
            again for each larger number.
        horizon, replan_every, generator: see `gjwm.planning.agent.RecedingHorizon`.
        discount: g per step.

    Raises (when first called):
        ValueError: for environments without `get_state`.
    """
    controller: RecedingHorizon | None = None
    copies: VectorEnv | None = None

    def act(o: np.ndarray, envs: VectorEnv) -> np.ndarray:
        nonlocal controller
        if not hasattr(envs, "get_state"):
            raise ValueError(
                f"an oracle needs environments whose states can be read and set; {env_id} has no "
                f"get_state."
            )
        if controller is None:
            controller = RecedingHorizon(
                planner,
                horizon=horizon,
                action_dim=envs.single_action_space.shape[0],
                replan_every=replan_every,
                generator=generator,
            )
        states = np.asarray(envs.get_state()) if controller.needs_plan else None

        def score(a: Tensor) -> Tensor:
            nonlocal copies
            count = a.shape[0] * a.shape[1]
            if copies is None or copies.num_envs < count:
                if copies is not None:
                    copies.close()
                copies = make_vec(env_id, count, workers=0, **{**env_kwargs, "obs": "state"})
            # Copies that have no candidate of their own play the last one again.
            rows = np.minimum(np.arange(copies.num_envs), count - 1)
            # A reset also sets the clock back: no copy runs into its time limit.
            copies.reset(options={"state": np.repeat(states, a.shape[1], 0)[rows]})
            actions = a.flatten(0, 1).cpu().numpy()[rows]
            earned, going = np.zeros(len(rows)), np.ones(len(rows))
            for h in range(a.shape[2]):
                _, r, terminated, _, _ = copies.step(actions[:, h])
                earned += discount**h * going * r
                going *= ~terminated
            return -torch.from_numpy(earned[:count]).float().view(a.shape[:2])

        return controller.act(score, len(o)).numpy()

    try:
        yield act
    finally:
        if copies is not None:
            copies.close()
