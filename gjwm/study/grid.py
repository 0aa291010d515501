"""The runs of a sweep: the product of axes of overrides, and what each run is called. An override
is a key and a plain value; `written` spells it in hydra's grammar.
"""

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

    @property
    def path(self) -> str:
        return "/".join(self.parts)

    def with_tuned(self, key: str, value: Any) -> Cell:
        """The same with one more setting, in a folder of its own."""
        parts, overrides = (*self.parts, _label(key, value)), merged(self.overrides, {key: value})
        return Cell(self.task, self.method, parts, overrides, value)


def bare(key: str) -> str:
    """A key without hydra's signs for adding and removing."""
    return key.lstrip("+~")


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides in order; of two with one key, added with "+" or not, the later stays."""
    last: dict[str, tuple[str, Any]] = {}
    for layer in layers:
        for key, value in layer.items():
            last.pop(bare(key), None)
            last[bare(key)] = (key, value)
    return dict(last.values())


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
    for key, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"study.grid.{key} must be a list of values, got {values!r}.")
    conditions = [
        (condition, set(condition.replace(" ", "").split(",")), extra)
        for condition, extra in (where or {}).items()
    ]
    for condition, parts, _ in conditions:  # a value that the grid lacks: a study is run in part
        if not {part.partition("=")[0] for part in parts} <= grid.keys():
            raise ValueError(
                f"study.where names {condition!r}, which is no axis=value of study.grid: "
                f"{', '.join(grid)}."
            )
    axes = sorted(grid, key=lambda key: key != TASK)
    cells: dict[tuple[str, ...], Cell] = {}
    for values in itertools.product(*(grid[key] for key in axes)):
        point = dict(zip(axes, values))
        given = {f"{key}={_plain(value)}" for key, value in point.items()}
        extra = [extra for _, parts, extra in conditions if parts <= given]
        names = tuple(_label(key, value) for key, value in point.items())
        task, method = names[: TASK in point], names[TASK in point :]
        if names in cells:
            raise ValueError(
                f"study.grid has two points that would be called {'/'.join(names)}: give an axis "
                f"each value once."
            )
        merged_overrides = merged(overrides or {}, point, *extra)
        cells[names] = Cell("".join(task), ",".join(method), names, merged_overrides)
    return list(cells.values())


def written(key: str, value: Any) -> str:
    """An override in hydra's grammar, "env.size=32"; a removal, "~key", takes None."""
    return key if key.startswith("~") and value is None else f"{key}={_text(value)}"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_][\w/-]*", value)
        if not plain or value.lower() in ("true", "false", "null", "nan", "inf"):
            return "'" + re.sub(r"(\\*)'", r"\1\1\\'", value) + "'"
    return _plain(value)


def _plain(value: Any) -> str:
    """A value as hydra writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _label(key: str, value: Any) -> str:
    """A value's name in tables and folders, after the last part of a key that is no group."""
    shown = _plain(value)
    if not isinstance(value, int | float):  # a minus sign is no separator
        shown = re.sub(r"[^\w.+-]+", "-", shown).strip("-")
    key = bare(key)
    return f"{key.rpartition('.')[2]}-{shown}" if "." in key else shown
