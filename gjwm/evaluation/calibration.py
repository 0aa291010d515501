"""Do predicted laws hold what they promise? Any law is judged through its marginals' probability
integral transform (PIT), scores and samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from gjwm.models.calibration import LEVELS, check_law, flattened, forecast_windows
from gjwm.models.dynamics import Prediction
from gjwm.models.world_model import WorldModel

_ECE_LEVELS = torch.arange(0.05, 0.951, 0.05, dtype=torch.float64)


def marginal_nats(z: Tensor) -> float:
    """What "skill" is a gain on: nats per dimension that a Gaussian with the latents' own mean and
    variance in each dimension needs for them, z (..., D), whatever their scale.
    """
    variance = z.detach().double().flatten(0, -2).var(0, correction=0)
    believed = variance.clamp(min=1e-12)  # constant latents too have a finite law
    return 0.5 * ((2 * math.pi * believed).log() + variance / believed).mean().item()


def report_generator(generator: Generator | None) -> Generator:
    """A report's generator, on the CPU; never torch's global one, which a report must not
    advance.
    """
    if generator is not None and generator.device.type == "cpu":
        return generator
    return torch.Generator().manual_seed(0 if generator is None else generator.initial_seed())


def expected_calibration_error(pit: Tensor) -> float:
    """Mean over the levels .05 to .95 of |share of central intervals that hold the target - level|,
    from PIT values.
    """
    # the smallest central interval that holds the target
    inside = 2 * (pit.flatten().double() - 0.5).abs()
    gaps = [((inside <= level).double().mean() - level).abs() for level in _ECE_LEVELS]
    return torch.stack(gaps).mean().item()


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
        nll (nats per dimension), skill (what it gains on a Gaussian with the targets' own mean and
        variance in each dimension, nats per dimension), crps, coverage_{50,80,90,95}, ece (mean
        over levels .05 to .95 of |coverage - level|), spread_skill (rms predicted std / rms error,
        ideally 1), pit_ks (largest gap of the PIT's distribution to uniform), pit (its histogram,
        each bin ideally 1), mahalanobis (mean of (z - m)^T Cov^-1 (z - m) / D, ideally 1),
        energy_score (at most 2,000 rows) and temperature (the factor on std that makes squared
        errors right on average).

    Raises:
        ValueError: for other shapes, no targets, NaN or infinite values, or a variance that is not
            positive.
    """
    check_law(prediction, target)
    prediction, target = prediction.to("cpu", torch.float64), target.detach().cpu().double()
    dim = target.shape[-1]
    nll = -prediction.log_prob(target).mean().item() / dim
    pit = prediction.cdf(target).flatten()
    inside = 2 * (pit - 0.5).abs()
    ordered = pit.sort().values
    ranks = torch.arange(1, len(ordered) + 1, dtype=torch.float64) / len(ordered)
    squared = (target - prediction.mean).square()
    lead = target.shape[:-1].numel()
    rows = torch.arange(0, lead, -(-lead // 2000))
    flat = prediction if target.dim() == 2 else flattened(prediction, target.dim() - 1)
    generator = report_generator(generator)
    energy = energy_score(flat[rows], target.reshape(-1, dim)[rows], generator=generator)
    spread = prediction.variance.mean() / squared.mean().clamp(min=1e-300)
    gaps = torch.maximum((ranks - ordered).abs(), (ordered - ranks + 1 / len(ordered)).abs())
    covered = {
        f"coverage_{round(100 * level)}": (inside <= level).double().mean().item()
        for level in LEVELS
    }
    return {
        "nll": nll,
        "skill": marginal_nats(target) - nll,
        "crps": prediction.crps(target).mean().item(),
        **covered,
        "ece": expected_calibration_error(pit),
        "spread_skill": spread.sqrt().item(),
        "pit_ks": gaps.max().item(),
        "pit": (torch.histc(pit.clamp(0, 1), bins, 0, 1) * bins / len(pit)).tolist(),
        "mahalanobis": prediction.mahalanobis(target).mean().item() / dim,
        "energy_score": energy.mean().item(),
        "temperature": (squared / prediction.variance).mean().sqrt().item(),
    }


@torch.inference_mode()
def calibration_by_horizon(
    model: WorldModel,
    z: Tensor,
    a: Tensor,
    *,
    horizons: Sequence[int],
    particles: int,
    generator: Generator,
) -> dict[str, Any]:
    """One-step calibration at the top level, and under "horizon_k" that of forecasts k steps
    ahead.
    """
    one_step = model.predict_sequence(z[:, :-1], a)
    report: dict[str, Any] = dict(calibration_report(one_step, z[:, 1:]))
    reached = [k for k in horizons if k <= a.shape[1]]
    if reached:
        law, truth = forecast_windows(
            model, z, a, horizon=max(reached), particles=particles, generator=generator
        )
        for k in reached:
            report[f"horizon_{k}"] = calibration_report(law[:, k - 1], truth[:, k - 1])
    return report
