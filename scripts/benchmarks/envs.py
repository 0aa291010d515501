"""Environments at work: pictures against dm_control's own, many environments at once against one
after the other.

Stock dm_control, a plain loop over single environments, and `make_vec` are timed in turn in one
process (workers apart). Rates are of 64x64 pixels unless a row says state. Rows for a GPU and for
MuJoCo Warp are there where these are."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gjwm.envs import make_vec
from gjwm.envs.vector import make_env

REPEAT = 2  # control steps per action, with pixels


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Rows: what, unit, stock, plain_loop, ours, times_stock, times_plain_loop.

    stock: dm_control alone, with its own renderer; plain_loop: our single environments, one after
    the other."""
    seconds = 0.1 if quick else 2.0
    rows = []
    for domain, task in (("reacher", "easy"), ("cheetah", "run"), ("walker", "walk")):
        stock, ours = _frames(domain, task, seconds)
        rows.append(_row(f"{domain}: render, one process", "frames/s", stock, None, ours))
    for domain, task in (("reacher", "easy"), ("cheetah", "run"), ("walker", "walk")):
        env_id, count = f"gjwm/{domain}-{task}-v0", 2 if quick else 8
        stock = _stock(domain, task, seconds, pixels=True)
        loop = _loop(env_id, count, seconds, obs="pixels", action_repeat=REPEAT)
        for workers in (1, 2):
            rate = _vector(
                env_id, count, seconds, workers=workers, obs="pixels", action_repeat=REPEAT
            )
            rows.append(
                _row(f"{domain}: pixels, {workers} worker(s)", "env steps/s", stock, loop, rate)
            )
    for domain, task in (
        ("cheetah", "run"),
        ("reacher", "easy"),
        ("walker", "walk"),
        ("humanoid", "walk"),
    ):
        env_id, count = f"gjwm/{domain}-{task}-v0", 4 if quick else 64
        stock, loop = _stock(domain, task, seconds, pixels=False), _loop(env_id, count, seconds)
        substeps = _substeps(env_id)
        rate = _vector(env_id, count, seconds)
        rows.append(
            _row(
                f"{domain}: state, {count} envs",
                "physics steps/s",
                *(substeps * x for x in (stock, loop, rate)),
            )
        )
    count = 8 if quick else 256
    loop = _loop("gjwm/two-room-v0", 4, seconds, obs="pixels")
    rate = _vector("gjwm/two-room-v0", count, seconds, obs="pixels")
    rows.append(_row(f"two-room: pixels, {count} envs", "env steps/s", None, loop, rate))
    cuda, warp = torch.cuda.is_available(), importlib.util.find_spec("mujoco_warp") is not None
    if cuda:
        count = 64 if quick else 4096
        rate = _vector("gjwm/two-room-v0", count, seconds, device="cuda", obs="pixels")
        rows.append(
            _row(f"two-room: pixels, {count} envs on the GPU", "env steps/s", None, loop, rate)
        )
    if warp:
        device, count = ("cuda", 64 if quick else 4096) if cuda else (None, 4 if quick else 256)
        for obs, repeat in (("state", 1), ("pixels", REPEAT)):
            options = {"obs": obs, "action_repeat": repeat}
            stock = _stock("cheetah", "run", seconds, pixels=obs == "pixels")
            loop = _loop("gjwm/cheetah-run-v0", 2, seconds, **options)
            rate = _vector(
                "gjwm/cheetah-run-v0", count, seconds, device=device, physics="warp", **options
            )
            where = "GPU" if cuda else "CPU"
            rows.append(
                _row(
                    f"cheetah: {obs}, Warp, {count} envs on the {where}",
                    "env steps/s",
                    stock,
                    loop,
                    rate,
                )
            )
    return rows


def _row(
    what: str, unit: str, stock: float | None, loop: float | None, ours: float
) -> dict[str, Any]:
    return {
        "what": what,
        "unit": unit,
        "stock": stock,
        "plain_loop": loop,
        "ours": ours,
        "times_stock": None if stock is None else ours / stock,
        "times_plain_loop": None if loop is None else ours / loop,
    }


def _rate(step: Callable[[], int], seconds: float) -> float:
    """Steps per second of a call that returns how many it made, after two untimed calls."""
    step(), step()
    since, steps = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - since) < seconds:
        steps += step()
    return steps / elapsed


def _suite(domain: str, task: str):
    from gjwm.envs.rendering import choose_backend

    choose_backend()  # before dm_control is imported
    from dm_control import suite

    env = suite.load(domain, task, task_kwargs={"random": 0})
    env.reset()
    return env


def _frames(domain: str, task: str, seconds: float) -> tuple[float, float]:
    """Pictures per second of an unmoving simulator: dm_control's renderer and ours."""
    stock, ours = _suite(domain, task), make_env(f"gjwm/{domain}-{task}-v0", obs="pixels").unwrapped
    ours.reset(seed=0)

    def theirs() -> int:
        stock.physics.render(64, 64, camera_id=0)
        return 1

    def mine() -> int:
        ours._frames.clear()
        ours.observe()
        return 1

    rates = _rate(theirs, seconds), _rate(mine, seconds)
    ours.close()
    return rates


def _stock(domain: str, task: str, seconds: float, *, pixels: bool) -> float:
    """Control steps per second of dm_control's own environment under random actions."""
    env = _suite(domain, task)
    rng, spec = np.random.default_rng(0), env.action_spec()

    def step() -> int:
        action = rng.uniform(spec.minimum, spec.maximum)
        for _ in range(REPEAT if pixels else 1):
            if env.step(action).last():
                env.reset()
        if pixels:
            env.physics.render(64, 64, camera_id=0)
        return REPEAT if pixels else 1

    return _rate(step, seconds)


def _loop(env_id: str, count: int, seconds: float, **kwargs: Any) -> float:
    """Control steps per second of single environments, one after the other."""
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

    rate = _rate(step, seconds)
    for env in envs:
        env.close()
    return rate


def _vector(
    env_id: str, count: int, seconds: float, *, device: str | None = None, **kwargs: Any
) -> float:
    """Control steps per second of `make_vec` under random actions; its processes have been started
    before.
    """
    env = make_vec(env_id, count, device=device, **kwargs)
    rng, size = np.random.default_rng(0), env.single_action_space.shape
    env.reset(seed=0)

    def step() -> int:
        if device is None:
            env.step(rng.uniform(-1, 1, (count, *size)).astype(np.float32))
        else:
            env.step(2 * torch.rand(count, *size, device=device) - 1)
            torch.cuda.synchronize()
        return count * kwargs.get("action_repeat", 1)

    rate = _rate(step, seconds)
    env.close()
    return rate


def _substeps(env_id: str) -> int:
    """Physics steps per control step."""
    env = make_env(env_id)
    substeps = env.unwrapped._substeps
    env.close()
    return substeps
