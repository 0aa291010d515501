"""Discrepancies that see the first two moments only: the Kullback-Leibler divergence of the fitted
Gaussian, and VICReg.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from gjwm._core import distributed
from gjwm.objectives.base import Discrepancy


def moments(x: Tensor, n: int, *, synchronize: bool = False) -> tuple[Tensor, Tensor]:
    """Mean (D,) and scatter sum (x - mean)(x - mean)^T (D, D) of n samples, of which x (., D) are
    here; the others are other processes'.
    """
    total = x.sum(0)
    mean = (distributed.sum_with_gradient(total) if synchronize else total) / n
    centred = x - mean
    scatter = centred.T @ centred
    return mean, distributed.sum_with_gradient(scatter) if synchronize else scatter


class _Moments(Discrepancy):
    """Sums over laws of a function of (n, mean, scatter). Processes add moments instead of
    gathering samples.
    """

    times = ("per_step", "pooled")

    def _discrepancy(
        self, z: Tensor, mask: Tensor | None, clusters: Tensor | None, generator: Generator | None
    ) -> Tensor:
        values = [
            self._of_moments(n, *moments(x, n, synchronize=self.synchronize))
            for x, n in self._laws(z, mask, self.synchronize)
        ]
        return torch.stack(values).mean()

    def _of_moments(self, n: int, mean: Tensor, scatter: Tensor) -> Tensor:
        raise NotImplementedError


class GaussianKL(_Moments):
    """KL(N(m, S) || N(0, I)) = 1/2 [tr S + |m|^2 - D - log det S] in nats, for the batch's mean m
    and shrunk covariance S.

    Two moments only. A direction that has collapsed costs (a - 1 - log a) / 2 nats for a shrinkage
    a: 1.02 for the default, and without bound only for a = 0. Near collapse its gradient vanishes
    for every a > 0. A finite Gaussian batch has about D (D + 3) / (4 N) nats.

    Args:
        shrinkage: a of S = (1 - a) S_N + a I, S_N the maximum-likelihood covariance. Without it (0)
            N > D is needed.
        per_dimension: divide by D, so that one weight serves several dimensions.
        time: "pooled" or "per_step".
        **common: target and distributed of `Discrepancy`.
    """

    def __init__(
        self,
        *,
        shrinkage: float = 0.05,
        per_dimension: bool = False,
        time: str = "pooled",
        **common: Any,
    ):
        super().__init__(time=time, **common)
        if not 0 <= shrinkage < 1:
            raise ValueError(f"GaussianKL's shrinkage must be in [0, 1), got {shrinkage}.")
        self.shrinkage, self.per_dimension = shrinkage, per_dimension

    def _of_moments(self, n: int, mean: Tensor, scatter: Tensor) -> Tensor:
        d = len(mean)
        eye = torch.eye(d, dtype=torch.float64, device=mean.device)
        covariance = (1 - self.shrinkage) * scatter.double() / n + self.shrinkage * eye
        # float32 overflowed in the sums: one error for that, not "singular"
        if not covariance.isfinite().all():
            return mean.new_tensor(torch.inf)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed:
            raise ValueError(
                f"GaussianKL met a singular covariance ({n} samples in {d} dimensions, shrinkage "
                f"{self.shrinkage}); use shrinkage > 0 or more samples."
            )
        log_det = 2 * factor.diagonal().log().sum()
        kl = 0.5 * (covariance.trace() + mean.double().square().sum() - d - log_det)
        return (kl / d if self.per_dimension else kl).to(mean.dtype)


class VICReg(_Moments):
    """Variance and covariance terms of VICReg (Bardes et al., 2022): the first two moments only, no
    mean, no shape.

    D = std_weight * mean_j max(0, 1 - sqrt(S_jj + 1e-4)) + cov_weight * (1/D) sum_{i != j} S_ij^2,
    S the covariance of all samples. The default ratio 25 : 1 is the paper's.

    Args:
        std_weight, cov_weight: see the formula.
        time: "pooled" or "per_step".
        **common: target and distributed of `Discrepancy`.
    """

    def __init__(
        self,
        *,
        std_weight: float = 1.0,
        cov_weight: float = 0.04,
        time: str = "pooled",
        **common: Any,
    ):
        super().__init__(time=time, **common)
        self.std_weight, self.cov_weight = std_weight, cov_weight

    def _of_moments(self, n: int, mean: Tensor, scatter: Tensor) -> Tensor:
        covariance, d = scatter / (n - 1), len(mean)
        variance = covariance.diagonal()
        std = (1.0 - (variance + 1e-4).sqrt()).clamp(min=0).mean()
        off_diagonal = (covariance.square().sum() - variance.square().sum()) / d
        return self.std_weight * std + self.cov_weight * off_diagonal
