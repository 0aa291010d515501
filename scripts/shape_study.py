"""Train and judge the arms of the study of shape; print nothing but progress, write rows.

    python scripts/shape_study.py run --world box --seeds 0 4 --out rows.csv [--device cuda]
    python scripts/shape_study.py tables [--picture FILE]          # those of docs/verdict.md

One row per world, arm, λ, batch and seed. Rows that are there already are not made again."""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path

import torch
from shape import tables
from shape.arms import Arm, collapse_arms, shape_arms
from shape.measures import data_of, floors, measured, plans
from shape.training import Settings, freeze, train
from shape.worlds import WORLDS

from gjwm._core.machine import keep_freed_memory

ROWS = Path(__file__).parent.parent / "docs" / "study"
EPISODES, HELD, GOALS = 400, 100, 100
GRIDS = {"shape": shape_arms, "collapse": collapse_arms}
KEYS = ("grid", "world", "arm", "norm", "time", "lam", "batch", "steps", "seed")


def rows_of(
    grid: str,
    world_name: str,
    seeds: list[int],
    settings: Settings,
    device: torch.device,
    goals: int = GOALS,
    arms: list[Arm] | None = None,
) -> list[dict[str, object]]:
    """Train and judge arms (all of the grid) for these seeds at once -> one row per arm and
    seed."""
    world, arms = WORLDS[world_name], arms or GRIDS[grid]()
    begun = time.perf_counter()
    data = data_of(world, seeds, EPISODES, device)
    w, extra = train(data, arms, seeds, settings)
    trained = time.perf_counter()
    model = freeze(w, arms, data)
    held = data_of(world, [100_000 + seed for seed in seeds], HELD, device)
    generator = torch.Generator(device).manual_seed(7)
    values = {**extra, **measured(world, model, data, held, generator)}
    pairs = [
        world.goals(goals, torch.Generator(device).manual_seed(200_000 + seed)) for seed in seeds
    ]
    start, goal = (torch.stack(part) for part in zip(*pairs))
    values |= plans(world, model, data, start, goal, len(arms), generator)
    bounds = floors(world, start, goal, generator)
    judged = time.perf_counter()
    print(
        f"{grid} {world_name} seeds {seeds[0]} to {seeds[-1]} batch {settings.batch}: trained in "
        f"{trained - begun:.1f} s, judged in {judged - trained:.1f} s",
        file=sys.stderr,
        flush=True,
    )
    table = {name: value.cpu().tolist() for name, value in values.items()}
    limits = {name: value.cpu().tolist() for name, value in bounds.items()}
    rows: list[dict[str, object]] = []
    for s, seed in enumerate(seeds):
        for a, arm in enumerate(arms):
            key = _key(grid, world_name, arm, settings, seed)
            row = {name: f"{value[s][a]:.4g}" for name, value in table.items()}
            rows.append(key | row | {name: f"{v[s]:.4g}" for name, v in limits.items()})
    return rows


def _key(grid: str, world: str, arm: Arm, settings: Settings, seed: int) -> dict[str, object]:
    values = (grid, world, arm.name, arm.norm, arm.time, arm.lam, settings.batch, settings.steps)
    return dict(zip(KEYS, (*values, seed)))


def verdict_tables() -> list[str]:
    """The tables of docs/verdict.md, from the rows in docs/study."""
    tuning, fresh = (tables.read(ROWS / f"{name}.csv") for name in ("shape-tuning", "shape"))
    worlds = dict.fromkeys(row["world"] for row in tuning)
    return [
        tables.comparisons(fresh),
        tables.floors(fresh),
        *(tables.curves(tuning, world) for world in worlds),
    ]


def append(path: Path, rows: list[dict[str, object]]) -> None:
    """Add rows to a CSV file, whose first line names the columns."""
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--grid", choices=GRIDS, default="shape")
    run.add_argument("--world", choices=WORLDS, required=True)
    run.add_argument("--seeds", type=int, nargs=2, metavar=("FIRST", "END"), required=True)
    run.add_argument("--together", type=int, default=4, help="seeds in one batch of models")
    run.add_argument("--steps", type=int, default=2000)
    run.add_argument("--batch", type=int, default=128)
    run.add_argument("--goals", type=int, default=GOALS, help="a seed")
    run.add_argument("--arms", nargs="*", help="of the grid, as NAME or NAME:LAMBDA; all")
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--device", default="cpu")
    shown = commands.add_parser("tables")
    shown.add_argument("--picture", type=Path)
    options = parser.parse_args()
    if options.command == "tables":
        print("\n\n".join(verdict_tables()))
        if options.picture:
            tables.draw(tables.read(ROWS / "shape-tuning.csv"), options.picture)
        return 0
    device = torch.device(options.device)
    keep_freed_memory()
    done = set()
    if options.out.exists():
        with options.out.open() as file:
            done = {tuple(row[key] for key in KEYS) for row in csv.DictReader(file)}
    settings = Settings(steps=options.steps, batch=options.batch)
    wanted = options.arms or [arm.name for arm in GRIDS[options.grid]()]
    arms = [
        arm
        for arm in GRIDS[options.grid]()
        if arm.name in wanted or f"{arm.name}:{arm.lam:g}" in wanted
    ]
    if not arms:
        print(f"shape_study: no arm of {options.grid} is named {wanted}.", file=sys.stderr)
        return 1
    missing: dict[tuple[Arm, ...], list[int]] = {}
    for seed in range(*options.seeds):
        keys = {arm: _key(options.grid, options.world, arm, settings, seed) for arm in arms}
        left = tuple(arm for arm in arms if tuple(map(str, keys[arm].values())) not in done)
        if left:
            missing.setdefault(left, []).append(seed)
    for some, seeds in missing.items():
        for k in range(0, len(seeds), options.together):
            part = seeds[k : k + options.together]
            append(
                options.out,
                rows_of(
                    options.grid, options.world, part, settings, device, options.goals, list(some)
                ),
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
