"""What a study leaves to read: study.md, study.csv, runs.csv, study.json and two small pictures."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gjwm._core.files import replacing
from gjwm.evaluation.intervals import wilson_interval
from gjwm.reporting.svg import WIDTH, Figure
from gjwm.study.ranking import ranking
from gjwm.study.summary import (
    FIGURES,
    Interval,
    Record,
    attempts,
    cell_figures,
    differences,
    final,
    over_tasks,
    policies,
)

# Columns of the table, and how many digits stand behind the point.
HEADLINE = {
    "success": 3,
    "R2, 5 steps": 3,
    "linear R2": 3,
    "kNN R2": 3,
    "MLP R2": 3,
    "effective rank": 1,
    "Epps-Pulley": 2,
    "train ms per step": 1,
    "peak MB": 0,
}
OVER_TASKS = (
    "success",
    "R2, 5 steps",
    "linear R2",
    "kNN R2",
    "MLP R2",
    "effective rank, share of ideal",
)


def write_study(
    folder: str | Path,
    records: Sequence[Record],
    *,
    title: str,
    command: str,
    reference: str | None = None,
    tuned: str | None = None,
) -> str:
    """Write all files into `folder`, each atomically -> the text of study.md.

    Args:
        records: of every run that the study has, done or not.
        reference: method that the others are compared with.
        tuned: the key that was chosen per cell, if one was.

    Raises:
        ValueError: for a reference that is no method of the study.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cells = _cells(records)
    compared = differences(records, reference) if reference is not None and final(records) else {}
    content = {
        "command": command,
        "tuned": tuned,
        "states": {
            state: sum(r.state == state for r in records) for state in ("done", "failed", "pending")
        },
        "cells": [
            {
                "task": task,
                "method": method,
                "tuned": rows[0].tuned,
                "seeds": [r.seed for r in rows],
                "figures": {
                    name: {
                        "values": [r.figure(name) for r in rows],
                        "mean": mean,
                        "low": low,
                        "high": high,
                    }
                    for name, (mean, low, high) in cell_figures(rows).items()
                },
                "pooled_success": _pooled(*attempts(rows)),
            }
            for (task, method), rows in cells.items()
        ],
        "policies": {
            task: {policy: _pooled(*counts) for policy, counts in row.items()}
            for task, row in policies(records).items()
        },
        "over_tasks": over_tasks(records),
        "differences": {"reference": reference, "success": compared},
        "ranking": ranking(records),
        "failed": [{"run": _run(r), "error": r.error} for r in records if r.state == "failed"],
    }
    pictures = {"success.svg": _success_picture(content), "ranking.svg": _ranking_picture(content)}
    pictures = {name: plot for name, plot in pictures.items() if plot is not None}
    text = _markdown(content, records, title, list(pictures))
    files = {
        "study.json": json.dumps(content, indent=2) + "\n",
        "study.csv": _csv(_cell_rows(content)),
        "runs.csv": _csv(_run_rows(records)),
        "study.md": text,
        **{name: plot.svg(standalone=True) for name, plot in pictures.items()},
    }
    for name, body in files.items():
        with replacing(folder / name) as partial:
            partial.write_text(body, encoding="utf-8")
    return text


def _cells(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    cells: dict[tuple[str, str], list[Record]] = {}
    for record in final(records):
        cells.setdefault((record.task, record.method), []).append(record)
    return cells


def _pooled(successes: int, of: int) -> list[float]:
    return [successes, of, *wilson_interval(successes, of)]


def _run(record: Record) -> str:
    return f"{record.cell}/seed-{record.seed}".removeprefix("/")


# -- tables
# --  ----------------------------------------------------------------------------------------------


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()


def _cell_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One line per task, method and figure."""
    return [
        {
            **{key: cell[key] for key in ("task", "method", "tuned")},
            "figure": name,
            **{key: _short(figure[key]) for key in ("mean", "low", "high")},
            "runs": sum(value is not None for value in figure["values"]),
        }
        for cell in content["cells"]
        for name, figure in cell["figures"].items()
    ]


def _run_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One line per run, failed and pending ones too."""
    return [
        {
            **{key: getattr(r, key) for key in ("task", "method", "tuned", "seed")},
            "phase": "tuning" if r.tuning else "final",
            "state": r.state,
            "error": r.error,
            **{name: _short(r.figure(name)) for name in FIGURES},
        }
        for r in records
    ]


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)]


def _with_interval(figure: Interval, digits: int) -> str:
    mean, low, high = figure
    return (
        f"{mean:.{digits}f}"
        if low is None
        else f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    )


def _triple(row: Mapping[str, Any]) -> Interval:
    return row["mean"], row["low"], row["high"]


def _rate(pooled: Sequence[float]) -> str:
    successes, of, low, high = pooled
    return f"{successes / of:.1%} [{low:.1%}, {high:.1%}] of {of}"


def _markdown(
    content: Mapping[str, Any], records: Sequence[Record], title: str, pictures: Sequence[str]
) -> str:
    states = content["states"]
    lines = [
        f"# {title}",
        "",
        f"`{content['command']}`",
        "",
        f"{states['done']} runs done, {states['failed']} failed, {states['pending']} not done"
        + f" ({sum(r.tuning for r in records)} of all only choose a setting)"
        * any(r.tuning for r in records)
        + ". Means over seeds with 95% intervals by Student's t; "
        + "that of success also covers Wilson's over all attempts.",
    ]
    tuned = content["tuned"]
    for task in dict.fromkeys(cell["task"] for cell in content["cells"]):
        cells = [cell for cell in content["cells"] if cell["task"] == task]
        header = ["method", *([tuned] if tuned else []), *HEADLINE, "runs"]
        rows = [
            [
                cell["method"],
                *(["" if cell["tuned"] is None else f"{cell['tuned']}"] if tuned else []),
                *(
                    _with_interval(_triple(cell["figures"][name]), digits)
                    if name in cell["figures"]
                    else ""
                    for name, digits in HEADLINE.items()
                ),
                str(len(cell["seeds"])),
            ]
            for cell in cells
        ]
        chance = "; ".join(
            f"{policy} {_rate(pooled)}" for policy, pooled in content["policies"][task].items()
        )
        lines += ["", f"## {task}", "", *_table(header, rows), "", f"Same goals: {chance}."]
    if len(content["cells"]) == 1:
        (cell,) = content["cells"]
        rows = [
            [name, *("" if value is None else f"{value:.4g}" for value in figure["values"])]
            for name, figure in cell["figures"].items()
        ]
        header = ["figure", *(f"seed {seed}" for seed in cell["seeds"])]
        lines += [
            "",
            "## Every figure",
            "",
            *_table(header, rows),
            "",
            f"Success, pooled: {_rate(cell['pooled_success'])}.",
        ]
    if content["over_tasks"]:
        shown = [
            name
            for name in OVER_TASKS
            if all(name in row for row in content["over_tasks"].values())
        ]
        rows = [
            [
                method,
                *(_with_interval(_triple(row[name]), 3) for name in shown),
                str(row["success"]["runs"]),
            ]
            for method, row in content["over_tasks"].items()
        ]
        told = "Interquartile mean over the runs of all tasks, stratified bootstrap (95%)."
        lines += ["", "## Over all tasks", "", told, "", *_table(["method", *shown, "runs"], rows)]
    compared = content["differences"]
    if compared["success"]:
        rows = [
            [method, _with_interval(_triple(row), 3), str(row["pairs"])]
            for method, row in compared["success"].items()
        ]
        told = (
            f"Success less that of {compared['reference']} with the same task and seed, mean over "
            "tasks, bootstrap over pairs within tasks (95%). With few seeds it is too narrow."
        )
        lines += [
            "",
            f"## Against {compared['reference']}",
            "",
            told,
            "",
            *_table(["method", "difference", "pairs"], rows),
        ]
    if content["ranking"]:
        tasks = list(dict.fromkeys(task for row in content["ranking"].values() for task in row))
        tasks.sort(key=lambda task: task == "all")
        rows = [
            [name, *(_rho(row[task]) if task in row else "" for task in tasks)]
            for name, row in content["ranking"].items()
        ]
        told = (
            "Spearman's correlation with planning success over all runs, within tasks; 95% "
            "bootstrap that draws recipes with all their seeds. (n: runs, recipes.)"
        )
        lines += ["", "## Which figure ranks runs", "", told, "", *_table(["figure", *tasks], rows)]
    for name in pictures:
        lines += ["", f"![{name.removesuffix('.svg')}]({name})"]
    if content["failed"]:
        rows = [[row["run"], row["error"].replace("|", "\\|")] for row in content["failed"]]
        lines += ["", "## Failed", "", *_table(["run", "its last line"], rows)]
    return "\n".join(lines) + "\n"


def _rho(row: Mapping[str, Any]) -> str:
    ends = "" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['rho']:.2f}{ends} ({row['runs']}, {row['recipes']})"


# -- pictures --------------------------------------------------------------------------------------

_ROLES = ("model", "linear", "oracle", "third", "second", "chance", "plain")


def _success_picture(content: Mapping[str, Any]) -> Figure | None:
    """Success of every method, one colour per task, whiskers for the intervals."""
    cells = content["cells"]
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    if len(cells) < 2:
        return None
    figure = Figure(
        "success",
        "Success",
        x_label="method",
        y_label="success",
        describe="Planning success of each method on each task, with 95% intervals.",
        categories=methods,
        y=(0, 1.04),
        width=max(WIDTH, 70 * len(methods)),
    )
    roles = dict(zip(tasks, itertools.cycle(_ROLES)))
    for cell in cells:
        task, method, success = cell["task"], cell["method"], cell["figures"]["success"]
        mean, low, high = (success[key] for key in ("mean", "low", "high"))
        x = methods.index(method) + 0.5 * ((tasks.index(task) + 0.5) / len(tasks) - 0.5)
        text = f"{task}, {method}: {mean:.1%} [{low:.1%}, {high:.1%}]"
        figure.interval(x, low, high, roles[task]).dot(x, mean, roles[task], text, radius=3.4)
    figure.legend += [(role, "dot", task) for task, role in roles.items()]
    return figure


def _ranking_picture(content: Mapping[str, Any]) -> Figure | None:
    """Rank correlation with success of each figure, over all tasks where there are several."""
    rows = {
        name: row.get("all", next(iter(row.values()))) for name, row in content["ranking"].items()
    }
    if not rows:
        return None
    figure = Figure(
        "ranking",
        "Rank correlation",
        x_label="figure",
        y_label="rank correlation with success",
        describe="Spearman's correlation of each label-free figure with planning success, with 95% "
        "intervals.",
        categories=[_TICKS.get(name, name) for name in rows],
        y=(-1.04, 1.04),
        width=max(WIDTH, 70 * len(rows)),
    )
    figure.level(0, "ideal")
    for i, row in enumerate(rows.values()):
        if row["low"] is not None:
            figure.interval(i, row["low"], row["high"], "model")
        figure.dot(i, row["rho"], "model", radius=3.4)
    return figure


_TICKS = {
    "effective rank, share of ideal": "eff. rank",
    "condition number": "condition",
    "skill nats/dim": "skill",
    "rank accuracy": "rank acc.",
    "variance per dim": "variance",
}
