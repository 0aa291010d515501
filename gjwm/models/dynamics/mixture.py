"""Mixture latent dynamics for forks: the same latent and action, several futures (Bishop, 1994; the
conditional of GMJE-MDN)."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Generator, Tensor

from gjwm._core import distributed
from gjwm.models.dynamics.base import Past, ResidualDynamics
from gjwm.models.dynamics.prediction import MixturePrediction, Prediction
from gjwm.models.layers import Spread, mlp


class MixtureDynamics(ResidualDynamics):
    """p(z' | z, a) = sum_k w_k N(z + d_k, diag s_k^2), with w, d, s from a network of (z, a),
    beside a regression z + f(z, a).

    The regression (`mean`, and rollouts without particles) learns from the alignment with the
    encoder; the mixture learns from the likelihood on detached latents. The components do not refer
    to the regression: at a fork it is the wall between the branches, and components placed around
    it follow it there. A rollout of the mean runs between the branches: use particles.

    Args:
        latent_dim, action_dim: D, A.
        components: K.
        mixture_hidden: width of the two hidden layers that weights, means and spreads come from.
        min_std, max_std: bounds of s_k.
        entropy: weight of the entropy of the batch's mean weights, which keeps components in use. 0
            for a pure likelihood.
        **mean: of `ResidualDynamics`.
    """

    branches = True

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        *,
        components: int = 5,
        mixture_hidden: int = 256,
        min_std: float = 0.03,
        max_std: float = 1.25,
        entropy: float = 0.01,
        **mean: Any,
    ):
        if components < 1:
            raise ValueError(
                f"a mixture needs at least one component, got components={components}."
            )
        super().__init__(latent_dim, action_dim, **mean)
        self.components, self.entropy = components, entropy
        self.spread = Spread(min_std, max_std)
        inputs = latent_dim + action_dim + self.context_dim
        outputs = components * (1 + 2 * latent_dim)
        self.mixture = mlp([inputs, mixture_hidden, mixture_hidden, outputs])
        with torch.no_grad():  # components that start together would move together
            self.mixture[-1].bias[components : components * (1 + latent_dim)].normal_(std=0.5)

    def _law(self, mean: Tensor, z: Tensor, a: Tensor, context: Tensor | None) -> MixturePrediction:
        # With its graph, unlike a Gaussian's spread: it is here that a planner's gradient passes
        # through particles.
        raw = self.mixture(self._joined(z, a, context))
        k = self.components
        offsets, spread = rearrange(raw[..., k:], "... (two k d) -> two ... k d", two=2, k=k)
        log_weights = raw[..., :k].log_softmax(-1)
        return MixturePrediction.of(log_weights, z[..., None, :] + offsets, self.spread(spread))

    def _spread_loss(self, law: MixturePrediction, z_next: Tensor) -> Tensor:
        use = law.log_weights.exp().flatten(0, -2).mean(0)
        use = distributed.mean_with_gradient(use)
        entropy = -(use * use.clamp(min=1e-9).log()).sum()
        return super()._spread_loss(law, z_next) - self.entropy * entropy

    def forecast(
        self,
        z0: Tensor,
        a: Tensor,
        *,
        particles: int = 32,
        generator: Generator | None = None,
        past: Past | None = None,
    ) -> Prediction:
        """The law of z_1 .. z_H as a mixture of P Gaussians: each particle contributes the
        component that it moved by.

        So branches stay apart in the forecast, where the Gaussian of `Dynamics.forecast` would
        cover both and the wall between."""
        if particles < 1:
            raise ValueError(f"a forecast needs at least one particle, got {particles}.")
        self._check_rollout(z0, a, particles)
        z = z0[:, None].expand(-1, particles, -1)
        moved_by: list[Prediction] = []

        def draw(law: MixturePrediction) -> Tensor:
            moved_by.append(law.draw_component(generator))
            return moved_by[-1].sample(generator)

        self._path(z, a[:, None], self._remember(past, z, (z0.shape[0], particles)), draw)
        means, variances = (
            torch.stack([getattr(p, name) for p in moved_by], 1) for name in ("mean", "variance")
        )
        log_weights = means.new_full(means.shape[:-1], -math.log(particles))  # (B, H, P)
        return MixturePrediction.of(log_weights, means, variances)
