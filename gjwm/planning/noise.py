"""Gaussian noise whose spectrum along time falls as 1/f^beta: what sampling planners explore
with.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Generator, Tensor

from gjwm._core import draws


@lru_cache(maxsize=32)
def coloured_covariance(horizon: int, beta: float) -> Tensor:
    """Covariance (H, H) along time of `coloured_noise`: unit variance, power spectrum 1/f^beta.

    The process is taken with period 2H and cut, otherwise the first and the last action would be
    neighbours."""
    with torch.inference_mode(False):  # it is cached: a later call may need it for gradients
        if beta == 0:
            return torch.eye(horizon)
        period = 2 * horizon
        frequency = torch.fft.rfftfreq(period, dtype=torch.float64).clamp(min=1 / period)
        autocovariance = torch.fft.irfft(frequency**-beta, n=period)[:horizon]
        lags = (torch.arange(horizon)[:, None] - torch.arange(horizon)[None]).abs()
        return (autocovariance / autocovariance[0])[lags].float()


@lru_cache(maxsize=32)
def _coloured_factor(horizon: int, beta: float) -> Tensor:
    """Lower-triangular L (H, H) such that L @ white is coloured noise."""
    with torch.inference_mode(False):
        covariance = coloured_covariance(horizon, beta).double()
        return torch.linalg.cholesky(
            covariance + 1e-6 * torch.eye(horizon, dtype=torch.float64)
        ).float()


def coloured_noise(
    shape: tuple[int, ...],
    beta: float,
    *,
    generator: Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Gaussian noise (..., H, A) with unit variance and power spectrum 1/f^beta along H (Pinneri et
    al., 2020).

    beta = 0 is white; 2 drifts like a random walk, which moves a slow system much further with the
    same effort. `gjwm.data.behaviours` has the same in numpy: an episode's actions come from its
    own numpy generator, so that collected data stay the same bit for bit, and are long enough for
    an FFT where plans are short enough for one matrix product."""
    *lead, horizon, action_dim = shape
    if beta == 0 or horizon == 1:
        return draws.normal(shape, generator, device=device)
    # Time comes last while it is mixed: one large matrix product instead of one small one per
    # candidate.
    white = draws.normal((*lead, action_dim, horizon), generator, device=device)
    return (white @ _coloured_factor(horizon, float(beta)).to(device).T).transpose(-1, -2)
