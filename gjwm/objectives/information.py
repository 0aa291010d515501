"""The joint-Gaussian view of (context, target) embeddings: predictive information.

Huang (arXiv 2603.26799) models the joint density of context and target embeddings. As a *loss on
the embeddings* such a likelihood has a trap: with the batch's own covariance the Mahalanobis term
is the constant D, without gradient, and what remains, 1/2 log det Sigma, rewards contraction
without bound. What survives when the marginals are held fixed, as D(p(Z) || N(0, I)) does, is minus
the mutual information, which no rescaling of the latents changes."""

from __future__ import annotations

import torch
from torch import Tensor

from gjwm._core import distributed


def predictive_information(
    prediction: Tensor, target: Tensor, *, ridge: float = 1e-3, synchronize: bool = False
) -> Tensor:
    """1/2 [log det S - log det Q] nats: Q the second moment of the errors, S the covariance of the
    targets.

    With the closed-form conditional mean for a prediction it is the mutual information; in one
    dimension -1/2 log(1 - R^2). An error of zero is worth at most D/2 log((1 + ridge) / ridge) or
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
    # The last two keep log det finite where all targets are equal, or fewer than D errors large.
    floor = ridge * s.trace() / d + 1e-12 * q.trace() / d + 1e-100
    eye = torch.eye(d, dtype=torch.float64, device=target.device)
    return 0.5 * (
        torch.linalg.slogdet(s + floor * eye).logabsdet
        - torch.linalg.slogdet(q + floor * eye).logabsdet
    )
