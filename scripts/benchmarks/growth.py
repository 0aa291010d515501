"""How the cost of a training step grows: against D, batch, horizon, slices and members of an
ensemble, each alone.

Steps of `experiment=two_room`, whole, on noise; one thread, whose own time is measured. A slope is
that of log time over log value since the row before: 1 doubles the cost with the value, 0 leaves
it.

`PYTHONPATH=scripts python -m benchmarks.growth FILE.svg` also draws them."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import torch

from benchmarks import Rounds, Row, seconds, table
from benchmarks.step import FRAMES, Parts
from gjwm._core.machine import keep_freed_memory
from gjwm.cli.config import load_config, recipe_of
from gjwm.reporting.svg import Figure

# what grows: its settings, the recipe's own value, values
GROWTH: dict[str, tuple[str, int, tuple[int, ...]]] = {
    "D": ("latent_dim={}", 16, (16, 64, 128, 256)),
    "batch": ("train.batch={}", 64, (16, 64, 128, 256)),
    "horizon": ("train.length={}", 6, (3, 6, 12, 24)),
    "slices": ("discrepancy.num_slices={}", 256, (64, 256, 2048, 4096)),
    "members": ("dynamics=ensemble dynamics.members={}", 2, (2, 4, 8, 16)),
}
ROLES = ("model", "oracle", "linear", "second", "third")


def run(*, quick: bool = False) -> list[Row]:
    """Rows: against, value, threads, ms, spread_percent, times_recipe, slope_ratio."""
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)
    keep_freed_memory()
    for what, (settings, own, values) in GROWTH.items():
        found = _timed(settings, values[:2] if quick else values, quick)
        before = None
        for value, spent in found.items():
            slope = None
            if before is not None:
                slope = math.log(spent.over(found[before])) / math.log(value / before)
            rows.append(
                {
                    "against": what,
                    "value": value,
                    "threads": 1,
                    "ms": 1e3 * spent.median,
                    "spread_percent": spent.spread_percent,
                    "times_recipe": spent.over(found[own]) if own in found else None,
                    "slope_ratio": slope,
                }
            )
            before = value
    torch.set_num_threads(threads)
    return rows


def _timed(settings: str, values: tuple[int, ...], quick: bool) -> dict[int, Rounds]:
    small = ["train.batch=8"] * (quick and "batch" not in settings)
    calls = {}
    for value in values:
        words = settings.format(value).split()
        recipe = recipe_of(load_config(["experiment=two_room", *small, *words]))
        parts = Parts(recipe, FRAMES["two_room"], episodes=20)
        calls[value] = parts.whole
    return seconds(calls, 1 if quick else 3, warmup=1, clock=time.thread_time)


def picture(rows: list[Row]) -> str:
    """Times against doublings of the recipe's own value, both logarithmic, as an svg."""
    figure = Figure(
        "growth",
        "Cost of a training step",
        "Milliseconds of one core against doublings of one setting of the recipe, others as they "
        "are.",
        labels=("doublings of the recipe's own value (members: of 2)", "ms of a step"),
        log_y=True,
        width=560,
    )
    for role, (what, (_, own, _)) in zip(ROLES, GROWTH.items(), strict=True):
        own_rows = [row for row in rows if row["against"] == what]
        x = [math.log2(row["value"] / own) for row in own_rows]
        label = f"{what} ({own_rows[-1]['slope_ratio']:.2f})"
        figure.line(x, [row["ms"] for row in own_rows], role, label, dots=True)
    return figure.svg(standalone=True)


def main() -> int:
    """See the module."""
    rows = run()
    print(table(rows))
    Path(sys.argv[1]).write_text(picture(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
