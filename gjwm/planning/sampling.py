"""Planners that sample candidates around a mean and refit: random shooting, CEM, iCEM and MPPI."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from gjwm.planning.noise import coloured_noise
from gjwm.planning.search import BoxPlanner, Clock, Judge, softened


class CEM(BoxPlanner):
    """Cross-entropy method with time-correlated noise (the sampling distribution of iCEM, Pinneri et al., 2020).

    Each round draws candidates around the mean, clips them to the bounds and refits mean and std to the elites. The warm
    start and the best plan so far always compete, so no round makes the returned plan worse.

    Args:
        samples: candidates per round.
        iterations: rounds of sampling and refitting.
        elites: candidates that the distribution is refitted to.
        noise_beta: exponent of the noise's spectrum along time, see `coloured_noise`.
        init_std: first standard deviation, in units of the action range's half width.
        min_std: floor of the standard deviation: how far the last rounds still look around.
        momentum: share of the old mean and std kept at each refit.
        tolerance: stop early once, in every problem, the elites' costs lie within this share of the range of the first
            round's elites: they agree. 0 never stops.
        **box: low, high, repeat, budget_ms of `BoxPlanner`.
    """

    decay, keep, try_mean = 1.0, 0.0, False  # what iCEM adds

    def __init__(
        self,
        *,
        samples: int = 256,
        iterations: int = 4,
        elites: int = 24,
        noise_beta: float = 2.0,
        init_std: float = 0.7,
        min_std: float = 0.05,
        momentum: float = 0.1,
        tolerance: float = 0.0,
        **box: Any,
    ):
        super().__init__(**box)
        _check_sampling(type(self).__name__, samples, iterations, elites, init_std, min_std)
        if not 0 <= momentum < 1 or tolerance < 0:
            raise ValueError(f"expected 0 <= momentum < 1 and tolerance >= 0, got {momentum} and {tolerance}.")
        self.samples, self.iterations, self.elites = samples, iterations, elites
        self.noise_beta, self.init_std, self.min_std, self.momentum = noise_beta, init_std, min_std, momentum
        self.tolerance = tolerance

    def population(self, round_: int) -> int:
        """Candidates in this round, 0-based."""
        return max(int(self.samples * self.decay**-round_), min(2 * self.elites, self.samples))

    def search(
        self, judge: Judge, knots: Tensor, proposals: Tensor | None, generator: Generator | None, clock: Clock
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        mean, best = knots, knots[:, None]
        std = torch.full_like(mean, self.init_std)
        offered = best if proposals is None else torch.cat([best, proposals], 1)[:, : self.samples]
        buffer = knots.new_empty(len(knots), self.samples, *knots.shape[1:])
        first_range = None
        for round_ in range(self.iterations):
            if round_ and self.try_mean and round_ == self.iterations - 1:
                offered = torch.cat([offered, mean[:, None]], 1)
            candidates = _draw(buffer[:, : self.population(round_)], mean, std, self.noise_beta, offered, generator)
            costs = judge(candidates)
            order = costs.topk(self.elites, dim=1, largest=False)
            elite = candidates.gather(1, order.indices[..., None, None].expand(-1, -1, *knots.shape[1:]))
            mean, std = _refit(mean, std, elite, softened(order.values), self.momentum, self.min_std)
            best, cost = elite[:, :1], order.values[:, 0]
            offered = elite[:, : max(1, round(self.keep * self.elites))]
            if round_ == self.iterations - 1 or not clock.another_round():
                break
            if self.tolerance:
                agreement = order.values[:, -1] - order.values[:, 0]
                first_range = agreement if first_range is None else first_range
                if (agreement <= self.tolerance * first_range).all():
                    break
        return best[:, 0], std, cost, elite


class ICEM(CEM):
    """iCEM (Pinneri et al., 2020): CEM with a shrinking population and elites that are kept from round to round.

    A share of the elites competes again in the next round, the mean itself in the last, and `Plan.elites` lets the agent
    offer them, shifted by a step, to the next plan.

    Args:
        decay: each round has this factor fewer candidates than the one before, but at least twice the elites.
        keep: share of the elites that competes again.
        **cem: see `CEM`.
    """

    try_mean = True

    def __init__(
        self,
        *,
        samples: int = 256,
        iterations: int = 4,
        elites: int = 24,
        noise_beta: float = 2.0,
        init_std: float = 0.7,
        min_std: float = 0.01,
        momentum: float = 0.1,
        tolerance: float = 0.0,
        decay: float = 1.25,
        keep: float = 0.3,
        **box: Any,
    ):
        super().__init__(
            samples=samples,
            iterations=iterations,
            elites=elites,
            noise_beta=noise_beta,
            init_std=init_std,
            min_std=min_std,
            momentum=momentum,
            tolerance=tolerance,
            **box,
        )
        if decay < 1 or not 0 <= keep <= 1:
            raise ValueError(f"ICEM expects decay >= 1 and 0 <= keep <= 1, got decay={decay} and keep={keep}.")
        self.decay, self.keep = decay, keep


class MPPI(BoxPlanner):
    """Path integral control in the form of TD-MPC2 (Hansen et al., 2024): softmax weights over the elites, std refitted.

    The weights are exp(-(c - c_best) / (temperature * (c_worst elite - c_best))): relative to the elites' range, so one
    temperature serves costs of any scale. With elites = samples and refit = 0 the std stays as it is, as in Williams et al.
    (2017).

    Args:
        samples, iterations, elites, noise_beta, init_std, min_std, tolerance: see `CEM`.
        temperature: small follows the best candidate, large averages the elites as CEM does.
        refit: share of the elites' weighted std in the new std, 0 to 1.
        **box: low, high, repeat, budget_ms of `BoxPlanner`.
    """

    def __init__(
        self,
        *,
        samples: int = 256,
        iterations: int = 4,
        elites: int = 32,
        temperature: float = 0.3,
        refit: float = 1.0,
        noise_beta: float = 2.0,
        init_std: float = 0.7,
        min_std: float = 0.02,
        tolerance: float = 0.0,
        **box: Any,
    ):
        super().__init__(**box)
        _check_sampling("MPPI", samples, iterations, elites, init_std, min_std)
        if not temperature > 0 or not 0 <= refit <= 1 or tolerance < 0:
            raise ValueError(
                f"MPPI expects temperature > 0, 0 <= refit <= 1 and tolerance >= 0, got {temperature}, {refit} and "
                f"{tolerance}."
            )
        self.samples, self.iterations, self.elites, self.temperature = samples, iterations, elites, temperature
        self.refit, self.noise_beta, self.init_std, self.min_std = refit, noise_beta, init_std, min_std
        self.tolerance = tolerance

    def search(
        self, judge: Judge, knots: Tensor, proposals: Tensor | None, generator: Generator | None, clock: Clock
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        mean, best = knots, knots[:, None]
        std = torch.full_like(mean, self.init_std)
        offered = best if proposals is None else torch.cat([best, proposals], 1)[:, : self.samples]
        buffer = knots.new_empty(len(knots), self.samples, *knots.shape[1:])
        first_range = None
        for round_ in range(self.iterations):
            candidates = _draw(buffer, mean, std, self.noise_beta, offered, generator)
            costs = judge(candidates)
            order = costs.topk(self.elites, dim=1, largest=False)
            elite = candidates.gather(1, order.indices[..., None, None].expand(-1, -1, *knots.shape[1:]))
            c = order.values
            spread = (torch.where(c.isfinite(), c, c[:, :1]).amax(1, keepdim=True) - c[:, :1]).clamp(min=1e-12)
            weights = torch.exp(-(c - c[:, :1]) / (self.temperature * spread))
            mean, std = _refit(mean, std, elite, weights, 0.0, self.min_std, self.refit)
            best, cost = elite[:, :1], c[:, 0]
            # The weighted mean is the plan of path integral control, and is tried as a candidate beside the best sample.
            offered = torch.cat([best, mean[:, None]], 1)
            if round_ == self.iterations - 1 or not clock.another_round():
                break
            if self.tolerance:
                first_range = spread if first_range is None else first_range
                if (spread <= self.tolerance * first_range).all():
                    break
        return best[:, 0], std, cost, elite


class RandomShooting(BoxPlanner):
    """One round of time-correlated candidates around the warm start; the best is the plan.

    Args:
        samples, noise_beta, init_std: see `CEM`.
        **box: low, high, repeat, budget_ms of `BoxPlanner`.
    """

    def __init__(self, *, samples: int = 1024, noise_beta: float = 2.0, init_std: float = 0.7, **box: Any):
        super().__init__(**box)
        _check_sampling("RandomShooting", samples, 1, 1, init_std, 0.0)
        self.samples, self.noise_beta, self.init_std = samples, noise_beta, init_std

    def search(
        self, judge: Judge, knots: Tensor, proposals: Tensor | None, generator: Generator | None, clock: Clock
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        std = torch.full_like(knots, self.init_std)
        offered = knots[:, None] if proposals is None else torch.cat([knots[:, None], proposals], 1)[:, : self.samples]
        buffer = knots.new_empty(len(knots), self.samples, *knots.shape[1:])
        candidates = _draw(buffer, knots, std, self.noise_beta, offered, generator)
        cost, index = judge(candidates).min(1)
        return candidates[torch.arange(len(knots), device=knots.device), index], std, cost, None


def _check_sampling(name: str, samples: int, iterations: int, elites: int, init_std: float, min_std: float) -> None:
    if not 1 <= elites <= samples or iterations < 1:
        raise ValueError(
            f"{name} expects 1 <= elites <= samples and iterations >= 1, got elites={elites}, samples={samples}, "
            f"iterations={iterations}."
        )
    if not init_std > 0 or min_std < 0:
        raise ValueError(f"{name} expects init_std > 0 and min_std >= 0, got {init_std} and {min_std}.")


def _draw(
    buffer: Tensor, mean: Tensor, std: Tensor, beta: float, offered: Tensor, generator: Generator | None
) -> Tensor:
    """Fill buffer (B, N, K, A): first the offered candidates (B, P, K, A), the rest mean + std * noise, clipped."""
    envs, samples, knots, action_dim = buffer.shape
    count = min(offered.shape[1], samples)
    kept = offered[:, :count].clone()  # it may be a view of what is overwritten now
    noise = coloured_noise((envs, samples - count, knots, action_dim), beta, generator=generator, device=mean.device)
    torch.mul(noise, std[:, None], out=buffer[:, count:])
    buffer[:, count:].add_(mean[:, None]).clamp_(-1, 1)
    buffer[:, :count] = kept
    return buffer


def _refit(
    mean: Tensor, std: Tensor, elite: Tensor, weights: Tensor, momentum: float, min_std: float, share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Weighted mean and std of the elites (B, K', K, A), mixed with the old ones. Weights (B, K') need not sum to 1."""
    weights = (weights / weights.sum(1, keepdim=True))[..., None, None]
    centre = (weights * elite).sum(1)
    spread = (weights * (elite - centre[:, None]).square()).sum(1).sqrt()
    mean = momentum * mean + (1 - momentum) * centre
    spread = momentum * std + (1 - momentum) * spread
    return mean, (share * spread + (1 - share) * std).clamp(min=min_std)
