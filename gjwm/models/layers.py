"""Layers that several networks are made of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gjwm._core import distributed

ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU}


def activation_of(owner: str, name: str) -> type[nn.Module]:
    """The module that a setting names; ValueError for another name."""
    if name not in ACTIVATIONS:
        raise ValueError(
            f"{owner}'s activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}."
        )
    return ACTIVATIONS[name]


def mlp(
    sizes: Sequence[int],
    activation: type[nn.Module] = nn.SiLU,
    linear: Callable[[int, int], nn.Module] = nn.Linear,
) -> nn.Sequential:
    """Linear layers of these sizes with an activation between each two."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        layers += [activation()] * (i > 0) + [linear(inputs, outputs)]
    return nn.Sequential(*layers)


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
        if self.bias is None:
            return torch.bmm(x, self.weight)
        return torch.baddbmm(self.bias, x, self.weight)


class Spread:
    """Network outputs -> variances between min_std^2 and max_std^2: a sigmoid of log std."""

    def __init__(self, min_std: float, max_std: float):
        if not 0 < min_std < max_std:
            raise ValueError(
                f"expected 0 < min_std < max_std, got min_std={min_std} and max_std={max_std}."
            )
        self.low, self.high = math.log(min_std), math.log(max_std)

    def __call__(self, raw: Tensor) -> Tensor:
        return torch.exp(2 * (self.low + (self.high - self.low) * torch.sigmoid(raw)))


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` of rows (N, D) that takes the rows of all processes as one batch.

    torch's own, SyncBatchNorm, is for GPUs only. Sums are in double precision, in which one
    reduction of x and x^2 is as good as centring first.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(input)
        x = input.double()
        here = torch.cat([x.sum(0), x.square().sum(0), x.new_full((1,), len(x))])
        total, squares, n = distributed.sum_with_gradient(here).split([*x.shape[1:] * 2, 1])
        mean = total / n
        variance = squares / n - mean.square()
        running = ((self.running_mean, mean), (self.running_var, variance * (n / (n - 1))))
        with torch.no_grad():
            for kept, new in running:
                kept.lerp_(new.to(kept), self.momentum)
            self.num_batches_tracked.add_(1)
        y = ((x - mean) * (variance.clamp(min=0) + self.eps).rsqrt()).to(input.dtype)
        return y if self.weight is None else y * self.weight + self.bias
