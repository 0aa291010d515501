"""Eight seeds of a small run as one batch of models, beside one: `scripts/shape/training.py`, as
the study of shape trains them.

On one thread eight cannot take less than one and seven times what one computes; only what one
spends on launching many small calls, its overhead, is shared. What eight cost beyond one says how
much that is. The clock is the thread's own: what it computes, and not its waiting for a core that
others keep busy."""

from __future__ import annotations

import time
from functools import partial

import torch
from shape.arms import Arm
from shape.measures import data_of
from shape.training import Data, Settings, train
from shape.worlds import WORLDS

from benchmarks import Row, seconds
from gjwm._core.machine import keep_freed_memory

ARMS = {
    "two moments": Arm("moments"),
    "SIGReg": Arm("gaussian (SIGReg)", discrepancy="shape", lam=5.0),
}
SEEDS = 8


def run(*, quick: bool = False) -> list[Row]:
    """Rows: world, objective, windows, threads, one_ms, eight_ms (of a step), spread_percent (of
    eight), times_one, overhead_share_percent (of one)."""
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)
    keep_freed_memory()
    for world in ("torus",) if quick else ("torus", "box"):
        data = data_of(WORLDS[world], list(range(SEEDS)), 40 if quick else 200, torch.device("cpu"))
        for objective, arm in ARMS.items():
            for batch in (8,) if quick else (32, 128):
                settings = Settings(steps=2 if quick else 10, batch=batch)
                cases = {
                    count: partial(train, _of(data, count), [arm], list(range(count)), settings)
                    for count in (1, SEEDS)
                }
                found = seconds(cases, 1 if quick else 5, clock=time.thread_time)
                one, eight = found[1], found[SEEDS]
                times = eight.over(one)
                rows.append(
                    {
                        "world": world,
                        "objective": objective,
                        "windows": batch,
                        "threads": 1,
                        "one_ms": 1e3 * one.median / settings.steps,
                        "eight_ms": 1e3 * eight.median / settings.steps,
                        "spread_percent": eight.spread_percent,
                        "times_one": times,
                        "overhead_share_percent": 100 * (SEEDS - times) / (SEEDS - 1),
                    }
                )
    torch.set_num_threads(threads)
    return rows


def _of(data: Data, count: int) -> Data:
    """The data of the first seeds."""
    return Data(data.o[:count], data.a[:count], data.truth[:count])
