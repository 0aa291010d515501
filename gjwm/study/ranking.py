"""Which number to watch: rank correlation across runs of figures that need no labels with planning
success.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

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


def rank_correlation(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> float | None:
    """Spearman's correlation within groups, pooled.

    Ranks are taken within each group and centred there, so that a group's level has no say; one
    group gives Spearman's rho. The groups weigh as their ranks vary.

    Args:
        x, y: one array (N_g,) per group.

    Returns:
        the correlation, None where either does not vary within any group.
    """
    rho = _correlations([(a, b, np.ones((1, len(a)))) for a, b in zip(x, y)])[0]
    return None if np.isnan(rho) else float(rho)


def _correlations(groups: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """The same of many draws at once: groups of x, y (N_g,) and how often each run was drawn (R,
    N_g) -> (R,), or NaN.
    """
    total = 0.0
    for x, y, weight in groups:
        a, b = (_centred_ranks(np.asarray(values, np.float64), weight) for values in (x, y))
        total = total + np.stack(
            [(weight * a * b).sum(1), (weight * a * a).sum(1), (weight * b * b).sum(1)]
        )
    both, ours, theirs = total
    scale = np.sqrt(ours * theirs)
    return np.where(scale > 1e-9, both / np.maximum(scale, 1e-9), np.nan)


def _centred_ranks(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mid-ranks less their mean of samples that hold value i as often as weight (R, N) says -> (R,
    N).
    """
    below = (values[None] < values[:, None]) + 0.5 * (values[None] == values[:, None])
    ranks = weight @ below.T
    return ranks - (weight * ranks).sum(1, keepdims=True) / weight.sum(1, keepdims=True)


def interval(
    groups: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """95% bootstrap of `rank_correlation`: within each group clusters are drawn anew, with all
    their runs.

    Args:
        groups: (x, y, cluster) of each group, (N_g,) each. Runs of one cluster (the seeds of one
            recipe) are not independent evidence about a figure.

    Returns:
        (low, high), None where fewer than half of the draws have a correlation.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for x, y, cluster in groups:
        _, member = np.unique(cluster, return_inverse=True)
        count = member.max() + 1
        drawn.append(
            (
                x,
                y,
                rng.multinomial(count, np.full(count, 1 / count), draws)[:, member].astype(
                    np.float64
                ),
            )
        )
    found = _correlations(drawn)
    known = found[np.isfinite(found)]
    if len(known) < draws / 2:
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


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
            ends = interval(chosen, draws=draws)
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
