"""An ensemble of Gaussian dynamics whose members are one batched matrix product (Lakshminarayanan
et al., 2017; PETS).

Members start from different weights and see the same data; the resampling of PETS is left out,
since with neural members random
initialisation alone gives the disagreement and every member keeps all of the data. A member may be
narrow: five of width 128 hold 1.7 times the weights of one network of width 256, and it is their
number, not their width, that makes them disagree."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Generator, Tensor, nn

from gjwm._core import draws
from gjwm.models.dynamics.base import Dynamics, Past, activation_of, check_static_dim, moved
from gjwm.models.dynamics.prediction import EnsemblePrediction, Prediction, beta_nll


class BatchedLinear(nn.Module):
    """M linear layers as one product: (M, R, in) -> (M, R, out). Each starts as `nn.Linear` does.

    Args:
        members: M.
        inputs, outputs: widths.
        bias: whether to add one.
    """

    def __init__(self, members: int, inputs: int, outputs: int, *, bias: bool = True):
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = (
            nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound)) if bias else None
        )

    def forward(self, x: Tensor) -> Tensor:
        return (
            torch.bmm(x, self.weight)
            if self.bias is None
            else torch.baddbmm(self.bias, x, self.weight)
        )


def _batched_mlp(
    members: int, sizes: list[int], activation: type[nn.Module] = nn.SiLU
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        layers += [activation()] * (i > 0) + [BatchedLinear(members, inputs, outputs)]
    return nn.Sequential(*layers)


class EnsembleDynamics(Dynamics):
    """M residual MLPs, each z' ~ N(z + f_m(z, a), diag s_m^2(z, a)); the prediction is their equal
    mixture.

    A mean rollout follows every member along its own path and averages the paths; `rollout_members`
    returns them apart, and their spread is the epistemic uncertainty over the horizon. Particles
    keep their member for the whole rollout (TS-inf of PETS), or draw one at each step
    (`resample=True`, TS-1).

    Args:
        latent_dim, action_dim: D, A.
        members: M.
        hidden, depth: width and number of hidden layers of each member's mean.
        std_hidden: width of each member's spread network (two hidden layers).
        min_std, max_std: bounds of s_m.
        beta: of the beta-NLL that s_m learns from.
        resample: whether particles change members at each step.
        activation, static_dim: of every member's mean, see `ResidualDynamics`.
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
        resample: bool = False,
        activation: str = "silu",
        static_dim: int = 0,
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
        if not 0 < min_std < max_std:
            raise ValueError(
                f"expected 0 < min_std < max_std, got min_std={min_std} and max_std={max_std}."
            )
        check_static_dim(type(self).__name__, static_dim, latent_dim)
        self.config = dict(
            latent_dim=latent_dim,
            action_dim=action_dim,
            members=members,
            hidden=hidden,
            depth=depth,
            std_hidden=std_hidden,
            min_std=min_std,
            max_std=max_std,
            beta=beta,
            resample=resample,
            activation=activation,
            static_dim=static_dim,
        )
        self.members, self.beta, self.resample, self.static_dim = (
            members,
            beta,
            resample,
            static_dim,
        )
        self.log_std_range = (math.log(min_std), math.log(max_std))
        self.from_latent = BatchedLinear(members, latent_dim, hidden)
        self.from_action = BatchedLinear(members, action_dim, hidden, bias=False)
        kind = activation_of(type(self).__name__, activation)
        self.body = nn.Sequential(
            kind(), _batched_mlp(members, [hidden] * depth + [latent_dim - static_dim], kind)
        )
        self.log_std = _batched_mlp(
            members, [latent_dim + action_dim, std_hidden, std_hidden, latent_dim]
        )

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
        return moved(z, self._each(self.body, self._each(self.from_latent, z) + inputs))

    def _member_variance(self, z: Tensor, a: Tensor) -> Tensor:
        low, high = self.log_std_range
        raw = self._each(self.log_std, torch.cat([z, self._spread(a, z)], -1).detach())
        return torch.exp(2 * (low + (high - low) * torch.sigmoid(raw)))

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
        if self.resample:
            path = self._resampled_path(z, a, generator)
        else:
            path = self._path(z, a, None, lambda law: law.sample(generator))
        path = torch.stack(path, -2)  # (M, ..., P/M, H+1, D)
        return path.movedim(0, -3).flatten(-4, -3)[..., :particles, :, :]

    def _resampled_path(self, z: Tensor, a: Tensor, generator: Generator | None) -> list[Tensor]:
        """TS-1: a particle takes a new member at each step, by shuffling particles among the
        members.
        """
        inputs, path = self._inputs(a), [z]
        for h in range(a.shape[-2]):
            law = self._law(self._step(z, inputs[..., h, :], None), z, a[..., h, :], None)
            z = self._kept(z, law.sample(generator))
            path.append(z)
            order = draws.uniform(z.shape[:-1], generator, device=z.device)
            # of the M P/M particles of one start
            order = order.movedim(0, -1).flatten(-2).argsort(-1)
            path = [_shuffled(p, order) for p in path]
            z = path[-1]
        return path

    def training_means(self, z: Tensor, a: Tensor, truncate: int | None = None) -> Tensor:
        """Each member's means, (2, M, B, T, D): every member is aligned by itself."""
        start = z.expand(self.members, *z.shape)
        one_step = self._step(start[..., :-1, :], self._inputs(a[None]), None)
        path = torch.stack(self._path(start[..., 0, :], a[None], None, truncate=truncate)[1:], -2)
        return torch.stack([path, one_step])

    def nll(self, z: Tensor, a: Tensor, z_next: Tensor) -> Tensor:
        z, a, z_next = z.detach().expand(self.members, *z.shape), a[None], z_next.detach()
        with torch.no_grad():
            mean = self._step(z, self._inputs(a), None)
        return beta_nll(self._law(mean, z, a, None), z_next, self.beta)


def _shuffled(z: Tensor, order: Tensor) -> Tensor:
    """Particles (M, ..., R, D) of each start reordered by `order` (..., M R)."""
    flat = z.movedim(0, -3).flatten(-3, -2)  # (..., M R, D)
    flat = flat.gather(-2, order[..., None].expand_as(flat))
    return flat.unflatten(-2, (z.shape[0], -1)).movedim(-3, 0)
