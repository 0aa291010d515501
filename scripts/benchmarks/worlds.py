"""Torch-native worlds: environment steps per second as one batch of tensors, beside a plain loop
over single environments.

Steps are control steps (`action_repeat` 1) under actions that change every step, through the same
public calls a user makes, autoreset included. On the CPU with one thread.
"""

from __future__ import annotations

import torch

from benchmarks import Row, batch_steps, loop_steps, rates

WORLDS = (
    *("two-room", "two-room-noisy", "two-room-slippery", "point-maze", "push"),
    *("torch-pendulum-swingup", "torch-cartpole-swingup"),
)
ENVS, ON_GPU = 256, 4096
LOOP = "loop of single envs, 64x64 pixels"


def run(*, quick: bool = False) -> list[Row]:
    """Rows: world, what, threads, env_steps_per_s, spread_percent, times_loop (over the loop of
    single environments)."""
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)  # on a busy machine two that wait for each other are many times slower
    box, count = (0.05, 8) if quick else (1.0, ENVS)
    for world in WORLDS[-1:] if quick else WORLDS:
        env_id = f"gjwm/{world}-v0"
        cases = {
            LOOP: loop_steps(env_id, 1, obs="pixels"),
            "one batch, 64x64 pixels": batch_steps(env_id, count, obs="pixels"),
            "one batch, state": batch_steps(env_id, count, obs="state"),
        }
        if torch.cuda.is_available():
            name = f"one batch of {ON_GPU} on the GPU, 64x64 pixels"
            cases[name] = batch_steps(env_id, ON_GPU, device="cuda", obs="pixels")
        found = rates(cases, box)
        for what, rate in found.items():
            rows.append(
                {
                    "world": world,
                    "what": what,
                    "threads": 1,
                    "env_steps_per_s": rate.median,
                    "spread_percent": rate.spread_percent,
                    "times_loop": rate.over(found[LOOP]),
                }
            )
    torch.set_num_threads(threads)
    return rows
