"""The runs of a sweep: the product of axes of overrides, as hydra's multirun takes it, and what
each run is called.

Nothing here knows hydra: an override is a key and a plain value, and `written` spells it in hydra's
grammar."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TASK = "experiment"  # the axis whose values are tasks; all others together are the method


@dataclass(frozen=True)
class Cell:
    """One point of the grid, to be run with several seeds.

    Args:
        task, method: what tables call it; "" without an axis of that kind.
        parts: names of its folders.
        overrides: key -> value; a later one of two replaces the earlier.
        tuned: the value of the tuned key, if there is one.
    """

    task: str
    method: str
    parts: tuple[str, ...]
    overrides: Mapping[str, Any] = field(hash=False)
    tuned: Any = field(default=None, hash=False)

    def with_tuned(self, key: str, value: Any) -> Cell:
        """The same with one more setting, which keeps its name in the tables and gets a folder of
        its own.
        """
        return Cell(
            self.task,
            self.method,
            (*self.parts, _label(key, value)),
            merged(self.overrides, {key: value}),
            value,
        )


def bare(key: str) -> str:
    """A key without hydra's signs for adding and removing."""
    return key.lstrip("+~")


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides in order; where two have one key, whether or not it is added with "+", the later
    stays.
    """
    found: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            for old in [old for old in found if bare(old) == bare(key)]:
                del found[old]
            found[key] = value
    return found


def expand(
    grid: Mapping[str, Sequence[Any]],
    overrides: Mapping[str, Any] | None = None,
    where: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Cell]:
    """All points of the grid, tasks outermost.

    Args:
        grid: axis (a config group or a key) -> its values.
        overrides: of every point, before those of the axes.
        where: "axis=value", or several of these joined by commas -> overrides of the points that
            have all of them.

    Raises:
        ValueError: for an axis without values or with one twice, a condition on what is no axis,
            and points whose names are the same.
    """
    where = where or {}
    for key, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"study.grid.{key} must be a list of values, got {values!r}.")
    axes = sorted(grid, key=lambda key: key != TASK)
    conditions = {condition: set(condition.replace(" ", "").split(",")) for condition in where}
    unknown = [
        c
        for c, parts in conditions.items()
        if not {part.partition("=")[0] for part in parts} <= grid.keys()
    ]
    if unknown:  # a value that the grid lacks is no mistake: a study may be run in part
        raise ValueError(
            f"study.where names {unknown[0]!r}, which is no axis=value of study.grid: "
            f"{', '.join(grid)}."
        )
    cells = []
    for values in itertools.product(*(grid[key] for key in axes)):
        point = dict(zip(axes, values))
        given = {f"{key}={_plain(value)}" for key, value in point.items()}
        extra = merged(
            *(where[condition] for condition, parts in conditions.items() if parts <= given)
        )
        method = [_label(key, value) for key, value in point.items() if key != TASK]
        task = [_label(TASK, point[TASK])] if TASK in point else []
        cells.append(
            Cell(
                "".join(task),
                ",".join(method),
                (*task, *method),
                merged(overrides or {}, point, extra),
            )
        )
    paths = [cell.parts for cell in cells]
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise ValueError(
            f"study.grid has two points that would be called {'/'.join(twice[0])}: give an axis "
            f"each value once."
        )
    return cells


def written(key: str, value: Any) -> str:
    """An override in hydra's grammar: written("env.size", 32) is "env.size=32"; a removal, "~key",
    takes the value None.
    """
    return key if key.startswith("~") and value is None else f"{key}={_text(value)}"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_][\w/-]*", value) and value.lower() not in (
            "true",
            "false",
            "null",
            "nan",
            "inf",
        )
        return value if plain else "'" + re.sub(r"(\\*)'", r"\1\1\\'", value) + "'"
    return _plain(value)


def _plain(value: Any) -> str:
    return (
        {True: "true", False: "false", None: "null"}[value]
        if value is None or isinstance(value, bool)
        else str(value)
    )


def _label(key: str, value: Any) -> str:
    """A value as it is called in tables and folders: a group's choice by its name, others after the
    last part of their key.
    """
    shown = _plain(value)
    if not isinstance(value, int | float):  # a minus sign is no separator
        shown = re.sub(r"[^\w.+-]+", "-", shown).strip("-")
    key = bare(key)
    return f"{key.rpartition('.')[2]}-{shown}" if "." in key else shown
