"""Intervals over episodes, which are independent where their steps are not, and over runs, task by
task.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import stats


def ratio_interval(
    part: np.ndarray, whole: np.ndarray, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap of sum(part) / sum(whole), rows drawn together (Efron & Tibshirani,
    1993).

    Args:
        part, whole: per episode, (E, ...) each; axes behind the first are ratios of their own.

    Returns:
        ends of the interval, (...) each. An R² has the interval 1 - (high, low) of its error over
        its deviation.

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
    # How often each episode is drawn: a matrix product then sums all draws at once.
    weight = (
        np.random.default_rng(seed)
        .multinomial(rows, np.full(rows, 1 / rows), draws)
        .astype(np.float64)
    )
    flat, total = weight @ part.reshape(rows, -1), weight @ whole.reshape(rows, -1)
    ratio = (flat / np.where(total == 0, np.nan, total)).reshape(draws, *part.shape[1:])
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(ratio, [tail, 100 - tail], axis=0)
    return low, high


def mean_interval(
    values: np.ndarray, *, level: float = 0.95
) -> tuple[float, float | None, float | None]:
    """(mean, low, high) by Student's t, right for a few independent normal values (R,); the ends
    are None for a single one.

    Raises:
        ValueError: without values.
    """
    values = np.asarray(values, np.float64).ravel()
    if not len(values):
        raise ValueError("a mean needs at least one value, got none.")
    mean = float(values.mean())
    if len(values) == 1:
        return mean, None, None
    room = float(
        stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    )
    return mean, mean - room, mean + room


def interquartile_mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Mean of the middle half of the values: a quarter is cut from each end (Agarwal et al.,
    2021).
    """
    return stats.trim_mean(np.asarray(values, np.float64), 0.25, axis=axis)


def stratified_interquartile_mean(
    runs: Mapping[str, np.ndarray], *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Interquartile mean over the runs of all tasks together, with its stratified bootstrap
    interval.

    Args:
        runs: task -> scores of its runs (R_task,). Runs are drawn anew within each task, so that no
            draw loses a task (Agarwal et al., 2021, "Deep reinforcement learning at the edge of the
            statistical precipice").

    Returns:
        (mean, low, high).

    Raises:
        ValueError: without runs, or with NaN among the scores.
    """
    scores = {task: np.asarray(values, np.float64).ravel() for task, values in runs.items()}
    if not scores or any(not len(values) for values in scores.values()):
        raise ValueError(
            "an interquartile mean needs runs of each task, got "
            f"{ ({k: len(v) for k, v in scores.items()}) }."
        )
    if not all(np.isfinite(values).all() for values in scores.values()):
        raise ValueError(
            "an interquartile mean was given NaN or infinity; leave failed runs out and say so."
        )
    rng = np.random.default_rng(seed)
    drawn = [
        values[rng.integers(0, len(values), (draws, len(values)))] for values in scores.values()
    ]
    means = interquartile_mean(np.concatenate(drawn, 1), axis=1)
    tail = 50 * (1 - level)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(interquartile_mean(np.concatenate(list(scores.values())))), float(low), float(high)
