"""Intervals: of a share, a success rate over seeds, a mean, a ratio over episodes, a mean over
tasks, and a rank correlation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

Sample = np.ndarray | Sequence[float]


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval for the success rate of one model on goals like these.

    Attempts of several seeds are not n independent ones: `rate_interval` is for those.

    >>> low, high = wilson_interval(97, 100)
    >>> round(low, 3), round(high, 3)
    (0.915, 0.99)
    """
    interval = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def rate_interval(successes: Sample, attempts: Sample) -> tuple[float, float, float]:
    """(rate, low, high) of a success rate over seeds, 95%: seeds are the clusters.

    Wilson's interval {p: (rate - p)^2 <= q p (1 - p)}, where q is the larger of 1.96^2 mean(1 / m)
    / S (all attempts independent) and t^2 s^2 / (S rate (1 - rate)), s the standard deviation of
    the seeds' rates and t Student's quantile for S - 1. The first keeps seeds that agree by chance
    from leaving an interval of no width, the second speaks of seeds not trained. With one seed only
    the first is there, and nothing is said about others.

    Coverage of beta-binomial seeds (3, 5, 9 or 12 with 50 or 100 goals each, 4,000 draws; a test
    repeats a part): 96 to 99% where all seeds have one rate, 93 to 98% where rates around .5 or .8
    have a standard deviation of 5 to 20 points, 92 to 97% for .95 and 5 points. Of the last two
    `wilson_interval` of the pooled attempts covers 90% at best (5 points) and 28% at worst (20
    points). Where few seeds fail badly and the others hardly ever (.95 and 10 points or more) both
    fall short, ours to 80% and far less: no method knows a failure that it has not seen.

    Args:
        successes, attempts: k and m of each seed, (S,) each. The rate is the mean of k / m.

    Raises:
        ValueError: for no seed, other shapes, or counts that cannot be.

    >>> [round(float(x), 2) for x in rate_interval([77, 84, 29], [100, 100, 100])]
    [0.63, 0.12, 0.95]
    """
    k, m = np.asarray(successes, np.float64), np.asarray(attempts, np.float64)
    if k.ndim != 1 or k.shape != m.shape or not len(k) or not ((k >= 0) & (k <= m) & (m > 0)).all():
        raise ValueError(
            f"a rate over seeds needs successes of attempts of each seed, got {k.tolist()} of "
            f"{m.tolist()}."
        )
    rates = k / m
    rate, seeds = float(rates.mean()), len(rates)
    q = stats.norm.ppf(0.975) ** 2 * (1 / m).mean() / seeds
    if 0 < rate < 1 and seeds > 1:
        between = rates.var(ddof=1) / (seeds * rate * (1 - rate))
        q = max(q, stats.t.ppf(0.975, seeds - 1) ** 2 * between)
    room = np.sqrt(q * rate * (1 - rate) + q * q / 4)
    low, high = ((rate + q / 2 + side * room) / (1 + q) for side in (-1, 1))
    # Rounding can leave the ends of 0 and 1 a hair away from them.
    return rate, float(min(max(low, 0.0), rate)), float(max(min(high, 1.0), rate))


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


def mean_over_tasks(runs: Mapping[str, Sample]) -> tuple[float, float | None, float | None]:
    """(mean, low, high) of the mean over tasks of the mean over their runs, 95%: each task weighs
    the same, runs are the samples. The ends are None where a task has a single run, and where all
    runs of each task agree: nothing is then known of their spread.

    Student's t with the degrees of freedom of Satterthwaite (1946). In simulation it covers 95 to
    97% with three runs of each of three tasks, where a percentile bootstrap that draws runs within
    tasks covers about 83%.

    Args:
        runs: task -> figures of its runs, or differences of its pairs, (R_task,).

    Raises:
        ValueError: for a task without runs, or with NaN among the figures.
    """
    figures = [np.asarray(values, np.float64).ravel() for values in runs.values()]
    if not figures or not all(map(len, figures)):
        counts = {task: len(values) for task, values in runs.items()}
        raise ValueError(f"a mean over tasks needs runs of each task, got {counts}.")
    if not all(np.isfinite(values).all() for values in figures):
        raise ValueError(
            "a mean over tasks was given NaN or infinity; leave failed runs out and say so."
        )
    mean = float(np.mean([row.mean() for row in figures]))
    if min(map(len, figures)) == 1:
        return mean, None, None
    tasks, free = len(figures), np.array([len(row) - 1 for row in figures])
    parts = np.array([row.var(ddof=1) / len(row) for row in figures]) / tasks**2
    total = parts.sum()
    if total == 0:
        return mean, None, None
    t = stats.t.ppf(0.975, total**2 / (parts**2 / free).sum())
    room = float(t * np.sqrt(total))
    return mean, mean - room, mean + room


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
