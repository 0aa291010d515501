"""Speed, measured: `python scripts/benchmark.py NAME` runs one of this package's modules and prints
its rows as a table; `all` runs those of speed, each in a process of its own.

Each module has `run(*, quick=False) -> rows`: ours, a named reference and, where there is one, the
floor that nothing can beat. They take turns, after calls that nobody times, so that all see the
same machine: a figure is the median of rounds, its spread their interquartile range in per cent of
it, and a ratio the median of the rounds' own ratios. Quote ratios, as absolute figures depend on
the machine and on what else it is doing."""

from __future__ import annotations

import datetime
import importlib
import multiprocessing
import pkgutil
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from gjwm._core.machine import cores
from gjwm.data.replay import ReplayBuffer
from gjwm.envs import make_vec
from gjwm.envs.vector import make_env

Row = dict[str, Any]
# What plans reach and not how fast they are: up to hours, and on trained models.
JUDGED = ("goals", "oracles", "risk")
# Their names tell columns that compare times, of which a quick run has none worth a look.
COMPARISONS = ("times", "ratio", "share", "spread")


def names() -> list[str]:
    """The benchmarks there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def run(name: str, *, quick: bool = False) -> list[Row]:
    """Run one benchmark -> rows with equal keys; `quick` takes seconds, shows that it runs and not
    how fast, and leaves out the columns that compare.

    Raises:
        ValueError: for a benchmark that does not exist.
    """
    if name not in names():
        raise ValueError(f"there is no benchmark {name!r}; choose from all, {', '.join(names())}.")
    rows = importlib.import_module(f"{__name__}.{name}").run(quick=quick)
    if not quick:
        return rows
    return [
        {key: value for key, value in row.items() if not any(word in key for word in COMPARISONS)}
        for row in rows
    ]


def machine() -> Row:
    """Where and when: what figures depend on, and no names of machines or folders."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": models[0] if models else platform.machine(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


# -- cases in turn ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rounds:
    """One figure in each round: seconds of a call, or a rate."""

    figures: Sequence[float]

    @property
    def median(self) -> float:
        return float(np.median(self.figures))

    @property
    def spread_percent(self) -> float:
        """Interquartile range over the median."""
        low, high = np.percentile(self.figures, (25, 75))
        return 100 * float(high - low) / self.median

    def over(self, other: Rounds) -> float:
        """Median of the ratios within rounds."""
        return float(np.median(np.divide(self.figures, other.figures)))


def seconds(
    cases: Mapping[Any, Callable[[], Any]],
    rounds: int,
    *,
    warmup: int = 1,
    before: Callable[[], Any] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Any, Rounds]:
    """Seconds of each case's call, in turn; `before` is called before each and not timed.

    `time.thread_time` as the clock counts what one thread computes, and not its waiting for a core
    that others keep busy."""
    figures: dict[Any, list[float]] = {name: [] for name in cases}
    for k in range(warmup + rounds):
        for name, call in cases.items():
            before()
            since = clock()
            call()
            if k >= warmup:
                figures[name].append(clock() - since)
    return {name: Rounds(found) for name, found in figures.items()}


Stepping = AbstractContextManager[Callable[[], int]]  # a call makes steps and returns how many


def rates(
    cases: Mapping[str, Stepping], box: float, *, rounds: int = 5, warmup: int = 1
) -> dict[str, Rounds]:
    """Steps per second of each case, in turn: `box` seconds each in all, one call a round or
    more.
    """
    figures: dict[str, list[float]] = {name: [] for name in cases}
    with ExitStack() as stack:
        calls = {name: stack.enter_context(case) for name, case in cases.items()}
        for call in calls.values():
            for _ in range(warmup):
                call()
        for _ in range(rounds):
            for name, call in calls.items():
                since, steps, elapsed = time.perf_counter(), 0, 0.0
                while elapsed < box / rounds:
                    steps += call()
                    elapsed = time.perf_counter() - since
                figures[name].append(steps / elapsed)
    return {name: Rounds(found) for name, found in figures.items()}


@contextmanager
def calling(step: Callable[[], int]) -> Iterator[Callable[[], int]]:
    """What needs no opening and closing."""
    yield step


# -- environments under random actions: control steps ----------------------------------------------


@contextmanager
def stock_steps(
    domain: str, task: str, *, pixels: bool, repeat: int = 1, moving: bool = True
) -> Iterator[Callable[[], int]]:
    """dm_control alone, rendering 64x64 pixels after every `repeat` steps, or (moving=False) again
    and again; in a process of its own, as two renderers in one slow each other down."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve_stock, args=(theirs, domain, task, pixels, repeat, moving), daemon=True
    )
    process.start()

    def step() -> int:
        ours.send(True)
        return ours.recv()

    try:
        yield step
    finally:
        ours.send(False)
        process.join()


def _serve_stock(
    pipe: Any, domain: str, task: str, pixels: bool, repeat: int, moving: bool
) -> None:
    from gjwm.envs.rendering import choose_backend

    choose_backend()  # before dm_control is imported
    from dm_control import suite

    env, rng = suite.load(domain, task, task_kwargs={"random": 0}), np.random.default_rng(0)
    env.reset()
    spec = env.action_spec()
    while pipe.recv():
        since, steps = time.perf_counter(), 0
        while not steps or time.perf_counter() - since < 0.01:  # what a message takes is nothing
            action = rng.uniform(spec.minimum, spec.maximum)
            for _ in range(repeat if moving else 0):
                if env.step(action).last():
                    env.reset()
            if pixels:
                env.physics.render(64, 64, camera_id=0)
            steps += repeat
        pipe.send(steps)


@contextmanager
def loop_steps(env_id: str, count: int, **kwargs: Any) -> Iterator[Callable[[], int]]:
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

    yield step
    for env in envs:
        env.close()


@contextmanager
def batch_steps(
    env_id: str, count: int, *, device: str | None = None, **kwargs: Any
) -> Iterator[Callable[[], int]]:
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

    yield step
    env.close()


def noise(
    space: spaces.Box, *, episodes: int, steps: int, device: torch.device | str = "cpu"
) -> ReplayBuffer:
    """Episodes of noise on the device: bytes of images, or normal latents; A = 2."""
    actions = spaces.Box(-1, 1, (2,), np.float32)
    buffer = ReplayBuffer(episodes * steps, space, actions, episodes=episodes, device=device)
    rng, never = np.random.default_rng(0), np.zeros(steps, bool)
    for _ in range(episodes):
        shape = (steps + 1, *space.shape)
        images = space.dtype == np.uint8
        o = rng.integers(256, size=shape, dtype=np.uint8) if images else rng.normal(size=shape)
        a = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
        buffer.add_episode(o.astype(space.dtype), a, np.zeros(steps, np.float32), never, never)
    return buffer


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
