"""Actions nobody planned: before anything is known aimless ones, louder and of more colours while
they earn nothing.

White noise hardly moves a body: it averages out before inertia has answered. Of 16 aimless episodes
of dm_control's pendulum none swings up on white actions and 6 on brown, saturated ones. But loud
episodes are poor lessons where quiet ones earn something: the reacher's arm winds up and rushes
past all that it is to learn. The noise on plans is white: once a goal is reached, coloured noise
would drive away from it. One lane follows its plans without any: where the model wrongly promises
reward a noisy lane is soon pushed on, and only the one that stays learns better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from gjwm.planning.noise import coloured_noise


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """How much, how long and of what colour.

    Args:
        start, end: first and last standard deviation of the noise on plans, the mean over lanes, in
            units of the action range's half width. It rises evenly from 0 in the first lane to
            twice that in the last (a single lane has the mean).
        steps: over which it falls linearly, after the aimless ones.
        colour: exponent of its spectrum along time: 0 white, 1 pink, 2 brown.
        quiet: first aimless steps, counted over the lanes in whole blocks, that are uniform and
            white.
        loud_colours: of the aimless blocks after those, one after the other over the lanes.
        loudness: their standard deviation; they are clipped to the range, and mostly at its ends
            with 3.
        block: steps of one draw, about an episode.
    """

    start: float = 0.5
    end: float = 0.1
    steps: int = 10_000
    colour: float = 0.0
    quiet: int = 2000
    loud_colours: Sequence[float] = field(default_factory=lambda: (2.0, 1.0, 2.0, 0.0))
    loudness: float = 3.0
    block: int = 500

    def __post_init__(self):
        if (
            min(self.start, self.end, self.loudness, self.quiet) < 0
            or self.steps < 1
            or self.block < 2
            or not self.loud_colours
        ):
            raise ValueError(
                f"exploration expects start, end, quiet and loudness >= 0, steps >= 1, block >= 2 "
                f"and a colour, got {self}."
            )

    def std(self, step: int) -> float:
        """Of the noise after `step` steps with the planner."""
        return self.end + (self.start - self.end) * max(0.0, 1 - step / self.steps)


class Explorer:
    """The noise of N lanes, drawn in blocks.

    Args:
        exploration: see there.
        lanes, action_dim: N, A.
        generator: on the CPU.
    """

    def __init__(self, exploration: Exploration, lanes: int, action_dim: int, generator: Generator):
        self.exploration, self.lanes, self.action_dim, self.generator = (
            exploration,
            lanes,
            action_dim,
            generator,
        )
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
            shape = (self.lanes, self.exploration.block, self.action_dim)
            if (
                aimless
                and self._blocks * self.lanes * self.exploration.block < self.exploration.quiet
            ):
                self._block = 2 * torch.rand(shape, generator=self.generator) - 1
            elif aimless:
                colours = self.exploration.loud_colours
                each = [colours[i % len(colours)] for i in range(self.lanes)]
                noise = [
                    coloured_noise((1, *shape[1:]), colour, generator=self.generator)[0]
                    for colour in each
                ]
                self._block = (self.exploration.loudness * torch.stack(noise)).clamp(-1, 1)
            else:
                self._block = coloured_noise(
                    shape, self.exploration.colour, generator=self.generator
                )
            self._place, self._aimless = 0, aimless
            self._blocks += 1
        self._place += 1
        return self._block[:, self._place - 1]

    def state_dict(self) -> dict[str, Any]:
        """What is left of the block, and its number; the generator's state is its owner's."""
        return {
            "block": self._block,
            "place": self._place,
            "blocks": self._blocks,
            "aimless": self._aimless,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._block, self._place = state["block"], state["place"]
        self._blocks, self._aimless = state["blocks"], state["aimless"]
