"""Samples of several processes as one batch, under torch.distributed.

A discrepancy of a law is not a mean over samples, so averaging per-process losses is wrong. Either
its sums (characteristic functions, moments) are added over processes, or, where it needs order or
pairs, the samples are gathered. Every process then holds the same loss. DistributedDataParallel
averages the gradients of parameters over processes; to make that mean the gradient of the joint
loss, the gradient into each process's own samples is the joint loss's, times the number of
processes. That is also what summing the incoming gradients in the backward pass of a reduction
gives."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Processes that share a batch; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


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
