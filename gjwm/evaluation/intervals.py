"""Intervals: of a share, a mean, a ratio over episodes, a statistic over runs drawn task by task,
and a rank correlation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

Sample = np.ndarray | Sequence[float]


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval for a success rate.

    >>> low, high = wilson_interval(97, 100)
    >>> round(low, 3), round(high, 3)
    (0.915, 0.99)
    """
    interval = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sample) -> tuple[float, float | None, float | None]:
    """(mean, low, high) of values (R,), 95% by Student's t; the ends of a single one are None.

    Raises:
        ValueError: without values.
    """
    values = np.asarray(values, np.float64).ravel()
    if not len(values):
        raise ValueError("a mean needs at least one value, got none.")
    mean = float(values.mean())
    if len(values) == 1:
        return mean, None, None
    t = stats.t.ppf(0.975, len(values) - 1)
    room = float(t * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - room, mean + room


def ratio_interval(
    part: np.ndarray, whole: np.ndarray, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap of sum(part) / sum(whole) over episodes (Efron & Tibshirani, 1993).

    Args:
        part, whole: (E, ...) each; axes behind the first are ratios of their own.

    Returns:
        ends of the interval, (...) each.

    Raises:
        ValueError: for other shapes, or no episode.
    """
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    if part.shape != whole.shape or not len(part):
        raise ValueError(
            f"a ratio needs as many parts as wholes and at least one, got {part.shape} and "
            f"{whole.shape}."
        )
    rows = len(part)
    # A matrix product sums all draws at once.
    weight = _counts(np.random.default_rng(seed), rows, draws)
    flat, total = weight @ part.reshape(rows, -1), weight @ whole.reshape(rows, -1)
    ratio = (flat / np.where(total == 0, np.nan, total)).reshape(draws, *part.shape[1:])
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(ratio, [tail, 100 - tail], axis=0)
    return low, high


def _counts(rng: np.random.Generator, rows: int, draws: int) -> np.ndarray:
    """How often each row is drawn, (draws, rows)."""
    return rng.multinomial(rows, np.full(rows, 1 / rows), draws).astype(np.float64)


# -- over runs -------------------------------------------------------------------------------------


def stratified_interval(
    runs: Mapping[str, Sample],
    statistic: Callable[[Sequence[np.ndarray]], np.ndarray],
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(value, low, high) of a statistic over the runs of several tasks: 95% of a bootstrap that
    draws runs within each task (Agarwal et al., 2021).

    Args:
        runs: task -> scores of its runs (R_task,).
        statistic: one (draws, R_task) per task -> (draws,).

    Raises:
        ValueError: for a task without runs, or with NaN among the scores.
    """
    scores = [np.asarray(values, np.float64).ravel() for values in runs.values()]
    if not scores or not all(map(len, scores)):
        counts = {task: len(values) for task, values in runs.items()}
        raise ValueError(f"an interval over tasks needs runs of each task, got {counts}.")
    if not all(np.isfinite(values).all() for values in scores):
        raise ValueError(
            "an interval over tasks was given NaN or infinity; leave failed runs out and say so."
        )
    rng = np.random.default_rng(seed)
    drawn = [row[rng.integers(0, len(row), (draws, len(row)))] for row in scores]
    low, high = np.percentile(statistic(drawn), [2.5, 97.5])
    return float(statistic([row[None] for row in scores])[0]), float(low), float(high)


def pooled_interquartile_mean(scores: Sequence[np.ndarray]) -> np.ndarray:
    """A statistic: the mean of the middle half of the runs of all tasks (Agarwal et al., 2021)."""
    return stats.trim_mean(np.concatenate(scores, 1), 0.25, axis=1)


def mean_over_tasks(scores: Sequence[np.ndarray]) -> np.ndarray:
    """A statistic: the mean over tasks of the mean over runs."""
    return np.mean([row.mean(1) for row in scores], 0)


# -- rank correlation ------------------------------------------------------------------------------


def rank_correlation(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> float | None:
    """Spearman's correlation, pooled over groups (N_g,) whose ranks are taken and centred in each;
    None where x or y varies within no group.
    """
    rho = _correlations([(a, b, np.ones((1, len(a)))) for a, b in zip(x, y)])[0]
    return None if np.isnan(rho) else float(rho)


def rank_correlation_interval(
    groups: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """95% bootstrap (low, high) of `rank_correlation`; None where fewer than half of the draws have
    one.

    Args:
        groups: (x, y, cluster) of each group, (N_g,) each. Clusters are drawn with all their runs:
            the seeds of one recipe are not independent.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for x, y, cluster in groups:
        _, member = np.unique(cluster, return_inverse=True)
        drawn.append((x, y, _counts(rng, member.max() + 1, draws)[:, member]))
    rho = _correlations(drawn)
    known = rho[np.isfinite(rho)]
    if len(known) < draws / 2:
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _correlations(groups: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Groups of x, y (N_g,) and how often each run was drawn (R, N_g) -> (R,), NaN for none."""
    total = 0.0
    for x, y, weight in groups:
        a, b = (_centred_ranks(np.asarray(values, np.float64), weight) for values in (x, y))
        total = total + np.stack([(weight * p).sum(1) for p in (a * b, a * a, b * b)])
    both, ours, theirs = total
    scale = np.sqrt(ours * theirs)
    return np.where(scale > 1e-9, both / np.maximum(scale, 1e-9), np.nan)


def _centred_ranks(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Centred mid-ranks (R, N) of samples that hold value i `weight` (R, N) times."""
    below = (values[None] < values[:, None]) + 0.5 * (values[None] == values[:, None])
    ranks = weight @ below.T
    return ranks - (weight * ranks).sum(1, keepdims=True) / weight.sum(1, keepdims=True)
