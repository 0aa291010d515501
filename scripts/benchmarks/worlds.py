"""Torch-native worlds: environment steps per second as one batch of tensors, beside a plain loop
over single environments.

Steps are control steps (`action_repeat` 1) under actions that change every step, through the same
public calls a user makes, autoreset included. On the CPU with one thread.
"""

from __future__ import annotations

import torch

from benchmarks import Row, batch_rate, loop_rate

WORLDS = (
    *("two-room", "two-room-noisy", "two-room-slippery", "point-maze", "push"),
    *("torch-pendulum-swingup", "torch-cartpole-swingup"),
)
ENVS, ON_GPU = 256, 4096


def run(*, quick: bool = False) -> list[Row]:
    """Rows: world, what, env_steps_per_s, times_loop (over the loop of single environments)."""
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)  # on a busy machine two that wait for each other are many times slower
    seconds, count = (0.05, 8) if quick else (1.0, ENVS)
    for world in WORLDS[-1:] if quick else WORLDS:
        env_id = f"gjwm/{world}-v0"
        floor = loop_rate(env_id, 1, seconds, obs="pixels")
        rates = {
            "loop of single envs, 64x64 pixels": floor,
            "one batch, 64x64 pixels": batch_rate(env_id, count, seconds, obs="pixels"),
            "one batch, state": batch_rate(env_id, count, seconds, obs="state"),
        }
        if torch.cuda.is_available():
            rates[f"one batch of {ON_GPU} on the GPU, 64x64 pixels"] = batch_rate(
                env_id, ON_GPU, seconds, device="cuda", obs="pixels"
            )
        rows += [
            {"world": world, "what": what, "env_steps_per_s": steps, "times_loop": steps / floor}
            for what, steps in rates.items()
        ]
    torch.set_num_threads(threads)
    return rows
