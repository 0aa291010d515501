"""Small networks that read something from latents: reward, termination, a state vector.

They learn on detached latents, so what they are asked never changes the encoder: a world model with
heads encodes and predicts exactly as one without."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gjwm._core.configured import Configured
from gjwm._core.types import Batch
from gjwm.models.layers import mlp


class _StepHead(Configured, nn.Module):
    """One number of a step.

    Args:
        latent_dim, action_dim: D, A.
        hidden: widths of the hidden layers.
    """

    def __init__(self, latent_dim: int, action_dim: int, *, hidden: Sequence[int] = (128, 128)):
        super().__init__()
        self.net = mlp([latent_dim + action_dim, *hidden, 1])

    def _number(self, z: Tensor, a: Tensor) -> Tensor:
        return self.net(torch.cat([z, a], -1))[..., 0]


class RewardHead(_StepHead):
    """E[r | z, a] by squared error; `hidden` are the widths of the hidden layers."""

    def forward(self, z: Tensor, a: Tensor) -> Tensor:
        """(..., D), (..., A) -> expected reward of that step (...)."""
        return self._number(z, a)

    def loss(self, z: Tensor, batch: Batch) -> Tensor:
        """Latents (B, T+1, D) of a batch's observations -> scalar."""
        return F.mse_loss(self(z[:, :-1].detach(), batch.a), batch.r)


class TerminationHead(_StepHead):
    """P(the episode ends in a terminal state on this step | z, a) by binary cross-entropy.
    Truncation is no termination; `hidden` are the widths of the hidden layers.
    """

    def logit(self, z: Tensor, a: Tensor) -> Tensor:
        """(..., D), (..., A) -> log odds (...)."""
        return self._number(z, a)

    def forward(self, z: Tensor, a: Tensor) -> Tensor:
        """(..., D), (..., A) -> probability (...)."""
        return self.logit(z, a).sigmoid()

    def loss(self, z: Tensor, batch: Batch) -> Tensor:
        """Latents (B, T+1, D) of a batch's observations -> scalar."""
        logit = self.logit(z[:, :-1].detach(), batch.a)
        return F.binary_cross_entropy_with_logits(logit, batch.terminated.float())


class StateHead(Configured, nn.Module):
    """A state vector read from z, in the state's own units: standardised inside by what
    `standardise` saw.

    Batches of pixels carry no state, so this head is fitted by
    `gjwm.training.train.train_state_head` on encoded episodes.

    Args:
        latent_dim: D.
        state_dim: P.
        hidden: widths of the hidden layers.
    """

    def __init__(self, latent_dim: int, state_dim: int, *, hidden: Sequence[int] = (128, 128)):
        super().__init__()
        self.net = mlp([latent_dim, *hidden, state_dim])
        self.register_buffer("shift", torch.zeros(state_dim))
        self.register_buffer("scale", torch.ones(state_dim))

    def standardise(self, state: Tensor) -> None:
        """Take location and scale from states (..., P)."""
        rows = state.reshape(-1, state.shape[-1]).to(self.shift)
        self.shift.copy_(rows.mean(0))
        self.scale.copy_(rows.std(0).clamp(min=1e-6))

    def forward(self, z: Tensor) -> Tensor:
        """(..., D) -> (..., P)."""
        return self.net(z) * self.scale + self.shift
