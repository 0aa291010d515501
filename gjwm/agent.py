"""MPCAgent: encode, plan, act. The only stateful controller: it owns each env's warm start."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from gjwm.costs import Cost
from gjwm.planning import Plan, Planner, Score
from gjwm.world_model import WorldModel


class RecedingHorizon:
    """Warm starts and open-loop segments for any score function, over a batch of envs.

    Args:
        planner: see `gjwm.planning`.
        horizon: H, actions per plan.
        action_dim: A.
        replan_every: actions executed before the next plan, 1..H.
        generator: the planner's randomness.
    """

    def __init__(
        self,
        planner: Planner,
        *,
        horizon: int,
        action_dim: int,
        replan_every: int = 1,
        generator: Generator | None = None,
    ):
        if not 1 <= replan_every <= horizon:
            raise ValueError(f"expected 1 <= replan_every <= horizon, got {replan_every} and {horizon}.")
        self.planner, self.horizon, self.action_dim = planner, horizon, action_dim
        self.replan_every, self.generator = replan_every, generator
        self.plan: Plan | None = None
        self._mean: Tensor | None = None
        self._age = 0

    def reset(self, mask: Tensor | None = None) -> None:
        """Forget the warm start of all envs, or of those where mask (B,) is true (they replan at once)."""
        self._age = 0
        if mask is None or self._mean is None:
            self._mean = None
        else:
            if mask.shape != (self._mean.shape[0],):
                raise ValueError(f"expected a reset mask ({self._mean.shape[0]},), got {tuple(mask.shape)}.")
            self._mean = self._mean.masked_fill(mask.to(self._mean.device)[:, None, None], 0)

    def act(self, score: Score | None, envs: int, device: torch.device | str = "cpu") -> Tensor:
        """The next actions (B, A). `score` is called only when `needs_plan`."""
        if self._mean is None or self._mean.shape[0] != envs:
            self._mean = torch.zeros(envs, self.horizon, self.action_dim, device=device)
            self._age = 0
        if self._age % self.replan_every == 0:
            self.plan = self.planner.plan(score, self._mean, generator=self.generator)
            self._mean = self.plan.mean
            self._age = 0
        action = self._mean[:, 0]
        # Shift by one; the new last action repeats the old one, as smooth plans do.
        self._mean = torch.cat([self._mean[:, 1:], self._mean[:, -1:]], 1)
        self._age += 1
        return action

    @property
    def needs_plan(self) -> bool:
        """Whether the next `act` plans (an observation is then needed)."""
        return self._mean is None or self._age % self.replan_every == 0


class MPCAgent:
    """Plans in the latent space of a world model.

    Args:
        model: a world model in evaluation mode.
        planner: see `gjwm.planning`.
        cost: (z (B, N, H+1, D), a (B, N, H, A)) -> (B, N), such as `GoalCost(model.encode(goal))`; may be replaced at any time.
        horizon: H, actions per plan.
        replan_every: actions executed before planning again.
        generator: randomness of the planner.
        chunk: rollouts evaluated at a time. On a CPU batches that fit the cache are faster than one large one.
    """

    def __init__(
        self,
        model: WorldModel,
        planner: Planner,
        cost: Cost,
        *,
        horizon: int = 12,
        replan_every: int = 1,
        generator: Generator | None = None,
        chunk: int = 2048,
    ):
        self.model, self.cost, self.chunk = model, cost, chunk
        self.controller = RecedingHorizon(
            planner,
            horizon=horizon,
            action_dim=model.action_dim,
            replan_every=replan_every,
            generator=generator,
        )

    @property
    def plan(self) -> Plan | None:
        """The last plan made."""
        return self.controller.plan

    def reset(self, mask: Tensor | None = None) -> None:
        """Start new episodes in all envs, or where mask (B,) is true."""
        self.controller.reset(mask)

    @torch.inference_mode()
    def act(self, o: Tensor) -> Tensor:
        """Observations of B envs (B, *O) -> actions (B, A) in [-1, 1].

        Raises:
            ValueError: for another observation shape, or when the encoder returns NaN.
        """
        if not self.controller.needs_plan:
            return self.controller.act(None, o.shape[0], self.model.device)
        z0 = self.model.encode(o.to(self.model.device))
        if not z0.isfinite().all():
            raise ValueError("the encoder returned NaN or infinity for these observations; the model has diverged.")
        return self.controller.act(lambda a: self.cost(self._rollout(z0, a), a), o.shape[0], self.model.device)

    def _rollout(self, z0: Tensor, a: Tensor) -> Tensor:
        """z0 (B, D), a (B, N, H, A) -> (B, N, H+1, D), a few envs at a time."""
        envs = max(1, self.chunk // a.shape[1])
        if envs >= a.shape[0]:
            return self.model.rollout(z0, a)
        return torch.cat([self.model.rollout(z, b) for z, b in zip(z0.split(envs), a.split(envs))])
