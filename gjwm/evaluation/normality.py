"""Tests of multivariate normality, and the null law of the Epps-Pulley statistic, in double
precision.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from scipy import stats
from scipy.integrate import trapezoid
from torch import Tensor

from gjwm.objectives import bhep


@cache
def _epps_pulley_eigenvalues(nodes: int = 80) -> np.ndarray:
    """Weights l of the null law sum_k l_k chi^2_1: eigenvalues of the covariance of the empirical
    characteristic function.
    """
    # Gauss-Hermite quadrature for the weight exp(-t^2/2); its nodes are symmetric, so the real
    # part's kernel and the imaginary part's are the even and odd halves of one.
    t, w = np.polynomial.hermite_e.hermegauss(nodes)
    root = np.sqrt(w)
    kernel = np.exp(-((t[:, None] - t) ** 2) / 2) - np.exp(-(t[:, None] ** 2 + t**2) / 2)
    values = np.linalg.eigvalsh(root[:, None] * kernel * root)[::-1]
    return values[values > 1e-10]


def epps_pulley_p_value(statistic: Tensor | float) -> np.ndarray:
    """P(N T >= statistic) for N independent standard normals, N large.

    Up to 10 by inversion of the characteristic function (Imhof, 1961), whose absolute error there
    is about 1e-6. It grows with the statistic, so beyond 10 the leading term of the tail takes over
    (Zolotarev, 1961), prod_{k>1} (1 - l_k / l_1)^-1/2 P(chi^2_1 >= statistic / l_1) for the null
    law sum_k l_k chi^2_1: it is about 5% too small at 10, less beyond."""
    x = np.atleast_1d(np.asarray(statistic, dtype=np.float64))
    weights = _epps_pulley_eigenvalues()
    leading = np.prod((1 - weights[1:] / weights[0]) ** -0.5) * stats.chi2(1).sf(x / weights[0])
    u = np.linspace(1e-6, 400.0, 40_001)
    phase = 0.5 * np.arctan(np.outer(u, weights)).sum(1)
    size = u * np.exp(0.25 * np.log1p(np.outer(u, weights) ** 2).sum(1))
    integrand = np.sin(phase - 0.5 * np.minimum(x, 10)[:, None] * u) / size
    return np.where(
        x > 10, leading, np.clip(0.5 + trapezoid(integrand, u, axis=1) / math.pi, 0.0, 1.0)
    )


def henze_zirkler(z: Tensor) -> dict[str, float]:
    """Henze & Zirkler's (1990) test that z (N, D) is normal with *some* mean and covariance.

    Returns:
        henze_zirkler, N times the BHEP statistic of the data standardised by its own moments;
        henze_zirkler_p by the log-normal approximation of its null law. Where the covariance is
        singular the statistic is 4 N by definition, and p is 0.
    """
    n, d = z.shape
    z = z.double()
    centred = z - z.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / n)
    if n <= d or values[0] <= 1e-12 * values[-1]:
        return {"henze_zirkler": 4.0 * n, "henze_zirkler_p": 0.0}
    beta = ((2 * d + 1) * n / 4) ** (1 / (d + 4)) / math.sqrt(2)
    statistic = n * bhep(centred @ vectors / values.sqrt(), beta).item()
    b = beta * beta
    a, wb = 1 + 2 * b, (1 + b) * (1 + 3 * b)
    mean = 1 - a ** (-d / 2) * (1 + d * b / a + d * (d + 2) * b * b / (2 * a * a))
    variance = (
        2 * (1 + 4 * b) ** (-d / 2)
        + 2 * a**-d * (1 + 2 * d * b * b / a**2 + 3 * d * (d + 2) * b**4 / (4 * a**4))
        - 4 * wb ** (-d / 2) * (1 + 3 * d * b * b / (2 * wb) + d * (d + 2) * b**4 / (2 * wb * wb))
    )
    spread = math.sqrt(math.log(1 + variance / mean**2))
    centre = math.log(mean * mean / math.sqrt(mean * mean + variance))
    return {
        "henze_zirkler": statistic,
        "henze_zirkler_p": float(stats.lognorm(spread, scale=math.exp(centre)).sf(statistic)),
    }


def mardia(z: Tensor, axes: int = 16) -> dict[str, float]:
    """Mardia's (1970) multivariate skewness and kurtosis on the d leading principal axes, with
    asymptotic p-values.

    `mardia_kurtosis` is divided by d (d + 2), its value for a Gaussian, so that 1 is ideal.
    """
    n = len(z)
    centred = z - z.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / n)
    d = min(axes, z.shape[1], n // 4)
    values, vectors = values[-d:], vectors[:, -d:]
    if values[0] < 1e-12:
        # Without variance on an axis there is nothing to standardise: a collapsed batch is not
        # Gaussian.
        names = "skewness", "skewness_p", "kurtosis", "kurtosis_p"
        return {f"mardia_{name}": 0.0 for name in names}
    y = centred @ vectors / values.sqrt()
    gram = y @ y.T
    skewness, kurtosis = gram.pow(3).mean().item(), gram.diagonal().square().mean().item()
    freedom = d * (d + 1) * (d + 2) / 6
    expected = d * (d + 2) * (n - 1) / (n + 1)
    score = (kurtosis - expected) / math.sqrt(8 * d * (d + 2) / n)
    return {
        "mardia_skewness": skewness,
        "mardia_skewness_p": float(stats.chi2(freedom).sf(n * skewness / 6)),
        "mardia_kurtosis": kurtosis / (d * (d + 2)),
        "mardia_kurtosis_p": float(2 * stats.norm.sf(abs(score))),
    }
