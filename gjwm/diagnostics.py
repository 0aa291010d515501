"""Label-free diagnostics: is the law of z a standard Gaussian, and do predicted intervals hold what they promise?

Every figure that an ideal Gaussian batch does not bring to 0 or 1 comes with the value such a batch of the same size has.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats
from torch import Generator, Tensor

from gjwm.calibration import calibration_report as calibration_report
from gjwm.calibration import gaussian_crps as gaussian_crps
from gjwm.objectives import EPPS_PULLEY_NULL_95, EPPS_PULLEY_NULL_MEAN, epps_pulley, random_directions


def effective_rank(eigenvalues: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred batch (Roy & Vetterli, 2007): D equal ones give D."""
    singular = eigenvalues.clamp(min=0).sqrt()
    if singular.sum() == 0:
        return 0.0
    p = singular / singular.sum()
    return torch.exp(-(p * (p + 1e-300).log()).sum()).item()


def _spectrum(z: Tensor) -> Tensor:
    centred = z - z.mean(0)
    return torch.linalg.eigvalsh(centred.T @ centred / len(z)).flip(0)


def embedding_report(z: Tensor, *, slices: int = 512, generator: Generator | None = None) -> dict[str, float]:
    """How far the law of z is from N(0, I).

    Args:
        z: (N, D) independent samples, or (B, T, D) trajectories. The spectrum is that of all samples; the tests whose null law
            assumes independence (Epps-Pulley, Mardia, norms) see one random step of each trajectory.
        slices: random projections of the Epps-Pulley test.
        generator: draws slices, steps and the ideal batches.

    Returns:
        effective_rank, participation_ratio, condition_number, min_eigenvalue, mean_norm, variance_error; epps_pulley (mean over
        slices of N * T), epps_pulley_reject_rate (share of slices over the 95% line, ideally 0.05); Mardia's skewness and
        kurtosis with p-values (on at most 16 principal axes); norm_ks_p (|z|^2 against chi^2_D); and *_ideal / *_null values.

    Raises:
        ValueError: for other shapes, NaN, or fewer than 8 independent samples.
    """
    if z.dim() not in (2, 3) or not z.isfinite().all():
        raise ValueError(
            f"expected finite latents (N, D) or (B, T, D), got {tuple(z.shape)}, finite: {z.isfinite().all().item()}."
        )
    z = z.detach().double().cpu()
    if z.dim() == 3:
        steps = torch.randint(z.shape[1], (z.shape[0],), generator=generator)
        independent, samples = z[torch.arange(len(z)), steps], z.flatten(0, 1)
    else:
        independent = samples = z
    n, d = independent.shape
    if n < 8:
        raise ValueError(f"a Gaussianity report needs at least 8 independent samples, got {n}.")
    spectrum = _spectrum(samples)
    ideal = [_spectrum(torch.randn(len(samples), d, generator=generator, dtype=torch.float64)) for _ in range(3)]
    statistic = n * epps_pulley(independent @ random_directions(d, slices, generator, like=independent))
    report = {
        "samples": len(samples),
        "independent_samples": n,
        "effective_rank": effective_rank(spectrum),
        "effective_rank_ideal": float(np.mean([effective_rank(s) for s in ideal])),
        "participation_ratio": (spectrum.sum().square() / spectrum.square().sum().clamp(min=1e-300)).item(),
        "participation_ratio_ideal": d * len(samples) / (len(samples) + d),
        "condition_number": (spectrum[0] / spectrum[-1].clamp(min=1e-300)).item(),
        "condition_number_ideal": float(np.mean([(s[0] / s[-1]).item() for s in ideal])),
        "min_eigenvalue": spectrum[-1].item(),
        "mean_norm": samples.mean(0).norm().item(),
        "variance_error": (samples.var(0) - 1).abs().mean().item(),
        "epps_pulley": statistic.mean().item(),
        "epps_pulley_null": EPPS_PULLEY_NULL_MEAN,
        "epps_pulley_reject_rate": (statistic > EPPS_PULLEY_NULL_95).double().mean().item(),
        "norm_ks_p": float(stats.kstest(independent.square().sum(1).numpy(), stats.chi2(d).cdf).pvalue),
    }
    return report | _mardia(independent[:2000])


def _mardia(z: Tensor, axes: int = 16) -> dict[str, float]:
    """Mardia's (1970) multivariate skewness and kurtosis on the leading principal axes, with asymptotic p-values."""
    n = len(z)
    centred = z - z.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / n)
    d = min(axes, z.shape[1], n // 4)
    values, vectors = values[-d:], vectors[:, -d:]
    if values[0] < 1e-12:
        # Without variance on an axis there is nothing to standardise: a collapsed batch is not Gaussian.
        return {"mardia_skewness": 0.0, "mardia_skewness_p": 0.0, "mardia_kurtosis": 0.0, "mardia_kurtosis_p": 0.0}
    y = centred @ vectors / values.sqrt()
    gram = y @ y.T
    skewness, kurtosis = gram.pow(3).mean().item(), gram.diagonal().square().mean().item()
    freedom = d * (d + 1) * (d + 2) / 6
    expected = d * (d + 2) * (n - 1) / (n + 1)
    score = (kurtosis - expected) / math.sqrt(8 * d * (d + 2) / n)
    return {
        "mardia_skewness": skewness,
        "mardia_skewness_p": float(stats.chi2(freedom).sf(n * skewness / 6)),
        "mardia_kurtosis": kurtosis / (d * (d + 2)),
        "mardia_kurtosis_p": float(2 * stats.norm.sf(abs(score))),
    }


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a success rate."""
    interval = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)
