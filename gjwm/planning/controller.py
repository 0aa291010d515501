"""From plans to actions: warm starts and open-loop segments, for a planner over any score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Generator, Tensor

from gjwm.planning.search import Plan, Planner, Score


class RecedingHorizon:
    """Warm starts and open-loop segments for any score function, over a batch of envs.

    The rest of the last plan, shifted by the actions executed, is the next warm start and competes
    as it is. With a planner of action blocks (`repeat` > 1) that holds only if `replan_every` is a
    multiple of `repeat`: otherwise the shifted plan changes within blocks, is averaged over them,
    and the new plan may cost more than the old one's rest.

    Args:
        planner: see `gjwm.planning`.
        horizon: H, actions per plan.
        action_dim: A.
        replan_every: actions executed before the next plan, 1..H.
        generator: the planner's randomness.
        reuse: share of the last plan's elites that compete, shifted in time, in the next one
            (iCEM's 0.3; planners of `gjwm.planning` only).
    """

    def __init__(
        self,
        planner: Planner,
        *,
        horizon: int,
        action_dim: int,
        replan_every: int = 1,
        generator: Generator | None = None,
        reuse: float = 0.0,
    ):
        if horizon < 1 or action_dim < 1:
            raise ValueError(
                f"planning needs horizon >= 1 and action_dim >= 1, got {horizon} and {action_dim}."
            )
        if not 1 <= replan_every <= horizon:
            raise ValueError(
                f"expected 1 <= replan_every <= horizon, got {replan_every} and {horizon}."
            )
        if not 0 <= reuse <= 1:
            raise ValueError(f"expected 0 <= reuse <= 1, got {reuse}.")
        self.planner, self.horizon, self.action_dim = planner, horizon, action_dim
        self.replan_every, self.generator, self.reuse = replan_every, generator, reuse
        self.plan: Plan | None = None
        self._mean: Tensor | None = None
        self._runners_up: Tensor | None = None  # (B, K, H, A) elites, shifted along with the mean
        self._age = 0

    def reset(self, mask: ArrayLike | None = None) -> None:
        """Forget the warm start of all envs, or of those where mask (B,), true or 1, says so.

        Envs are planned as one batch, so that the next `act` replans all of them: open-loop
        segments of the others end early and they keep their warm starts. An all-false mask changes
        nothing.

        Raises:
            ValueError: for a mask of another shape or with other values than true, false, 1 and 0.
        """
        if mask is not None:
            mask = torch.as_tensor(mask)
            if self._mean is not None and mask.shape != self._mean.shape[:1]:
                raise ValueError(
                    f"expected a reset mask ({self._mean.shape[0]},), got {tuple(mask.shape)}."
                )
            if not ((mask == 0) | (mask == 1)).all():
                raise ValueError(
                    f"a reset mask holds true or false for each env, got {mask.tolist()}."
                )
            if not mask.any():
                return
        self._age = 0
        if mask is None or self._mean is None:
            self._mean = self._runners_up = None
        else:
            mask = mask.bool().to(self._mean.device)
            self._mean = self._mean.masked_fill(mask[:, None, None], 0)
            if self._runners_up is not None:
                self._runners_up = self._runners_up.masked_fill(mask[:, None, None, None], 0)

    def act(
        self,
        score: Score | None,
        envs: int,
        device: torch.device | str = "cpu",
        proposals: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """The next actions (B, A). `score`, and `proposals` -> (B, P, H, A), are called only when
        `needs_plan`.
        """
        if self._mean is None or len(self._mean) != envs:
            self._mean = torch.zeros(envs, self.horizon, self.action_dim, device=device)
            self._runners_up, self._age = None, 0
        if self.needs_plan:
            offers = [] if proposals is None else [proposals()]
            if self._runners_up is not None:
                offers.append(self._runners_up)
            extra = {"proposals": torch.cat(offers, 1)} if offers else {}
            self.plan = self.planner.plan(score, self._mean, generator=self.generator, **extra)
            self._mean, elites = self.plan.mean, self.plan.elites
            reused = self.reuse and elites is not None
            self._runners_up = elites[:, : round(self.reuse * elites.shape[1])] if reused else None
            self._age = 0
        action = self._mean[:, 0].clone()  # the caller's to change: `plan` keeps its own
        self._mean = _shifted(self._mean)
        if self._runners_up is not None:
            self._runners_up = _shifted(self._runners_up)
        self._age += 1
        return action

    def state_dict(self) -> dict[str, Any]:
        """What the next plan starts from; `plan`, the last one's account, is not part of it."""
        return {"mean": self._mean, "runners_up": self._runners_up, "age": self._age}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._mean, self._runners_up, self._age = state["mean"], state["runners_up"], state["age"]

    @property
    def needs_plan(self) -> bool:
        """Whether the next `act` plans (an observation is then needed)."""
        return self._mean is None or self._age % self.replan_every == 0


def _shifted(plans: Tensor) -> Tensor:
    """Plans (..., H, A) one step on; the new last action repeats the old one."""
    return torch.cat([plans[..., 1:, :], plans[..., -1:, :]], -2)
