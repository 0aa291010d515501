"""Planning with discrete actions: the cross-entropy method on categorical distributions, exhaustive
where that is cheap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from gjwm._core import draws
from gjwm.planning.search import (
    Judge,
    Plan,
    Score,
    check_budget,
    check_rounds,
    check_warm_start,
)


class CategoricalCEM:
    """Cross-entropy method over one-hot actions: candidates by Gumbel-max, refitted to the elites'
    frequencies.

    An action (A,) is a one-hot vector, or several side by side for a MultiDiscrete space. The warm
    start's entries are read as probabilities (all zero: uniform), so the last plan, shifted, is a
    warm start. Short problems are enumerated, and the plan is then the optimum.

    Args:
        samples, iterations, elites: see `CEM`.
        groups: sizes of the one-hot parts, summing to A; None: one part.
        smoothing: share of the uniform distribution in every refit and warm start, which keeps all
            actions possible.
        momentum: share of the old probabilities kept at each refit.
        exhaustive: enumerate when there are at most this many action sequences.
        budget_ms: see `BoxPlanner`.
    """

    differentiates = False

    def __init__(
        self,
        *,
        samples: int = 256,
        iterations: int = 4,
        elites: int = 24,
        groups: Sequence[int] | None = None,
        smoothing: float = 0.1,
        momentum: float = 0.1,
        exhaustive: int = 1024,
        budget_ms: float | None = None,
    ):
        check_rounds("CategoricalCEM", samples, iterations, elites)
        check_budget(budget_ms)
        if not 0 < smoothing <= 1 or not 0 <= momentum < 1:
            raise ValueError(
                f"expected 0 < smoothing <= 1 and 0 <= momentum < 1, got {smoothing} and "
                f"{momentum}."
            )
        self.samples, self.iterations, self.elites = samples, iterations, elites
        self.groups = None if groups is None else tuple(groups)
        self.smoothing, self.momentum = smoothing, momentum
        self.exhaustive, self.budget_ms = exhaustive, budget_ms

    @torch.no_grad()
    def plan(
        self,
        score: Score,
        mean: Tensor,
        generator: Generator | None = None,
        *,
        proposals: Tensor | None = None,
    ) -> Plan:
        """Minimise `score` over one-hot plans from the warm start `mean` (B, H, A) -> Plan with a
        one-hot mean.

        Raises:
            ValueError: as `BoxPlanner.plan`.
        """
        check_warm_start(mean, proposals)
        horizon, action_dim = mean.shape[1:]
        groups = self.groups or (action_dim,)
        if sum(groups) != action_dim:
            raise ValueError(
                f"one-hot parts of sizes {groups} make {sum(groups)} entries, the warm start has "
                f"{action_dim}."
            )
        judge = Judge(score, self.budget_ms)
        if math.prod(float(size) ** horizon for size in groups) <= self.exhaustive:
            return self._enumerate(judge, mean, groups)
        p = self._smoothed(mean.clamp(min=0), groups)
        warm = (mean != 0).flatten(1).any(1)[:, None, None, None]
        offered = _most_likely(mean, groups)[:, None]
        if proposals is not None:
            offered = torch.cat([offered, proposals.to(mean)], 1)
        for round_ in range(self.iterations):
            candidates = self._sample(p, groups, generator)
            kept = offered[:, : self.samples]
            if round_ == 0:  # an env without a warm start has no plan to offer
                first = torch.where(warm, kept[:, :1], candidates[:, :1])
                kept = torch.cat([first, kept[:, 1:]], 1)
            candidates[:, : kept.shape[1]] = kept
            costs, index = judge(candidates).topk(self.elites, dim=1, largest=False)
            elite = candidates.gather(1, index[..., None, None].expand(-1, -1, *mean.shape[1:]))
            weights = costs.isfinite().to(mean.dtype)
            frequency = ((weights / weights.sum(1, keepdim=True))[..., None, None] * elite).sum(1)
            p = self._smoothed(self.momentum * p + (1 - self.momentum) * frequency, groups)
            offered = elite[:, :1]
            if not judge.another_round():
                break
        return Plan(elite[:, 0], (p * (1 - p)).sqrt(), costs[:, 0], elite, judge.evaluations)

    def _smoothed(self, weights: Tensor, groups: Sequence[int]) -> Tensor:
        """Weights (B, H, A) -> probabilities that sum to 1 in each group and are nowhere 0."""
        parts = []
        for part in weights.split(groups, -1):
            total = part.sum(-1, keepdim=True)
            p = torch.where(total > 0, part / total.clamp(min=1e-12), 1 / part.shape[-1])
            parts.append((1 - self.smoothing) * p + self.smoothing / part.shape[-1])
        return torch.cat(parts, -1)

    def _sample(self, p: Tensor, groups: Sequence[int], generator: Generator | None) -> Tensor:
        """p (B, H, A) -> one-hot candidates (B, N, H, A)."""
        shape = (len(p), self.samples, *p.shape[1:])
        uniform = draws.uniform(shape, generator, device=p.device)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-7)))
        return _most_likely(p.log()[:, None] + gumbel, groups).to(p.dtype)

    @staticmethod
    def _enumerate(judge: Judge, mean: Tensor, groups: Sequence[int]) -> Plan:
        horizon = mean.shape[1]
        choices = [torch.arange(size, device=mean.device) for size in groups] * horizon
        index = torch.cartesian_prod(*choices).view(-1, horizon, len(groups))  # (N, H, groups)
        parts = [one_hot(index[..., g], size) for g, size in enumerate(groups)]
        plans = torch.cat(parts, -1).to(mean.dtype)
        cost, best = judge(plans.expand(len(mean), -1, -1, -1)).min(1)
        return Plan(plans[best], torch.zeros_like(mean), cost, None, judge.evaluations)


def _most_likely(weights: Tensor, groups: Sequence[int]) -> Tensor:
    """The one-hot vector of each group's largest entry, in the weights' dtype."""
    parts = weights.split(list(groups), -1)
    return torch.cat([one_hot(x.argmax(-1), x.shape[-1]) for x in parts], -1).to(weights.dtype)
