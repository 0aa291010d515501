"""Which number to watch: rank correlation across runs of figures that need no labels with planning
success.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gjwm.evaluation.intervals import rank_correlation, rank_correlation_interval
from gjwm.study.summary import Record, names

# Figures that need no true state; those whose scale depends on the latent dimension are shares of
# their ideal.
LABEL_FREE = (
    *("R2, 1 step", "R2, 5 steps", "R2, last step", "skill nats/dim", "rank accuracy"),
    *(
        "effective rank, share of ideal",
        "condition number",
        "Epps-Pulley",
        "straightness",
        "variance per dim",
    ),
)
FEWEST = 5  # runs, below which a rank correlation says nothing


def ranking(
    records: Sequence[Record],
    *,
    target: str = "success",
    figures: Sequence[str] = LABEL_FREE,
    draws: int = 2000,
) -> dict[str, dict[str, dict[str, Any]]]:
    """{figure: {task, and "all" for several: {"rho", "low", "high", "runs", "recipes"}}}, best
    first.

    All runs that are done take part, those that only tuned a setting too, as none was left out for
    what it reached. A task with fewer than five runs, or where success or the figure does not vary,
    is left out."""
    done = [
        record
        for record in records
        if record.report is not None and record.figure(target) is not None
    ]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for title in figures:
        groups = {}
        for task in names(done, "task"):
            rows = [r for r in done if r.task == task and r.figure(title) is not None]
            if len(rows) < FEWEST:
                continue
            x, y = (np.array([r.figure(name) for r in rows]) for name in (title, target))
            if rank_correlation([x], [y]) is not None:
                groups[task] = (x, y, np.array([r.cell for r in rows]))
        asked = {task: [group] for task, group in groups.items()}
        if len(groups) > 1:
            asked["all"] = list(groups.values())
        for task, chosen in asked.items():
            ends = rank_correlation_interval(chosen, draws=draws)
            found.setdefault(title, {})[task] = {
                "rho": rank_correlation([g[0] for g in chosen], [g[1] for g in chosen]),
                "low": None if ends is None else ends[0],
                "high": None if ends is None else ends[1],
                "runs": sum(len(g[0]) for g in chosen),
                "recipes": sum(len(np.unique(g[2])) for g in chosen),
            }

    def strength(title: str) -> float:
        rows = found[title]
        return -abs(
            rows["all"]["rho"]
            if "all" in rows
            else max((row["rho"] for row in rows.values()), key=abs)
        )

    return {title: found[title] for title in sorted(found, key=strength)}
