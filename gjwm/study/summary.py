"""What the runs of a study showed: per cell, over all tasks, and which figure ranks runs."""

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
    rank_correlation,
    rank_correlation_interval,
    stratified_interval,
    wilson_interval,
)

Report = Mapping[str, Any]

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
    "train s": lambda r: sum(
        r["training"].get(part, 0.0) for part in ("seconds", "refine_seconds", "reach_seconds")
    ),
    "train ms per step": lambda r: 1e3 * r["training"]["seconds"] / r["config"]["train"]["steps"],
    "peak MB": lambda r: r["training"]["peak_memory_mb"],
}

# Figures that need no true state; those whose scale depends on the latent dimension are shares of
# their ideal.
LABEL_FREE = (
    "R2, 1 step",
    "R2, 5 steps",
    "R2, last step",
    "skill nats/dim",
    "rank accuracy",
    "effective rank, share of ideal",
    "condition number",
    "Epps-Pulley",
    "straightness",
    "variance per dim",
)
LEAST_RUNS = 5  # below, a rank correlation says nothing


@dataclass(frozen=True)
class Record:
    """A run and what became of it.

    Args:
        task, method: what tables call them; tuned: the value of the tuned key, None without one.
        tuning: whether it only served to choose.
        cell: its folders' names without the seed.
        report: evaluation.json, None for a run that is not done; error: why it failed, or None.
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
        try:
            value = float(FIGURES[title](self.report)) if self.report is not None else math.nan
        except (KeyError, IndexError, TypeError, ZeroDivisionError):
            return None
        return value if math.isfinite(value) else None


def final(records: Sequence[Record]) -> list[Record]:
    """Runs that are done and count."""
    return [record for record in records if record.report is not None and not record.tuning]


def grouped(records: Sequence[Record], *keys: str) -> dict[Any, list[Record]]:
    """{value of the key, or tuple of several: records}, as they come."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        values = tuple(getattr(record, key) for key in keys)
        groups.setdefault(values if len(keys) > 1 else values[0], []).append(record)
    return groups


def cell_figures(records: Sequence[Record]) -> dict[str, tuple[float, float | None, float | None]]:
    """{figure: (mean, low, high)} over the runs of one task and method that have it.

    95% intervals by Student's t over seeds. That of "success" also covers Wilson's over all
    attempts, which does not shrink to nothing when all seeds agree.
    """
    figures = {}
    for title in FIGURES:
        values = [value for record in records if (value := record.figure(title)) is not None]
        if values:
            figures[title] = mean_interval(values)
    if "success" in figures:
        mean, *ends = figures["success"]
        ends = [end for end in (*ends, *wilson_interval(*attempts(records))) if end is not None]
        figures["success"] = (mean, max(0.0, min(ends)), min(1.0, max(ends)))
    return figures


def attempts(records: Sequence[Record], policy: str | None = None) -> tuple[int, int]:
    """(successes, attempts) over all runs, of the model (None) or of "random", "hold" or
    "oracle".
    """
    plannings = [record.report["planning"] for record in records]
    rows = plannings if policy is None else [planning[policy] for planning in plannings]
    successes = sum(round(row["success_rate"] * row["episodes"]) for row in rows)
    return successes, sum(row["episodes"] for row in rows)


def policies(records: Sequence[Record]) -> dict[str, dict[str, tuple[int, int]]]:
    """{task: {"random", "hold", perhaps "oracle": (successes, attempts)}}. Methods share goals, so
    each seed counts once.
    """
    counts = {}
    for task, rows in grouped(final(records), "task").items():
        per_seed = list({record.seed: record for record in rows}.values())
        counts[task] = {
            policy: attempts(per_seed, policy)
            for policy in ("random", "hold", "oracle")
            if all(policy in record.report["planning"] for record in per_seed)
        }
    return counts


def over_tasks(records: Sequence[Record], **bootstrap: int) -> dict[str, dict[str, Any]]:
    """{method: {figure: {"mean", "low", "high", "runs"}}}: interquartile mean over the runs of all
    tasks with a stratified bootstrap, of methods that ran on every task and figures that every run
    has. Empty for a study of one task.
    """
    runs = final(records)
    tasks, table = grouped(runs, "task"), {}
    for method, rows in grouped(runs, "method").items() if len(tasks) > 1 else ():
        by_task = grouped(rows, "task")
        if by_task.keys() != tasks.keys():
            continue
        table[method] = {}
        for title in FIGURES:
            values = {task: [run.figure(title) for run in by_task[task]] for task in tasks}
            if all(value is not None for row in values.values() for value in row):
                ends = stratified_interval(values, pooled_interquartile_mean, **bootstrap)
                table[method][title] = _row(ends, runs=len(rows))
    return table


def differences(
    records: Sequence[Record], reference: str, **bootstrap: int
) -> dict[str, dict[str, Any]]:
    """{method: {"mean", "low", "high", "pairs"}}: success less the reference method's on the same
    task and seed, averaged over tasks, with a bootstrap over the pairs within each task (95%).

    Raises:
        ValueError: for a reference that is no method of the study.
    """
    methods = grouped(records, "method")
    if reference not in methods:
        raise ValueError(
            f"study.reference={reference!r} is no method of the study: {', '.join(methods)}."
        )
    by_method = grouped(final(records), "method")
    base = {(r.task, r.seed): r.figure("success") for r in by_method.get(reference, ())}
    table = {}
    for method, rows in by_method.items():
        gaps: dict[str, list[float]] = {}
        for run in rows:
            value, other = run.figure("success"), base.get((run.task, run.seed))
            if method != reference and value is not None and other is not None:
                gaps.setdefault(run.task, []).append(value - other)
        if gaps:
            ends = stratified_interval(gaps, mean_over_tasks, **bootstrap)
            table[method] = _row(ends, pairs=sum(map(len, gaps.values())))
    return table


def _row(ends: tuple[float, float, float], **counts: int) -> dict[str, float]:
    return {**dict(zip(("mean", "low", "high"), ends)), **counts}


def ranking(
    records: Sequence[Record], *, draws: int = 2000
) -> dict[str, dict[str, dict[str, Any]]]:
    """Rank correlation across runs of label-free figures with planning success.

    All runs that are done take part, tuning runs too. A task with fewer than five runs, or where
    success or the figure does not vary, is left out.

    Returns:
        {figure: {task, and "all" for several: {"rho", "low", "high", "runs", "recipes"}}}, the
        strongest first.
    """
    done = [record for record in records if record.figure("success") is not None]
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for title in LABEL_FREE:
        groups = {}
        for task, rows in grouped(done, "task").items():
            rows = [record for record in rows if record.figure(title) is not None]
            x, y = (np.array([r.figure(name) for r in rows]) for name in (title, "success"))
            if len(rows) >= LEAST_RUNS and rank_correlation([x], [y]) is not None:
                groups[task] = [(x, y, np.array([r.cell for r in rows]))]
        if len(groups) > 1:
            groups["all"] = [group for task in groups.values() for group in task]
        if groups:
            table[title] = {task: _correlation(chosen, draws) for task, chosen in groups.items()}

    def strength(title: str) -> float:
        rows = table[title]
        return max(abs(row["rho"]) for row in ([rows["all"]] if "all" in rows else rows.values()))

    return {title: table[title] for title in sorted(table, key=strength, reverse=True)}


def _correlation(groups: Sequence[tuple[np.ndarray, ...]], draws: int) -> dict[str, Any]:
    x, y, cells = zip(*groups)
    low, high = rank_correlation_interval(groups, draws=draws) or (None, None)
    recipes = sum(len(np.unique(cell)) for cell in cells)
    rho, runs = rank_correlation(x, y), sum(map(len, x))
    return {"rho": rho, "low": low, "high": high, "runs": runs, "recipes": recipes}
