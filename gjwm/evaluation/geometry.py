"""Is the law of z a standard Gaussian, and how do latents move?"""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Generator, Tensor

from gjwm._core import draws
from gjwm.evaluation.calibration import report_generator
from gjwm.evaluation.normality import epps_pulley_p_value, henze_zirkler, mardia
from gjwm.objectives import (
    EPPS_PULLEY_NULL_95,
    EPPS_PULLEY_NULL_MEAN,
    epps_pulley,
    random_directions,
)

DEAD = 0.01  # variance below which a principal direction of a unit-variance target carries nothing


def effective_rank(eigenvalues: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred batch, from its
    covariance's eigenvalues (D,) (Roy & Vetterli, 2007).
    """
    singular = eigenvalues.clamp(min=0).sqrt()
    if singular.sum() == 0:
        return 0.0
    p = singular / singular.sum()
    return torch.exp(-(p * (p + 1e-300).log()).sum()).item()


def rank_me(z: Tensor) -> float:
    """The same of z (N, D) itself, not centred (RankMe; Garrido et al., 2023)."""
    singular = torch.linalg.svdvals(z)
    if singular.sum() == 0:
        return 0.0
    p = singular / singular.sum() + 1e-7
    return torch.exp(-(p * p.log()).sum()).item()


def _spectrum(z: Tensor) -> Tensor:
    centred = z - z.mean(0)
    return torch.linalg.eigvalsh(centred.T @ centred / len(z)).flip(0).clamp(min=0)


def _samples(z: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """All samples (M, D), and independent ones (N, D): one random step of each trajectory."""
    if z.dim() not in (2, 3):
        raise ValueError(f"expected finite latents (N, D) or (B, T, D), got {tuple(z.shape)}.")
    bad = z.numel() - int(z.isfinite().sum())
    if bad:
        raise ValueError(
            f"expected finite latents, got {bad} NaN or infinite values in {tuple(z.shape)}."
        )
    z = z.detach().double().cpu()
    if len(z) < 8:
        raise ValueError(
            f"a Gaussianity report needs at least 8 independent samples, got {len(z)}."
        )
    if z.dim() == 2:
        return z, z
    steps = draws.integers(z.shape[1], (z.shape[0],), generator, device="cpu")
    return z.flatten(0, 1), z[torch.arange(len(z)), steps]


def _figures(
    samples: Tensor, independent: Tensor, slices: int, generator: Generator
) -> dict[str, float]:
    n, d = independent.shape
    spectrum, norms = _spectrum(samples), independent.square().sum(1)
    statistic = n * epps_pulley(
        independent @ random_directions(d, slices, generator, like=independent)
    )
    subset = independent[:2000]
    return {
        "effective_rank": effective_rank(spectrum),
        "rank_me": rank_me(samples),
        "participation_ratio": (
            spectrum.sum().square() / spectrum.square().sum().clamp(min=1e-300)
        ).item(),
        "condition_number": (spectrum[0] / spectrum[-1].clamp(min=1e-300)).item(),
        "min_eigenvalue": spectrum[-1].item(),
        "dead_directions": int((spectrum < DEAD).sum()),
        "mean_norm": samples.mean(0).norm().item(),
        "variance_error": (samples.var(0) - 1).abs().mean().item(),
        "epps_pulley": statistic.mean().item(),
        "epps_pulley_reject_rate": (statistic > EPPS_PULLEY_NULL_95).double().mean().item(),
        # Bonferroni over slices, which are not independent: small values mean something, large ones
        # do not.
        "epps_pulley_min_p": min(1.0, slices * float(epps_pulley_p_value(statistic.max())[0])),
        "norm_squared_mean": norms.mean().item() / d,
        "norm_squared_variance": norms.var().item() / (2 * d),
        "norm_ks_p": float(stats.kstest(norms.numpy(), stats.chi2(d).cdf).pvalue),
        **mardia(subset),
        **henze_zirkler(subset),
    }


def embedding_report(
    z: Tensor, *, slices: int = 512, ideals: int = 3, generator: Generator | None = None
) -> dict[str, float]:
    """How far the law of z is from N(0, I).

    Args:
        z: (N, D) independent samples, or (B, T, D) trajectories, of which tests that assume
            independence (Epps-Pulley, Mardia, Henze-Zirkler, norms) see one random step each.
        slices: random projections of the Epps-Pulley test.
        ideals: Gaussian batches of the same sizes that are measured too, and averaged.
        generator: None: one seeded alike for every report.

    Returns:
        effective_rank, rank_me (uncentred), participation_ratio, condition_number, min_eigenvalue,
        dead_directions (eigenvalues below 0.01), mean_norm, variance_error; epps_pulley (mean over
        slices of N * T), epps_pulley_reject_rate (share of slices over the 95% line) and
        epps_pulley_min_p; mean and variance of |z|^2 over those of chi^2_D, norm_ks_p; Mardia's
        skewness and kurtosis with p-values (on at most 16 principal axes; the kurtosis over its
        Gaussian value); henze_zirkler (any mean and covariance). Every figure has its *_ideal, what
        a Gaussian batch of this size shows; participation_ratio_ideal is the known limit
        DN / (N + D), and epps_pulley_null the exact mean.

    Raises:
        ValueError: for other shapes, NaN or infinite values, or fewer than 8 independent samples.
    """
    generator = report_generator(generator)
    samples, independent = _samples(z, generator)
    ours = _figures(samples, independent, slices, generator)
    gaussian = []
    for _ in range(ideals):
        batch = torch.randn(samples.shape, generator=generator, dtype=torch.float64)
        gaussian.append(_figures(batch, batch[: len(independent)], slices, generator))
    report = {"samples": len(samples), "independent_samples": len(independent)}
    for name, value in ours.items():
        report[name] = value
        report[f"{name}_ideal"] = float(np.mean([figures[name] for figures in gaussian]))
    n, d = samples.shape
    return report | {
        "participation_ratio_ideal": d * n / (n + d),
        "epps_pulley_null": EPPS_PULLEY_NULL_MEAN,
    }


def glance(z: Tensor, *, slices: int = 64) -> dict[str, float]:
    """What a training logs of its latents, in a few milliseconds; `embedding_report` says more.

    Args:
        z: windows (B, T, D).
        slices: random projections of the Epps-Pulley test, the same ones each time.

    Returns:
        rank: effective rank of all B T latents, at most D; std: mean over dimensions of their
        standard deviation; epps_pulley: mean over slices of B times the statistic of the B first
        latents, about `EPPS_PULLEY_NULL_MEAN` where they are Gaussian.
    """
    z = z.detach().double().cpu()
    samples, first = z.flatten(0, 1), z[:, 0]
    directions = random_directions(z.shape[-1], slices, report_generator(None), like=first)
    return {
        "rank": effective_rank(_spectrum(samples)),
        "std": samples.std(0).mean().item(),
        "epps_pulley": (len(first) * epps_pulley(first @ directions)).mean().item(),
    }


def gaussianity_curves(
    z: Tensor, *, slices: int = 48, quantiles: int = 100, generator: Generator | None = None
) -> dict[str, np.ndarray]:
    """What is drawn of the law of z, (N, D) or (B, T, D), beside N(0, I).

    Returns:
        spectrum, spectrum_ideal (D,): falling eigenvalues, the second of a Gaussian batch of this
        size; slices (Q, S): quantiles of S random projections of the N independent samples at
        `levels` (Q,), and slices_low, slices_high (Q,), which hold 95% of Gaussian slices; norms
        (N,).
    """
    generator = report_generator(generator)
    samples, independent = _samples(z, generator)
    ideal = torch.randn(samples.shape, generator=generator, dtype=torch.float64)
    directions = random_directions(samples.shape[1], slices, generator, like=independent)
    n = len(independent)
    at = np.unique(np.linspace(0, n - 1, min(n, quantiles)).round().astype(int))
    low, high = (stats.norm.ppf(stats.beta.ppf(p, at + 1, n - at)) for p in (0.025, 0.975))
    return {
        "spectrum": _spectrum(samples).numpy(),
        "spectrum_ideal": _spectrum(ideal).numpy(),
        "levels": (at + 0.5) / n,
        "slices": (independent @ directions).sort(0).values.numpy()[at],
        "slices_low": low,
        "slices_high": high,
        "norms": independent.norm(dim=1).numpy(),
    }


def trajectory_report(z: Tensor, *, lags: int = 40) -> dict[str, float | list[float] | None]:
    """How latents move along trajectories.

    Args:
        z: (B, T, D), T >= 3.

    Returns:
        autocorrelation (L+1,): E<z_t - m, z_{t+l} - m> / E|z - m|^2 at lags l = 0..L <= T - 1;
        correlation_time: the lag where it falls to 1/e, or None; straightness: mean cosine between
        successive displacements (Hénaff et al., 2019); straightness_markov: that of a Gaussian
        Markov chain with the same lag-one autocorrelation r, -(1 - r)/2; displacement: rms |z_{t+1}
        - z_t| over rms |z - m|.

    Raises:
        ValueError: for other shapes or NaN.
    """
    if z.dim() != 3 or z.shape[1] < 3 or not z.isfinite().all():
        raise ValueError(
            f"trajectories need finite latents (B, T, D) of at least 3 steps, got {tuple(z.shape)}."
        )
    z = z.detach().double().cpu()
    centred = z - z.flatten(0, 1).mean(0)
    power = centred.square().sum(-1).mean().clamp(min=1e-300)
    length = z.shape[1]
    rho = [
        ((centred[:, : length - lag] * centred[:, lag:]).sum(-1).mean() / power).item()
        for lag in range(min(lags, length - 1) + 1)
    ]
    level, time = float(np.exp(-1)), None
    for lag in range(1, len(rho)):
        if rho[lag] < level:
            time = lag - 1 + (rho[lag - 1] - level) / (rho[lag - 1] - rho[lag])
            break
    step = z[:, 1:] - z[:, :-1]
    size = step.norm(dim=-1)
    turning = (step[:, 1:] * step[:, :-1]).sum(-1) / (size[:, 1:] * size[:, :-1]).clamp(min=1e-300)
    moving = (size[:, 1:] > 1e-9) & (size[:, :-1] > 1e-9)  # a rest has no direction
    return {
        "autocorrelation": rho,
        "correlation_time": time,
        "straightness": turning[moving].mean().item() if moving.any() else 0.0,
        "straightness_markov": -(1 - rho[1]) / 2,
        "displacement": (size.square().mean() / power).sqrt().item(),
    }
