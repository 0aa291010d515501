"""The names of the axes, and what passes between data, model and planner.

Axes, here and in every docstring: B batch or env, T steps, H horizon, N candidates, D latent, A
action, O observation, C image channels. Batch comes first. `o_t, a_t -> r_t, o_{t+1}`: a sequence
of T steps has T+1 observations and T actions. Images are (..., C, h, w) uint8 until an encoder
makes them float. Actions lie in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B windows of T steps, each from within one episode.

    o: (B, T+1, *O) in the observation space's dtype; a dict of such tensors for a Dict space.
    a: (B, T, A) float32.
    r: (B, T) float32.
    terminated: (B, T) bool, whether the episode ended in a terminal state on this step.
    episode: (B,) int64; windows of one episode share the number, so statistics can be taken across
    episodes."""

    o: Tensor | dict[str, Tensor]
    a: Tensor
    r: Tensor
    terminated: Tensor
    episode: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same windows on another device."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=non_blocking)

        o = (
            {name: move(x) for name, x in self.o.items()}
            if isinstance(self.o, dict)
            else move(self.o)
        )
        return Batch(o, move(self.a), move(self.r), move(self.terminated), move(self.episode))
