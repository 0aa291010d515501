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

import numpy as np
import torch

from gjwm.envs import make_vec
from gjwm.envs.vector import make_env

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


def rate(step: Callable[[], int], seconds: float, *, rounds: int = 5) -> float:
    """Steps per second of a call that returns how many it made: the median of a few rounds, after
    two untimed calls.
    """
    step(), step()
    rates = []
    for _ in range(rounds):
        since, steps = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - since) < seconds / rounds:
            steps += step()
        rates.append(steps / elapsed)
    return sorted(rates)[rounds // 2]


# -- environments under random actions: control steps per second -----------------------------------


def stock_suite(domain: str, task: str) -> Any:
    """dm_control's own environment."""
    from gjwm.envs.rendering import choose_backend

    choose_backend()  # before dm_control is imported
    from dm_control import suite

    env = suite.load(domain, task, task_kwargs={"random": 0})
    env.reset()
    return env


def stock_rate(domain: str, task: str, seconds: float, *, pixels: bool, repeat: int = 1) -> float:
    """dm_control alone, rendering 64x64 pixels after every `repeat` steps."""
    env, rng = stock_suite(domain, task), np.random.default_rng(0)
    spec = env.action_spec()

    def step() -> int:
        action = rng.uniform(spec.minimum, spec.maximum)
        for _ in range(repeat):
            if env.step(action).last():
                env.reset()
        if pixels:
            env.physics.render(64, 64, camera_id=0)
        return repeat

    return rate(step, seconds)


def loop_rate(env_id: str, count: int, seconds: float, **kwargs: Any) -> float:
    """Our single environments, one after the other."""
    envs = [make_env(env_id, **kwargs) for _ in range(count)]
    rng, size = np.random.default_rng(0), envs[0].action_space.shape
    for i, env in enumerate(envs):
        env.reset(seed=i)

    def step() -> int:
        for env, action in zip(envs, rng.uniform(-1, 1, (count, *size)).astype(np.float32)):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return count * kwargs.get("action_repeat", 1)

    steps_per_second = rate(step, seconds)
    for env in envs:
        env.close()
    return steps_per_second


def batch_rate(
    env_id: str, count: int, seconds: float, *, device: str | None = None, **kwargs: Any
) -> float:
    """`make_vec`, autoreset included; its processes, if any, have been started before."""
    env = make_vec(env_id, count, device=device, **kwargs)
    rng, shape = np.random.default_rng(0), (count, *env.single_action_space.shape)
    env.reset(seed=0)

    def step() -> int:
        if device is None:
            env.step(rng.uniform(-1, 1, shape).astype(np.float32))
        else:
            for _ in range(20):  # the clock waits for the device, the environment never does
                env.step(2 * torch.rand(shape, device=device) - 1)
            torch.cuda.synchronize()
        return count * kwargs.get("action_repeat", 1) * (1 if device is None else 20)

    steps_per_second = rate(step, seconds)
    env.close()
    return steps_per_second


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
