"""What a world model keeps from held-out episodes, so that predicted laws hold what they promise: a
factor on the standard deviation at each horizon, how much further hard steps deviate than ordinary
ones, and how surprising ordinary steps are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from gjwm.models.dynamics import Past, Prediction

LEVELS = (0.5, 0.8, 0.9, 0.95)
# of hard to ordinary deviations that `fit_tail` chooses from
RATIOS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)


def check_law(prediction: Prediction, target: Tensor) -> None:
    """ValueError unless a law and what happened (..., D) can be compared: other shapes, no targets,
    NaN or infinite values, or a variance that is not positive.
    """
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


def flattened(prediction: Prediction, axes: int) -> Prediction:
    """A law of (..., D) whose first `axes` axes become one."""
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
        ValueError: as `check_law`.
    """
    return _fit_factor(prediction, target, tail)[0]


def _fit_factor(prediction: Prediction, target: Tensor, tail: float) -> tuple[float, float]:
    """The factor of `fit_temperature`, and the squared gaps of coverage that it leaves."""
    check_law(prediction, target)

    def miscoverage(log_factor: float) -> float:
        law = prediction.tempered(math.exp(log_factor)).tailed(tail)
        inside = 2 * (law.cdf(target) - 0.5).abs()
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
        ValueError: as `check_law`.
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
    """What calibration asks of a model or of dynamics: see `Dynamics`."""

    def predict_sequence(self, z: Tensor, a: Tensor) -> Prediction: ...

    def forecast(self, z0: Tensor, a: Tensor, **draws: Any) -> Prediction: ...


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
    particles: int = 64,
    generator: Generator | None = None,
) -> tuple[Prediction, Tensor]:
    """Open-loop forecasts from every H-th step of trajectories, with what happened.

    Args:
        z, a: (E, T+1, D) and (E, T, A).
        horizon: H.

    Returns:
        of W windows, start by start, the law of (W E, H, D) and the true latents (W E, H, D).

    Raises:
        ValueError: when the trajectories are shorter than the horizon.
    """
    if a.shape[1] < horizon:
        raise ValueError(
            f"forecasts of {horizon} steps need trajectories at least as long, got {a.shape[1]} "
            f"steps."
        )
    draws = dict(particles=particles, generator=generator)
    starts = range(0, a.shape[1] - horizon + 1, horizon)
    laws = [
        model.forecast(z[:, s], a[:, s : s + horizon], past=past_of(z, a, s), **draws)
        for s in starts
    ]
    truth = torch.cat([z[:, s + 1 : s + horizon + 1] for s in starts])
    return laws[0].concatenated(laws), truth


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
    ahead = [_thinned(flattened(one_step, 2), z[:, 1:].flatten(0, 1), 6000)]
    if horizon > 1:
        horizon = min(horizon, a.shape[1])
        law, truth = forecast_windows(
            model, z, a, horizon=horizon, particles=particles, generator=generator
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
        steps = torch.arange(horizon, device=self.temperature.device)
        return self.temperature[steps.clamp(max=len(self.temperature) - 1), None]

    def correct(self, law: Prediction, horizon: int | None = None) -> Prediction:
        """What held-out episodes make of a law: of (..., D) one step ahead, or of (..., H, D) 1..H
        steps ahead.
        """
        factor = self.temperature[0] if horizon is None else self.factors(horizon)
        return law.tempered(factor).tailed(self._ratio)

    def p_value(self, score: Tensor) -> Tensor:
        """The share of ordinary steps at least as surprising, (1 + #{held out >= score}) / (1 + n):
        uniform on ordinary steps."""
        below = torch.searchsorted(self.scores, score.contiguous())
        return (1 + len(self.scores) - below) / (1 + len(self.scores))
