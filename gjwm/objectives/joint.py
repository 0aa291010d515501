"""The joint-Gaussian view of (context, target) embeddings: closed-form conditional, likelihood, and
predictive information.

Huang (arXiv 2603.26799) models the joint density of context and target embeddings and predicts with
its conditional.
As a *loss on the embeddings* such a likelihood has a trap: with the batch's own covariance the
Mahalanobis term is the constant D, without gradient, and what remains, 1/2 log det Sigma, rewards
contraction without bound (`joint_gaussian_nll` shows it). Detaching the covariance changes nothing:
the Mahalanobis term then contracts just as well. What survives when the marginals are held fixed,
as D(p(Z) || N(0, I)) does, is minus the mutual information, which no rescaling of the latents
changes: `predictive_information`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gjwm.objectives import distributed


class JointGaussian(NamedTuple):
    """N(mean, covariance) of a pair (context, target), the context's `context_dim` entries
    first.
    """

    mean: Tensor
    covariance: Tensor
    context_dim: int

    @classmethod
    def fit(cls, context: Tensor, target: Tensor, *, ridge: float = 0.0) -> JointGaussian:
        """Maximum likelihood from pairs (N, C), (N, D), plus `ridge` on the diagonal."""
        if (
            context.dim() != 2
            or target.dim() != 2
            or len(context) != len(target)
            or len(context) < 2
        ):
            raise ValueError(
                f"expected at least two pairs (N, C), (N, D), got {tuple(context.shape)} and "
                f"{tuple(target.shape)}."
            )
        pair = torch.cat([context, target], 1)
        centred = pair - pair.mean(0)
        eye = torch.eye(pair.shape[1], dtype=pair.dtype, device=pair.device)
        return cls(pair.mean(0), centred.T @ centred / len(pair) + ridge * eye, context.shape[1])

    def conditional(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """p(target | context): means (..., D) for contexts (..., C), and their common covariance
        (D, D).
        """
        c = self.context_dim
        gain = torch.linalg.solve(self.covariance[:c, :c], self.covariance[:c, c:])  # (C, D)
        mean = self.mean[c:] + (context - self.mean[:c]) @ gain
        return mean, self.covariance[c:, c:] - self.covariance[c:, :c] @ gain

    def mutual_information(self) -> Tensor:
        """-1/2 sum_k log(1 - rho_k^2) nats, rho_k the canonical correlations; unchanged by
        invertible maps of either side.
        """
        c = self.context_dim
        parts = (self.covariance[:c, :c], self.covariance[c:, c:], self.covariance)
        context, target, joint = (torch.linalg.slogdet(s).logabsdet for s in parts)
        return 0.5 * (context + target - joint)


def joint_gaussian_nll(context: Tensor, target: Tensor, law: JointGaussian) -> Tensor:
    """Mean negative log-likelihood of pairs (N, C), (N, D) under `law`, in nats.

    For evaluation, or for fitting the parameters of `law`. Not a loss for embeddings: see the
    module's text."""
    pair = torch.cat([context, target], 1)
    centred = pair - law.mean
    factor = torch.linalg.cholesky(law.covariance)
    whitened = torch.linalg.solve_triangular(factor, centred.T, upper=False)
    mahalanobis = whitened.square().sum(0).mean()
    return (
        0.5 * (mahalanobis + pair.shape[1] * math.log(2 * math.pi)) + factor.diagonal().log().sum()
    )


def predictive_information(
    prediction: Tensor, target: Tensor, *, ridge: float = 1e-3, synchronize: bool = False
) -> Tensor:
    """1/2 [log det S - log det Q] nats: Q the second moment of the errors, S the covariance of the
    targets.

    The joint-Gaussian likelihood with the marginals held fixed, for a predictor of any kind. With
    the closed-form conditional mean for a prediction it is the mutual information; in one dimension
    -1/2 log(1 - R^2). Scaling prediction and target together changes nothing, so there is nothing
    to gain from contraction, and an error of zero is worth at most D/2 log((1 + ridge) / ridge) or
    so.

    Args:
        prediction, target: (N, D).
        ridge: added to both matrices in units of tr S / D.
        synchronize: moments over all processes.
    """
    n = distributed.count(len(target), target.device) if synchronize else len(target)

    def total(x: Tensor) -> Tensor:
        return (distributed.sum_with_gradient(x) if synchronize else x) / n

    prediction, target = prediction.double(), target.double()
    error = target - prediction
    centred = target - total(target.sum(0))
    s, q = total(centred.T @ centred), total(error.T @ error)
    d = target.shape[1]
    floor = ridge * s.trace() / d + torch.finfo(torch.float64).tiny
    eye = torch.eye(d, dtype=torch.float64, device=target.device)
    return 0.5 * (
        torch.linalg.slogdet(s + floor * eye).logabsdet
        - torch.linalg.slogdet(q + floor * eye).logabsdet
    )
