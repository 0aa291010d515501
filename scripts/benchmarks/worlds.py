"""Torch-native worlds: environment steps per second as one batch of tensors, beside a plain loop
over single environments.

All cases of a world run in the same process, one after another; each is timed in rounds and its
median round counts. Steps are control steps (`action_repeat` 1) under actions that change every
step, through the same public calls a user makes, autoreset included."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch

from gjwm.data.collect import make_env

WORLDS = (
    "two-room",
    "two-room-noisy",
    "two-room-slippery",
    "point-maze",
    "push",
    "torch-pendulum-swingup",
    "torch-cartpole-swingup",
)
ENVS, ON_GPU = 256, 4096


def run(*, quick: bool = False, seconds: float = 1.0) -> list[dict[str, Any]]:
    """Rows: world, what, env_steps_per_s, times_loop (over the loop of single environments). On the
    CPU with one thread.
    """
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)  # on a busy machine two that wait for each other are many times slower
    for world in WORLDS[-1:] if quick else WORLDS:
        cases = {
            "loop of single envs, 64x64 pixels": _loop(world),
            "one batch, 64x64 pixels": _batch(world, 8 if quick else ENVS, "pixels"),
            "one batch, state": _batch(world, 8 if quick else ENVS, "state"),
        }
        if torch.cuda.is_available():
            cases[f"one batch of {ON_GPU} on the GPU, 64x64 pixels"] = _batch(
                world, ON_GPU, "pixels", "cuda"
            )
        rates = {what: _rate(step, 0.05 if quick else seconds) for what, step in cases.items()}
        floor = rates["loop of single envs, 64x64 pixels"]
        rows += [
            {"world": world, "what": what, "env_steps_per_s": rate, "times_loop": rate / floor}
            for what, rate in rates.items()
        ]
    torch.set_num_threads(threads)
    return rows


def _rate(step: Callable[[], int], seconds: float, rounds: int = 5) -> float:
    """Steps per second of a call that returns how many it made: the median of a few rounds."""
    step()
    rates = []
    for _ in range(rounds):
        since, steps = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - since) < seconds / rounds:
            steps += step()
        rates.append(steps / elapsed)
    return float(np.median(rates))


def _loop(world: str) -> Callable[[], int]:
    env = make_env(f"gjwm/{world}-v0", obs="pixels", size=64)
    rng = np.random.default_rng(0)
    env.reset(seed=0)

    def step() -> int:
        _, _, terminated, truncated, _ = env.step(
            rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        )
        if terminated or truncated:
            env.reset()
        return 1

    return step


def _batch(world: str, count: int, obs: str, device: str | None = None) -> Callable[[], int]:
    env = gymnasium.make_vec(
        f"gjwm.envs:gjwm/{world}-v0",
        num_envs=count,
        vectorization_mode="vector_entry_point",
        obs=obs,
        size=64,
        device=device,
    )
    env.reset(seed=0)
    if device is None:
        rng = np.random.default_rng(0)

        def step() -> int:
            env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
            return count

        return step
    generator = torch.Generator(device).manual_seed(0)

    def step_there() -> int:
        for _ in range(20):  # the clock waits for the device once in a while, the environment never
            env.step(2 * torch.rand(env.action_space.shape, generator=generator, device=device) - 1)
        torch.cuda.synchronize()
        return 20 * count

    return step_there
