"""Several processes as one, under torch.distributed: samples as one batch, gradients and figures
averaged. Without it everything is as it was.

A discrepancy of a law is not a mean over samples, so averaging per-process losses is wrong. Either
its sums (characteristic functions, moments) are added over processes, or, where it needs order or
pairs, the samples are gathered. Every process then holds the same loss. DistributedDataParallel
averages the gradients of parameters over processes; to make that mean the gradient of the joint
loss, the gradient into each process's own samples is the joint loss's, times the number of
processes. That is also what summing the incoming gradients in the backward pass of a reduction
gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Processes that share a batch; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0; 0 without torch.distributed."""
    return dist.get_rank() if world_size() > 1 else 0


def share(count: int) -> slice:
    """This process's part of `count` rows, of which every process has as many."""
    each = count // world_size()
    return slice(rank() * each, (rank() + 1) * each)


def sum_(x: Tensor) -> Tensor:
    """Add `x` over processes in place, outside autograd."""
    x = x.contiguous()
    dist.all_reduce(x)
    return x


def count(n: int, device: torch.device) -> int:
    """Sum of `n` over processes."""
    return int(sum_(torch.tensor(n, device=device)).item())


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return sum_(x.clone())

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return sum_(grad.clone())


def sum_with_gradient(x: Tensor) -> Tensor:
    """Sum of `x` over processes; in the backward pass the incoming gradients are added as well."""
    return _Sum.apply(x)


def gather(x: Tensor) -> Tensor:
    """Rows of all processes in order of rank: (n_r, ...) -> (sum n_r, ...), with gradient. Only n_r
    may differ.
    """
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.long, device=x.device)
    sizes[dist.get_rank()] = len(x)
    sizes = sum_(sizes).tolist()
    # Each row comes from one process, and is 0 on the others: their sum is all rows.
    rows = x.new_zeros(sum(sizes), *x.shape[1:])
    first = sum(sizes[: dist.get_rank()])
    rows[first : first + len(x)] = x
    return sum_with_gradient(rows)


def broadcast(x: Tensor) -> Tensor:
    """The first process's `x` on all of them, so that every process draws the same slices."""
    x = x.contiguous()
    dist.broadcast(x, 0)
    return x


def mean_with_gradient(x: Tensor) -> Tensor:
    """Mean of `x` over processes, itself where there is one; gradient as `sum_with_gradient`."""
    return sum_with_gradient(x) / world_size() if world_size() > 1 else x


def averaged(scalars: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Scalars as means over processes, without gradient; themselves where there is one. NaN on any
    process is NaN on all.
    """
    if world_size() == 1:
        return scalars
    values = sum_(torch.stack([x.detach().double() for x in scalars.values()])) / world_size()
    return dict(zip(scalars, values))


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gradients as means over processes, in one reduction after the backward pass."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = sum_(torch.cat([x.reshape(-1) for x in gradients])) / world_size()
    for x, mean in zip(gradients, flat.split([x.numel() for x in gradients])):
        x.copy_(mean.view_as(x))


@torch.no_grad()
def share_state(modules: Iterable[nn.Module]) -> None:
    """The first process's parameters and buffers on all of them: other machines may draw other
    first weights from one seed.
    """
    if world_size() > 1:
        for module in modules:
            for x in (*module.parameters(), *module.buffers()):
                x.copy_(broadcast(x.detach()))
