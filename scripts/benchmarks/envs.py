"""Environments at work: pictures against dm_control's own, many environments at once against one
after the other.

Stock dm_control (in a process of its own), a plain loop over single environments, and `make_vec`
take turns. Rates are of 64x64 pixels unless a row says state. Rows for a GPU and for MuJoCo Warp
are there where these are."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from benchmarks import Rounds, Row, Stepping, batch_steps, loop_steps, rates, stock_steps
from gjwm.envs.vector import make_env

REPEAT = 2  # control steps per action, with pixels
TASKS = (("cheetah", "run"), ("reacher", "easy"), ("walker", "walk"))


def run(*, quick: bool = False) -> list[Row]:
    """Rows: what, unit, threads, stock, plain_loop, ours, spread_percent (of ours), times_stock,
    times_plain_loop.

    stock: dm_control alone, with its own renderer; plain_loop: our single environments, one after
    the other.
    """
    box, rows = 0.1 if quick else 2.0, []
    cuda, warp = torch.cuda.is_available(), importlib.util.find_spec("mujoco_warp") is not None

    def row(what: str, unit: str, factor: float = 1, **cases: Stepping) -> None:
        found: dict[str, Rounds] = rates(cases, box)
        for name in [name for name in found if name not in ("stock", "plain_loop")]:
            ours = found[name]
            over = {key: found.get(key) for key in ("stock", "plain_loop")}
            line: Row = {"what": f"{what}{name.removeprefix('ours')}", "unit": unit}
            line["threads"] = torch.get_num_threads()
            line |= {k: None if v is None else factor * v.median for k, v in over.items()}
            line |= {"ours": factor * ours.median, "spread_percent": ours.spread_percent}
            line |= {f"times_{k}": None if v is None else ours.over(v) for k, v in over.items()}
            rows.append(line)

    for domain, task in TASKS:
        row(
            f"{domain}: render, one process",
            "frames/s",
            stock=stock_steps(domain, task, pixels=True, moving=False),
            ours=_frames(domain, task),
        )
    pixels, count = {"obs": "pixels", "action_repeat": REPEAT}, 2 if quick else 8
    for domain, task in TASKS:
        env_id = f"gjwm/{domain}-{task}-v0"
        vectors = {
            f"ours, {workers} worker(s)": batch_steps(env_id, count, workers=workers, **pixels)
            for workers in (1, 2)
        }
        row(
            f"{domain}: pixels",
            "env steps/s",
            stock=stock_steps(domain, task, pixels=True, repeat=REPEAT),
            plain_loop=loop_steps(env_id, count, **pixels),
            **vectors,
        )
    count = 4 if quick else 64
    for domain, task in (*TASKS, ("humanoid", "walk")):
        env_id = f"gjwm/{domain}-{task}-v0"
        row(
            f"{domain}: state, {count} envs",
            "physics steps/s",
            _substeps(env_id),
            stock=stock_steps(domain, task, pixels=False),
            plain_loop=loop_steps(env_id, count),
            ours=batch_steps(env_id, count),
        )
    for device, count in ((None, 8 if quick else 256), ("cuda", 64 if quick else 4096)):
        if device is None or cuda:
            where = " on the GPU" if device else ""
            row(
                f"two-room: pixels, {count} envs{where}",
                "env steps/s",
                plain_loop=loop_steps("gjwm/two-room-v0", 4, obs="pixels"),
                ours=batch_steps("gjwm/two-room-v0", count, device=device, obs="pixels"),
            )
    device, count = ("cuda", 64 if quick else 4096) if cuda else (None, 4 if quick else 256)
    for obs, repeat in (("state", 1), ("pixels", REPEAT)) if warp else ():
        options = {"obs": obs, "action_repeat": repeat}
        env_id = "gjwm/cheetah-run-v0"
        row(
            f"cheetah: {obs}, Warp, {count} envs on the {'GPU' if cuda else 'CPU'}",
            "env steps/s",
            stock=stock_steps("cheetah", "run", pixels=obs == "pixels", repeat=repeat),
            plain_loop=loop_steps(env_id, 2, **options),
            ours=batch_steps(env_id, count, device=device, physics="warp", **options),
        )
    return rows


@contextmanager
def _frames(domain: str, task: str) -> Iterator[Callable[[], int]]:
    """Pictures of an unmoving simulator, by our renderer."""
    env = make_env(f"gjwm/{domain}-{task}-v0", obs="pixels").unwrapped
    env.reset(seed=0)

    def step() -> int:
        env._frames.clear()
        env.observe()
        return 1

    yield step
    env.close()


def _substeps(env_id: str) -> int:
    """Physics steps per control step."""
    env = make_env(env_id)
    substeps = env.unwrapped._substeps
    env.close()
    return substeps
