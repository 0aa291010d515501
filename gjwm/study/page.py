"""What a study leaves to read: study.md, study.csv, runs.csv, study.json and two small pictures.
`write_study` makes all of it from records, and `read_rows` has the records of a runs.csv.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gjwm._core.files import replacing
from gjwm.reporting.svg import WIDTH, Figure
from gjwm.study.rows import as_csv, rows_of, short
from gjwm.study.summary import (
    Record,
    cell_figures,
    differences,
    final,
    grouped,
    over_tasks,
    policies,
    ranking,
)

Content = Mapping[str, Any]

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
    *("success", "R2, 5 steps", "linear R2", "kNN R2", "MLP R2"),
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
    compared = differences(records, reference) if reference is not None and final(records) else {}
    states = [record.state for record in records]
    content = {
        "command": command,
        "tuned": tuned,
        "states": {state: states.count(state) for state in ("done", "failed", "pending")},
        "cells": [
            _cell(task, method, rows)
            for (task, method), rows in grouped(final(records), "task", "method").items()
        ],
        "policies": policies(records),
        "over_tasks": over_tasks(records),
        "differences": {"reference": reference, "success": compared},
        "ranking": ranking(records),
        "failed": [
            {"run": f"{r.cell}/seed-{r.seed}".removeprefix("/"), "error": r.error}
            for r in records
            if r.state == "failed"
        ],
    }
    figures = {"success.svg": _success_picture(content), "ranking.svg": _ranking_picture(content)}
    pictures = {k: figure.svg(standalone=True) for k, figure in figures.items() if figure}
    text = _markdown(content, title, sum(record.tuning for record in records), list(pictures))
    files = {
        "study.json": json.dumps(content, indent=2) + "\n",
        "study.csv": as_csv(_cell_rows(content)),
        "runs.csv": as_csv(rows_of(records)),
        "study.md": text,
        **pictures,
    }
    for name, body in files.items():
        with replacing(folder / name) as partial:
            partial.write_text(body, encoding="utf-8")
    return text


def _cell(task: str, method: str, rows: Sequence[Record]) -> dict[str, Any]:
    return {
        "task": task,
        "method": method,
        "tuned": rows[0].tuned,
        "seeds": [record.seed for record in rows],
        "figures": {
            name: {
                "values": [record.figure(name) for record in rows],
                **dict(zip(("mean", "low", "high"), interval)),
            }
            for name, interval in cell_figures(rows).items()
        },
    }


# -- tables ----------------------------------------------------------------------------------------


def _cell_rows(content: Content) -> list[dict[str, Any]]:
    """One line per task, method and figure."""
    return [
        {
            **{key: cell[key] for key in ("task", "method", "tuned")},
            "figure": name,
            **{key: short(figure[key]) for key in ("mean", "low", "high")},
            "runs": sum(value is not None for value in figure["values"]),
        }
        for cell in content["cells"]
        for name, figure in cell["figures"].items()
    ]


def _value(row: Mapping[str, Any] | None, digits: int = 3, key: str = "mean") -> str:
    """A number with its interval, or nothing."""
    if row is None:
        return ""
    ends = "" if row["low"] is None else f" [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
    return f"{row[key]:.{digits}f}{ends}"


def _rate(row: Mapping[str, Any]) -> str:
    ends = "" if row["low"] is None else f" [{row['low']:.1%}, {row['high']:.1%}]"
    return f"{row['mean']:.1%}{ends}"


def _section(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, before="", after=""
) -> str:
    table = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n\n".join(part for part in (f"## {title}", before, "\n".join(table), after) if part)


def _markdown(content: Content, title: str, tuning: int, pictures: Sequence[str]) -> str:
    states = content["states"]
    head = (
        f"{states['done']} runs done, {states['failed']} failed, {states['pending']} not done"
        + (f" ({tuning} of all only choose a setting)" if tuning else "")
        + ". Means over seeds with 95% intervals by Student's t; that of success by Wilson's "
        "formula with seeds as clusters."
    )
    failed = [[row["run"], row["error"].replace("|", "\\|")] for row in content["failed"]]
    parts = [
        f"# {title}",
        f"`{content['command']}`",
        head,
        *(_task_table(content, task) for task in content["policies"]),
        *([_every_figure(*content["cells"])] if len(content["cells"]) == 1 else []),
        *([_over_tasks_table(content["over_tasks"])] if content["over_tasks"] else []),
        *(
            [_differences_table(**content["differences"])]
            if content["differences"]["success"]
            else []
        ),
        *([_ranking_table(content["ranking"])] if content["ranking"] else []),
        *(f"![{name.removesuffix('.svg')}]({name})" for name in pictures),
        *([_section("Failed", ["run", "its last line"], failed)] if failed else []),
    ]
    return "\n\n".join(parts) + "\n"


def _task_table(content: Content, task: str) -> str:
    tuned = content["tuned"]
    rows = [
        [
            cell["method"],
            *(["" if cell["tuned"] is None else str(cell["tuned"])] if tuned else []),
            *(_value(cell["figures"].get(name), digits) for name, digits in HEADLINE.items()),
            str(len(cell["seeds"])),
        ]
        for cell in content["cells"]
        if cell["task"] == task
    ]
    rates = content["policies"][task].items()
    chance = "; ".join(f"{policy} {_rate(row)} of {row['attempts']}" for policy, row in rates)
    header = ["method", *([tuned] if tuned else []), *HEADLINE, "runs"]
    return _section(task, header, rows, after=f"Same goals: {chance}.")


def _every_figure(cell: Mapping[str, Any]) -> str:
    rows = [
        [name, *("" if value is None else f"{value:.4g}" for value in figure["values"])]
        for name, figure in cell["figures"].items()
    ]
    header = ["figure", *(f"seed {seed}" for seed in cell["seeds"])]
    success = cell["figures"].get("success")
    after = f"Success over seeds: {_rate(success)}." if success else ""
    return _section("Every figure", header, rows, after=after)


def _over_tasks_table(methods: Mapping[str, Any]) -> str:
    shown = [name for name in OVER_TASKS if all(name in row for row in methods.values())]
    rows = [
        [method, *(_value(row[name]) for name in shown), str(row["success"]["runs"])]
        for method, row in methods.items()
    ]
    before = (
        "Mean over tasks of the means over runs, 95% by Student's t with Satterthwaite's degrees."
    )
    return _section("Over all tasks", ["method", *shown, "runs"], rows, before=before)


def _differences_table(reference: str, success: Mapping[str, Any]) -> str:
    rows = [[method, _value(row), str(row["pairs"])] for method, row in success.items()]
    before = (
        f"Success less that of {reference} with the same task and seed, mean over tasks, 95% by "
        "Student's t over pairs with Satterthwaite's degrees. Not corrected for how many there are."
    )
    return _section(f"Against {reference}", ["method", "difference", "pairs"], rows, before=before)


def _ranking_table(ranked: Mapping[str, Any]) -> str:
    def cell(row: Mapping[str, Any] | None) -> str:
        return f"{_value(row, 2, 'rho')} ({row['runs']}, {row['recipes']})" if row else ""

    tasks = dict.fromkeys(task for row in ranked.values() for task in row)
    tasks = sorted(tasks, key="all".__eq__)
    rows = [[name, *(cell(row.get(task)) for task in tasks)] for name, row in ranked.items()]
    before = (
        "Spearman's correlation with planning success over all runs, within tasks; 95% "
        "bootstrap that draws recipes with all their seeds. (n: runs, recipes.)"
    )
    return _section("Which figure ranks runs", ["figure", *tasks], rows, before=before)


# -- pictures --------------------------------------------------------------------------------------

_ROLES = ("model", "linear", "oracle", "third", "second", "chance", "plain")
_SHORT_NAMES = {
    "effective rank, share of ideal": "eff. rank",
    "condition number": "condition",
    "skill nats/dim": "skill",
    "rank accuracy": "rank acc.",
    "variance per dim": "variance",
}


def _success_picture(content: Content) -> Figure | None:
    """Success of every method, one colour per task, whiskers for the intervals."""
    cells = content["cells"]
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    if len(cells) < 2:
        return None
    figure = Figure(
        "success",
        "Planning success of each method on each task, with 95% intervals",
        labels=("method", "success"),
        categories=methods,
        y=(0, 1.04),
        width=max(WIDTH, 70 * len(methods)),
    )
    roles = dict(zip(tasks, itertools.cycle(_ROLES)))
    for cell in cells:
        task, method, success = cell["task"], cell["method"], cell["figures"]["success"]
        mean, low, high = (success[key] for key in ("mean", "low", "high"))
        x = methods.index(method) + 0.5 * ((tasks.index(task) + 0.5) / len(tasks) - 0.5)
        text = f"{task}, {method}: {_rate(success)}"
        if low is not None:
            figure.interval(x, low, high, roles[task])
        figure.dot(x, mean, roles[task], text, radius=3.4)
    figure.legend += [(role, "dot", task) for task, role in roles.items()]
    return figure


def _ranking_picture(content: Content) -> Figure | None:
    """Rank correlation with success of each figure, over all tasks where there are several."""
    ranked = content["ranking"].items()
    rows = {name: row.get("all", next(iter(row.values()))) for name, row in ranked}
    if not rows:
        return None
    figure = Figure(
        "ranking",
        "Spearman's correlation of label-free figures with planning success, with 95% intervals",
        labels=("figure", "rank correlation with success"),
        categories=[_SHORT_NAMES.get(name, name) for name in rows],
        y=(-1.04, 1.04),
        width=max(WIDTH, 70 * len(rows)),
    )
    figure.level(0, "ideal")
    for i, row in enumerate(rows.values()):
        if row["low"] is not None:
            figure.interval(i, row["low"], row["high"], "model")
        figure.dot(i, row["rho"], "model", radius=3.4)
    return figure
