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
    elites: (B, K, H, A) the best candidates, best first, for whoever wants to offer them to the
    next plan; None if not kept.
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


def check_warm_start(mean: Tensor, proposals: Tensor | None = None) -> None:
    """Raise unless `mean` is a finite plan (B, H, A) of float32 or float64, and `proposals` are
    (B, P, H, A).
    """
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
    if proposals is None:
        return
    if proposals.dim() != 4 or (proposals.shape[0], *proposals.shape[2:]) != mean.shape:
        envs, horizon, action_dim = mean.shape
        raise ValueError(
            f"expected proposals ({envs}, P, {horizon}, {action_dim}) beside this warm start, got "
            f"{tuple(proposals.shape)}."
        )
    if not proposals.isfinite().all():
        raise ValueError(
            "a planner's proposals hold NaN or infinity; the policy that made them has diverged."
        )


def check_rounds(name: str, samples: int, iterations: int, elites: int) -> None:
    """Raise unless a planner of that name can refit to its elites."""
    if not 1 <= elites <= samples or iterations < 1:
        raise ValueError(
            f"{name} expects 1 <= elites <= samples and iterations >= 1, got elites={elites}, "
            f"samples={samples}, iterations={iterations}."
        )


def check_budget(budget_ms: float | None) -> None:
    """Raise for a time budget that no search can keep to."""
    if budget_ms is not None and not budget_ms > 0:
        raise ValueError(f"budget_ms must be above 0, or None for no limit, got {budget_ms}.")


class Judge:
    """Calls the score of one search, drops what it cannot rank, and watches the time.

    A NaN cost is read as infinitely bad, and told once per plan.

    Args:
        score: (B, N, H, A) -> (B, N).
        budget_ms: wall time from now on; None: no limit.
    """

    def __init__(self, score: Score, budget_ms: float | None):
        self.score, self.evaluations, self._told = score, 0, False
        self.budget = math.inf if budget_ms is None else budget_ms / 1e3
        self._start = self._last = time.perf_counter()
        self._slowest = 0.0

    def another_round(self) -> bool:
        """Call between rounds: whether the next one, if as slow as the slowest, ends in time."""
        now = time.perf_counter()
        self._slowest, self._last = max(self._slowest, now - self._last), now
        return now - self._start + self._slowest <= self.budget

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
        if finite.all():
            return cost
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
        return torch.where(finite, cost, torch.inf)


class BoxPlanner:
    """Base of planners over bounded, continuous actions.

    They search *knots* in the unit box: K = ceil(H / repeat) actions, each held for `repeat` steps,
    scaled to the bounds when they are scored. A subclass implements `search`.

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
        # Constants made in inference mode could not be differentiated through.
        with torch.inference_mode(False), torch.no_grad():
            self._low, self._high = (
                torch.as_tensor(x, dtype=torch.float64).reshape(-1).clone() for x in (low, high)
            )
            lows, highs = self._low.float(), self._high.float()
        if len({len(lows), len(highs)} - {1}) > 1:
            raise ValueError(
                f"a planner expects as many low as high bounds, or one for all, got low={low} and "
                f"high={high}."
            )
        if not (highs - lows).isfinite().all():
            raise ValueError(
                f"a planner searches within finite bounds, got low={low} and high={high}: give the "
                f"action range."
            )
        if not (lows < highs).all():
            raise ValueError(
                f"a planner expects bounds low < high for every action, got low={low} and "
                f"high={high}."
            )
        if repeat < 1:
            raise ValueError(f"a planner expects repeat >= 1, got {repeat}.")
        check_budget(budget_ms)
        with torch.inference_mode(False):
            self._low, self._high = torch.broadcast_tensors(self._low, self._high)
            self._centre = self._low / 2 + self._high / 2
            self._half = self._high / 2 - self._low / 2
        self.low, self.high, self.repeat, self.budget_ms = low, high, repeat, budget_ms
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
        check_warm_start(mean, proposals)
        horizon, action_dim = mean.shape[1:]
        if len(self._centre) not in (1, action_dim):
            raise ValueError(
                f"this planner's bounds are for {len(self._centre)} actions and the warm start has "
                f"{action_dim}: give one bound, or one per action."
            )
        judge = Judge(lambda knots: score(self._actions(knots, horizon)), self.budget_ms)
        with torch.no_grad():  # a model's parameters would make every round's graph
            offered = mean[:, None]
            if proposals is not None:
                offered = torch.cat([offered, proposals.to(mean)], 1)
            elites, std, cost = self.search(judge, self._knots(offered), generator)
            half = 1.0 if self._unit else self._half.to(mean)
            elites = self._actions(elites, horizon)
            std = half * self._held(std, horizon)
            return Plan(elites[:, 0], std, cost, elites, judge.evaluations)

    def search(
        self, judge: Judge, offered: Tensor, generator: Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From the warm start and the proposals (B, 1 + P, K, A), knots in [-1, 1] -> the best
        candidates (B, E, K, A), best first, the spread (B, K, A), and the best cost (B,).
        """
        raise NotImplementedError

    def _actions(self, knots: Tensor, horizon: int) -> Tensor:
        """Knots (..., K, A) in the unit box -> actions (..., H, A) within the bounds."""
        held = self._held(knots, horizon)
        if self._unit:
            return held
        actions = self._centre.to(held) + self._half.to(held) * held
        # the sum may round to beyond a bound
        return actions.clamp(self._low.to(held), self._high.to(held))

    def _held(self, knots: Tensor, horizon: int) -> Tensor:
        if self.repeat == 1:
            return knots
        return knots.repeat_interleave(self.repeat, -2)[..., :horizon, :]

    def _knots(self, actions: Tensor) -> Tensor:
        """Actions (..., H, A) -> the nearest knots (..., K, A): clipped to the bounds, then the
        mean of each block.
        """
        dtype = actions.dtype
        if not self._unit:
            # in double precision, where half of the smallest range is not 0
            actions = (actions.double() - self._centre.to(actions.device)) / self._half.to(
                actions.device
            )
        actions = actions.clamp(-1, 1).to(dtype)
        if self.repeat > 1:
            horizon = actions.shape[-2]
            blocks = math.ceil(horizon / self.repeat)
            last = actions[..., -1:, :].expand(
                *actions.shape[:-2], blocks * self.repeat - horizon, -1
            )
            actions = torch.cat([actions, last], -2).unflatten(-2, (blocks, self.repeat)).mean(-2)
        return actions
