"""A GPU at work: training, the objective, worlds and planning, as shares of what the card's matrix
products do. Without a GPU it runs on the CPU.

Ratios to "bf16 matmul" are shares of the card's rate: the multiplications and additions of a call's
matrix products and convolutions (`torch.utils.flop_counter`), per second, over those of one large
bf16 product. Planning: an MLP model (D = 64, hidden 512, A = 2), H = 12, 512 candidates per env,
eagerly and compiled (`AgentOptions(compile=True)`: Inductor with CUDA graphs). A *plan* is CEM of 8
rounds; its ratio is its time over that of the same rollouts and costs alone.

`PYTHONPATH=scripts python -P -m benchmarks.gpu FILE.csv [quick=true]` prints and writes each row as
it is measured, and goes on after a part that fails."""

from __future__ import annotations

import csv
import datetime
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Generator, Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import Row, batch_steps, noise, rates, table
from benchmarks.objective import KNOTS, T_MAX, loss_and_gradient, plain_sigreg
from benchmarks.planning import reference_model
from gjwm.cli.config import load_config, recipe_of
from gjwm.models.dynamics import GaussianDynamics
from gjwm.objectives import SIGReg, random_directions
from gjwm.planning import CEM
from gjwm.planning.agent import AgentOptions, MPCAgent
from gjwm.planning.costs import GoalCost
from gjwm.training.recipe import build, make_objective
from gjwm.training.settings import RefineSettings
from gjwm.training.train import refine, train

MATMUL = "bf16 matmul"


@dataclass(frozen=True)
class Bench:
    """Where and how long is measured, and what the parts have in common."""

    device: torch.device
    quick: bool

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def seconds(self, call: Callable[[], Any], *, box: float = 1.0) -> float:
        """Median wall time of a call in seconds, the device waited for; about `box` seconds after
        a warm-up, at least one call.
        """

        def timed() -> float:
            since = time.perf_counter()
            call()
            if self.cuda:
                torch.cuda.synchronize()
            return time.perf_counter() - since

        if not self.quick:
            for _ in range(3):  # a compiled call records its CUDA graph on the second
                timed()
        end, times = time.perf_counter() + (0 if self.quick else box), []
        while not times or (time.perf_counter() < end and len(times) < 200):
            times.append(timed())
        return sorted(times)[len(times) // 2]

    def matmul_rate(self, size: int, dtype: torch.dtype) -> float:
        """Multiplications and additions per second of one square product."""
        a, b = (
            torch.randn(size, size, device=self.device, generator=self.generator(seed)).to(dtype)
            for seed in (0, 1)
        )
        return 2 * size**3 / self.seconds(lambda: a @ b)

    @cached_property
    def matmul_size(self) -> int:
        return 64 if self.quick else 8192 if self.cuda else 2048

    @cached_property
    def ceiling(self) -> float:
        """The bf16 matmul rate that shares are of."""
        return self.matmul_rate(self.matmul_size, torch.bfloat16)

    def generator(self, seed: int = 0) -> Generator:
        return Generator(self.device).manual_seed(seed)

    def share(self, call: Callable[[], Any], seconds: float) -> float:
        """Of the bf16 matmul rate that a call of so many seconds uses."""
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops() / seconds / self.ceiling


def row(what: str, value: float, unit: str, reference: str = "", ratio: float | None = None) -> Row:
    """One figure; ratio: to what `reference` names."""
    digits = "{:.4g}".format
    return {
        "what": what,
        "value": float(digits(value)),
        "unit": unit,
        "reference": reference,
        "ratio": None if ratio is None else float(digits(ratio)),
    }


def matmuls(bench: Bench) -> Iterator[Row]:
    """What the card can do at most."""
    size = bench.matmul_size
    yield row(f"matmul of {size}, bf16", bench.ceiling / 1e12, "TFLOP/s")
    rate = bench.matmul_rate(size, torch.float32)
    yield row(f"matmul of {size}, float32", rate / 1e12, "TFLOP/s", MATMUL, rate / bench.ceiling)


def training(bench: Bench) -> Iterator[Row]:
    """Steps of experiment=two_room on noise that lies on the device, windows drawn included; then
    with larger batches.
    """
    recipe = recipe_of(load_config(["experiment=two_room"]))
    pixels = spaces.Box(0, 255, (3, 64, 64), np.uint8)
    windows = noise(pixels, episodes=2 if bench.quick else 100, steps=50, device=bench.device)
    for batch in (4,) if bench.quick else (recipe.train.batch, 1024):
        torch.manual_seed(0)
        model = build(recipe, pixels.shape, 2, str(bench.device))
        objective = make_objective(recipe).to(bench.device)
        settings = replace(recipe.train, batch=batch)

        def fit(steps: int, m=model, o=objective, s=settings, **logging: Any) -> None:
            train(m, o, windows, replace(s, steps=steps), generator=bench.generator(), **logging)

        step = _seconds_of_a_step(bench, fit)
        drawn = windows.sample(batch, settings.length, generator=Generator().manual_seed(0))
        drawn = drawn.to(bench.device)

        def once(model=model, objective=objective, drawn=drawn) -> None:
            model.loss(drawn, objective, generator=bench.generator())["loss"].backward()

        model.train()
        share = bench.share(once, step)
        frames = batch * (settings.length + 1)
        what = f"joint training of two-room, float32, {batch} windows of {frames // batch} frames"
        yield row(what, frames / step, "frames/s", MATMUL, share)
        yield row(f"{what}: a step", 1e3 * step, "ms")


def objective(bench: Bench) -> Iterator[Row]:
    """SIGReg and its gradient beside the plain form of benchmarks/objective.py."""
    n, dim, slices = (64, 16, 32) if bench.quick else (4096, 64, 1024)
    z = torch.randn(n, dim, device=bench.device, generator=bench.generator())
    directions = random_directions(dim, slices, bench.generator(1), like=z)
    sigreg, generator = (
        SIGReg(slices, KNOTS, T_MAX, time="pooled", estimator="v"),
        bench.generator(),
    )
    losses = {
        "plain": lambda x: plain_sigreg(x, directions),
        "ours": lambda x: sigreg(x, generator=generator),
    }
    seconds = {
        name: bench.seconds(lambda loss=loss: loss_and_gradient(loss, z))
        for name, loss in losses.items()
    }
    what = f"SIGReg and gradient, {n} x {dim}, {slices} slices, "
    yield row(what + "plain", 1e3 * seconds["plain"], "ms")
    faster = seconds["plain"] / seconds["ours"]
    yield row(what + "ours", 1e3 * seconds["ours"], "ms", "times faster than plain", faster)


def worlds(bench: Bench) -> Iterator[Row]:
    """Torch-native worlds as one batch, autoreset included."""
    count, seconds = (4, 0.05) if bench.quick else (4096 if bench.cuda else 256, 1.0)
    device = "cuda" if bench.cuda else None
    for world, obs in (
        ("two-room", "state"),
        ("two-room", "pixels"),
        ("torch-cartpole-swingup", "state"),
    ):
        what = f"{world}, {obs}, {count} envs"
        stepping = batch_steps(f"gjwm/{world}-v0", count, device=device, obs=obs)
        yield row(what, rates({what: stepping}, seconds)[what].median, "env steps/s")


def rollouts(bench: Bench) -> Iterator[Row]:
    """Latent rollouts and plans, eagerly and compiled."""
    model, candidates = reference_model().to(bench.device), 16 if bench.quick else 512
    planner = CEM(samples=candidates, iterations=8, elites=candidates // 8, covariance="diagonal")
    generator = bench.generator()
    for kind in ("eager",) if bench.quick else ("eager", "compiled"):
        for envs in (1, 2) if bench.quick else (1, 16, 256) if bench.cuda else (1, 16):
            z0 = torch.randn(envs, 64, generator=bench.generator(), device=bench.device)
            a = torch.rand(envs, candidates, 12, 2, generator=bench.generator(), device=z0.device)
            a = 2 * a - 1
            options, cost = AgentOptions(compile=kind == "compiled"), GoalCost(z0.roll(1, -1))
            agent = MPCAgent(model, planner, cost, horizon=12, options=options)
            plain = MPCAgent(model, planner, cost, horizon=12)
            at = f"{kind}, {envs} env{'s' if envs > 1 else ''}"
            with torch.no_grad():
                seconds = bench.seconds(lambda agent=agent, z0=z0, a=a: agent.imagine(z0, a))
                share = bench.share(lambda p=plain, z0=z0, a=a: p.imagine(z0, a), seconds)
            yield row(f"rollouts, {at}", envs * candidates / seconds, "rollouts/s", MATMUL, share)
            yield row(f"rollouts, {at}: one call", 1e3 * seconds, "ms")
            if envs > 16:
                continue

            def score(a: Tensor, agent: MPCAgent = agent, z0: Tensor = z0) -> Tensor:
                return agent._score(z0, a, None)

            def bare(score: Callable = score, a: Tensor = a) -> None:
                for _ in range(planner.iterations):
                    score(a)

            start = torch.zeros(envs, 12, 2, device=bench.device)
            with torch.no_grad():
                floor = bench.seconds(bare)
                whole = bench.seconds(
                    lambda s=score, start=start: planner.plan(s, start, generator=generator)
                )
            yield row(f"plan, {at}", 1e3 * whole, "ms", "its rollouts and costs", whole / floor)


def refining(bench: Bench) -> Iterator[Row]:
    """Steps of refining dynamics on latents, windows of 16."""
    latents = spaces.Box(-np.inf, np.inf, (40,), np.float32)
    buffer = noise(latents, episodes=20 if bench.quick else 400, steps=50, device=bench.device)
    for batch in (8,) if bench.quick else (64, 512):
        dynamics = GaussianDynamics(40, 2).to(bench.device)

        def fit(steps: int, d=dynamics, b=batch, **logging: Any) -> None:
            settings = RefineSettings(steps=steps, batch=b, length=16, lr=1e-4)
            refine(d, buffer, settings, **logging)

        step = _seconds_of_a_step(bench, fit)
        yield row(f"refining, {batch} windows: a step", 1e3 * step, "ms")


# what may be cut off by a limit on the whole comes last
PARTS = (matmuls, training, objective, worlds, refining, rollouts)


def _seconds_of_a_step(bench: Bench, fit: Callable[..., Any]) -> float:
    """Of a fit, after its first steps; about a second of them. Its log waits for the device."""

    def measured(steps: int) -> float:
        times: list[tuple[int, float]] = []
        fit(
            steps,
            log=lambda scalars, step: times.append((step, time.perf_counter())),
            log_every=max(1, steps // 4),
        )
        (first, since), (last, until) = times[0], times[-1]
        return (until - since) / (last - first)

    trial = measured(2 if bench.quick else 12)
    return trial if bench.quick else measured(min(max(int(1 / trial), 12), 1000))


def _bench(quick: bool) -> Bench:
    return Bench(torch.device("cuda" if torch.cuda.is_available() else "cpu"), quick)


def run(*, quick: bool = False) -> list[Row]:
    """Rows: what, value, unit, reference, ratio."""
    bench = _bench(quick)
    return [line for part in PARTS for line in part(bench)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure into a CSV -> exit status: 1 if a part failed; the rows of the others are there."""
    file, *options = sys.argv[1:] if arguments is None else arguments
    bench, failed = _bench("quick=true" in options), 0
    where = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if bench.cuda else "CPU",
        "torch": torch.__version__,
    }
    rows: list[Row] = []
    with open(file, "w", newline="") as stream:
        writer = csv.DictWriter(stream, [*where, *row("", 0.0, "")])
        writer.writeheader()
        for part in PARTS:
            since = time.perf_counter()
            try:
                for line in part(bench):
                    rows.append(line)
                    writer.writerow(where | line)
                    stream.flush()
                    print(f"{line['what']}: {line['value']:.4g} {line['unit']}", flush=True)
            except Exception:
                failed = 1
                traceback.print_exc()
            print(f"# {part.__name__}: {time.perf_counter() - since:.1f} s", flush=True)
    print(table(rows) if rows else "nothing was measured")
    return failed


if __name__ == "__main__":
    sys.exit(main())
