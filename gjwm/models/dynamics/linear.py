"""Linear-Gaussian latent dynamics in closed form: the conditional z' | z, a of a joint Gaussian,
without a gradient step.

With x = [z, a, 1] and running second moments S, K = S_yx (S_xx + ridge)^-1 and Q = S_yy - K S_xy:
ridge regression, dynamic mode decomposition with control, and the conditional inference of a joint
Gaussian embedding (Huang, 2026) are the same formula. It is the baseline that a network has to
beat, and a calibration reference with exact propagation over the horizon."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gjwm._core import distributed
from gjwm.models.dynamics.base import Dynamics
from gjwm.models.dynamics.prediction import FullPrediction, Prediction


class LinearGaussianDynamics(Dynamics):
    """z' = F z + G a + c + N(0, Q (1 + x^T P x)), P = (N S_xx + ridge)^-1 for the uncertainty of K
    = [F G c] itself.

    `update` counts data and `fit` solves for the parameters; before any data the law is N(0, I),
    the latents' marginal. In a world model's training the moments follow the moving encoder with
    exponential forgetting, and `fit` runs at each step.

    Args:
        latent_dim, action_dim: D, A.
        ridge: added to the mean squares of x in the solve, in units of x's.
        shrinkage: pulls Q towards its own diagonal, 0..1.
        forget: weight kept by old data at each training batch; 1 never forgets. `update` alone
            forgets nothing.
        min_std: floor of the noise's standard deviation.

    Raises:
        ValueError: for an argument out of its range.
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        *,
        ridge: float = 1e-6,
        shrinkage: float = 0.0,
        forget: float = 0.99,
        min_std: float = 1e-3,
    ):
        super().__init__(latent_dim, action_dim)
        if ridge < 0 or not 0 <= shrinkage <= 1 or not 0 < forget <= 1:
            raise ValueError(
                f"expected ridge >= 0, shrinkage in [0, 1] and forget in (0, 1], got {ridge}, "
                f"{shrinkage} and {forget}."
            )
        self.ridge, self.shrinkage, self.forget, self.min_std = ridge, shrinkage, forget, min_std
        x, d = latent_dim + action_dim + 1, latent_dim
        # Sums, in double precision: covariances are differences of large numbers.
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("sum_xx", torch.zeros(x, x, dtype=torch.float64))
        self.register_buffer("sum_yx", torch.zeros(d, x, dtype=torch.float64))
        self.register_buffer("sum_yy", torch.zeros(d, d, dtype=torch.float64))
        self.register_buffer("gain", torch.zeros(d, x))  # K = [F G c]
        self.register_buffer("Q", torch.eye(d))  # noise covariance
        self.register_buffer("noise_tril", torch.eye(d))  # its Cholesky factor
        self.register_buffer("precision_inverse", torch.zeros(x, x))  # P

    @property
    def F(self) -> Tensor:
        """(D, D) of z."""
        return self.gain[:, : self.latent_dim]

    @property
    def G(self) -> Tensor:
        """(D, A) of a."""
        return self.gain[:, self.latent_dim : -1]

    def _features(self, z: Tensor, a: Tensor) -> Tensor:
        return torch.cat([z, a, torch.ones_like(z[..., :1])], -1)

    @torch.no_grad()
    def update(self, z: Tensor, a: Tensor, z_next: Tensor, *, keep: float = 1.0) -> None:
        """Count transitions z (..., D), a (..., A) -> z_next (..., D); older data keep the share
        `keep` of their weight.

        Raises:
            ValueError: for shapes that do not fit, or NaN.
        """
        self._check(z, a)
        if z_next.shape != z.shape or z.shape[:-1] != a.shape[:-1]:
            raise ValueError(
                f"expected as many latents, actions and next latents, got {tuple(z.shape)}, "
                f"{tuple(a.shape)} and {tuple(z_next.shape)}."
            )
        x = self._features(z, a).reshape(-1, self.gain.shape[1]).double()
        y = z_next.reshape(-1, self.latent_dim).double()
        if not (x.isfinite().all() and y.isfinite().all()):
            raise ValueError("the moments were given NaN or infinity; check the encoder's latents.")
        totals = (self.count, self.sum_xx, self.sum_yx, self.sum_yy)
        for total, new in zip(totals, (self.count.new_tensor(len(x)), x.T @ x, y.T @ x, y.T @ y)):
            if distributed.world_size() > 1:
                new = distributed.sum_(new)
            total.mul_(keep).add_(new)

    @torch.no_grad()
    def fit(self) -> LinearGaussianDynamics:
        """Solve for F, G, c, Q and their uncertainty from the counted moments.

        Raises:
            ValueError: before any data, and for data that do not determine K where ridge is 0.
        """
        if self.count == 0:
            raise ValueError(
                "a linear-Gaussian model was fitted without data; call update(z, a, z_next) first."
            )
        n = self.count
        scale = (self.sum_xx / n).diagonal()
        regular = self.sum_xx + n * self.ridge * torch.diag(scale.clamp(min=1e-12))
        factor, failed = torch.linalg.cholesky_ex(regular)
        # A pivot is the share of a feature's square that those before it do not explain; rounding
        # alone leaves this much.
        lost = len(scale) * n.clamp(min=1) ** 0.5 * torch.finfo(torch.float64).eps
        if failed or (factor.diagonal().square() <= lost * regular.diagonal()).any():
            raise ValueError(
                f"{int(n)} transitions with ridge={self.ridge} do not determine the {len(scale)} "
                "columns of K: some latents or actions are constant or linearly dependent; use "
                "ridge > 0."
            )
        inverse = torch.cholesky_inverse(factor)
        gain = self.sum_yx @ inverse
        # The residuals' own sum of squares, right also when ridge moves K off the least-squares
        # solution.
        residual = (
            self.sum_yy - gain @ self.sum_yx.T - self.sum_yx @ gain.T + gain @ self.sum_xx @ gain.T
        )
        # unbiased: K took len(x) degrees of freedom
        noise = residual / (n - len(scale)).clamp(min=1.0)
        noise = (1 - self.shrinkage) * noise + self.shrinkage * torch.diag(noise.diagonal())
        noise = (noise + noise.T) / 2 + self.min_std**2 * torch.eye(
            len(noise), dtype=noise.dtype, device=noise.device
        )
        # New tensors, not new values: a training step's graph may still hold the old ones.
        self.gain, self.Q = gain.to(self.gain.dtype), noise.to(self.Q.dtype)
        self.noise_tril = torch.linalg.cholesky(noise).to(self.noise_tril.dtype)
        self.precision_inverse = inverse.to(self.precision_inverse.dtype)
        return self

    def _inputs(self, a: Tensor) -> Tensor:
        return a @ self.G.T + self.gain[:, -1]

    def _step(self, z: Tensor, inputs: Tensor, context: Tensor | None) -> Tensor:
        return z @ self.F.T + inputs

    def _law(self, mean: Tensor, z: Tensor, a: Tensor, context: Tensor | None) -> FullPrediction:
        x = self._features(z, a).detach()
        inflation = 1 + ((x @ self.precision_inverse) * x).sum(-1)
        return FullPrediction.of(mean, self.noise_tril * inflation.sqrt()[..., None, None])

    def forecast(self, z0: Tensor, a: Tensor, **particles: Any) -> Prediction:
        """Exact moments of z_1 .. z_H: z0 (B, D), a (B, H, A) -> law of (B, H, D); no particles are
        drawn.

        m' = F m + G a + c and S' = F S F^T + Q (1 + x^T P x + tr(P_zz S)): the parameters'
        uncertainty counts as fresh noise at each step, which is exact at the first."""
        self._check_rollout(z0, a, None)
        d, inputs = self.latent_dim, self._inputs(a)
        mean, covariance = z0, z0.new_zeros(z0.shape[0], d, d)
        means, factors = [], []
        for h in range(a.shape[1]):
            x = self._features(mean, a[:, h])
            inflation = 1 + ((x @ self.precision_inverse) * x).sum(-1)
            inflation = inflation + (self.precision_inverse[:d, :d] * covariance).sum((-2, -1))
            covariance = self.F @ covariance @ self.F.T + self.Q * inflation[:, None, None]
            mean = self._step(mean, inputs[:, h], None)
            means.append(mean)
            factors.append(torch.linalg.cholesky((covariance + covariance.mT) / 2))
        return FullPrediction.of(torch.stack(means, 1), torch.stack(factors, 1))

    def nll(self, z: Tensor, a: Tensor, z_next: Tensor) -> Tensor:
        """Counts the window and refits (in training mode): nats per dimension, without a graph."""
        with torch.no_grad():
            z, z_next = z.detach(), z_next.detach()
            if self.training:
                self.update(z, a, z_next, keep=self.forget)
                self.fit()
            return -self.predict(z, a).log_prob(z_next).mean() / self.latent_dim
