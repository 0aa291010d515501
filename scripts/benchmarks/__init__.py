"""Speed, measured: `python scripts/benchmark.py <name>` runs one of this package's modules and
prints its rows as a table.

Each module has `run(*, quick=False) -> rows`: ours, a named reference and, where there is one, the
floor that nothing can beat, timed in turn in one process. Quote ratios, as absolute figures depend
on the machine and on what else it is doing."""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]


def names() -> list[str]:
    """The benchmarks there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def run(name: str, *, quick: bool = False) -> list[Row]:
    """Run one benchmark -> rows with equal keys; `quick` takes seconds and shows that it runs, not
    how fast.

    Raises:
        ValueError: for a benchmark that does not exist.
    """
    if name not in names():
        raise ValueError(f"there is no benchmark {name!r}; choose from {', '.join(names())}.")
    return importlib.import_module(f"{__name__}.{name}").run(quick=quick)


def median_seconds(call: Callable[[], Any], *, repeats: int = 5, warmup: int = 1) -> float:
    """Median wall time of `call`, in seconds."""
    for _ in range(warmup):
        call()
    times = []
    for _ in range(repeats):
        since = time.perf_counter()
        call()
        times.append(time.perf_counter() - since)
    return sorted(times)[len(times) // 2]


def table(rows: Sequence[Row]) -> str:
    """Rows as an aligned Markdown table; numbers with three significant digits, aligned right."""

    def shown(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return "" if value is None else str(value)

    header = list(rows[0])
    cells = [header, *([shown(row.get(key)) for key in header] for row in rows)]
    width = [max(len(line[i]) for line in cells) for i in range(len(header))]
    number = [all(isinstance(row.get(key), int | float | None) for row in rows) for key in header]
    lines = [
        "| "
        + " | ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, width, number))
        + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if n else "-") for w, n in zip(width, number)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
