"""A training step on the CPU, part by part: whose milliseconds they are.

Steps of `experiment=two_room` and `experiment=reacher` as `gjwm.training.train` makes them, on
noise, one thread. Each part is computed alone, forward and backward: the encoder on the batch's
frames, the dynamics and the objective on its latents. What the whole step takes beyond its parts
(the loop, joining their gradients) is *other*. *freed memory given back* is the whole step without
`gjwm._core.machine.keep_freed_memory`: processes with and without it take turns. The clock is the
thread's own: what it computes, and not its waiting for a core that others keep busy."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace

import numpy as np
import torch
from gymnasium import spaces
from torch import Generator, Tensor

from benchmarks import Rounds, Row, noise, seconds
from gjwm._core.fit import Optimiser
from gjwm._core.machine import keep_freed_memory
from gjwm.cli.config import load_config, recipe_of
from gjwm.objectives.losses import weighted_sum
from gjwm.training.recipe import build, make_objective
from gjwm.training.settings import Recipe

FRAMES = {"two_room": 3, "reacher": 6}  # channels
WHOLE = "the whole step"


def run(*, quick: bool = False) -> list[Row]:
    """Rows: recipe, part, threads, ms, spread_percent, share_percent (of the whole step)."""
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for name in FRAMES:
        given_back = _given_back(name, quick)
        keep_freed_memory()
        rows += _rows(name, given_back, quick)
    torch.set_num_threads(threads)
    return rows


class Parts:
    """One step of a recipe, and each of its parts alone, as calls that may be made again and
    again."""

    def __init__(self, recipe: Recipe, channels: int, *, episodes: int):
        pixels = spaces.Box(0, 255, (channels, 64, 64), np.uint8)
        self.settings, self.generator = recipe.train, Generator().manual_seed(0)
        self.windows = noise(pixels, episodes=episodes, steps=50)
        torch.manual_seed(0)
        self.model = build(recipe, pixels.shape, 2).train()
        self.objective = make_objective(recipe)
        self.parameters = list(self.model.parameters())
        settings = self.settings
        self.optimizer, self.schedule = Optimiser(
            lr=1e-6, weight_decay=settings.weight_decay, clip=settings.clip, warmup=0.1
        ).make(self.parameters, 100_000)
        self.batch = self.data()
        self.whole()  # which leaves gradients to the optimiser
        with torch.no_grad():
            self.z = self.model.encode(self.batch.o)
            self.z_hat = self.model.dynamics.training_means(self.z, self.batch.a)
        self.gradients = [p.grad for p in self.parameters]

    def data(self):
        """Windows of the replay."""
        return self.windows.sample(
            self.settings.batch, self.settings.length, generator=self.generator
        )

    def encoder(self) -> None:
        """Latents of all frames, from a gradient in each."""
        z = self.model.encode(self.batch.o)
        torch.autograd.grad(z, list(self.model.encoder.parameters()), self.z)

    def dynamics(self) -> None:
        """Predicted means and spreads, from a gradient in each."""
        z, a = self.z.clone().requires_grad_(), self.batch.a
        means = self.model.dynamics.training_means(z, a)
        nll = self.model.dynamics.nll(z[:, :-1], a, z[:, 1:])
        dynamics = list(self.model.dynamics.parameters())
        torch.autograd.grad([means, nll], [z, *dynamics], [self.z_hat, None], allow_unused=True)

    def losses(self) -> None:
        """Alignment and discrepancy."""
        z, z_hat = (x.clone().requires_grad_() for x in (self.z, self.z_hat))
        losses = self.objective(
            z_hat, z[:, 1:], z, clusters=self.batch.episode, generator=self.generator
        )
        torch.autograd.grad(weighted_sum(losses, self.objective.weights), [z, z_hat])

    def optimiser(self) -> None:
        """Clipping, AdamW, schedule."""
        for parameter, gradient in zip(self.parameters, self.gradients):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        self.schedule.step()

    def whole(self) -> None:
        """All of it, as the loop of `gjwm._core.fit` has it, and its copies of statistics."""
        kept: list[Tensor] = [buffer.clone() for buffer in self.model.buffers()]
        loss = self.model.loss(self.data(), self.objective, generator=self.generator)["loss"]
        assert loss.isfinite() and kept
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip).isfinite()
        self.optimizer.step()
        self.schedule.step()


def _parts(name: str, quick: bool, episodes: int = 200) -> Parts:
    recipe = recipe_of(load_config([f"experiment={name}"]))
    if quick:
        recipe = replace(recipe, train=replace(recipe.train, batch=8))
    return Parts(recipe, FRAMES[name], episodes=16 if quick else episodes)


def _given_back(name: str, quick: bool) -> tuple[Rounds, Rounds]:
    """Seconds of the whole step where freed memory is given back to the system, and where it is
    kept: of a process in each round.
    """
    found: dict[bool, list[float]] = {False: [], True: []}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for _ in range(1 if quick else 3):
            for kept, figures in found.items():
                figures.append(pool.apply(_alone, (name, kept, quick)))
    return Rounds(found[False]), Rounds(found[True])


def _alone(name: str, kept: bool, quick: bool) -> float:
    torch.set_num_threads(1)
    if kept:
        keep_freed_memory()
    whole = _parts(name, quick, episodes=20).whole
    rounds = 1 if quick else 10
    return seconds({0: whole}, rounds, warmup=2, clock=time.thread_time)[0].median


def _rows(name: str, given_back: tuple[Rounds, Rounds], quick: bool) -> list[Row]:
    parts = _parts(name, quick)
    cases = {
        WHOLE: parts.whole,
        "data": parts.data,
        "encoder": parts.encoder,
        "dynamics": parts.dynamics,
        "objective": parts.losses,
        "optimiser": parts.optimiser,
    }
    found = seconds(cases, 1 if quick else 15, warmup=1 if quick else 3, clock=time.thread_time)

    def row(part: str, ms: float, share: float, spread: float | None) -> Row:
        line: Row = {"recipe": name, "part": part, "threads": 1, "ms": ms}
        return {**line, "spread_percent": spread, "share_percent": 100 * share}

    rows = [
        row(part, 1e3 * spent.median, spent.over(found[WHOLE]), spent.spread_percent)
        for part, spent in found.items()
    ]
    whole, *others = rows
    rest = [whole[key] - sum(r[key] for r in others) for key in ("ms", "share_percent")]
    rows.append(row("other", rest[0], rest[1] / 100, None))
    without, kept = given_back
    share = without.over(kept)
    part = "the whole step, freed memory given back"
    return [*rows, row(part, whole["ms"] * share, share, without.spread_percent)]
