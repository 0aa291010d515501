"""What the arms of the study do to latents h (M, B, T, D): a norm, then a discrepancy at weight λ.

Arms that share the whitening share the second moments of all rows of a batch, up to a floor; those
of one step of its windows they share only on average. What then differs is shape, and what judging
it costs. One statistic judges all shapes: the squared distance of the empirical characteristic
function of one-dimensional slices from that of a law with independent coordinates of mean 0 and
variance 1. For the Gaussian it is the sliced Epps-Pulley statistic of SIGReg, axes among the
slices. In 16 dimensions all three laws are nearly Gaussian along random slices, and differ along
the axes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LAMBDAS = (0.05, 0.5, 5.0, 50.0, 500.0)  # four decades
KNOTS, T_MAX = 9, 4.0


@dataclass(frozen=True)
class Arm:
    """One cell: what is done to latents, and what is added to the alignment.

    norm: "whiten" (exactly, by the batch), "batch" (BatchNorm without scale), "none".
    discrepancy: None, "shape" (the statistic above), "wasserstein" (sliced, to the Gaussian),
        "moments" (squared distance of mean and covariance from 0 and I), "kl" (of the Gaussian
        with the batch's moments from N(0, I), no shrinkage).
    law: what "shape" pulls to: "gaussian", "uniform", "laplace", "mixture" (see `characteristic`),
        or "independent": the product of the latents' own marginal laws, so that no law is asked
        for, but that they be independent.
    time: "step" (the law of each step of the windows), "pooled" (all steps as one sample),
        "cluster" (pooled, pairs of one window left out; "shape" only).
    target: "same" (alignment to the encoder's own latents, gradient through both), "ema" (to those
        of a slow copy, no gradient)."""

    name: str
    norm: str = "whiten"
    discrepancy: str | None = None
    law: str = "gaussian"
    lam: float = 0.0
    time: str = "step"
    target: str = "same"


def shape_arms() -> list[Arm]:
    """The arms of the main question: 33."""
    arms = [Arm("moments"), Arm("batch norm", norm="batch"), Arm("nothing", norm="none")]
    for lam in LAMBDAS:
        arms += [
            Arm("gaussian (SIGReg)", discrepancy="shape", lam=lam),
            Arm("gaussian (Wasserstein)", discrepancy="wasserstein", lam=lam),
            Arm("uniform", discrepancy="shape", law="uniform", lam=lam),
            Arm("laplace", discrepancy="shape", law="laplace", lam=lam),
            Arm("mixture", discrepancy="shape", law="mixture", lam=lam),
            Arm("independent", discrepancy="shape", law="independent", lam=lam),
        ]
    return arms


COLLAPSE_LAMBDA = {"shape": 5.0, "moments": 1.0, "kl": 0.1}


def collapse_arms() -> list[Arm]:
    """What prevents collapse: norms x laws in time x discrepancies, and a slow copy."""
    arms = []
    for norm in ("batch", "none"):
        arms.append(Arm("none", norm=norm))
        arms.append(Arm("ema", norm=norm, target="ema"))
        for discrepancy, lam in COLLAPSE_LAMBDA.items():
            times = ("cluster", "pooled", "step") if discrepancy == "shape" else ("pooled", "step")
            arms += [Arm(discrepancy, norm, discrepancy, lam=lam, time=time) for time in times]
    return arms


def covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Samples (..., N, D) -> mean (..., 1, D), covariance (..., D, D)."""
    mean = x.mean(-2, keepdim=True)
    centred = x - mean
    return mean, centred.mT @ centred / x.shape[-2]


def whitening(x: Tensor, floor: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Mean (..., 1, D) and W (..., D, D) such that (x - mean) @ W has covariance I, from samples
    (..., N, D). `floor`, a share of the mean variance, is added to every variance."""
    mean, cov = covariance(x)
    size = cov.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    root, _ = torch.linalg.cholesky_ex(cov + (floor * size + 1e-12) * eye)
    return mean, torch.linalg.solve_triangular(root, eye.expand_as(cov), upper=False).mT


def normalised(h: Tensor, norm: str) -> Tensor:
    """Latents (M, N, D) -> the same by their own statistics."""
    if norm == "none":
        return h
    if norm == "batch":
        return (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    mean, transform = whitening(h)
    return (h - mean) @ transform


def directions(dim: int, generator: torch.Generator) -> Tensor:
    """Slices (D, 3 D): the D axes, on which a product law shows its shape most, and 2 D random."""
    device = generator.device
    random = torch.randn(dim, 2 * dim, generator=generator, device=device)
    return torch.cat([torch.eye(dim, device=device), random / random.norm(dim=0)], 1)


def characteristic(law: str, slices: Tensor, t: Tensor) -> Tensor:
    """Of slices (D, S) of a law at knots (K,) -> (S, K), real. All but "mixture" are products of
    equal laws of the coordinates."""
    x = slices[..., None] * t
    if law == "gaussian":
        return torch.exp(-x.square().sum(0) / 2)
    if law == "uniform":  # on [-sqrt 3, sqrt 3]
        return torch.sinc(math.sqrt(3) * x / math.pi).prod(0)
    if law == "mixture":  # N(0, 0.1 I) or N(0, 1.9 I): uncorrelated, but large or small together
        square = x.square().sum(0)
        return (torch.exp(-0.05 * square) + torch.exp(-0.95 * square)) / 2
    return (1 / (1 + x.square() / 2)).prod(0)  # Laplace


def own_product(z: Tensor, slices: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The characteristic function, along slices (D, S) at knots (K,), of the law whose coordinates
    are independent and have the marginals of the samples (..., N, D) -> real and imaginary part
    (..., S, K)."""
    angles = (z[..., None] * slices)[..., None] * t  # (..., N, D, S, K)
    product = torch.complex(angles.cos().mean(-4), angles.sin().mean(-4)).prod(-3)
    return product.real, product.imag


def shape_statistic(z: Tensor, slices: Tensor, law: str, cluster: bool = False) -> Tensor:
    """Samples (..., N, D), or windows (..., B, T, D) with `cluster` -> (...): the mean over slices
    of the integral of |phi_N - phi|^2 exp(-t^2 / 2).

    Unbiased (0 where the law is met) for independent rows with moments of their own. Rows whitened
    by n of their kind fall short: Gaussian ones give -0.72 / n. "independent" has the bias of
    means, some 0.5 / n at D = 16."""
    t = torch.linspace(0, T_MAX, KNOTS, device=z.device)
    weight = 2 * (t[1] - t[0]) * torch.exp(-t.square() / 2)
    weight[0] /= 2
    angles = (z @ slices)[..., None] * t
    cos, sin = angles.cos(), angles.sin()  # (..., [B,] N, S, K)
    if law == "independent":
        real, imag = own_product(z, slices, t)
        square = (cos.mean(-3) - real).square() + (sin.mean(-3) - imag).square()
        return (square * weight).sum(-1).mean(-1)
    goal = characteristic(law, slices, t)
    if cluster:
        windows, steps = z.shape[-3], z.shape[-2]
        cos, sin = cos.sum(-3), sin.sum(-3)  # of each window
        own = (cos.square() + sin.square()).sum(-3)
        total = cos.sum(-3)
        square = (total.square() + sin.sum(-3).square() - own) / (
            windows * (windows - 1) * steps**2
        )
        mean = total / (windows * steps)
    else:
        n = z.shape[-2]
        mean = cos.mean(-3)
        square = (n * (mean.square() + sin.mean(-3).square()) - 1) / (n - 1)
    return ((square - 2 * mean * goal + goal.square()) * weight).sum(-1).mean(-1)


def wasserstein_statistic(z: Tensor, slices: Tensor) -> Tensor:
    """Samples (..., N, D) -> (...): squared 2-Wasserstein distance of slices from N(0, 1)."""
    n = z.shape[-2]
    at = (torch.arange(n, device=z.device) + 0.5) / n
    quantiles = math.sqrt(2) * torch.erfinv(2 * at - 1)
    ordered = (z @ slices).sort(dim=-2).values
    return (ordered - quantiles[:, None]).square().mean((-2, -1))


def moments_statistic(z: Tensor) -> Tensor:
    """Samples (..., N, D) -> (...): |mean|^2 + |covariance - I|^2, each over D."""
    mean, cov = covariance(z)
    eye = torch.eye(z.shape[-1], device=z.device)
    return mean.square().mean((-2, -1)) + (cov - eye).square().sum((-2, -1)) / z.shape[-1]


def kl_statistic(z: Tensor) -> Tensor:
    """Samples (..., N, D) -> (...): KL(N(mean, covariance) || N(0, I)) / D."""
    mean, cov = covariance(z)
    dim = z.shape[-1]
    eye = torch.eye(dim, device=z.device)
    root, _ = torch.linalg.cholesky_ex(cov + 1e-7 * eye)
    logdet = 2 * root.diagonal(dim1=-2, dim2=-1).clamp_min(1e-20).log().sum(-1)
    trace = cov.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (trace + mean.square().sum((-2, -1)) - dim - logdet) / (2 * dim)


def penalty(z: Tensor, arm: Arm, slices: Tensor) -> Tensor:
    """Latents (M, B, T, D) of models of one kind of arm -> (M,), without λ."""
    if arm.discrepancy is None:
        return z.new_zeros(len(z))
    if arm.time == "cluster":
        return shape_statistic(z, slices, arm.law, cluster=True)
    x = z.flatten(1, 2)[:, None] if arm.time == "pooled" else z.transpose(1, 2)
    if arm.discrepancy == "shape":
        if (
            arm.law == "independent"
        ):  # along an axis there is nothing to judge; 8 keep it affordable
            slices = slices[:, z.shape[-1] :][:, :8]
        value = shape_statistic(x, slices, arm.law)
    elif arm.discrepancy == "wasserstein":
        value = wasserstein_statistic(x, slices)
    else:
        value = {"moments": moments_statistic, "kl": kl_statistic}[arm.discrepancy](x)
    return value.mean(1)
