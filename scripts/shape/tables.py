"""The tables and the figure of docs/verdict.md, from rows alone."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

Row = dict[str, str]
MARGIN = 3.0  # points: within it, arms are called equivalent
PLANNED = 4  # worlds of the primary comparison; those not judged count as p = 1
SHARED = (
    "gaussian (SIGReg)",
    "gaussian (Wasserstein)",
    "uniform",
    "laplace",
    "mixture",
    "independent",
)
# column -> heading, factor, digits
CURVES = {
    "success": ("success", 100, 0),
    "reach": ("by closeness", 100, 0),
    "r2_10": ("R², 10 steps", 1, 2),
    "skill_10": ("skill, 10", 1, 2),
    "linear_50": ("ridge, 50", 1, 2),
    "linear_1000": ("ridge, 1,000", 1, 2),
    "neighbours_200": ("kNN, 200", 1, 2),
    "information_5": ("information, 5", 1, 1),
    "nongaussian": ("statistic x 1,000", 1000, 0),
}


def read(path: Path) -> list[Row]:
    """Rows of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def values(rows: Sequence[Row], world: str, arm: str, lam: float, column: str) -> dict[int, float]:
    """A column of one arm, by seed, each of which has one row."""
    ours = [r for r in rows if (r["world"], r["arm"], float(r["lam"])) == (world, arm, lam)]
    found = {int(row["seed"]): float(row[column]) for row in ours}
    if len(found) < len(ours):
        raise ValueError(
            f"{world}, {arm}, {lam:g} has {len(ours)} rows of {len(found)} seeds; keep rows of one "
            "grid, batch and number of steps, once each."
        )
    return found


def _cells(rows: Sequence[Row], world: str) -> list[tuple[str, float]]:
    return sorted({(r["arm"], float(r["lam"])) for r in rows if r["world"] == world})


def curves(rows: Sequence[Row], world: str) -> str:
    """Means over seeds of every arm and λ of a world, as Markdown."""
    seeds = sorted({int(r["seed"]) for r in rows if r["world"] == world})
    lines = [
        f"| {world}, {len(seeds)} seeds | λ | " + " | ".join(c[0] for c in CURVES.values()) + " |",
        "|---|---:|" + "---:|" * len(CURVES),
    ]
    for arm, lam in _cells(rows, world):
        means = []
        for column, (_, factor, digits) in CURVES.items():
            mean = factor * np.mean(list(values(rows, world, arm, lam, column).values()))
            means.append(f"{mean:.{digits}f}".replace("-0.00", "0.00"))
        weight = f"{lam:g}" if arm in SHARED else ""
        lines.append(f"| {arm} | {weight} | " + " | ".join(means) + " |")
    return "\n".join(lines)


def difference(ours: dict[int, float], theirs: dict[int, float]) -> dict[str, float]:
    """Of arms paired by seed, in points of 100: mean, 95% and 90% half-widths by Student's t, the
    two-sided p, and the smallest difference that 80% of such studies would have seen."""
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 2:
        raise ValueError(f"a paired difference needs two seeds that both arms have, got {seeds}.")
    apart = 100 * np.array([ours[s] - theirs[s] for s in seeds])
    n, mean = len(apart), float(apart.mean())
    error = float(apart.std(ddof=1)) / math.sqrt(n)
    t95, t90 = (float(stats.t.ppf(q, n - 1)) for q in (0.975, 0.95))
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    power = float(stats.t.ppf(0.8, n - 1))
    return {
        "mean": mean, "seeds": n, "half": t95 * error, "half90": t90 * error,
        "p": p, "seen": (t95 + power) * error,
    }  # fmt: skip


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, 1979)."""
    order = np.argsort(p)
    out, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        out[i] = worst
    return out


def comparisons(rows: Sequence[Row], column: str = "success", reference: str = "moments") -> str:
    """Every arm of the rows against `reference`, per world, as Markdown. Holm over the planned
    worlds for gaussian (SIGReg), the primary comparison; others are not corrected."""
    worlds = list(dict.fromkeys(r["world"] for r in rows))
    found = []
    for world in worlds:
        base = values(rows, world, reference, 0.0, column)
        for arm, lam in _cells(rows, world):
            if arm != reference:
                ours = values(rows, world, arm, lam, column)
                found.append((world, arm, lam, ours, base, difference(ours, base)))
    primary = [i for i, f in enumerate(found) if f[1] == "gaussian (SIGReg)"]
    unjudged = [1.0] * (PLANNED - len(primary))
    corrected = dict(zip(primary, holm([found[i][5]["p"] for i in primary] + unjudged)))
    lines = [
        "| world | arm | λ | seeds | moments | arm | difference, points | p | could be seen | |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for i, (world, arm, lam, ours, base, d) in enumerate(found):
        low, high = d["mean"] - d["half90"], d["mean"] + d["half90"]
        p = corrected[i] if i in corrected else d["p"]
        if p < 0.05:
            verdict = "better" if d["mean"] > 0 else "worse"
        else:
            verdict = "equivalent" if -MARGIN < low and high < MARGIN else "open"
        seeds = sorted(ours.keys() & base.keys())
        means = (100 * np.mean([side[s] for s in seeds]) for side in (base, ours))
        lines.append(
            f"| {world} | {arm} | {lam:g} | {d['seeds']} | "
            + " | ".join(f"{m:.1f}%" for m in means)
            + f" | {d['mean']:+.1f} ± {d['half']:.1f} | {p:.2g} | {d['seen']:.1f} | {verdict} |"
        )
    return "\n".join(lines)


def floors(rows: Sequence[Row]) -> str:
    """Oracle, random and hold per world, as Markdown."""
    lines = ["| world | oracle | random | hold |", "|---|---:|---:|---:|"]
    for world in dict.fromkeys(r["world"] for r in rows):
        means = [
            100 * np.mean([float(r[c]) for r in rows if r["world"] == world])
            for c in ("oracle", "random", "hold")
        ]
        lines.append(f"| {world} | " + " | ".join(f"{m:.0f}%" for m in means) + " |")
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Success over λ, a column a world: plans by latent distance, and plans a third as long by the
    closed-form log-ratio. The band is the arm without a penalty; mean ± one standard error."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    worlds = list(dict.fromkeys(r["world"] for r in rows))
    shown = {"success": "latent distance", "reach": "closeness, a third as long"}
    figure, axes = plt.subplots(
        2, len(worlds), figsize=(2.4 * len(worlds), 4.2), sharey=True, squeeze=False
    )
    for (column, label), panels in zip(shown.items(), axes):
        panels[0].set_ylabel(f"success, %\n{label}", fontsize=8)
        for axis, world in zip(panels, worlds):
            base = 100 * np.array(list(values(rows, world, "moments", 0.0, column).values()))
            error = base.std(ddof=1) / math.sqrt(len(base))
            axis.axhspan(base.mean() - error, base.mean() + error, color="0.85", lw=0)
            axis.axhline(base.mean(), color="0.4", lw=1, label="moments (no λ)")
            for arm in SHARED:
                lams = [lam for name, lam in _cells(rows, world) if name == arm]
                if not lams:
                    continue
                points = [
                    100 * np.array(list(values(rows, world, arm, lam, column).values()))
                    for lam in lams
                ]
                axis.errorbar(
                    lams,
                    [p.mean() for p in points],
                    [p.std(ddof=1) / math.sqrt(len(p)) for p in points],
                    marker="o", ms=3, lw=1, capsize=2, label=arm,
                )  # fmt: skip
            axis.set_xscale("log")
            axis.tick_params(labelsize=7)
    for axis, world in zip(axes[0], worlds):
        axis.set_title(world, fontsize=9)
    for axis in axes[1]:
        axis.set_xlabel("λ", fontsize=8)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=5, fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110)
