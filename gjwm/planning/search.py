"""What all planners share: the plan they return, checks of what comes in, and the bookkeeping of
one search.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """What a planner returns, for B independent problems. It unpacks as `mean, std, cost`.

    mean: (B, H, A) the plan to execute.
    std: (B, H, A) spread of the final sampling distribution.
    cost: (B,) the plan's score.
    elites: (B, K, H, A) the runners-up, best first, for whoever wants to offer them to the next
    plan; None if not kept.
    evaluations: candidates scored per problem.
    """

    mean: Tensor
    std: Tensor
    cost: Tensor
    elites: Tensor | None = None
    evaluations: int = 0

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.mean, self.std, self.cost))


class Planner(Protocol):
    """Anything that searches action sequences; it keeps no state between calls.

    The planners of this package also take `proposals` (B, P, H, A): plans that compete in the first
    round, such as a policy's."""

    def plan(self, score: Score, mean: Tensor, generator: Generator | None = None) -> Plan:
        """Search around mean (B, H, A) for the actions of least `score`."""
        ...


def check_warm_start(mean: Tensor) -> None:
    """Raise unless `mean` is a finite plan (B, H, A) of float32 or float64."""
    if mean.dim() != 3 or 0 in mean.shape:
        raise ValueError(
            f"a planner expects a warm start mean (B, H, A), got shape {tuple(mean.shape)}."
        )
    if mean.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"a planner expects a warm start of float32 or float64, got {mean.dtype}: use "
            f"mean.float()."
        )
    if not mean.isfinite().all():
        raise ValueError("a planner's warm start holds NaN or infinity; reset it to zeros.")


class Clock:
    """Says when another round would overrun a time budget, judging by the slowest round so far.

    Args:
        budget_ms: None never stops.
    """

    def __init__(self, budget_ms: float | None):
        self.budget = None if budget_ms is None else budget_ms / 1e3
        self.start = self.last = time.perf_counter()
        self.slowest = 0.0

    def another_round(self) -> bool:
        """Call between rounds: whether the next one is expected to end in time."""
        if self.budget is None:
            return True
        now = time.perf_counter()
        self.slowest, self.last = max(self.slowest, now - self.last), now
        return now - self.start + self.slowest <= self.budget


class Judge:
    """Calls the score and drops what it cannot rank: a NaN cost is read as infinitely bad, and told
    once per plan.
    """

    def __init__(self, score: Score):
        self.score, self.evaluations, self._told = score, 0, False

    def __call__(self, candidates: Tensor, known: Tensor | None = None) -> Tensor:
        """candidates (B, N, H, A) -> cost (B, N), never NaN.

        Args:
            known: (B,) whether a finite plan is already known; None: in no problem.

        Raises:
            ValueError: when the score has another shape, or is NaN or infinite for every candidate
                of some problem of which no finite plan is known.
        """
        cost = self.score(candidates)
        if not isinstance(cost, Tensor) or cost.shape != candidates.shape[:2]:
            came = tuple(cost.shape) if isinstance(cost, Tensor) else type(cost).__name__
            raise ValueError(
                f"expected score to return (B, N) = {tuple(candidates.shape[:2])}, got {came}."
            )
        self.evaluations += candidates.shape[1]
        finite = cost.isfinite()
        if not finite.all():
            useful = finite.any(1) if known is None else finite.any(1) | known
            if not useful.all():
                raise ValueError(
                    "every candidate's cost is NaN or infinite: check the model's latents for "
                    "divergence."
                )
            if not self._told and cost.isnan().any():
                self._told = True
                warnings.warn(
                    "the score is NaN for some candidates; they are dropped from the plan.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            cost = torch.where(finite, cost, torch.inf)
        return cost


class BoxPlanner:
    """Base of planners over bounded, continuous actions.

    They search *knots* in the unit box: K = ceil(H / repeat) actions, each held for `repeat` steps,
    scaled to the bounds when they are scored. A subclass implements `search(judge, knots,
    proposals, generator, clock)`, which returns the same things as a `Plan`, in knots.

    Args:
        low, high: bounds of the actions, a number or one per action dimension.
        repeat: steps for which each planned action is held (action blocks). A warm start is
            averaged over each block, so that it competes unchanged only if it is constant in these
            blocks.
        budget_ms: stop before the round that would overrun this wall time; the best plan so far is
            returned. One round is always made. None: no limit.
    """

    differentiates = False  # whether the score has to be differentiable in its actions

    def __init__(
        self,
        *,
        low: float | Sequence[float] = -1.0,
        high: float | Sequence[float] = 1.0,
        repeat: int = 1,
        budget_ms: float | None = None,
    ):
        # Constants made in inference mode, such as those of a planner built within it, could not be
        # differentiated through.
        with torch.inference_mode(False), torch.no_grad():
            lows, highs = (
                torch.as_tensor(x, dtype=torch.float32).reshape(-1).clone() for x in (low, high)
            )
        sizes = {len(lows), len(highs)} - {1}
        if not (lows.isfinite().all() and highs.isfinite().all()):
            raise ValueError(
                f"a planner searches within finite bounds, got low={low} and high={high}: give the "
                f"action range."
            )
        if len(sizes) > 1 or not (lows < highs).all():
            raise ValueError(
                f"a planner expects bounds low < high for every action, got low={low} and "
                f"high={high}."
            )
        if repeat < 1:
            raise ValueError(f"a planner expects repeat >= 1, got {repeat}.")
        if budget_ms is not None and not budget_ms > 0:
            raise ValueError(f"budget_ms must be above 0, or None for no limit, got {budget_ms}.")
        self.low, self.high, self.repeat, self.budget_ms = low, high, repeat, budget_ms
        with torch.inference_mode(False):
            self._centre, self._half = (lows + highs) / 2, (highs - lows) / 2
        self._unit = bool((self._centre == 0).all() and (self._half == 1).all())

    def plan(
        self,
        score: Score,
        mean: Tensor,
        generator: Generator | None = None,
        *,
        proposals: Tensor | None = None,
    ) -> Plan:
        """Minimise `score` from the warm start `mean` (B, H, A) -> Plan, none of whose tensors
        require grad.

        Args:
            score: (B, N, H, A) -> (B, N); called under `torch.no_grad`, but for the steps of
                planners that differentiate.
            generator: of the candidates' noise.
            proposals: (B, P, H, A) plans that compete in the first round.

        Raises:
            ValueError: for a warm start that is no finite (B, H, A) of float32 or float64, or has
                another number of actions than the bounds, for proposals of another shape, and for a
                score that returns another shape or nothing finite.
        """
        clock = Clock(self.budget_ms)
        check_warm_start(mean)
        envs, horizon, action_dim = mean.shape
        if len(self._centre) not in (1, action_dim) or len(self._half) not in (1, action_dim):
            raise ValueError(
                f"this planner's bounds are for {max(len(self._centre), len(self._half))} actions "
                f"and the warm start has {action_dim}: give one bound, or one per action."
            )
        if proposals is not None and (proposals.dim() != 4 or proposals[:, 0].shape != mean.shape):
            raise ValueError(
                f"expected proposals ({envs}, P, {horizon}, {action_dim}) beside this warm start, "
                f"got {tuple(proposals.shape)}."
            )
        judge = Judge(lambda knots: score(self._actions(knots, horizon)))
        with (
            torch.no_grad()
        ):  # a model's parameters would make every round's graph; `descend` asks for its own
            knots = self._knots(mean)
            proposals = None if proposals is None else self._knots(proposals.to(mean))
            best, std, cost, elites = self.search(judge, knots, proposals, generator, clock)
            half = 1.0 if self._unit else self._half.to(mean)
            return Plan(
                self._actions(best, horizon),
                half * self._held(std, horizon),
                cost,
                None if elites is None else self._actions(elites, horizon),
                judge.evaluations,
            )

    def search(
        self,
        judge: Judge,
        knots: Tensor,
        proposals: Tensor | None,
        generator: Generator | None,
        clock: Clock,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """From the warm start knots (B, K, A) in [-1, 1] -> best (B, K, A), std (B, K, A), cost
        (B,), elites or None.
        """
        raise NotImplementedError

    def _actions(self, knots: Tensor, horizon: int) -> Tensor:
        """Knots (..., K, A) in the unit box -> actions (..., H, A) within the bounds."""
        held = self._held(knots, horizon)
        return held if self._unit else self._centre.to(held) + self._half.to(held) * held

    def _held(self, knots: Tensor, horizon: int) -> Tensor:
        return (
            knots
            if self.repeat == 1
            else knots.repeat_interleave(self.repeat, -2)[..., :horizon, :]
        )

    def _knots(self, actions: Tensor) -> Tensor:
        """Actions (..., H, A) -> the nearest knots (..., K, A): the mean of each block, clipped to
        the bounds.
        """
        if not self._unit:
            actions = (actions - self._centre.to(actions)) / self._half.to(actions)
        if self.repeat > 1:
            horizon = actions.shape[-2]
            blocks = math.ceil(horizon / self.repeat)
            last = actions[..., -1:, :].expand(
                *actions.shape[:-2], blocks * self.repeat - horizon, -1
            )
            actions = torch.cat([actions, last], -2).unflatten(-2, (blocks, self.repeat)).mean(-2)
        return actions.clamp(-1, 1)
