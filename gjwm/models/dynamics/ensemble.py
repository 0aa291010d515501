"""An ensemble of Gaussian dynamics whose members are one batched matrix product (Lakshminarayanan
et al., 2017; PETS).

Members start from different weights and see the same data: random initialisation alone makes
neural members disagree."""

from __future__ import annotations

import math
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from gjwm.models.dynamics.base import Dynamics
from gjwm.models.dynamics.prediction import EnsemblePrediction, Prediction, beta_nll
from gjwm.models.layers import BatchedLinear, Spread, mlp


class EnsembleDynamics(Dynamics):
    """M residual MLPs, each z' ~ N(z + f_m(z, a), diag s_m^2(z, a)); the prediction is their equal
    mixture.

    A mean rollout follows every member along its own path and averages the paths; `rollout_members`
    returns them apart, and their spread is the epistemic uncertainty over the horizon. Particles
    keep their member for the whole rollout (TS-inf of PETS).

    Args:
        latent_dim, action_dim: D, A.
        members: M.
        hidden, depth: width and number of hidden layers of each member's mean.
        std_hidden: width of each member's spread network (two hidden layers).
        min_std, max_std: bounds of s_m.
        beta: of the beta-NLL that s_m learns from.
        activation: of every member's mean, see `ResidualDynamics`.
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        *,
        members: int = 5,
        hidden: int = 128,
        depth: int = 2,
        std_hidden: int = 64,
        min_std: float = 0.01,
        max_std: float = 1.25,
        beta: float = 0.5,
        activation: str = "silu",
    ):
        super().__init__(latent_dim, action_dim)
        if members < 2:
            raise ValueError(
                f"an ensemble needs at least two members to disagree, got members={members}."
            )
        self.members, self.beta, self.spread = members, beta, Spread(min_std, max_std)
        layer = partial(BatchedLinear, members)
        self._build_mean(hidden, depth, activation, layer)
        sizes = [latent_dim + action_dim, std_hidden, std_hidden, latent_dim]
        self.log_std = mlp(sizes, linear=layer)

    # Inside, a member axis comes first: z (M, ..., D), a (M or 1, ..., A).

    def _each(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Apply batched layers to (M, ..., in), or to (...) shared by all members when the first
        axis is 1.
        """
        x = x.expand(self.members, *x.shape[1:])
        y = layer(x.reshape(self.members, math.prod(x.shape[1:-1]), x.shape[-1]))
        return y.view(*x.shape[:-1], y.shape[-1])

    def _inputs(self, a: Tensor) -> Tensor:
        return self._each(self.from_action, a)

    def _step(self, z: Tensor, inputs: Tensor, context: Tensor | None) -> Tensor:
        return z + self._each(self.body, self._each(self.from_latent, z) + inputs)

    def _law(self, mean: Tensor, z: Tensor, a: Tensor, context: Tensor | None) -> Prediction:
        """Of each member."""
        inputs = torch.cat([z, self._spread(a, z)], -1).detach()
        return Prediction(mean, self.spread(self._each(self.log_std, inputs)))

    def _inside(self, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        return z.expand(self.members, *z.shape), a[None]

    def _outside(self, law: Prediction) -> EnsemblePrediction:
        means, variances = law.mean.movedim(0, -2), law.variance.movedim(0, -2)
        log_weights = means.new_full(means.shape[:-1], -math.log(self.members))
        return EnsemblePrediction.of(log_weights, means, variances)

    def _merged(self, paths: Tensor, particles: int | None) -> Tensor:
        """Particle p follows member p mod M, so P = M k weighs the members alike."""
        if particles is None:
            return paths.movedim(0, -3).mean(-3)
        return rearrange(paths, "m ... p h d -> ... (p m) h d")[..., :particles, :, :]

    def _spread_loss(self, law: Prediction, z_next: Tensor) -> Tensor:
        return beta_nll(law, z_next, self.beta)

    def mean(self, z: Tensor, a: Tensor) -> Tensor:
        return self.predict(z, a).mean

    def rollout_members(self, z0: Tensor, a: Tensor) -> Tensor:
        """Every member's mean path: z0 (B, D), a (B, [N,] H, A) -> (B, [N,] M, H+1, D)."""
        self._check_rollout(z0, a, None)
        z = z0.view(z0.shape[0], *[1] * (a.dim() - 3), z0.shape[1]).expand(*a.shape[:-2], -1)
        return torch.stack(self._path(*self._inside(z, a), None), -2).movedim(0, -3)
