"""Actions nobody planned: aimless ones, louder and of more colours while they earn nothing.

White noise averages out before inertia has answered: of 16 aimless episodes of dm_control's
pendulum none swings up on white actions and 6 on brown, saturated ones. But loud episodes are poor
lessons where quiet ones earn something. The noise on plans is white: coloured noise would drive
away from a goal once it is reached. One lane has none: only it stays, and learns better, where the
model wrongly promises reward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from gjwm.planning.noise import coloured_noise
from gjwm.rl.settings import Exploration


class Explorer:
    """The noise of N lanes, drawn in blocks with a generator on the CPU."""

    STATE = ("block", "place", "blocks", "aimless")

    def __init__(self, exploration: Exploration, lanes: int, action_dim: int, generator: Generator):
        self.exploration, self.generator = exploration, generator
        self.lanes, self.action_dim = lanes, action_dim
        self._block: Tensor | None = None  # (N, T, A)
        self._place = self._blocks = 0
        self._aimless = True

    def aimless(self) -> Tensor:
        """Actions (N, A) in [-1, 1]."""
        return self._next(aimless=True)

    def disturb(self, a: Tensor, step: int) -> Tensor:
        """Planned actions (N, A) after `step` steps with the planner, with noise, in [-1, 1]."""
        share = torch.linspace(0, 2, self.lanes)[:, None] if self.lanes > 1 else 1.0
        return (a + self.exploration.std(step) * share * self._next(aimless=False)).clamp(-1, 1)

    def _next(self, *, aimless: bool) -> Tensor:
        if self._block is None or self._place == self._block.shape[1] or aimless != self._aimless:
            self._block = self._draw(aimless)
            self._place, self._aimless = 0, aimless
            self._blocks += 1
        self._place += 1
        return self._block[:, self._place - 1]

    def _draw(self, aimless: bool) -> Tensor:
        """The next block (N, T, A)."""
        settings, generator = self.exploration, self.generator
        shape = (self.lanes, settings.block, self.action_dim)
        if not aimless:
            return coloured_noise(shape, settings.colour, generator=generator)
        if self._blocks * self.lanes * settings.block < settings.quiet:
            return 2 * torch.rand(shape, generator=generator) - 1
        colours = settings.loud_colours
        noise = [
            coloured_noise((1, *shape[1:]), colours[i % len(colours)], generator=generator)
            for i in range(self.lanes)
        ]
        return (settings.loudness * torch.cat(noise)).clamp(-1, 1)

    def state_dict(self) -> dict[str, Any]:
        """What is left of the block, and its number; the generator's state is its owner's."""
        return {name: getattr(self, f"_{name}") for name in self.STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name in self.STATE:
            setattr(self, f"_{name}", state[name])
