"""An ensemble of Gaussian dynamics whose members are one batched matrix product (Lakshminarayanan
et al., 2017; PETS).

Members start from different weights and see the same data; the resampling of PETS is left out,
since with neural members random
initialisation alone gives the disagreement and every member keeps all of the data. A member may be
narrow: five of width 128 hold 1.7 times the weights of one network of width 256, and it is their
number, not their width, that makes them disagree."""

from __future__ import annotations

import math
from functools import partial

import torch
from einops import rearrange
from torch import Generator, Tensor, nn

from gjwm.models.dynamics.base import Dynamics, Past
from gjwm.models.dynamics.prediction import EnsemblePrediction, Prediction, beta_nll
from gjwm.models.layers import BatchedLinear, Spread, activation_of, mlp


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
        if depth < 1:
            raise ValueError(
                f"EnsembleDynamics needs at least one hidden layer, got depth={depth}."
            )
        self.members, self.beta, self.spread = members, beta, Spread(min_std, max_std)
        layer = partial(BatchedLinear, members)
        self.from_latent = layer(latent_dim, hidden)
        self.from_action = layer(action_dim, hidden, bias=False)
        kind = activation_of(type(self).__name__, activation)
        self.body = nn.Sequential(kind(), mlp([hidden] * depth + [latent_dim], kind, layer))
        sizes = [latent_dim + action_dim, std_hidden, std_hidden, latent_dim]
        self.log_std = mlp(sizes, linear=layer)

    # Inside, a member axis comes first: z (M, ..., D), a (M or 1, ..., A).

    def _each(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Apply batched layers to (M, ..., in), or to (...) shared by all members when the first
        axis is 1.
        """
        x = x.expand(self.members, *x.shape[1:])
        y = layer(x.reshape(self.members, x.shape[1:-1].numel(), x.shape[-1]))
        return y.view(*x.shape[:-1], y.shape[-1])

    def _inputs(self, a: Tensor) -> Tensor:
        return self._each(self.from_action, a)

    def _step(self, z: Tensor, inputs: Tensor, context: Tensor | None) -> Tensor:
        return z + self._each(self.body, self._each(self.from_latent, z) + inputs)

    def _member_variance(self, z: Tensor, a: Tensor) -> Tensor:
        return self.spread(
            self._each(self.log_std, torch.cat([z, self._spread(a, z)], -1).detach())
        )

    def _law(self, mean: Tensor, z: Tensor, a: Tensor, context: Tensor | None) -> Prediction:
        return Prediction(mean, self._member_variance(z, a))  # of each member

    def _mixture(self, members: Prediction) -> EnsemblePrediction:
        means, variances = members.mean.movedim(0, -2), members.variance.movedim(0, -2)
        return EnsemblePrediction.of(
            means.new_full(means.shape[:-1], -math.log(self.members)), means, variances
        )

    def mean(self, z: Tensor, a: Tensor) -> Tensor:
        return self.predict(z, a).mean

    def predict(self, z: Tensor, a: Tensor, past: Past | None = None) -> EnsemblePrediction:
        """The members' mixture, with `aleatoric` and `epistemic` variance: (..., D), (..., A) ->
        law of (..., D).
        """
        self._check(z, a)
        z, a = z.expand(self.members, *z.shape), a[None]
        return self._mixture(self._law(self._step(z, self._inputs(a), None), z, a, None))

    def predict_sequence(self, z: Tensor, a: Tensor) -> EnsemblePrediction:
        return self.predict(z, a)

    def rollout_members(self, z0: Tensor, a: Tensor) -> Tensor:
        """Every member's mean path: z0 (B, D), a (B, [N,] H, A) -> (B, [N,] M, H+1, D)."""
        self._check_rollout(z0, a, None)
        z = z0.view(z0.shape[0], *[1] * (a.dim() - 3), z0.shape[1]).expand(
            self.members, *a.shape[:-2], -1
        )
        return torch.stack(self._path(z, a[None], None), -2).movedim(0, -3)

    def rollout(
        self,
        z0: Tensor,
        a: Tensor,
        particles: int | None = None,
        generator: Generator | None = None,
        *,
        past: Past | None = None,
    ) -> Tensor:
        """As `Dynamics.rollout`; particle p follows member p mod M, so P = M k weighs the members
        alike.
        """
        if particles is None:
            return self.rollout_members(z0, a).mean(-3)
        self._check_rollout(z0, a, particles)
        each = -(-particles // self.members)
        z = z0.view(z0.shape[0], *[1] * (a.dim() - 2), z0.shape[1])
        z = z.expand(self.members, *a.shape[:-2], each, -1)
        a = a[None].unsqueeze(-3)
        path = torch.stack(self._path(z, a, None, lambda law: law.sample(generator)), -2)
        path = rearrange(path, "m ... p h d -> ... (p m) h d")
        return path[..., :particles, :, :]

    def one_step_means(self, z: Tensor, a: Tensor) -> Tensor:
        """Each member's, (M, B, T, D): every member is aligned by itself."""
        start = z[:, :-1].expand(self.members, -1, -1, -1)
        return self._step(start, self._inputs(a[None]), None)

    def open_loop_means(self, z: Tensor, a: Tensor) -> Tensor:
        start = z[:, 0].expand(self.members, -1, -1)
        return torch.stack(self._path(start, a[None], None)[1:], -2)

    def nll(self, z: Tensor, a: Tensor, z_next: Tensor) -> Tensor:
        z, a, z_next = z.detach().expand(self.members, *z.shape), a[None], z_next.detach()
        with torch.no_grad():
            mean = self._step(z, self._inputs(a), None)
        return beta_nll(self._law(mean, z, a, None), z_next, self.beta)
