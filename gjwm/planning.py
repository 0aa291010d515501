"""Sampling planners over a score function. They know neither models nor costs: score(a (B, N, H, A)) -> cost (B, N).

A planner is stateless: the warm start comes in as `mean` and the randomness as `generator`, so a plan replays exactly, and
whoever acts (`gjwm.agent`) decides what to carry from one plan to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

Score = Callable[[Tensor], Tensor]


class Plan(NamedTuple):
    """What a planner returns, for B independent problems."""

    mean: Tensor  # (B, H, A) the plan to execute
    std: Tensor  # (B, H, A) spread of the final sampling distribution
    cost: Tensor  # (B,) the plan's score


class Planner(Protocol):
    """Anything that searches action sequences; it keeps no state between calls."""

    def plan(self, score: Score, mean: Tensor, *, generator: Generator | None = None) -> Plan:
        """Search around mean (B, H, A) for the actions in [-1, 1] of least `score`."""
        ...


@lru_cache(maxsize=32)
def _coloured_factor(horizon: int, beta: float) -> Tensor:
    """Lower-triangular L (H, H) such that L @ white has power spectrum 1/f^beta along time and unit variance.

    The process is taken with period 2H and cut, otherwise the first and the last action would be neighbours.
    """
    period = 2 * horizon
    frequency = torch.fft.rfftfreq(period, dtype=torch.float64).clamp(min=1 / period)
    autocovariance = torch.fft.irfft(frequency**-beta, n=period)[:horizon]
    lags = (torch.arange(horizon)[:, None] - torch.arange(horizon)[None]).abs()
    covariance = (autocovariance / autocovariance[0])[lags]
    return torch.linalg.cholesky(covariance + 1e-9 * torch.eye(horizon, dtype=torch.float64)).float()


def coloured_noise(
    shape: tuple[int, ...], beta: float, *, generator: Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Gaussian noise (..., H, A) with unit variance and power spectrum 1/f^beta along H (Pinneri et al., 2020).

    beta = 0 is white; 2 drifts like a random walk, which moves a slow system much further with the same effort.
    """
    source = generator.device if generator is not None else device
    white = torch.randn(shape, generator=generator, device=source).to(device)
    return white if beta == 0 else _coloured_factor(shape[-2], float(beta)).to(device) @ white


def check_warm_start(mean: Tensor) -> None:
    """Raise unless `mean` is a finite plan (B, H, A)."""
    if mean.dim() != 3 or 0 in mean.shape:
        raise ValueError(f"a planner expects a warm start mean (B, H, A), got shape {tuple(mean.shape)}.")
    if not mean.isfinite().all():
        raise ValueError("a planner's warm start holds NaN or infinity; reset it to zeros.")


def evaluate_candidates(score: Score, candidates: Tensor) -> Tensor:
    """score(candidates (B, N, H, A)) -> (B, N), with a NaN cost read as infinitely bad.

    Raises:
        ValueError: when the score has another shape, or is NaN or infinite for every candidate of some problem.
    """
    cost = score(candidates)
    if cost.shape != candidates.shape[:2]:
        raise ValueError(f"expected score to return (B, N) = {tuple(candidates.shape[:2])}, got {tuple(cost.shape)}.")
    cost = cost.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    if not cost.isfinite().any(1).all():
        raise ValueError("every candidate's cost is NaN or infinite: check the model's latents for divergence.")
    return cost


class CEM:
    """Cross-entropy method with time-correlated noise (the sampling distribution of iCEM, Pinneri et al., 2020).

    Each iteration draws candidates around the mean, clips them to [-1, 1] and refits mean and std to the elites. The warm
    start and the best plan so far always compete, so no iteration makes the returned plan worse.

    Args:
        samples: candidates per iteration.
        iterations: rounds of sampling and refitting.
        elites: candidates that the distribution is refitted to.
        noise_beta: exponent of the noise's spectrum along time, see `coloured_noise`.
        init_std: first standard deviation, in units of the action range's half width.
        min_std: floor, else later warm starts cannot leave where they are.
        momentum: share of the old mean and std kept at each refit.
    """

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
    ):
        if not 1 <= elites <= samples or iterations < 1:
            raise ValueError(
                f"CEM expects 1 <= elites <= samples and iterations >= 1, got elites={elites}, samples={samples}, "
                f"iterations={iterations}."
            )
        self.samples, self.iterations, self.elites = samples, iterations, elites
        self.noise_beta, self.init_std, self.min_std, self.momentum = noise_beta, init_std, min_std, momentum

    def plan(self, score: Score, mean: Tensor, *, generator: Generator | None = None) -> Plan:
        """Minimise `score` from the warm start `mean` (B, H, A) -> Plan."""
        check_warm_start(mean)
        envs, horizon, action_dim = mean.shape
        rows = torch.arange(envs, device=mean.device)
        std = torch.full_like(mean, self.init_std)
        best = mean.clamp(-1, 1)
        cost = None
        for _ in range(self.iterations):
            noise = coloured_noise(
                (envs, self.samples, horizon, action_dim), self.noise_beta, generator=generator, device=mean.device
            )
            candidates = (mean[:, None] + std[:, None] * noise).clamp_(-1, 1)
            candidates[:, 0] = best
            costs = evaluate_candidates(score, candidates)
            order = costs.topk(self.elites, dim=1, largest=False)
            elite = candidates[rows[:, None], order.indices]  # (B, elites, H, A)
            mean = self.momentum * mean + (1 - self.momentum) * elite.mean(1)
            std = (self.momentum * std + (1 - self.momentum) * elite.std(1, correction=0)).clamp_(min=self.min_std)
            best, cost = elite[:, 0], order.values[:, 0]
        return Plan(best, std, cost)


class RandomShooting:
    """One round of time-correlated candidates around the warm start; the best is the plan.

    Args:
        samples, noise_beta, init_std: see `CEM`.
    """

    def __init__(self, *, samples: int = 1024, noise_beta: float = 2.0, init_std: float = 0.7):
        self.samples = samples
        self._cem = CEM(samples=samples, iterations=1, elites=1, noise_beta=noise_beta, init_std=init_std)

    def plan(self, score: Score, mean: Tensor, *, generator: Generator | None = None) -> Plan:
        """Minimise `score` from the warm start `mean` (B, H, A) -> Plan."""
        return self._cem.plan(score, mean, generator=generator)
