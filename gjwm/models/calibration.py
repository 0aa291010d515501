"""Do predicted laws hold what they promise, and if not, one factor per horizon and one weight of
tails that make them.

A report judges any law through its marginals' probability integral transform (PIT), scores and
samples; `Calibration`
is what a world model keeps from held-out episodes: the factor on the standard deviation at each
horizon, how much further hard steps deviate than ordinary ones, and how surprising ordinary steps
are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from gjwm.models.dynamics import Past, Prediction

LEVELS = (0.5, 0.8, 0.9, 0.95)
# per dimension, of N(0, I) about itself: the baseline of "skill"
UNIT_GAUSSIAN_NATS = 0.5 * math.log(2 * math.pi * math.e)
# of hard to ordinary deviations that `fit_tail` chooses from
RATIOS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
_ECE_LEVELS = torch.arange(0.05, 0.951, 0.05, dtype=torch.float64)


def report_generator(generator: Generator | None) -> Generator:
    """The generator of a report, which is computed on the CPU: never torch's global one, which a
    report must not advance.
    """
    if generator is None:
        return torch.Generator().manual_seed(0)  # a report of the same figures reads the same
    return (
        generator
        if generator.device.type == "cpu"
        else torch.Generator().manual_seed(generator.initial_seed())
    )


def _check(prediction: Prediction, target: Tensor) -> None:
    if target.dim() < 2 or not target.numel():
        raise ValueError(
            f"calibration needs at least one target, in rows (..., D), got shape "
            f"{tuple(target.shape)}."
        )
    if prediction.mean.shape != target.shape or prediction.variance.shape != target.shape:
        raise ValueError(
            f"expected a prediction of the target's shape {tuple(target.shape)}, got mean "
            f"{tuple(prediction.mean.shape)} and variance {tuple(prediction.variance.shape)}."
        )
    values = (prediction.mean, prediction.variance, target)
    bad = sum(x.numel() - int(x.isfinite().sum()) for x in values)
    if bad:
        raise ValueError(
            f"calibration got {bad} NaN or infinite values in the mean, variance and target of "
            f"shape {tuple(target.shape)}."
        )
    if not (prediction.variance > 0).all():
        raise ValueError(
            "calibration needs a positive predicted variance everywhere; this prediction is "
            "deterministic."
        )


def expected_calibration_error(pit: Tensor) -> float:
    """Mean over the levels .05 to .95 of |share of central intervals that hold the target - level|,
    from PIT values.
    """
    # the smallest central interval that holds the target
    inside = 2 * (pit.flatten().double() - 0.5).abs()
    return (
        torch.stack([((inside <= level).double().mean() - level).abs() for level in _ECE_LEVELS])
        .mean()
        .item()
    )


def energy_score(
    prediction: Prediction, target: Tensor, *, samples: int = 32, generator: Generator | None = None
) -> Tensor:
    """E|x - y| - E|x - x'|/2 of all D dimensions together, in z's units: (..., D) -> (...)
    (Gneiting & Raftery, 2007).
    """
    if prediction.mean.shape != target.shape:
        raise ValueError(
            f"expected a prediction of the target's shape {tuple(target.shape)}, got mean "
            f"{tuple(prediction.mean.shape)}."
        )
    draws = torch.stack([prediction.sample(generator) for _ in range(samples)])
    to_target = (draws - target).norm(dim=-1).mean(0)
    # Neighbouring draws are as independent as any two, and cost S distances instead of S^2.
    spread = (draws - draws.roll(1, 0)).norm(dim=-1).mean(0)
    return to_target - spread / 2


@torch.no_grad()
def calibration_report(
    prediction: Prediction, target: Tensor, *, bins: int = 20, generator: Generator | None = None
) -> dict[str, float | list[float]]:
    """Whether predicted intervals hold what they promise.

    Args:
        prediction: a law of (..., D), see `gjwm.models.dynamics.Prediction`.
        target: what happened, (..., D).
        bins: of the PIT histogram.
        generator: draws the energy score's samples; None: one seeded alike for every report.

    Returns:
        nll (nats per dimension), skill (what it gains on the latents' marginal N(0, 1), nats per
        dimension), crps, coverage_{50,80,90,95}, ece (mean over levels .05 to .95 of |coverage -
        level|), spread_skill (rms predicted std / rms error, ideally 1), pit_ks (largest gap of the
        PIT's distribution to uniform), pit (its histogram, each bin ideally 1), mahalanobis (mean
        of (z - m)^T Cov^-1 (z - m) / D, ideally 1), energy_score (at most 2,000 rows) and
        temperature (the factor on std that makes squared errors right on average).

    Raises:
        ValueError: for other shapes, no targets, NaN or infinite values, or a variance that is not
            positive.
    """
    _check(prediction, target)
    prediction, target = (
        prediction.to("cpu", torch.float64),
        target.detach().to("cpu", torch.float64),
    )
    dim = target.shape[-1]
    nll = -prediction.log_prob(target).mean().item() / dim
    pit = prediction.cdf(target).flatten()
    inside = 2 * (pit - 0.5).abs()
    ordered = pit.sort().values
    ranks = torch.arange(1, len(ordered) + 1, dtype=torch.float64) / len(ordered)
    squared = (target - prediction.mean).square()
    lead = target.shape[:-1].numel()
    rows = torch.arange(0, lead, -(-lead // 2000))
    flat = prediction if len(target.shape) == 2 else _flattened(prediction, len(target.shape) - 1)
    generator = report_generator(generator)
    return {
        "nll": nll,
        "skill": UNIT_GAUSSIAN_NATS - nll,
        "crps": prediction.crps(target).mean().item(),
        **{
            f"coverage_{round(100 * level)}": (inside <= level).double().mean().item()
            for level in LEVELS
        },
        "ece": expected_calibration_error(pit),
        "spread_skill": (prediction.variance.mean() / squared.mean().clamp(min=1e-300))
        .sqrt()
        .item(),
        "pit_ks": torch.maximum((ranks - ordered).abs(), (ordered - ranks + 1 / len(ordered)).abs())
        .max()
        .item(),
        "pit": (torch.histc(pit.clamp(0, 1), bins, 0, 1) * bins / len(pit)).tolist(),
        "mahalanobis": prediction.mahalanobis(target).mean().item() / dim,
        "energy_score": energy_score(flat[rows], target.reshape(-1, dim)[rows], generator=generator)
        .mean()
        .item(),
        "temperature": (squared / prediction.variance).mean().sqrt().item(),
    }


def _flattened(prediction: Prediction, axes: int) -> Prediction:
    return prediction.map(lambda x: x.flatten(0, axes - 1))


def fit_temperature(prediction: Prediction, target: Tensor, *, tail: float = 1.0) -> float:
    """The factor on the predicted deviations from the mean that makes the 50, 80, 90 and 95%
    intervals right on average.

    Least squares of coverage - level rather than mean squared standardised errors: k-step errors
    have heavier tails than a Gaussian, a factor from squares is set by the tails, and the intervals
    in the middle then hold too much.

    Args:
        prediction: a law of (..., D).
        target: held-out outcomes (..., D).
        tail: the ratio of `Prediction.tailed` that the law gets as well.

    Raises:
        ValueError: as `calibration_report`.
    """
    return _fit_factor(prediction, target, tail)[0]


def _fit_factor(prediction: Prediction, target: Tensor, tail: float) -> tuple[float, float]:
    """The factor of `fit_temperature`, and the squared gaps of coverage that it leaves."""
    _check(prediction, target)

    def miscoverage(log_factor: float) -> float:
        inside = (
            2 * (prediction.tempered(math.exp(log_factor)).tailed(tail).cdf(target) - 0.5).abs()
        )
        return sum(((inside <= level).float().mean().item() - level) ** 2 for level in LEVELS)

    low, high = math.log(1 / 5), math.log(5)  # a factor beyond these would hide a broken model
    # A grid, then finer ones around its best: coverage is a staircase in the factor.
    for _ in range(4):
        grid = torch.linspace(low, high, 17).tolist()
        best = min(grid, key=miscoverage)
        width = (high - low) / 8
        low, high = best - width, best + width
    return math.exp(best), miscoverage(best)


def fit_tail(laws: Sequence[tuple[Prediction, Tensor]], *, rows: int = 1500) -> float:
    """The ratio of `Prediction.tailed`, one of `RATIOS`, that leaves the least gaps of coverage,
    each law with its best factor.

    Args:
        laws: of (N, D), such as those some steps ahead, with held-out outcomes (N, D).
        rows: of each that are looked at, evenly spaced.

    Raises:
        ValueError: as `calibration_report`.
    """

    def gaps(ratio: float) -> float:
        return sum(_fit_factor(law, target, ratio)[1] for law, target in thinned)

    thinned = [_thinned(law, target, rows) for law, target in laws]
    return min(RATIOS, key=gaps)


def _thinned(law: Prediction, target: Tensor, rows: int) -> tuple[Prediction, Tensor]:
    """At most `rows` rows, evenly spaced, of a law of (N, D) and its targets."""
    stride = max(1, -(-len(target) // rows))
    return law[::stride], target[::stride]


class Forecaster(Protocol):
    """What calibration asks of a model or of dynamics."""

    def predict_sequence(self, z: Tensor, a: Tensor) -> Prediction:
        """One step ahead of each latent: z (B, T, D), a (B, T, A) -> law of (B, T, D)."""
        ...

    def forecast(
        self,
        z0: Tensor,
        a: Tensor,
        *,
        particles: int,
        generator: Generator | None,
        past: Past | None,
    ) -> Prediction:
        """The law of the next H latents: (B, D), (B, H, A) -> law of (B, H, D)."""
        ...


def past_of(z: Tensor, a: Tensor, step: int, *, steps: int = 16) -> Past | None:
    """Up to `steps` latents and actions before `step` of trajectories z (E, T+1, D), a (E, T, A);
    None at the start.
    """
    first = max(0, step - steps)
    return (z[:, first:step], a[:, first:step]) if step else None


@torch.no_grad()
def forecast_windows(
    model: Forecaster,
    z: Tensor,
    a: Tensor,
    *,
    horizon: int,
    stride: int | None = None,
    particles: int = 64,
    generator: Generator | None = None,
    past_steps: int = 16,
) -> list[tuple[Prediction, Tensor]]:
    """Open-loop forecasts from every `stride`-th step of trajectories, with what happened.

    Args:
        z, a: (E, T+1, D) and (E, T, A).
        horizon: H.
        stride: between starts; None: H, so that windows do not overlap.
        past_steps: latents before the start that dynamics with a memory may read.

    Returns:
        per start, the law of (E, H, D) and the true latents (E, H, D).

    Raises:
        ValueError: when the trajectories are shorter than the horizon.
    """
    if a.shape[1] < horizon:
        raise ValueError(
            f"forecasts of {horizon} steps need trajectories at least as long, got {a.shape[1]} "
            f"steps."
        )
    forecasts = []
    for s in range(0, a.shape[1] - horizon + 1, stride or horizon):
        past = past_of(z, a, s, steps=past_steps)
        law = model.forecast(
            z[:, s], a[:, s : s + horizon], particles=particles, generator=generator, past=past
        )
        forecasts.append((law, z[:, s + 1 : s + horizon + 1]))
    return forecasts


def concatenate(laws: Sequence[Prediction]) -> Prediction:
    """Laws of (B_i, ..., D) as one law of (sum B_i, ..., D)."""
    return laws[0].concatenated(laws)


@torch.no_grad()
def fit_calibration(
    model: Forecaster,
    z: Tensor,
    a: Tensor,
    *,
    horizon: int = 12,
    particles: int = 64,
    generator: Generator | None = None,
) -> Calibration:
    """The factor for each horizon, the weight of tails, and the scores of ordinary steps, of an
    uncalibrated model on held-out episodes.

    The tail's ratio is fitted to the laws one step, half of the horizon and the horizon ahead; then
    the factors with it.

    Args:
        z, a: latents (E, T+1, D) and actions (E, T, A).
        horizon: factors are fitted for 1..horizon steps.
        particles, generator: of the forecasts.
    """
    one_step = model.predict_sequence(z[:, :-1], a)
    # Neighbouring steps say the same: more rows would be slower and not surer.
    ahead = [_thinned(_flattened(one_step, 2), z[:, 1:].flatten(0, 1), 6000)]
    if horizon > 1:
        windows = forecast_windows(
            model, z, a, horizon=min(horizon, a.shape[1]), particles=particles, generator=generator
        )
        law, truth = (
            concatenate([law for law, _ in windows]),
            torch.cat([truth for _, truth in windows]),
        )
        ahead += [(law[:, k], truth[:, k]) for k in range(1, truth.shape[1])]
    tail = fit_tail([ahead[k] for k in sorted({0, len(ahead) // 2, len(ahead) - 1})])
    temperature = [fit_temperature(law, truth, tail=tail) for law, truth in ahead]
    scores = -one_step.tempered(temperature[0]).tailed(tail).log_prob(z[:, 1:]) / z.shape[-1]
    return Calibration(temperature, scores.flatten().tolist(), tail)


class Calibration(nn.Module):
    """What held-out episodes taught about a model's predictions; saved with it.

    Args:
        temperature: factor on the predicted standard deviation 1, 2, .. steps ahead; the last holds
            beyond.
        scores: surprise (see `WorldModel.surprise`) of ordinary held-out steps.
        tail: how many times as far as ordinary steps a tenth of the steps deviate, see
            `Prediction.tailed`; 1: Gaussian tails.
    """

    def __init__(
        self,
        temperature: Sequence[float] | Tensor,
        scores: Sequence[float] | Tensor,
        tail: float | Tensor = 1.0,
    ):
        super().__init__()
        self.register_buffer("tail", torch.as_tensor(tail, dtype=torch.float64).clone())
        self.register_buffer(
            "temperature", torch.as_tensor(temperature, dtype=torch.float32).clone()
        )
        self.register_buffer("scores", torch.as_tensor(scores, dtype=torch.float32).sort().values)
        if not len(self.temperature) or not (self.temperature > 0).all():
            raise ValueError(
                f"temperatures must be positive numbers, one per horizon, got {list(temperature)}."
            )
        if not len(self.scores) or not self.scores.isfinite().all():
            raise ValueError("a calibration needs finite held-out scores, got none or NaN.")
        if self.tail.dim() or not self.tail >= 1:
            raise ValueError(
                f"hard steps deviate at least as far as others: expected one tail >= 1, got {tail}."
            )
        self._ratio = self.tail.item()  # read on every prediction, which must not wait for a GPU

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ratio = self.tail.item()

    def factors(self, horizon: int) -> Tensor:
        """(H, 1) factors for steps 1..H."""
        steps = torch.arange(horizon, device=self.temperature.device).clamp(
            max=len(self.temperature) - 1
        )
        return self.temperature[steps, None]

    def correct(self, law: Prediction, horizon: int | None = None) -> Prediction:
        """What held-out episodes make of a law: of (..., D) one step ahead, or of (..., H, D) 1..H
        steps ahead.
        """
        return law.tempered(
            self.temperature[0] if horizon is None else self.factors(horizon)
        ).tailed(self._ratio)

    def p_value(self, score: Tensor) -> Tensor:
        """The share of ordinary steps at least as surprising, (1 + #{held out >= score}) / (1 + n):
        uniform on ordinary steps."""
        below = torch.searchsorted(self.scores, score.contiguous())
        return (1 + len(self.scores) - below) / (1 + len(self.scores))
