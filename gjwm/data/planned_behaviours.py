"""Behaviours that plan with a trained world model: for reward, goals, or its ensemble's doubts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator

from gjwm._core import draws
from gjwm.data.acting import Actor, FunctionActor, Moment, as_array
from gjwm.models.world_model import WorldModel
from gjwm.planning import ICEM
from gjwm.planning.agent import MPCAgent, reward_agent
from gjwm.planning.costs import DisagreementCost, GoalCost, SumCost

OBJECTIVES = ("auto", "reward", "goal")


@dataclass(frozen=True, kw_only=True)
class _Planning:
    """What the behaviours here share: iCEM in the latent space of a trained run, one agent per env.

    Args:
        run: folder of `gjwm train`, or its checkpoint.
        horizon, replan_every: steps planned, and executed before planning again.
        samples, elites, iterations: of iCEM.
        noise: standard deviation of Gaussian noise added to each action.
    """

    run: str
    horizon: int = 12
    replan_every: int = 3
    samples: int = 64
    elites: int = 8
    iterations: int = 3
    noise: float = 0.1

    def start(self, length: int, action_dim: int, rngs: Sequence[np.random.Generator]) -> Actor:
        path = Path(self.run)
        model = WorldModel.load(path / "checkpoint.pt" if path.is_dir() else path)
        if model.action_dim != action_dim:
            raise ValueError(
                f"{self.run} was trained with {model.action_dim} actions, the env has {action_dim}."
            )
        # An agent of its own for each env: planned as one batch, an episode's actions would depend
        # on its company.
        players = [self._player(model, rng) for rng in rngs]

        def act(o: Any, info: Moment) -> np.ndarray:
            o = as_array(self._seen(model, info.envs, o))
            actions = np.concatenate(
                [as_array(player.act(o[i : i + 1], info)) for i, player in enumerate(players)]
            )
            noise = np.stack([self.noise * rng.standard_normal(action_dim) for rng in rngs])
            return (actions + noise).clip(-1, 1).astype(np.float32)

        return FunctionActor(act)

    def _player(self, model: WorldModel, rng: np.random.Generator) -> Actor:
        """Who acts in one episode, on observations (1, *O)."""
        raise NotImplementedError

    def _plans(self, rng: np.random.Generator) -> dict[str, Any]:
        """How an agent plans."""
        return dict(
            planner=ICEM(samples=self.samples, elites=self.elites, iterations=self.iterations),
            horizon=self.horizon,
            replan_every=self.replan_every,
            generator=_generator(rng),
        )

    def _seen(self, model: WorldModel, env: Any, o: Any) -> Any:
        """What the model was trained on (N, *O), of what the env shows or, of states, hides."""
        wanted = model.encoder.observation_shape
        shown = o if isinstance(o, Mapping) else {"the observation": o}
        for value in shown.values():
            if tuple(value.shape[1:]) == wanted:
                return value
        # a player of states makes data of pixels
        if len(wanted) == 1 and hasattr(env.unwrapped, "state_vector"):
            state = env.unwrapped.state_vector()[None]
            if state.shape[1:] == wanted:
                return state
        sizes = ", ".join(f"{name} {tuple(value.shape[1:])}" for name, value in shown.items())
        raise ValueError(
            f"{self.run} was trained on observations {wanted} and the env gives {sizes}; set "
            "obs=pixels or obs=state, as in training."
        )


@dataclass(frozen=True, kw_only=True)
class Planned(_Planning):
    """The planner itself: it maximises predicted reward, or heads for one goal after another.

    Goals are latents drawn from N(0, I), the law that training gives the encoded data: any state is
    as likely a goal as it is in the data.

    Args:
        objective: "reward" (the run needs a reward head), "goal", or "auto": reward where there is
            a head for it. A run of `gjwm online` also has values and a policy, which its plans use:
            a horizon of 4 is then enough.
        discount: of the reward, per step.
        goal_steps: steps until the next goal.
    """

    objective: str = "auto"
    discount: float = 0.99
    goal_steps: int = 25

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}."
            )

    def _player(self, model: WorldModel, rng: np.random.Generator) -> Actor:
        rewarded = "reward" in model.heads
        if self.objective == "reward" and not rewarded:
            raise ValueError(
                f"{self.run} has no reward head; train it with heads=[reward], or set "
                f"objective=goal."
            )
        if rewarded and self.objective != "goal":
            return reward_agent(model, discount=self.discount, **self._plans(rng))
        goals = _generator(rng)
        nowhere = GoalCost(torch.zeros(1, model.latent_dim, device=model.device))
        agent = MPCAgent(model, cost=nowhere, **self._plans(rng))

        def act(o: Any, info: Moment) -> torch.Tensor:
            if info.step % self.goal_steps == 0:
                goal = draws.normal((1, model.latent_dim), goals, device=model.device)
                agent.cost = GoalCost(goal)
                agent.reset()
            return agent.act(o, info)

        return FunctionActor(act)


@dataclass(frozen=True, kw_only=True)
class Curious(_Planning):
    """Seeks what the model cannot predict yet: plans that maximise the disagreement of an ensemble
    (Sekar et al., 2020).

    Raises (when an episode begins):
        ValueError: when the run's dynamics are no ensemble.
    """

    def _player(self, model: WorldModel, rng: np.random.Generator) -> Actor:
        if model.dynamics.members < 2:
            raise ValueError(
                f"curiosity needs an ensemble whose members can disagree and {self.run} has "
                f"{type(model.dynamics).__name__}; train it with dynamics=ensemble."
            )
        curiosity = SumCost({"disagreement": (-1.0, DisagreementCost())})
        return MPCAgent(model, cost=curiosity, **self._plans(rng))


def _generator(rng: np.random.Generator) -> Generator:
    return Generator().manual_seed(int(rng.integers(2**62)))
