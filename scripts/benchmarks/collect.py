"""Collecting 64x64 pixels: environment steps per second, ours against the stock way and against no
pictures at all.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks import Row, batch_rate, loop_rate, stock_rate
from gjwm.data.behaviours import Coloured
from gjwm.data.collect import collect_episodes

REPEAT = 2  # control steps per action in reacher, as in the demo


def run(*, quick: bool = False) -> list[Row]:
    """Rows: world, what, env_steps_per_s, times_reference (over the world's first row)."""
    seconds, envs = (0.3, 8) if quick else (5, 256)
    stock = stock_rate("reacher", "easy", seconds, pixels=True, repeat=REPEAT)
    two_room = "gjwm/two-room-v0"
    worlds = {
        "reacher-easy, action repeat 2": {
            "dm_control's env.physics.render, 1 process": stock,
            "ours, 1 process": _collect_rate(quick, workers=0),
            "ours, a process per core, into episodes": _collect_rate(quick, workers=None),
            "floor: ours without pictures, 1 process": _collect_rate(quick, workers=0, obs="state"),
        },
        "two-room, 256 envs": {
            "ours, one env at a time": loop_rate(two_room, 1, seconds, obs="pixels"),
            "ours, one batch": batch_rate(two_room, envs, seconds, obs="pixels"),
            "floor: one batch without pictures": batch_rate(two_room, envs, seconds, obs="state"),
        },
    }
    rows = []
    for world, rates in worlds.items():
        reference = next(iter(rates.values()))
        for what, rate in rates.items():
            row = {"world": world, "what": what, "env_steps_per_s": rate}
            rows.append({**row, "times_reference": rate / reference})
    return rows


def _collect_rate(quick: bool, *, workers: int | None, obs: str = "pixels") -> float:
    """Control steps per second of collecting, starting processes and compiling included."""
    episodes, length = (2, 10) if quick else (500 if workers is None else 120, 60)
    kwargs: dict[str, Any] = {"obs": obs, "action_repeat": REPEAT}
    if obs == "pixels":
        kwargs |= {"size": 64, "frame_stack": 2, "hidden": ["target"]}
    sizes = dict(episodes=episodes, length=length, workers=workers)
    since = time.perf_counter()
    collected = collect_episodes("gjwm/reacher-easy-v0", kwargs, Coloured(), **sizes)
    steps = sum(len(episode.a) for episode in collected)
    return REPEAT * steps / (time.perf_counter() - since)
