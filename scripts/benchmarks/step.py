"""A training step on the CPU, part by part: whose milliseconds they are.

Steps of `experiment=two_room` and `experiment=reacher` as `gjwm.training.train` makes them, on
noise, one thread. Each part is computed alone, forward and backward: the encoder on the batch's
frames, the dynamics and the objective on its latents. What the whole step takes beyond its parts
(the loop, joining their gradients) is *other*. The clock is the thread's own: what it computes, and
not its waiting for a core that others keep busy."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from gymnasium import spaces
from torch import Generator, Tensor

from benchmarks import Row, noise, seconds
from gjwm._core.fit import Optimiser
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
    for name, channels in FRAMES.items():
        recipe = recipe_of(load_config([f"experiment={name}"]))
        if quick:
            recipe = replace(recipe, train=replace(recipe.train, batch=4))
        rows += _rows(name, recipe, channels, quick)
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


def _rows(name: str, recipe: Recipe, channels: int, quick: bool) -> list[Row]:
    parts = Parts(recipe, channels, episodes=2 if quick else 200)
    cases = {
        WHOLE: parts.whole,
        "data": parts.data,
        "encoder": parts.encoder,
        "dynamics": parts.dynamics,
        "objective": parts.losses,
        "optimiser": parts.optimiser,
    }
    found = seconds(cases, 1 if quick else 25, warmup=1 if quick else 3, clock=time.thread_time)
    rows = [
        {
            "recipe": name,
            "part": part,
            "threads": 1,
            "ms": 1e3 * spent.median,
            "spread_percent": spent.spread_percent,
            "share_percent": 100 * spent.over(found[WHOLE]),
        }
        for part, spent in found.items()
    ]
    rest: Row = {"recipe": name, "part": "other", "threads": 1, "spread_percent": None}
    for key in ("ms", "share_percent"):
        rest[key] = rows[0][key] - sum(row[key] for row in rows[1:])
    return [*rows, {key: rest[key] for key in rows[0]}]
