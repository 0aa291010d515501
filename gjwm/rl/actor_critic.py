"""What looks beyond the planner's horizon: an ensemble of action values and a policy, both on
latents.

The values are learned by temporal differences (`gjwm.rl`), the policy by ascending them. In a plan
the values stand for all that comes after the last step, and the policy's own rollouts compete with
the sampled ones (TD-MPC2, Hansen et al., 2024)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gjwm._core import draws
from gjwm._core.configured import Configured
from gjwm.models.layers import BatchedLinear


class TwoHot:
    """Numbers as distributions over bins whose centres are even in symlog(x) = sign(x) log(1 + |x|)
    (DreamerV3, Hafner et al., 2023).

    A value falls between two centres, which share its mass so that their mean is the value;
    learning it is classification, whose gradients do not grow with the size of an error or of the
    returns. A distribution stands for the mean of its centres themselves: the number whose symlog
    is the mean bin would be lower wherever returns differ, and each backup would lose that again.

    Args:
        bins: their number.
        low, high: the ends, in symlog units: 6 is a return of 402.

    `ends` are those two as numbers, and `start` is the mean of all centres, which values have
    before they have learned anything.
    """

    def __init__(self, bins: int, low: float, high: float):
        if bins < 2 or not low < high:
            raise ValueError(
                f"expected bins >= 2 and low < high, got bins={bins}, low={low} and high={high}."
            )
        self.bins, self.low, self.high = bins, low, high
        self.width = (high - low) / (bins - 1)
        centres = self.centres(torch.zeros((), dtype=torch.float64))
        self.ends, self.start = (centres[0].item(), centres[-1].item()), centres.mean().item()

    def centres(self, like: Tensor) -> Tensor:
        """(bins,), ascending, of the device and type of `like`."""
        symlog = torch.linspace(
            self.low, self.high, self.bins, dtype=like.dtype, device=like.device
        )
        return symlog.sign() * symlog.abs().expm1()

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits (..., bins), target (...) -> (...); targets beyond the ends count as the end."""
        centres = self.centres(logits)
        symlog = target.sign() * target.abs().log1p()
        left = ((symlog - self.low) / self.width).floor().clamp(0, self.bins - 2)
        index = left.nan_to_num().long()  # a NaN must show in the error, not as an index
        below, above = centres[index], centres[index + 1]
        share = ((target - below) / (above - below)).clamp(0, 1)[..., None]
        index = index[..., None].expand(*logits.shape[:-1], 1)
        log_probability = logits.log_softmax(-1)
        low, high = log_probability.gather(-1, index), log_probability.gather(-1, index + 1)
        return -((1 - share) * low + share * high)[..., 0]

    def mean(self, logits: Tensor) -> Tensor:
        """logits (..., bins) -> the mean of their distribution (...)."""
        return logits.softmax(-1) @ self.centres(logits)


class QEnsemble(Configured, nn.Module):
    """M action values Q_m(z, a), as one batched matrix product.

    Args:
        latent_dim, action_dim: D, A.
        members: M.
        hidden: width of the two hidden layers.
        bins: of a two-hot output; None: a plain number, learned by squared error.
        low, high: ends of the bins, see `TwoHot`; -low = high starts all values at 0.
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        *,
        members: int = 2,
        hidden: int = 256,
        bins: int | None = 81,
        low: float = -7.0,
        high: float = 7.0,
    ):
        super().__init__()
        if members < 1:
            raise ValueError(f"QEnsemble expects members >= 1, got {members}.")
        self.members = members
        self.two_hot = None if bins is None else TwoHot(bins, low, high)
        sizes = [latent_dim + action_dim, hidden, hidden, 1 if bins is None else bins]
        self.layers = nn.ModuleList(
            BatchedLinear(members, i, o) for i, o in itertools.pairwise(sizes)
        )
        with torch.no_grad():
            # All values start at the mean of the bins, 0 where they are as many on both sides, and
            # not where the first weights happen to be.
            self.layers[-1].weight.zero_()
            self.layers[-1].bias.zero_()

    def outputs(self, z: Tensor, a: Tensor) -> Tensor:
        """(..., D), (..., A) -> (M, ..., bins), or (M, ...) for plain numbers."""
        x = torch.cat([z, a], -1)
        lead = x.shape[:-1]
        x = x.reshape(1, -1, x.shape[-1]).expand(self.members, -1, -1)
        for layer in self.layers[:-1]:
            x = layer(x)
            # Normalised hidden units keep bootstrapped values from running away (Ball et al.,
            # 2023).
            x = F.relu(F.layer_norm(x, x.shape[-1:]))
        x = self.layers[-1](x).unflatten(1, lead)
        return x[..., 0] if self.two_hot is None else x

    def forward(self, z: Tensor, a: Tensor) -> Tensor:
        """(..., D), (..., A) -> values (M, ...)."""
        outputs = self.outputs(z, a)
        return outputs if self.two_hot is None else self.two_hot.mean(outputs)

    def errors(self, z: Tensor, a: Tensor, target: Tensor) -> Tensor:
        """How far values are from returns, as they learn: (..., D), (..., A), (...) -> (M, ...)."""
        outputs = self.outputs(z, a)
        if self.two_hot is None:
            return (outputs - target).square()
        return self.two_hot.cross_entropy(outputs, target.expand(outputs.shape[:-1]))


class Policy(Configured, nn.Module):
    """A Gaussian over actions in (-1, 1), squashed by tanh: a = tanh(mu(z) + sigma(z) * noise).

    Args:
        latent_dim, action_dim: D, A.
        hidden: widths of the hidden layers.
        min_std, max_std: of the Gaussian before squashing.
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        *,
        hidden: Sequence[int] = (256, 256),
        min_std: float = 1e-2,
        max_std: float = 2.0,
    ):
        super().__init__()
        if not 0 < min_std < max_std:
            raise ValueError(
                f"expected 0 < min_std < max_std, got min_std={min_std} and max_std={max_std}."
            )
        layers: list[nn.Module] = []
        sizes = [latent_dim, *hidden]
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], 2 * action_dim))
        self.log_std_range = (math.log(min_std), math.log(max_std))

    def _moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.net(z).chunk(2, -1)
        low, high = self.log_std_range
        return mean, low + (high - low) * torch.sigmoid(raw)

    def forward(self, z: Tensor) -> Tensor:
        """(..., D) -> the action at the Gaussian's mean (..., A)."""
        return self._moments(z)[0].tanh()

    def sample(self, z: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """(..., D) -> a drawn action (..., A) and its log-density (...), both with gradients."""
        shape = (*z.shape[:-1], self.config["action_dim"])
        return self.squash(z, draws.normal(shape, generator, device=z.device, dtype=z.dtype))

    def squash(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """`sample` with the standard normal noise (..., A) given."""
        mean, log_std = self._moments(z)
        before = mean + log_std.exp() * noise
        density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(x)^2), stable for large |x|.
        squash = 2 * (math.log(2) - before - F.softplus(-2 * before))
        return before.tanh(), (density - squash).sum(-1)
