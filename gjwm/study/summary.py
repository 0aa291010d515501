"""What the runs of a study found: one record per run, figures of each cell with intervals, and the
same over all tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gjwm.evaluation.intervals import (
    mean_interval,
    mean_over_tasks,
    pooled_interquartile_mean,
    stratified_interval,
    wilson_interval,
)

Report = Mapping[str, Any]
# mean, and the ends where there are two values or more
Interval = tuple[float, float | None, float | None]


def _ms_per_step(r: Report) -> float:
    return 1e3 * r["training"]["seconds"] / r["config"]["train"]["steps"]


# What tables show: title -> figure of an evaluation.json.
FIGURES: dict[str, Callable[[Report], float]] = {
    "success": lambda r: r["planning"]["success_rate"],
    "random": lambda r: r["planning"]["random"]["success_rate"],
    "hold": lambda r: r["planning"]["hold"]["success_rate"],
    "oracle": lambda r: r["planning"]["oracle"]["success_rate"],
    "plan ms per step": lambda r: 1e3 * r["planning"]["seconds_per_step"],
    "R2, 1 step": lambda r: r["prediction"]["r2_by_horizon"][0],
    "R2, 5 steps": lambda r: r["prediction"]["r2_by_horizon"][4],
    "R2, last step": lambda r: r["prediction"]["r2_by_horizon"][-1],
    "copy-last R2, last step": lambda r: r["prediction"]["copy_last_r2_by_horizon"][-1],
    "skill nats/dim": lambda r: r["prediction"]["skill_nats_per_dim"],
    "rank accuracy": lambda r: r["prediction"]["rank_accuracy"],
    "variance per dim": lambda r: r["prediction"]["variance_per_dim"],
    "linear R2": lambda r: r["probe"]["linear_r2"],
    "kNN R2": lambda r: r["probe"]["knn_r2"],
    "MLP R2": lambda r: r["probe"]["mlp_r2"],
    "effective rank": lambda r: r["gaussianity"]["effective_rank"],
    "effective rank, share of ideal": lambda r: (
        r["gaussianity"]["effective_rank"] / r["gaussianity"]["effective_rank_ideal"]
    ),
    "condition number": lambda r: r["gaussianity"]["condition_number"],
    "Epps-Pulley": lambda r: r["gaussianity"]["epps_pulley"],
    "Epps-Pulley, ideal": lambda r: r["gaussianity"]["epps_pulley_null"],
    "straightness": lambda r: r["trajectory"]["straightness"],
    "coverage 90%, 1 step": lambda r: r["calibration"]["coverage_90"],
    "coverage 90%, 5 steps": lambda r: r["calibration"]["horizon_5"]["coverage_90"],
    "coverage 90%, 10 steps": lambda r: r["calibration"]["horizon_10"]["coverage_90"],
    "ECE, 1 step": lambda r: r["calibration"]["ece"],
    "ECE, 5 steps": lambda r: r["calibration"]["horizon_5"]["ece"],
    "ECE, 10 steps": lambda r: r["calibration"]["horizon_10"]["ece"],
    "teleport AUROC": lambda r: r["surprise"]["teleport"]["auroc"],
    "false alarms at 1%": lambda r: r["surprise"]["false_alarm_rate"],
    "train s": lambda r: r["training"]["seconds"] + r["training"].get("refine_seconds", 0.0),
    "train ms per step": _ms_per_step,
    "peak MB": lambda r: r["training"]["peak_memory_mb"],
}


@dataclass(frozen=True)
class Record:
    """A run and what became of it.

    Args:
        task, method: what tables call them; tuned: the value of the tuned key, None without one.
        seed, tuning: which run, and whether it only served to choose.
        cell: its folders' names without the seed: runs of one cell differ in nothing but the seed.
        report: evaluation.json, None for a run that is not done; error: why it failed, None for one
            that did not.
    """

    task: str
    method: str
    tuned: Any
    seed: int
    tuning: bool
    cell: str
    report: Report | None = field(repr=False)
    error: str | None = None

    @property
    def state(self) -> str:
        return "done" if self.report is not None else "pending" if self.error is None else "failed"

    def figure(self, title: str) -> float | None:
        """A figure of FIGURES, or None where the report lacks it or has no number there."""
        return None if self.report is None else _or_none(FIGURES[title], self.report)


def _or_none(figure: Callable[[Report], float], report: Report) -> float | None:
    try:
        value = float(figure(report))
    except (KeyError, IndexError, TypeError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None


def final(records: Sequence[Record]) -> list[Record]:
    """Runs that are done and count."""
    return [record for record in records if record.report is not None and not record.tuning]


def names(records: Sequence[Record], kind: str) -> list[str]:
    """Different tasks or methods, as they come."""
    return list(dict.fromkeys(getattr(record, kind) for record in records))


def cell_figures(records: Sequence[Record]) -> dict[str, Interval]:
    """{figure: (mean, low, high)} over the runs of one task and method that have it.

    95% intervals by Student's t over seeds. That of "success" also covers Wilson's over all
    attempts, which does not shrink to nothing when all seeds agree."""
    found: dict[str, Interval] = {}
    for title in FIGURES:
        values = [value for record in records if (value := record.figure(title)) is not None]
        if values:
            found[title] = mean_interval(np.array(values))
    if "success" in found:
        mean, low, high = found["success"]
        lows, highs = zip(
            wilson_interval(*attempts(records)), *([] if low is None else [(low, high)])
        )
        found["success"] = (mean, max(0.0, min(lows)), min(1.0, max(highs)))
    return found


def attempts(records: Sequence[Record], policy: str | None = None) -> tuple[int, int]:
    """(successes, attempts) over all runs, of the model (None) or of "random", "hold" or
    "oracle".
    """
    rows = [
        r.report["planning"] if policy is None else r.report["planning"][policy] for r in records
    ]
    return sum(round(row["success_rate"] * row["episodes"]) for row in rows), sum(
        row["episodes"] for row in rows
    )


def policies(records: Sequence[Record]) -> dict[str, dict[str, tuple[int, int]]]:
    """{task: {"random", "hold", "oracle" where all have it: (successes, attempts)}}; methods share
    starts and goals, so that each seed counts once."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for record in final(records):
        found.setdefault(record.task, {})
    for task, row in found.items():
        per_seed = list(
            {record.seed: record for record in final(records) if record.task == task}.values()
        )
        for policy in ("random", "hold", "oracle"):
            if all(policy in record.report["planning"] for record in per_seed):
                row[policy] = attempts(per_seed, policy)
    return found


def over_tasks(
    records: Sequence[Record], *, draws: int = 10_000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """{method: {figure: {"mean", "low", "high", "runs"}}} of methods that ran on every task:
    interquartile mean over the runs of all tasks with a stratified bootstrap, of figures that every
    run has. Empty for a study of one task."""
    runs = final(records)
    tasks = names(runs, "task")
    found: dict[str, dict[str, Any]] = {}
    for method in names(runs, "method") if len(tasks) > 1 else ():
        by_task = {
            task: [r for r in runs if r.method == method and r.task == task] for task in tasks
        }
        if not all(by_task.values()):
            continue
        found[method] = {}
        for title in FIGURES:
            values = {
                task: [record.figure(title) for record in rows] for task, rows in by_task.items()
            }
            if any(value is None for row in values.values() for value in row):
                continue
            mean, low, high = stratified_interval(
                values, pooled_interquartile_mean, draws=draws, seed=seed
            )
            found[method][title] = {
                "mean": mean,
                "low": low,
                "high": high,
                "runs": sum(map(len, values.values())),
            }
    return found


def differences(
    records: Sequence[Record],
    reference: str,
    *,
    title: str = "success",
    draws: int = 10_000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """{method: {"mean", "low", "high", "pairs"}}: a figure less the reference method's on the same
    task and seed, averaged over tasks, with a bootstrap over the pairs within each task (95%).

    Raises:
        ValueError: for a reference that is no method of the study.
    """
    runs = final(records)
    if reference not in names(records, "method"):
        raise ValueError(
            f"study.reference={reference!r} is no method of the study: "
            f"{', '.join(names(records, 'method'))}."
        )
    values = {(r.method, r.task, r.seed): r.figure(title) for r in runs}
    found = {}
    for method in names(runs, "method"):
        gaps: dict[str, list[float]] = {}
        for (m, task, s), value in values.items():
            base = values.get((reference, task, s))
            if m == method != reference and value is not None and base is not None:
                gaps.setdefault(task, []).append(value - base)
        if gaps:
            mean, low, high = stratified_interval(gaps, mean_over_tasks, draws=draws, seed=seed)
            pairs = sum(map(len, gaps.values()))
            found[method] = {"mean": mean, "low": low, "high": high, "pairs": pairs}
    return found
