"""Collecting 64x64 pixels: environment steps per second, ours against the stock way and against no
pictures at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import (
    Row,
    Stepping,
    batch_steps,
    calling,
    loop_steps,
    rates,
    stock_steps,
)
from gjwm.data.behaviours import Coloured
from gjwm.data.collect import collect_episodes

REPEAT = 2  # control steps per action in reacher, as in the demo


def run(*, quick: bool = False) -> list[Row]:
    """Rows: world, what, threads, env_steps_per_s, spread_percent, times_reference (over the
    world's first row). Collecting into episodes starts its processes and compiles anew in each
    round."""
    box, envs = (0.3, 8) if quick else (5, 256)
    two_room = "gjwm/two-room-v0"
    worlds: dict[str, dict[str, Stepping]] = {
        "reacher-easy, action repeat 2": {
            "dm_control's env.physics.render, 1 process": stock_steps(
                "reacher", "easy", pixels=True, repeat=REPEAT
            ),
            "ours, 1 process": calling(_collect(quick, workers=0)),
            "ours, a process per core, into episodes": calling(_collect(quick, workers=None)),
            "floor: ours without pictures, 1 process": calling(
                _collect(quick, workers=0, obs="state")
            ),
        },
        "two-room, 256 envs": {
            "ours, one env at a time": loop_steps(two_room, 1, obs="pixels"),
            "ours, one batch": batch_steps(two_room, envs, obs="pixels"),
            "floor: one batch without pictures": batch_steps(two_room, envs, obs="state"),
        },
    }
    rows = []
    for world, cases in worlds.items():
        found = rates(cases, box, rounds=1 if quick else 5)
        reference = next(iter(found.values()))
        for what, rate in found.items():
            row = {"world": world, "what": what, "threads": torch.get_num_threads()}
            row |= {"env_steps_per_s": rate.median, "spread_percent": rate.spread_percent}
            rows.append({**row, "times_reference": rate.over(reference)})
    return rows


def _collect(quick: bool, *, workers: int | None, obs: str = "pixels") -> Callable[[], int]:
    """Collects episodes -> control steps."""
    episodes, length = (2, 10) if quick else (500 if workers is None else 120, 60)
    kwargs: dict[str, Any] = {"obs": obs, "action_repeat": REPEAT}
    if obs == "pixels":
        kwargs |= {"size": 64, "frame_stack": 2, "hidden": ["target"]}
    sizes = dict(episodes=episodes, length=length, workers=workers)

    def step() -> int:
        collected = collect_episodes("gjwm/reacher-easy-v0", kwargs, Coloured(), **sizes)
        return REPEAT * sum(len(episode.a) for episode in collected)

    return step
