"""One line per run, and records from such lines: all that the tables of a study need."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gjwm.study.summary import DIGITS, FIGURES, Record
from gjwm.training.run import leaves

# What a run is told because of its seed, its folder and its task's name.
OF_THE_RUN = ("name", "run_dir", "dataset", "seed", "evaluate.seed", "task")
SETTING = "config."  # begins the columns of settings


def settings_in(config: Mapping[str, Any]) -> dict[str, str]:
    """{key: value as text} of a resolved configuration, without what only names the run."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in leaves(config)
        if key not in OF_THE_RUN
    }


def rows_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One line per run, failed and pending ones too: what it is called, the settings that differ
    between the runs that are done, and all its figures.
    """
    done = [record for record in records if record.figures is not None]
    keys = dict.fromkeys(key for record in done for key in record.settings)
    differ = [key for key in keys if len({record.settings.get(key) for record in done}) > 1]
    return [
        {
            **{key: getattr(record, key) for key in ("task", "method", "cell")},
            "tuned": None if record.tuned is None else json.dumps(record.tuned),
            "seed": record.seed,
            "phase": "tuning" if record.tuning else "final",
            "state": record.state,
            "error": record.error,
            **{f"{SETTING}{key}": record.settings.get(key) for key in differ},
            **{title: short(record.figure(title)) for title in FIGURES},
        }
        for record in records
    ]


def read_rows(path: str | Path) -> list[Record]:
    """The records of a runs.csv.

    Raises:
        ValueError: for a file that is none.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (IsADirectoryError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"study.rows={path} is no csv file ({error}).") from error
    if not rows or "success" not in rows[0]:
        raise ValueError(
            f"{path} is no runs.csv of a study: expected one row per run and a column success, got "
            f"{len(rows)} rows with the columns {', '.join(map(str, rows[0])) if rows else 'none'}."
        )
    try:
        return [_record(row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no runs.csv of a study ({error!r}).") from error


def _record(row: Mapping[str, str]) -> Record:
    figures = {title: float(row[title]) for title in FIGURES if row.get(title)}
    return Record(
        task=row["task"],
        method=row["method"],
        tuned=json.loads(row["tuned"]) if row["tuned"] else None,
        seed=int(row["seed"]),
        tuning=row["phase"] == "tuning",
        cell=row["cell"],
        figures=figures if row["state"] == "done" else None,
        error=row["error"] or None,
        settings={
            k.removeprefix(SETTING): v for k, v in row.items() if k.startswith(SETTING) and v
        },
    )


def short(value: float | None) -> str | None:
    """A figure in a csv."""
    return None if value is None else f"{value:.{DIGITS}g}"


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Lines of a csv with the first row's keys as its header; nothing of no rows."""
    rows, out = list(rows), io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()
