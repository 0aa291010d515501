"""Collecting 64x64 pixels: environment steps per second, ours against the stock way and against no
pictures at all.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from gjwm.data.behaviours import Coloured
from gjwm.data.collect import collect_episodes, make_env

REPEAT = 2  # control steps per action in reacher, as in the demo


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Rows: world, what, env_steps_per_s, times_reference."""
    rows = []
    for world, reference, cases in (
        (
            "reacher-easy, action repeat 2",
            "dm_control's env.physics.render, 1 process",
            {
                "dm_control's env.physics.render, 1 process": lambda: _stock_reacher(quick),
                "ours, 1 process": lambda: _collect_reacher(quick, workers=0),
                "ours, a process per core, into episodes": lambda: _collect_reacher(
                    quick, workers=None
                ),
                "floor: ours without pictures, 1 process": lambda: _collect_reacher(
                    quick, workers=0, obs="state"
                ),
            },
        ),
        (
            "two-room, 256 envs",
            "ours, one env at a time",
            {
                "ours, one env at a time": lambda: _two_room_alone(quick),
                "ours, one batch": lambda: _two_room_batch(quick),
                "floor: one batch without pictures": lambda: _two_room_batch(quick, obs="state"),
            },
        ),
    ):
        rates = {what: call() for what, call in cases.items()}
        rows += [
            {
                "world": world,
                "what": what,
                "env_steps_per_s": rate,
                "times_reference": rate / rates[reference],
            }
            for what, rate in rates.items()
        ]
    return rows


def _rate(step: Callable[[], int], seconds: float) -> float:
    """Steps per second of a call that returns how many it made, after one untimed call."""
    step()
    since, steps = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - since) < seconds:
        steps += step()
    return steps / elapsed


def _stock_reacher(quick: bool) -> float:
    from gjwm.envs.rendering import choose_backend

    choose_backend()  # before dm_control is imported
    from dm_control import suite

    env = suite.load("reacher", "easy", task_kwargs={"random": 0})
    rng = np.random.default_rng(0)
    env.reset()

    def step() -> int:
        action = rng.uniform(-1, 1, 2)
        for _ in range(REPEAT):
            if env.step(action).last():
                env.reset()
        env.physics.render(64, 64, camera_id=0)
        return REPEAT

    return _rate(step, 0.3 if quick else 5)


def _collect_reacher(quick: bool, *, workers: int | None, obs: str = "pixels") -> float:
    episodes, length = (2, 10) if quick else (500 if workers is None else 120, 60)
    kwargs: dict[str, Any] = {"obs": obs, "action_repeat": REPEAT}
    if obs == "pixels":
        kwargs |= {"size": 64, "frame_stack": 2, "hidden": ["target"]}
    since = time.perf_counter()  # starting processes and compiling the model is part of collecting
    made = sum(
        len(episode.a)
        for episode in collect_episodes(
            "gjwm/reacher-easy-v0",
            kwargs,
            Coloured(),
            episodes=episodes,
            length=length,
            workers=workers,
        )
    )
    return REPEAT * made / (time.perf_counter() - since)


def _two_room_alone(quick: bool) -> float:
    env = make_env("gjwm/two-room-v0", obs="pixels", size=64)
    rng, seeds = np.random.default_rng(0), itertools.count()
    env.reset(seed=next(seeds))

    def step() -> int:
        _, _, terminated, truncated, _ = env.step(rng.uniform(-1, 1, 2).astype(np.float32))
        if terminated or truncated:
            env.reset(seed=next(seeds))
        return 1

    return _rate(step, 0.3 if quick else 5)


def _two_room_batch(quick: bool, obs: str = "pixels") -> float:
    count = 8 if quick else 256
    env = gymnasium.make_vec(
        "gjwm.envs:gjwm/two-room-v0",
        num_envs=count,
        vectorization_mode="vector_entry_point",
        obs=obs,
        **({"size": 64} if obs == "pixels" else {}),
    )
    rng = np.random.default_rng(0)
    env.reset(seed=0)

    def step() -> int:
        env.step(rng.uniform(-1, 1, (count, 2)).astype(np.float32))
        return count

    return _rate(step, 0.3 if quick else 5)
