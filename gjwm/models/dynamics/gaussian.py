"""Deterministic and Gaussian latent dynamics on a residual MLP, with or without a memory.

The mean learns from the alignment term together with the encoder. The variance learns by beta-NLL
on detached inputs: a likelihood that reaches the encoder rewards shrinking the latents without
bound, which no bounded discrepancy can stop."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from gjwm._core import distributed
from gjwm.models.dynamics.base import ResidualDynamics
from gjwm.models.dynamics.prediction import FullPrediction, LowRankPrediction, Prediction, beta_nll
from gjwm.models.layers import Spread, mlp


class ResidualMoments(nn.Module):
    """Running second moments of the residuals z' - mean, as an exponential average over training
    batches.

    Args:
        latent_dim: D.
        full: the whole covariance, or its diagonal.
    """

    span = 100  # batches of the average; until that many were seen it is their plain mean

    def __init__(self, latent_dim: int, *, full: bool):
        super().__init__()
        self.full = full
        # N(0, I), the latents' marginal, before anything was seen
        self.register_buffer("moment", torch.eye(latent_dim) if full else torch.ones(latent_dim))
        self.register_buffer("batches", torch.tensor(0.0))

    @torch.no_grad()
    def update(self, residual: Tensor) -> None:
        """Count the residuals (..., D) of one batch, in the moments' own precision also under
        autocast.

        Raises:
            ValueError: for NaN or infinite residuals, which would stay in the average for good.
        """
        rows = residual.reshape(-1, residual.shape[-1]).to(self.moment.dtype)
        bad = rows.numel() - int(rows.isfinite().sum())
        if bad or not len(rows):
            raise ValueError(
                f"the residuals' moments were given {bad} NaN or infinite values in "
                f"{tuple(residual.shape)}; check the encoder's latents."
            )
        with torch.autocast(rows.device.type, enabled=False):
            new = rows.T @ rows / len(rows) if self.full else rows.square().mean(0)
        new = distributed.mean_with_gradient(new)
        self.batches += 1
        self.moment.lerp_(new, 1 / self.batches.clamp(max=self.span))


class DeterministicDynamics(ResidualDynamics):
    """z' = z + f(z, a), reported with the constant variance per dimension that its training
    residuals had.

    What most published latent predictors are; the baseline for every law that depends on (z, a).

    Args:
        latent_dim, action_dim: D, A.
        min_std: floor of the reported standard deviation.
        **mean: of `ResidualDynamics`.
    """

    def __init__(self, latent_dim: int, action_dim: int, *, min_std: float = 0.01, **mean: Any):
        super().__init__(latent_dim, action_dim, **mean)
        self.min_std = min_std
        self.residuals = ResidualMoments(latent_dim, full=False)

    def _law(self, mean: Tensor, z: Tensor, a: Tensor, context: Tensor | None) -> Prediction:
        return Prediction(mean, self.residuals.moment.clamp(min=self.min_std**2).expand_as(mean))

    def _count(self, residual: Tensor) -> None:
        self.residuals.update(residual)


class GaussianDynamics(ResidualDynamics):
    """z' ~ N(z + f(z, a), Sigma): residual MLP for the mean, a separate small MLP for the spread.

    With latents driven to N(0, I) the law of total variance bounds the predictive variance by 1 per
    dimension, hence max_std only slightly above 1.

    Args:
        latent_dim, action_dim: D, A.
        covariance: "diagonal": diag s^2(z, a). "low_rank": diag s^2(z, a) + V(z, a) V(z, a)^T.
            "full": one residual covariance shared by all (z, a), counted over training batches.
        rank: columns of V.
        std_hidden: width of the spread network's two hidden layers.
        min_std, max_std: bounds of s.
        beta: of the beta-NLL that s learns from; the low-rank law learns from its plain likelihood.
        **mean: of `ResidualDynamics`.

    Raises:
        ValueError: for bounds out of order or an unknown covariance.
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        *,
        covariance: str = "diagonal",
        rank: int = 4,
        std_hidden: int = 128,
        min_std: float = 0.01,
        max_std: float = 1.25,
        beta: float = 0.5,
        **mean: Any,
    ):
        if covariance not in ("diagonal", "low_rank", "full"):
            raise ValueError(
                f"covariance must be 'diagonal', 'low_rank' or 'full', got {covariance!r}."
            )
        super().__init__(latent_dim, action_dim, **mean)
        self.covariance, self.beta, self.min_std = covariance, beta, min_std
        self.spread = Spread(min_std, max_std)
        if covariance == "full":
            self.residuals = ResidualMoments(latent_dim, full=True)
        else:
            outputs = latent_dim * (1 + rank) if covariance == "low_rank" else latent_dim
            self.log_std = mlp(
                [latent_dim + action_dim + self.context_dim, std_hidden, std_hidden, outputs]
            )

    def _law(self, mean: Tensor, z: Tensor, a: Tensor, context: Tensor | None) -> Prediction:
        if self.covariance == "full":
            floor = self.min_std**2 * torch.eye(self.latent_dim).to(mean)
            return FullPrediction.of(mean, torch.linalg.cholesky(self.residuals.moment + floor))
        raw = self.log_std(self._joined(z, a, context).detach())
        own = self.spread(raw[..., : self.latent_dim])
        if self.covariance == "diagonal":
            return Prediction(mean, own)
        factor = rearrange(raw[..., self.latent_dim :], "... (d r) -> ... d r", d=self.latent_dim)
        return LowRankPrediction.of(mean, own, 0.1 * factor)

    def _count(self, residual: Tensor) -> None:
        if self.covariance == "full":
            self.residuals.update(residual)

    def _spread_loss(self, law: Prediction, z_next: Tensor) -> Tensor:
        if self.covariance == "diagonal":
            return beta_nll(law, z_next, self.beta)
        return super()._spread_loss(law, z_next)
