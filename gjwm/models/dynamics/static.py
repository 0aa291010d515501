"""Latents that an episode does not change, such as a maze's layout, around any dynamics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from einops import repeat
from torch import Generator, Tensor, nn

from gjwm.models.dynamics.base import Dynamics, Past
from gjwm.models.dynamics.gaussian import ResidualMoments
from gjwm.models.dynamics.prediction import Prediction


class StaticLatents(Dynamics):
    """The last S latents stay as they are; `dynamics` predicts the others and reads these.

    To the dynamics inside, static latents are part of the action, one that is held over the
    horizon: any dynamics will do, and know nothing of it. Predicted laws say how far static latents
    scatter from step to step, the encoder's noise, counted over training batches; rollouts and
    particles keep them. They are learned by `gjwm.objectives.EpisodeObjective`.

    Args:
        dynamics: of D - S latents and A + S actions, see `with_static`.
        static_dim: S.
        min_std: floor of the reported scatter.
    """

    def __init__(self, dynamics: Dynamics, static_dim: int, *, min_std: float = 0.01):
        super().__init__(dynamics.latent_dim + static_dim, dynamics.action_dim - static_dim)
        self.dynamics, self.static_dim, self.min_std = dynamics, static_dim, min_std
        self.scatter = ResidualMoments(static_dim, full=False)

    @property
    def has_memory(self) -> bool:
        return self.dynamics.has_memory

    @property
    def branches(self) -> bool:
        return self.dynamics.branches

    @property
    def members(self) -> int:
        return self.dynamics.members

    def _split(self, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Moving latents, actions with the static latents beside them, and the static latents, of
        (..., D) and (..., A), or of a start (B, D) and the actions (B, ..., H, A) from there.
        """
        self._check(z, a)
        moving, static = z.split([self.latent_dim - self.static_dim, self.static_dim], -1)
        held = static.reshape(*z.shape[:-1], *[1] * (a.dim() - z.dim()), self.static_dim)
        return moving, torch.cat([a, held.expand(*a.shape[:-1], -1)], -1), static

    def _past(self, past: Past | None) -> Past | None:
        return None if past is None else self._split(*past)[:2]

    def _scattered(self, static: Tensor) -> Tensor:
        """The variance of static latents (..., S) from step to step."""
        return self.scatter.moment.clamp(min=self.min_std**2).expand_as(static)

    def _beside(self, law: Prediction, static: Tensor) -> Prediction:
        return law.extended(static, self._scattered(static))

    def mean(self, z: Tensor, a: Tensor) -> Tensor:
        moving, a, static = self._split(z, a)
        return torch.cat([self.dynamics.mean(moving, a), static], -1)

    def predict(self, z: Tensor, a: Tensor, past: Past | None = None) -> Prediction:
        moving, a, static = self._split(z, a)
        return self._beside(self.dynamics.predict(moving, a, self._past(past)), static)

    def predict_sequence(self, z: Tensor, a: Tensor) -> Prediction:
        moving, a, static = self._split(z, a)
        return self._beside(self.dynamics.predict_sequence(moving, a), static)

    def rollout(
        self,
        z0: Tensor,
        a: Tensor,
        particles: int | None = None,
        generator: Generator | None = None,
        *,
        past: Past | None = None,
    ) -> Tensor:
        self._check_rollout(z0, a, particles)
        moving, a, static = self._split(z0, a)
        path = self.dynamics.rollout(moving, a, particles, generator, past=self._past(past))
        return self._kept(path, static)

    def rollout_members(self, z0: Tensor, a: Tensor) -> Tensor:
        """Of an ensemble inside: see `EnsembleDynamics.rollout_members`."""
        self._check_rollout(z0, a, None)
        moving, a, static = self._split(z0, a)
        return self._kept(self.dynamics.rollout_members(moving, a), static)

    def _kept(self, path: Tensor, static: Tensor) -> Tensor:
        """Paths (B, ..., H+1, D - S) with static latents (B, S) beside them."""
        return self._with(path, static.reshape(len(static), *[1] * (path.dim() - 2), -1))

    @staticmethod
    def _with(means: Tensor, static: Tensor) -> Tensor:
        return torch.cat([means, static.expand(*means.shape[:-1], -1)], -1)

    def forecast(
        self, z0: Tensor, a: Tensor, *, past: Past | None = None, **particles: Any
    ) -> Prediction:
        moving, a, static = self._split(z0, a)
        law = self.dynamics.forecast(moving, a, past=self._past(past), **particles)
        return self._beside(law, repeat(static, "b s -> b h s", h=a.shape[1]))

    def one_step_means(self, z: Tensor, a: Tensor) -> Tensor:
        _, a, static = self._split(z[:, :-1], a)
        return self._with(self.dynamics.one_step_means(z[..., : -self.static_dim], a), static)

    def open_loop_means(self, z: Tensor, a: Tensor) -> Tensor:
        """As the rollout: the first latent's static ones are held over the window."""
        _, a, static = self._split(z[:, 0], a)
        means = self.dynamics.open_loop_means(z[..., : -self.static_dim], a)
        return self._with(means, static[:, None])

    def nll(self, z: Tensor, a: Tensor, z_next: Tensor) -> Tensor:
        """What the dynamics inside learn from, and the static latents' nats, averaged over D."""
        moving, a, static = self._split(z.detach(), a)
        after = z_next.detach()[..., -self.static_dim :]
        if self.training:
            self.scatter.update(after - static)
        nats = -Prediction(static, self._scattered(static)).log_prob(after).mean()
        learned = self.dynamics.nll(moving, a, z_next.detach()[..., : -self.static_dim])
        return (self.dynamics.latent_dim * learned + nats) / self.latent_dim


def with_static(
    make: Callable[..., Dynamics], latent_dim: int, action_dim: int, static_dim: int = 0
) -> Dynamics:
    """`make(latent_dim=, action_dim=)`, of whose latents the last `static_dim` stay.

    Raises:
        ValueError: when no latents are left to move.
    """
    if not static_dim:
        return make(latent_dim=latent_dim, action_dim=action_dim)
    if not (isinstance(static_dim, int) and 0 < static_dim < latent_dim):
        raise ValueError(
            f"expected 0 <= static_dim < latent_dim={latent_dim}, or nothing would move; got "
            f"{static_dim}."
        )
    inside = make(latent_dim=latent_dim - static_dim, action_dim=action_dim + static_dim)
    _rescale_first_layer(inside, latent_dim, action_dim, static_dim)
    return StaticLatents(inside, static_dim)


@torch.no_grad()
def _rescale_first_layer(dynamics: Dynamics, latent_dim: int, action_dim: int, static_dim: int):
    """First weights as large as they are without static latents. A linear layer draws them from
    +-1/sqrt(inputs): static latents among the actions would leave those a fraction of their weight.
    """
    layer = getattr(dynamics, "from_action", None)
    if layer is None:
        return
    weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.mT  # (..., hidden, A+S)
    inputs = action_dim + static_dim
    weight[..., :action_dim] *= math.sqrt(inputs / action_dim)
    weight[..., action_dim:] *= math.sqrt(inputs / latent_dim)
