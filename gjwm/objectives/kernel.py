"""BHEP: the maximum mean discrepancy to a Gaussian with a Gaussian kernel, in closed form
(Baringhaus & Henze, 1988; Henze & Wagner, 1997)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gjwm.objectives.base import SampleDiscrepancy, check_choice
from gjwm.objectives.target import GaussianTarget


def bhep(x: Tensor, beta: float, group: Tensor | None = None, *, unbiased: bool = False) -> Tensor:
    """MMD^2 of samples x (N, D) to N(0, I) with kernel exp(-beta^2 |x - y|^2 / 2) -> scalar, O(N^2
    D).

    mean_ij k(x_i, x_j) - 2 (1 + b^2)^{-D/2} mean_i exp(-b^2 |x_i|^2 / (2 (1 + b^2))) + (1 + 2
    b^2)^{-D/2}.

    Args:
        group: (N,) ids; pairs of one group do not count.
        unbiased: without groups, leave out the pairs (i, i).
    """
    n, d = x.shape
    b = beta * beta
    norm = x.square().sum(1)
    # |x_i - x_j|^2, without cdist's square root, whose derivative fails on the diagonal.
    pairs = torch.exp(-b / 2 * (norm[:, None] + norm - 2 * x @ x.T).clamp(min=0))
    if group is None:
        near = (pairs.sum() - n) / (n * n - n) if unbiased else pairs.mean()
    else:
        other = group[:, None] != group
        near = (pairs * other).sum() / other.sum()
    cross = torch.exp(-b * norm / (2 * (1 + b))).mean()
    return near - 2 * (1 + b) ** (-d / 2) * cross + (1 + 2 * b) ** (-d / 2)


class BHEP(SampleDiscrepancy):
    """Gaussian-kernel MMD to N(0, I), without slices.

    A kernel width of order 1 makes all pairs of a high-dimensional batch strangers: the value is a
    constant and its gradient gone. The width therefore follows the dimension.

    Args:
        beta: inverse width; "auto" is D^{-1/2}. Several numbers: the mean of the statistics.
        time: see `Discrepancy`; "cluster" uses pairs of different trajectories only.
        estimator: "u" leaves out the pairs (i, i), so a Gaussian batch has mean 0; "v" keeps them.
            "cluster" is always "u".
        target, distributed: see `Discrepancy`. Processes gather samples.
    """

    def __init__(
        self,
        beta: float | str | Sequence[float] = "auto",
        *,
        time: str = "cluster",
        estimator: str = "u",
        target: GaussianTarget | None = None,
        distributed: bool = True,
    ):
        super().__init__(time=time, target=target, distributed=distributed)
        check_choice("BHEP", "estimator", estimator, ("u", "v"))
        betas = None if beta == "auto" else [beta] if isinstance(beta, int | float) else beta
        if betas is not None and (isinstance(betas, str) or not betas or min(betas) <= 0):
            raise ValueError(f"BHEP's beta must be 'auto' or positive numbers, got {beta!r}.")
        self.betas, self.estimator = betas, estimator

    def _statistic(self, x: Tensor, group: Tensor | None, draw: Tensor | None) -> Tensor:
        betas = [x.shape[1] ** -0.5] if self.betas is None else self.betas
        return torch.stack(
            [bhep(x, beta, group, unbiased=self.estimator == "u") for beta in betas]
        ).mean()
