"""What the runs of a study showed: per cell, over all tasks, and which figure ranks runs.

All of it follows from records, one per run, and these from the lines of runs.csv (`rows`).
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
    rank_correlation,
    rank_correlation_interval,
    rate_interval,
)

Report = Mapping[str, Any]

# What tables show: title -> figure of an evaluation.json.
FIGURES: dict[str, Callable[[Report], float]] = {
    "success": lambda r: r["planning"]["success_rate"],
    "attempts": lambda r: r["planning"]["episodes"],  # as many of random, hold and the oracle
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


DIGITS = 6  # significant ones of a figure: what runs.csv holds is all that tables know


def figures_of(report: Report) -> dict[str, float]:
    """{title: figure} of the FIGURES that a report has as numbers, to six significant digits."""
    figures = {}
    for title, of in FIGURES.items():
        try:
            value = float(of(report))
        except (KeyError, IndexError, TypeError, ZeroDivisionError):
            continue
        if math.isfinite(value):
            figures[title] = float(f"{value:.{DIGITS}g}")
    return figures


@dataclass(frozen=True)
class Record:
    """A run and what became of it.

    Args:
        task, method: what tables call them; tuned: the value of the tuned key, None without one.
        tuning: whether it only served to choose.
        cell: its folders' names without the seed.
        figures: {title: number} of `FIGURES`, None for a run that is not done.
        error: why it failed, or None.
        settings: {key: its value as text} of the configuration it ran with.
    """

    task: str
    method: str
    tuned: Any
    seed: int
    tuning: bool
    cell: str
    figures: Mapping[str, float] | None = field(repr=False)
    error: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def state(self) -> str:
        return "done" if self.figures is not None else "pending" if self.error is None else "failed"

    def figure(self, title: str) -> float | None:
        """A figure, or None where the run has none of that name."""
        return None if self.figures is None else self.figures.get(title)


def final(records: Sequence[Record]) -> list[Record]:
    """Runs that are done and count."""
    return [record for record in records if record.figures is not None and not record.tuning]


def grouped(records: Sequence[Record], *keys: str) -> dict[Any, list[Record]]:
    """{value of the key, or tuple of several: records}, as they come."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        values = tuple(getattr(record, key) for key in keys)
        groups.setdefault(values if len(keys) > 1 else values[0], []).append(record)
    return groups


def cell_figures(records: Sequence[Record]) -> dict[str, tuple[float, float | None, float | None]]:
    """{figure: (mean, low, high)} over the runs of one task and method that have it.

    95% intervals by Student's t over seeds; that of "success" is `rate_interval`'s.
    """
    figures = {}
    for title in FIGURES:
        if values := _of(records, title):
            figures[title] = mean_interval(values)
    if "success" in figures:
        figures["success"] = success(records)
    return figures


def success(records: Sequence[Record]) -> tuple[float, float | None, float | None]:
    """(rate, low, high) over the runs that have it; by Student's t alone where a run does not say
    how many attempts it made.
    """
    rates = _of(records, "success")
    attempts = _of(records, "attempts")
    if len(attempts) != len(rates):
        return mean_interval(rates)
    return rate_interval(np.rint(np.array(rates) * attempts), attempts)


def _of(records: Sequence[Record], title: str) -> list[float]:
    """A figure of the runs that have it."""
    return [value for record in records if (value := record.figure(title)) is not None]


def policies(records: Sequence[Record]) -> dict[str, dict[str, dict[str, Any]]]:
    """{task: {"random", "hold", perhaps "oracle": {"mean", "low", "high", "attempts"}}}.

    Methods share goals, so each seed counts once. Nothing was trained, so attempts at goals drawn
    anew are independent, and the interval is Wilson's over all of them.
    """
    table = {}
    for task, rows in grouped(final(records), "task").items():
        per_seed = list({record.seed: record for record in rows}.values())
        table[task] = {}
        for policy in ("random", "hold", "oracle"):
            rates, attempts = _of(per_seed, policy), _of(per_seed, "attempts")
            if len(rates) == len(attempts) == len(per_seed):
                hits = np.rint(np.array(rates) * attempts).sum()
                ends = rate_interval([hits], [sum(attempts)])
                table[task][policy] = _row(ends, attempts=int(sum(attempts)))
    return table


def over_tasks(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """{method: {figure: {"mean", "low", "high", "runs"}}}: `mean_over_tasks` of methods that ran on
    every task and figures that every run has. Empty for a study of one task.
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
                mean, *ends = mean_over_tasks(values)
                if title == "success":  # a rate lies between 0 and 1
                    ends = [None if end is None else min(max(end, 0.0), 1.0) for end in ends]
                table[method][title] = _row((mean, *ends), runs=len(rows))
    return table


def differences(records: Sequence[Record], reference: str) -> dict[str, dict[str, Any]]:
    """{method: {"mean", "low", "high", "pairs"}}: success less the reference method's on the same
    task and seed; `mean_over_tasks` of the pairs.

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
            table[method] = _row(mean_over_tasks(gaps), pairs=sum(map(len, gaps.values())))
    return table


def _row(ends: tuple[float, float | None, float | None], **counts: int) -> dict[str, Any]:
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
