"""One recipe over several seeds: the headline figures of each run's report, their median and their spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gjwm.intervals import stratified_interquartile_mean

Report = Mapping[str, Any]

# What a table of runs shows: title -> figure of an evaluation.json.
FIGURES: dict[str, Callable[[Report], float]] = {
    "train s": lambda r: r["training"]["seconds"],
    "success": lambda r: r["planning"]["success_rate"],
    "random": lambda r: r["planning"]["random"]["success_rate"],
    "hold": lambda r: r["planning"]["hold"]["success_rate"],
    "oracle": lambda r: r["planning"]["oracle"]["success_rate"],
    "ms per step": lambda r: 1e3 * r["planning"]["seconds_per_step"],
    "R2 at last step": lambda r: r["prediction"]["r2_by_horizon"][-1],
    "copy-last R2": lambda r: r["prediction"]["copy_last_r2_by_horizon"][-1],
    "skill nats/dim": lambda r: r["prediction"]["skill_nats_per_dim"],
    "rank accuracy": lambda r: r["prediction"]["rank_accuracy"],
    "linear R2": lambda r: r["probe"]["linear_r2"],
    "kNN R2": lambda r: r["probe"]["knn_r2"],
    "MLP R2": lambda r: r["probe"]["mlp_r2"],
    "effective rank": lambda r: r["gaussianity"]["effective_rank"],
    "effective rank, ideal": lambda r: r["gaussianity"]["effective_rank_ideal"],
    "Epps-Pulley": lambda r: r["gaussianity"]["epps_pulley"],
    "Epps-Pulley, ideal": lambda r: r["gaussianity"]["epps_pulley_null"],
    "coverage 90%, 1 step": lambda r: r["calibration"]["coverage_90"],
    "coverage 90%, 5 steps": lambda r: r["calibration"]["horizon_5"]["coverage_90"],
    "coverage 90%, 10 steps": lambda r: r["calibration"]["horizon_10"]["coverage_90"],
    "ECE, 1 step": lambda r: r["calibration"]["ece"],
    "ECE, 5 steps": lambda r: r["calibration"]["horizon_5"]["ece"],
    "ECE, 10 steps": lambda r: r["calibration"]["horizon_10"]["ece"],
    "teleport AUROC": lambda r: r["surprise"]["teleport"]["auroc"],
    "false alarms at 1%": lambda r: r["surprise"]["false_alarm_rate"],
}


def aggregate(reports: Mapping[int, Report]) -> dict[str, dict[str, Any]]:
    """{seed: report} -> {figure: {"values": one per seed, "median", "mean", "min", "max"}}.

    A figure that a report lacks (an oracle that was not asked for, say) is None there, and left out of the summary.

    Raises:
        ValueError: when there is no report.
    """
    if not reports:
        raise ValueError("a study needs at least one evaluated seed, got none.")
    rows = {}
    for title, figure in FIGURES.items():
        values = [_or_none(figure, report) for report in reports.values()]
        known = [value for value in values if value is not None]
        if known:
            rows[title] = {
                "values": values,
                "median": statistics.median(known),
                "mean": statistics.fmean(known),
                "min": min(known),
                "max": max(known),
            }
    return rows


def interquartile_over_tasks(
    reports: Mapping[str, Sequence[Report]], *, draws: int = 10_000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """{task: reports of its runs} -> {figure: {"mean", "low", "high", "runs"}}: interquartile mean, stratified 95% interval.

    A figure counts where every run of every task has it; runs that failed are to be left out before, and named.

    Raises:
        ValueError: when a task has no run.
    """
    empty = [task for task, runs in reports.items() if not runs]
    if empty or not reports:
        raise ValueError(
            f"a summary over tasks needs at least one run of each, got none of {', '.join(empty) or 'any'}."
        )
    found = {}
    for title, figure in FIGURES.items():
        values = {task: [_or_none(figure, report) for report in runs] for task, runs in reports.items()}
        if any(value is None for row in values.values() for value in row):
            continue
        mean, low, high = stratified_interquartile_mean(
            {task: np.array(row) for task, row in values.items()}, draws=draws, seed=seed
        )
        found[title] = {"mean": mean, "low": low, "high": high, "runs": sum(len(row) for row in values.values())}
    return found


def _or_none(figure: Callable[[Report], float], report: Report) -> float | None:
    try:
        return float(figure(report))
    except KeyError:
        return None


def pooled_success(reports: Mapping[int, Report], policy: str | None = None) -> tuple[int, int]:
    """(successes, attempts) over all seeds, of the model (None) or of "random", "hold" or "oracle"."""
    rows = [r["planning"] if policy is None else r["planning"][policy] for r in reports.values()]
    return sum(round(row["success_rate"] * row["episodes"]) for row in rows), sum(row["episodes"] for row in rows)


def rows_for_table(figures: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """`aggregate`'s figures as rows: figure, median, then one column per seed."""
    return [
        {"figure": title, "median": row["median"], **{f"seed {s}": v for s, v in zip(seeds, row["values"])}}
        for title, row in figures.items()
    ]
