"""Probabilistic latent dynamics p(z' | z, a): one interface, a distribution as the answer, batched rollouts.

The mean learns from the alignment term together with the encoder. The variance learns by beta-NLL on detached inputs: a
likelihood that reaches the encoder rewards shrinking the latents without bound, which no bounded discrepancy can stop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from gjwm.encoders import mlp


@dataclass(frozen=True)
class Prediction:
    """A diagonal Gaussian over the next latent: mean and variance, each (..., D)."""

    mean: Tensor
    variance: Tensor

    def sample(self, generator: Generator | None = None) -> Tensor:
        """One draw, (..., D)."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.variance.sqrt() * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(z; mean, variance) in nats, summed over D: (..., D) -> (...)."""
        squared = (z - self.mean).square() / self.variance
        return -0.5 * (squared + self.variance.log() + math.log(2 * math.pi)).sum(-1)


def beta_nll(prediction: Prediction, target: Tensor, beta: float = 0.5) -> Tensor:
    """beta-NLL (Seitzer et al., 2022): mean over elements of sg(variance^beta) * NLL -> scalar.

    beta = 0 is the NLL, whose variance grows on hard samples and then ignores them; beta = 1 weighs all alike.
    """
    nll = 0.5 * ((target - prediction.mean).square() / prediction.variance + prediction.variance.log())
    return (prediction.variance.detach() ** beta * nll).mean()


class GaussianDynamics(nn.Module):
    """z' ~ N(z + f(z, a), diag s^2(z, a)): residual MLP for the mean, a separate small MLP for the variance.

    With latents driven to N(0, I) the law of total variance bounds the predictive variance by 1 per dimension, hence
    max_std only slightly above 1.

    Args:
        latent_dim: D.
        action_dim: A.
        hidden, depth: width and number of hidden layers of the mean.
        std_hidden: width of the variance network's two hidden layers.
        min_std, max_std: bounds of the predictive standard deviation.
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        *,
        hidden: int = 256,
        depth: int = 2,
        std_hidden: int = 128,
        min_std: float = 0.01,
        max_std: float = 1.25,
    ):
        super().__init__()
        if not 0 < min_std < max_std:
            raise ValueError(f"expected 0 < min_std < max_std, got min_std={min_std} and max_std={max_std}.")
        if depth < 1:
            raise ValueError(f"GaussianDynamics needs at least one hidden layer, got depth={depth}.")
        self.config = dict(
            latent_dim=latent_dim,
            action_dim=action_dim,
            hidden=hidden,
            depth=depth,
            std_hidden=std_hidden,
            min_std=min_std,
            max_std=max_std,
        )
        self.latent_dim, self.action_dim = latent_dim, action_dim
        self.log_std_range = (math.log(min_std), math.log(max_std))
        self.from_latent = nn.Linear(latent_dim, hidden)
        self.from_action = nn.Linear(action_dim, hidden, bias=False)
        self.body = nn.Sequential(nn.SiLU(), mlp([hidden] * depth + [latent_dim]))
        self.log_std = mlp([latent_dim + action_dim, std_hidden, std_hidden, latent_dim])

    def _check(self, z: Tensor, a: Tensor) -> None:
        if z.shape[-1] != self.latent_dim or a.shape[-1] != self.action_dim:
            raise ValueError(
                f"expected latents (..., {self.latent_dim}) and actions (..., {self.action_dim}), "
                f"got {tuple(z.shape)} and {tuple(a.shape)}."
            )

    def _step(self, z: Tensor, action_features: Tensor) -> Tensor:
        return z + self.body(self.from_latent(z) + action_features)

    def mean(self, z: Tensor, a: Tensor) -> Tensor:
        """E[z' | z, a]: (..., D), (..., A) -> (..., D)."""
        self._check(z, a)
        return self._step(z, self.from_action(a))

    def variance(self, z: Tensor, a: Tensor) -> Tensor:
        """Var[z' | z, a] per dimension: (..., D), (..., A) -> (..., D). No gradient reaches z or a."""
        self._check(z, a)
        low, high = self.log_std_range
        raw = self.log_std(torch.cat([z, a], -1).detach())
        return torch.exp(2 * (low + (high - low) * torch.sigmoid(raw)))

    def predict(self, z: Tensor, a: Tensor) -> Prediction:
        """p(z' | z, a): (..., D), (..., A) -> Prediction with mean and variance (..., D)."""
        return Prediction(self.mean(z, a), self.variance(z, a))

    def rollout(
        self, z0: Tensor, a: Tensor, particles: int | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Open-loop rollout.

        Args:
            z0: start (B, D).
            a: actions (B, H, A); axes between B and H, such as candidates (B, N, H, A), share the start.
            particles: None follows the mean; P draws P samples per step.
            generator: draws the particles' noise.

        Returns:
            (B, H+1, D), or (B, P, H+1, D) with particles; z0 comes first. Candidates keep their axis after B.
        """
        self._check(z0, a)
        if a.dim() < 3 or z0.dim() != 2 or z0.shape[0] != a.shape[0]:
            raise ValueError(
                f"a rollout expects z0 (B, D) and actions (B, ..., H, A), got {tuple(z0.shape)} and {tuple(a.shape)}."
            )
        if particles is not None:
            if particles < 1:
                raise ValueError(f"a particle rollout needs at least one particle, got {particles}.")
            a = a.unsqueeze(-3).expand(*a.shape[:-2], particles, *a.shape[-2:])
        z = z0.view(z0.shape[0], *[1] * (a.dim() - 3), z0.shape[1]).expand(*a.shape[:-2], -1)
        action_features = self.from_action(a)  # all steps at once: only the latent part is left in the loop
        path = [z]
        for h in range(a.shape[-2]):
            mean = self._step(path[-1], action_features[..., h, :])
            if particles is not None:
                mean = Prediction(mean, self.variance(path[-1], a[..., h, :])).sample(generator)
            path.append(mean)
        return torch.stack(path, -2)
