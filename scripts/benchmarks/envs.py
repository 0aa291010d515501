"""Environments at work: pictures against dm_control's own, many environments at once against one
after the other.

Stock dm_control, a plain loop over single environments, and `make_vec` are timed in turn in one
process (workers apart). Rates are of 64x64 pixels unless a row says state. Rows for a GPU and for
MuJoCo Warp are there where these are."""

from __future__ import annotations

import importlib.util

import torch

from benchmarks import Row, batch_rate, loop_rate, rate, stock_rate, stock_suite
from gjwm.envs.vector import make_env

REPEAT = 2  # control steps per action, with pixels
TASKS = (("cheetah", "run"), ("reacher", "easy"), ("walker", "walk"))


def run(*, quick: bool = False) -> list[Row]:
    """Rows: what, unit, stock, plain_loop, ours, times_stock, times_plain_loop.

    stock: dm_control alone, with its own renderer; plain_loop: our single environments, one after
    the other.
    """
    seconds, rows = 0.1 if quick else 2.0, []
    cuda, warp = torch.cuda.is_available(), importlib.util.find_spec("mujoco_warp") is not None

    def row(what: str, unit: str, stock: float | None, loop: float | None, ours: float) -> None:
        over = {"stock": stock, "plain_loop": loop}
        ratios = {f"times_{k}": None if v is None else ours / v for k, v in over.items()}
        rows.append({"what": what, "unit": unit, **over, "ours": ours, **ratios})

    for domain, task in TASKS:
        row(f"{domain}: render, one process", "frames/s", *_frames(domain, task, seconds))
    pixels, count = {"obs": "pixels", "action_repeat": REPEAT}, 2 if quick else 8
    for domain, task in TASKS:
        env_id = f"gjwm/{domain}-{task}-v0"
        stock = stock_rate(domain, task, seconds, pixels=True, repeat=REPEAT)
        loop = loop_rate(env_id, count, seconds, **pixels)
        for workers in (1, 2):
            ours = batch_rate(env_id, count, seconds, workers=workers, **pixels)
            row(f"{domain}: pixels, {workers} worker(s)", "env steps/s", stock, loop, ours)
    count = 4 if quick else 64
    for domain, task in (*TASKS, ("humanoid", "walk")):
        env_id = f"gjwm/{domain}-{task}-v0"
        rates = (
            stock_rate(domain, task, seconds, pixels=False),
            loop_rate(env_id, count, seconds),
            batch_rate(env_id, count, seconds),
        )
        substeps = _substeps(env_id)
        rates = (substeps * rate for rate in rates)
        row(f"{domain}: state, {count} envs", "physics steps/s", *rates)
    loop = loop_rate("gjwm/two-room-v0", 4, seconds, obs="pixels")
    for device, count in ((None, 8 if quick else 256), ("cuda", 64 if quick else 4096)):
        if device is None or cuda:
            ours = batch_rate("gjwm/two-room-v0", count, seconds, device=device, obs="pixels")
            where = " on the GPU" if device else ""
            row(f"two-room: pixels, {count} envs{where}", "env steps/s", None, loop, ours)
    device, count = ("cuda", 64 if quick else 4096) if cuda else (None, 4 if quick else 256)
    for obs, repeat in (("state", 1), ("pixels", REPEAT)) if warp else ():
        options = {"obs": obs, "action_repeat": repeat}
        env_id, what = "gjwm/cheetah-run-v0", f"cheetah: {obs}, Warp, {count} envs on the "
        stock = stock_rate("cheetah", "run", seconds, pixels=obs == "pixels", repeat=repeat)
        loop = loop_rate(env_id, 2, seconds, **options)
        ours = batch_rate(env_id, count, seconds, device=device, physics="warp", **options)
        row(what + ("GPU" if cuda else "CPU"), "env steps/s", stock, loop, ours)
    return rows


def _frames(domain: str, task: str, seconds: float) -> tuple[float, float]:
    """Pictures per second of an unmoving simulator: dm_control's renderer and ours."""
    stock, ours = (
        stock_suite(domain, task),
        make_env(f"gjwm/{domain}-{task}-v0", obs="pixels").unwrapped,
    )
    ours.reset(seed=0)

    def theirs() -> int:
        stock.physics.render(64, 64, camera_id=0)
        return 1

    def mine() -> int:
        ours._frames.clear()
        ours.observe()
        return 1

    rates = rate(theirs, seconds), None, rate(mine, seconds)
    ours.close()
    return rates


def _substeps(env_id: str) -> int:
    """Physics steps per control step."""
    env = make_env(env_id)
    substeps = env.unwrapped._substeps
    env.close()
    return substeps
