"""Mixture latent dynamics for forks: the same latent and action, several futures (Bishop, 1994; the
conditional of GMJE-MDN)."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from gjwm.models.dynamics.base import Past, ResidualDynamics
from gjwm.models.dynamics.prediction import MixturePrediction, Prediction
from gjwm.models.encoders import mlp


class MixtureDynamics(ResidualDynamics):
    """p(z' | z, a) = sum_k w_k N(z + d_k, diag s_k^2), with w, d, s from a network of (z, a),
    beside a regression z + f(z, a).

    The regression (`mean`, and rollouts without particles) learns from the alignment with the
    encoder, like every other dynamics' mean; the whole mixture learns from the likelihood on
    detached latents, and its own mean (`predict(z, a).mean`) is another estimate of the same
    expectation. The components do not refer to the regression: at a fork it is the wall between the
    branches, blurred over all latents near the fork and moving while it learns, and components
    placed around it follow it there. A rollout of the mean runs between the branches: use
    particles.

    Args:
        latent_dim, action_dim, hidden, depth, backbone, memory_width, window, activation,
            static_dim: see `ResidualDynamics`.
        components: K.
        mixture_hidden: width of the two hidden layers that weights, means and spreads come from.
        min_std, max_std: bounds of s_k.
        entropy: weight of the entropy of the batch's mean weights, which keeps components in use. 0
            for a pure likelihood.
    """

    branches = True

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        *,
        components: int = 5,
        hidden: int = 256,
        depth: int = 2,
        backbone: str = "mlp",
        memory_width: int = 128,
        window: int = 8,
        activation: str = "silu",
        static_dim: int = 0,
        mixture_hidden: int = 256,
        min_std: float = 0.03,
        max_std: float = 1.25,
        entropy: float = 0.01,
    ):
        if components < 1:
            raise ValueError(
                f"a mixture needs at least one component, got components={components}."
            )
        if not 0 < min_std < max_std:
            raise ValueError(
                f"expected 0 < min_std < max_std, got min_std={min_std} and max_std={max_std}."
            )
        shape = dict(
            hidden=hidden,
            depth=depth,
            backbone=backbone,
            memory_width=memory_width,
            window=window,
            activation=activation,
            static_dim=static_dim,
        )
        super().__init__(latent_dim, action_dim, **shape)
        self.config = dict(
            latent_dim=latent_dim,
            action_dim=action_dim,
            components=components,
            **shape,
            mixture_hidden=mixture_hidden,
            min_std=min_std,
            max_std=max_std,
            entropy=entropy,
        )
        self.components, self.entropy = components, entropy
        self.log_std_range = (math.log(min_std), math.log(max_std))
        inputs, outputs = (
            latent_dim + action_dim + self.context_dim,
            components * (1 + 2 * latent_dim),
        )
        self.mixture = mlp([inputs, mixture_hidden, mixture_hidden, outputs])
        with torch.no_grad():  # components that start together would move together
            self.mixture[-1].bias[components : components * (1 + latent_dim)].normal_(std=0.5)

    def _law(self, mean: Tensor, z: Tensor, a: Tensor, context: Tensor | None) -> MixturePrediction:
        # With its graph, unlike a Gaussian's spread: it is here that a planner's gradient passes
        # through particles.
        raw = self.mixture(torch.cat([z, a] if context is None else [z, a, context], -1))
        k, d = self.components, self.latent_dim
        log_weights = raw[..., :k].log_softmax(-1)
        offsets = raw[..., k : k + k * d].unflatten(-1, (k, d))
        if self.static_dim:
            offsets = nn.functional.pad(offsets[..., : d - self.static_dim], (0, self.static_dim))
        low, high = self.log_std_range
        spread = torch.exp(2 * (low + (high - low) * torch.sigmoid(raw[..., k + k * d :])))
        return MixturePrediction.of(
            log_weights, z[..., None, :] + offsets, spread.unflatten(-1, (k, d))
        )

    def nll(self, z: Tensor, a: Tensor, z_next: Tensor) -> Tensor:
        z, z_next = z.detach(), z_next.detach()
        mean, context, _ = self._residual(z, a, z_next)
        law = self._law(mean, z, a, context)
        use = law.log_weights.exp().flatten(0, -2).mean(0)
        entropy = -(use * use.clamp(min=1e-9).log()).sum()
        return -law.log_prob(z_next).mean() / self.latent_dim - self.entropy * entropy

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
