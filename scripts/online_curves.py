"""Learning curves of runs of `gjwm online`: a small table, and a picture with what others publish
at the same frames.

    python scripts/online_curves.py RUN... --csv docs/online.csv --picture docs/assets/online.png

Each run's returns.csv holds every evaluation; here a row is one evaluation of one run: mean return
and its 95% interval over episodes. Runs of one task from states and from pixels are told apart by
the column "obs". Rows of tasks that no run is given of stay as the table has them. Prints the last
evaluation of each, with the mean over runs.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from gjwm.evaluation.intervals import mean_interval
from gjwm.rl import return_report

# Published means at 100,000 frames from state vectors, three seeds or more (result files of
# TD-MPC2's and DreamerV3's code).
PUBLISHED = {
    "cartpole-swingup": {"TD-MPC2": 839, "SAC": 835, "DreamerV3": 513},
    "ball_in_cup-catch": {"TD-MPC2": 981, "SAC": 958, "DreamerV3": 761},
    "reacher-easy": {"TD-MPC2": 937, "SAC": 540, "DreamerV3": 727},
    "finger-spin": {"TD-MPC2": 948, "SAC": 762, "DreamerV3": 780},
    "pendulum-swingup": {"TD-MPC2": 724, "SAC": 96, "DreamerV3": 716},
    "walker-walk": {"TD-MPC2": 962, "SAC": 708, "DreamerV3": 518},
}
COLUMNS = ("task", "obs", "seed", "frames", "minutes", "return", "low", "high", "episodes")


def rows_of(run: Path) -> list[dict[str, object]]:
    """One row per evaluation of a run."""
    cfg = OmegaConf.load(run / "config.yaml")
    evaluations: dict[int, list[tuple[float, float]]] = defaultdict(list)
    with open(run / "returns.csv", newline="") as file:
        for row in csv.DictReader(file):
            evaluations[int(row["frames"])].append((float(row["seconds"]), float(row["return"])))
    rows = []
    for frames, entries in evaluations.items():
        returns = np.array([value for _, value in entries])
        report = return_report(returns, 0.0)
        numbers = dict(
            zip(
                ("return", "low", "high"),
                (round(x, 1) for x in (report["return_mean"], *(report["ci95"] or 2 * [math.nan]))),
            )
        )
        minutes = round(entries[0][0] / 60, 1)
        run_of = {"task": cfg.task, "obs": cfg.env.obs, "seed": cfg.seed}
        rows.append(
            {**run_of, "frames": frames, "minutes": minutes, **numbers, "episodes": len(returns)}
        )
    return rows


def rows_kept(path: Path, new: list[dict[str, object]]) -> list[dict[str, object]]:
    """Rows of the table that are of none of the new rows' tasks."""
    if not path.exists():
        return []
    replaced = {(row["task"], row["obs"]) for row in new}
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["task"], row["obs"]) not in replaced]
    whole = ("seed", "frames", "episodes")
    return [
        {
            k: v if k in ("task", "obs") else (int if k in whole else float)(v)
            for k, v in row.items()
        }
        for row in rows
    ]


def place(row: dict[str, object]) -> tuple[object, ...]:
    """Where a row stands in the table: published tasks first, in their order."""
    known = [*PUBLISHED, row["task"]]
    return known.index(row["task"]), *(row[name] for name in ("task", "obs", "seed", "frames"))


def draw(path: Path, curves: dict[tuple[str, str], dict[int, np.ndarray]]) -> None:
    """A panel per task and kind of observation: a line and band per run, rows (R, 4) of frames,
    mean return and the ends of its interval; for states published returns as levels. Needs
    matplotlib.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * lines), dpi=80, layout="constrained")
    panels = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axes, ((task, obs), runs) in zip(panels, curves.items()):
        for k, rows in enumerate(runs.values()):
            frames, mean, low, high = rows.T
            label = None if k else "gjwm, per run"
            axes.plot(frames / 1e3, mean, color="#1f6fb2", lw=1.4, label=label)
            axes.fill_between(frames / 1e3, low, high, color="#1f6fb2", alpha=0.12, lw=0)
        levels = PUBLISHED.get(task, {}) if obs == "state" else {}
        for (name, value), dash in zip(levels.items(), ("--", ":", "-.")):
            axes.axhline(value, color="#333333", lw=0.9, ls=dash, label=name)
        title = task if obs == "state" else f"{task} from {obs}"
        axes.set(title=title, ylim=(0, 1000), xlabel="1,000 frames", ylabel="return")
        axes.legend(frameon=False, fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    figure.savefig(path)


def main() -> None:
    """Read the runs, write the table and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    rows = [row for run in options.runs for row in rows_of(run)]
    rows = sorted(rows_kept(options.csv, rows) + rows, key=place)
    with open(options.csv, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    curves: dict[tuple[str, str], dict[int, list[tuple[float, float, float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        curves[row["task"], row["obs"]][row["seed"]].append(
            (row["frames"], row["return"], row["low"], row["high"])
        )
    for (task, obs), runs in curves.items():
        last = np.array([points[-1][1] for points in runs.values()])
        _, low, high = mean_interval(last)
        frames = max(points[-1][0] for points in runs.values())
        minutes = max(row["minutes"] for row in rows if (row["task"], row["obs"]) == (task, obs))
        ends = f" [{low:.0f}, {high:.0f}]" if len(last) > 1 else ""
        print(
            f"{task} from {obs}: {last.mean():.0f}{ends} of {len(last)} runs after {frames} "
            f"frames, at most {minutes} minutes; {last}"
        )
    if options.picture is not None:
        draw(
            options.picture,
            {t: {s: np.array(p) for s, p in runs.items()} for t, runs in curves.items()},
        )


if __name__ == "__main__":
    main()
