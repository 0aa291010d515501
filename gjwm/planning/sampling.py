"""Planners that sample candidates around a mean and refit: random shooting, CEM, iCEM and MPPI."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from gjwm._core import draws
from gjwm.planning.noise import coloured_covariance, coloured_noise
from gjwm.planning.search import BoxPlanner, Judge, check_rounds


class _Diagonal:
    """A Gaussian with one std per knot and action, whose noise keeps the same spectrum along time
    in every round.
    """

    def __init__(self, mean: Tensor, init_std: float, min_std: float, beta: float, memory: float):
        self.std = torch.full_like(mean, init_std)
        self.min_std, self.beta, self.memory = min_std, beta, memory

    def fill(self, out: Tensor, mean: Tensor, generator: Generator | None) -> None:
        """out (B, N, K, A) = mean + noise."""
        noise = coloured_noise(tuple(out.shape), self.beta, generator=generator, device=out.device)
        torch.mul(noise, self.std[:, None], out=out)
        out.add_(mean[:, None])

    def refit(self, elite: Tensor, weights: Tensor, mean: Tensor) -> None:
        """Mix with the spread of elites (B, E, K, A) drawn around mean (B, K, A); weights (B, E)
        sum to 1.
        """
        centre = (weights[..., None, None] * elite).sum(1, keepdim=True)
        spread = (weights[..., None, None] * (elite - centre).square()).sum(1).sqrt()
        self.std = (self.memory * self.std + (1 - self.memory) * spread).clamp(min=self.min_std)


class _Full:
    """A Gaussian with the full covariance of all knots and actions, which starts as that of the
    coloured noise.

    It learns by CMA-ES's rank-mu update: the elites' second moment about the mean they were drawn
    from. Directions in which the mean travels so gain variance instead of losing it, and the search
    does not freeze on its way."""

    def __init__(self, mean: Tensor, init_std: float, min_std: float, beta: float, memory: float):
        envs, knots, actions = mean.shape
        time = coloured_covariance(knots, beta).to(mean)
        start = init_std**2 * torch.kron(time, torch.eye(actions).to(mean))
        self.covariance = start.expand(envs, -1, -1)
        self.floor = max(min_std, 1e-4) ** 2 * torch.eye(knots * actions).to(mean)
        self.memory, self.shape = memory, mean.shape

    @property
    def std(self) -> Tensor:
        return (self.covariance + self.floor).diagonal(dim1=1, dim2=2).sqrt().reshape(self.shape)

    def fill(self, out: Tensor, mean: Tensor, generator: Generator | None) -> None:
        shape = (*out.shape[:2], len(self.floor))
        white = draws.normal(shape, generator, device=out.device, dtype=out.dtype)
        factor, _ = torch.linalg.cholesky_ex(self.covariance + self.floor)
        out.copy_(torch.baddbmm(mean.flatten(1)[:, None], white, factor.mT).view_as(out))

    def refit(self, elite: Tensor, weights: Tensor, mean: Tensor) -> None:
        step = (weights.sqrt()[..., None, None] * (elite - mean[:, None])).flatten(2)  # (B, E, K*A)
        self.covariance = self.memory * self.covariance + (1 - self.memory) * (step.mT @ step)


_SPREADS = {"diagonal": _Diagonal, "full": _Full}


class CEM(BoxPlanner):
    """Cross-entropy method with time-correlated noise (the sampling distribution of iCEM, Pinneri
    et al., 2020).

    Each round draws candidates around the mean, clips them to the bounds and refits mean and spread
    to the elites. The warm start and the best plan so far always compete, so no round makes the
    returned plan worse.

    The defaults of `CEM`, `ICEM` and `MPPI` are set to find an optimum: 512 candidates and 32
    rounds (iCEM, whose population shrinks: 40) reach that of a bowl or of LQR, 24 to 30 numbers,
    within 1%. An agent that replans at every step from a warm start can do with far fewer:
    `configs/planner` holds such settings.

    Args:
        samples: candidates per round.
        iterations: rounds of sampling and refitting.
        elites: candidates that the distribution is refitted to; None: an eighth of the samples (a
            quarter in `MPPI`).
        noise_beta: exponent of the noise's spectrum along time, see `coloured_noise`. 2 explores
            far with few candidates, but with a diagonal covariance every round keeps to plans that
            drift slowly and never reaches one that does not.
        init_std: first standard deviation, in units of the action range's half width.
        min_std: floor of the standard deviation: how far the last rounds still look around.
        momentum: share of the old mean kept at each refit.
        covariance: "diagonal": one std per action and step, noise always coloured; "full": also the
            correlations between steps and actions, learnt from the elites as in CMA-ES (Hansen &
            Ostermeier, 2001). A diagonal cannot follow a narrow valley, as in any plan whose early
            actions must be balanced by later ones. O((H A / repeat)^3) per round.
        memory: share of the old spread kept at each refit.
        tolerance: stop early once, in every problem, the elites' costs lie within this share of the
            range of the first round's elites: they agree. 0 never stops.
        **box: low, high, repeat, budget_ms of `BoxPlanner`.
    """

    elite_share = 1 / 8  # of the samples, where elites is None
    decay, keep = 1.0, 0.0
    every_mean = False  # try the mean as a candidate in every round, not only in the last

    def __init__(
        self,
        *,
        samples: int = 512,
        iterations: int = 32,
        elites: int | None = None,
        noise_beta: float = 1.0,
        init_std: float = 0.7,
        min_std: float = 1e-3,
        momentum: float = 0.1,
        covariance: str = "full",
        memory: float = 0.3,
        tolerance: float = 0.0,
        **box: Any,
    ):
        super().__init__(**box)
        name = type(self).__name__
        elites = max(1, int(self.elite_share * samples)) if elites is None else elites
        check_rounds(name, samples, iterations, elites)
        if not init_std > 0 or min_std < 0:
            raise ValueError(
                f"{name} expects init_std > 0 and min_std >= 0, got {init_std} and {min_std}."
            )
        if not 0 <= momentum < 1 or not 0 <= memory <= 1 or tolerance < 0:
            raise ValueError(
                f"{name} expects 0 <= momentum < 1, 0 <= memory <= 1 and tolerance >= 0, got "
                f"momentum={momentum}, memory={memory}, tolerance={tolerance}."
            )
        if covariance not in _SPREADS:
            raise ValueError(
                f"{name}'s covariance must be 'diagonal' or 'full', got {covariance!r}."
            )
        self.samples, self.iterations, self.elites = samples, iterations, elites
        self.noise_beta, self.init_std, self.min_std = noise_beta, init_std, min_std
        self.momentum, self.covariance = momentum, covariance
        self.memory, self.tolerance = memory, tolerance

    def weigh(self, costs: Tensor) -> Tensor:
        """Sorted costs of the elites (B, E), infinite where a candidate was dropped -> weights (B,
        E), not all 0.
        """
        return costs.isfinite().to(costs.dtype)

    def population(self, round_: int) -> int:
        """Candidates in this round, 0-based."""
        return max(int(self.samples * self.decay**-round_), min(2 * self.elites, self.samples))

    def search(
        self, judge: Judge, offered: Tensor, generator: Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, offered = offered[:, 0], offered[:, : self.samples]
        spread = _SPREADS[self.covariance](
            mean, self.init_std, self.min_std, self.noise_beta, self.memory
        )
        buffer = mean.new_empty(len(mean), self.samples, *mean.shape[1:])
        first_range = None
        for round_ in range(self.iterations):
            last = round_ == self.iterations - 1
            if round_ and (last or self.every_mean):
                offered = torch.cat([offered, mean[:, None]], 1)
            candidates = buffer[:, : self.population(round_)]
            count = min(offered.shape[1], candidates.shape[1])
            spread.fill(candidates[:, count:], mean, generator)
            candidates[:, count:].clamp_(-1, 1)
            candidates[:, :count] = offered[:, :count]
            costs, index = judge(candidates).topk(self.elites, dim=1, largest=False)
            elite = candidates.gather(1, index[..., None, None].expand(-1, -1, *mean.shape[1:]))
            offered = elite[:, : max(1, round(self.keep * self.elites))]
            weights = self.weigh(costs)
            weights = weights / weights.sum(1, keepdim=True)
            spread.refit(elite, weights, mean)
            centre = (weights[..., None, None] * elite).sum(1)
            mean = self.momentum * mean + (1 - self.momentum) * centre
            if last or not judge.another_round():
                break
            if self.tolerance:
                worst = torch.where(costs.isfinite(), costs, costs[:, :1]).amax(1)
                first_range = worst - costs[:, 0] if first_range is None else first_range
                if (worst - costs[:, 0] <= self.tolerance * first_range).all():
                    break
        return elite, spread.std, costs[:, 0]


class ICEM(CEM):
    """iCEM (Pinneri et al., 2020) with a learnt covariance: a shrinking population, and elites kept
    from round to round.

    A share of the elites competes again in the next round, the mean itself in the last, and
    `Plan.elites` lets the agent offer them, shifted by a step, to the next plan. The paper's own
    sampling is covariance="diagonal".

    Args:
        decay: each round has this factor fewer candidates than the one before, but at least twice
            the elites.
        keep: share of the elites that competes again.
        **search: of `CEM`.
    """

    def __init__(
        self, *, iterations: int = 40, decay: float = 1.02, keep: float = 0.3, **search: Any
    ):
        super().__init__(iterations=iterations, **search)
        if decay < 1 or not 0 <= keep <= 1:
            raise ValueError(
                f"ICEM expects decay >= 1 and 0 <= keep <= 1, got decay={decay} and keep={keep}."
            )
        self.decay, self.keep = decay, keep


class MPPI(CEM):
    """Path integral control in the form of TD-MPC2 (Hansen et al., 2024): softmax weights over the
    elites, spread refitted.

    The weights are exp(-(c - c_best) / (temperature * (c_worst elite - c_best))): relative to the
    elites' range, so one temperature serves costs of any scale. With elites = samples, memory = 1,
    momentum = 0 and a diagonal covariance the spread stays as it is, as in Williams et al. (2017).

    Args:
        temperature: small follows the best candidate, large averages the elites as CEM does.
        **search: of `CEM`.
    """

    every_mean = True  # the weighted mean is the plan of path integral control
    elite_share = 1 / 4

    def __init__(
        self,
        *,
        temperature: float = 0.3,
        init_std: float = 1.0,
        momentum: float = 0.0,
        **search: Any,
    ):
        super().__init__(init_std=init_std, momentum=momentum, **search)
        if not temperature > 0:
            raise ValueError(f"MPPI expects temperature > 0, got {temperature}.")
        self.temperature = temperature

    def weigh(self, costs: Tensor) -> Tensor:
        best = costs[:, :1]
        spread = (torch.where(costs.isfinite(), costs, best).amax(1, keepdim=True) - best).clamp(
            min=1e-12
        )
        return torch.exp(-(costs - best) / (self.temperature * spread))


class RandomShooting(CEM):
    """One round of time-correlated candidates around the warm start; the best is the plan.

    Args:
        samples, noise_beta, init_std: see `CEM`.
        **box: low, high, repeat, budget_ms of `BoxPlanner`.
    """

    def __init__(
        self, *, samples: int = 1024, noise_beta: float = 1.0, init_std: float = 0.7, **box: Any
    ):
        # memory=1: the reported spread is the one that was drawn with
        once = dict(iterations=1, elites=1, covariance="diagonal", memory=1.0)
        super().__init__(samples=samples, noise_beta=noise_beta, init_std=init_std, **once, **box)
