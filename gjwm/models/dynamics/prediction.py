"""Laws of the next latent: one interface from a diagonal Gaussian to a mixture.

Every law has a mean and a variance per dimension, samples, and answers how well a latent agrees
with it. Recalibration changes laws in two ways. `tempered(s)` widens or narrows by one factor: the
law of mean + s (x - mean), or the same about each branch of a mixture. `tailed(r)` keeps the
variance and gives heavier tails: some draws deviate r times as far as the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Generator, Tensor

from gjwm._core import draws

LOG_TWO_PI = math.log(2 * math.pi)
HARD = 0.1  # share of draws that deviate further in a law with tails


def normal_cdf(u: Tensor) -> Tensor:
    """P(N(0, 1) <= u), elementwise."""
    return 0.5 * torch.erfc(-u / math.sqrt(2))


def _expected_distance(gap: Tensor, std: Tensor) -> Tensor:
    """E |N(gap, std^2)| = 2 s phi(m/s) + m (2 Phi(m/s) - 1), elementwise."""
    u = gap / std
    return std * math.sqrt(2 / math.pi) * torch.exp(-u.square() / 2) + gap * torch.erf(
        u / math.sqrt(2)
    )


def gaussian_crps(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """CRPS of N(mean, std^2) in the target's units, elementwise.

    E|x - y| - E|x - x'|/2 = s [u (2 Phi(u) - 1) + 2 phi(u) - 1/sqrt(pi)], u = (y - m)/s (Gneiting &
    Raftery, 2007)."""
    return _expected_distance(target - mean, std) - std / math.sqrt(math.pi)


def _noise(like: Tensor, generator: Generator | None, shape: Any = None) -> Tensor:
    shape = like.shape if shape is None else shape
    return draws.normal(shape, generator, device=like.device, dtype=like.dtype)


@dataclass(frozen=True)
class Prediction:
    """A diagonal Gaussian over the next latent: mean and variance, each (..., D)."""

    mean: Tensor
    variance: Tensor

    def sample(self, generator: Generator | None = None) -> Tensor:
        """One draw, (..., D)."""
        return self.mean + self.variance.sqrt() * _noise(self.mean, generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, of all D dimensions together: (..., D) -> (...)."""
        squared = (z - self.mean).square() / self.variance
        return -0.5 * (squared + self.variance.log() + LOG_TWO_PI).sum(-1)

    def cdf(self, z: Tensor) -> Tensor:
        """P(x_d <= z_d) of each dimension's marginal: (..., D) -> (..., D), uniform if z follows
        this law.
        """
        return normal_cdf((z - self.mean) / self.variance.sqrt())

    def crps(self, z: Tensor) -> Tensor:
        """Continuous ranked probability score of each dimension's marginal, in z's units: (..., D)
        -> (..., D).
        """
        return gaussian_crps(self.mean, self.variance.sqrt(), z)

    def mahalanobis(self, z: Tensor) -> Tensor:
        """(z - mean)^T Cov^-1 (z - mean): (..., D) -> (...); chi^2 with D degrees of freedom if the
        law is Gaussian and true."""
        return ((z - self.mean).square() / self.variance).sum(-1)

    def tempered(self, scale: float | Tensor) -> Prediction:
        """The law of mean + scale (x - mean); scale broadcasts against (..., D)."""
        return replace(self, variance=self.variance * _squared(scale))

    def tailed(self, ratio: float) -> Prediction:
        """Mean and variance as before, and heavier tails: a tenth (`HARD`) of the draws deviate
        `ratio` times as far from the mean as the others, in all dimensions together. 1 changes
        nothing.

        Tukey's contaminated normal: errors of a model are larger in some states than it knows.

        Raises:
            ValueError: for a ratio below 1, or of a law that has tails already.
        """
        if _scales(ratio) is None:
            return self
        return TailedPrediction(self.mean, self.variance, self, ratio)

    def map(self, change: Callable[[Tensor], Tensor]) -> Prediction:
        """The same law with `change` applied to each of its tensors, such as one that reshapes
        leading axes.
        """
        return replace(self, **{f.name: change(getattr(self, f.name)) for f in fields(self)})

    @staticmethod
    def concatenated(laws: Sequence[Any]) -> Any:
        """Laws of one kind and (B_i, ..., D) as one law of (sum B_i, ..., D)."""
        first = laws[0]
        return replace(
            first,
            **{f.name: torch.cat([getattr(law, f.name) for law in laws]) for f in fields(first)},
        )

    def to(self, *args: Any) -> Prediction:
        """The same law on another device or in another dtype, without a graph."""
        return self.map(lambda x: x.detach().to(*args))

    def __getitem__(self, index: Any) -> Prediction:
        """The law at some of the leading axes' indices; D must not be indexed."""
        return self.map(lambda x: x[index])


def _squared(scale: float | Tensor) -> float | Tensor:
    return scale * scale


def _along(scale: float | Tensor, axis: int) -> float | Tensor:
    """`scale`, which broadcasts against (..., D), with one more axis to broadcast along."""
    return scale.unsqueeze(axis) if isinstance(scale, Tensor) and scale.dim() else scale


def _scales(ratio: float) -> tuple[tuple[float, float], ...] | None:
    """(share, scale) of ordinary and of hard draws, with mean squared scale 1; None for a ratio of
    1.
    """
    if not ratio >= 1:
        raise ValueError(
            f"hard draws deviate at least as far as others: expected a ratio >= 1, got {ratio}."
        )
    if ratio == 1:
        return None
    unit = math.sqrt(1 - HARD + HARD * ratio * ratio)
    return (1 - HARD, 1 / unit), (HARD, ratio / unit)


@dataclass(frozen=True)
class TailedPrediction(Prediction):
    """A Gaussian law with the tails of `Prediction.tailed`: a mixture of two of its temperings,
    with the same covariance.
    """

    base: Prediction
    ratio: float

    def _parts(self) -> tuple[tuple[float, float], ...]:
        return _scales(self.ratio)

    def sample(self, generator: Generator | None = None) -> Tensor:
        draw = self.base.sample(generator)
        hard = draws.uniform(draw.shape[:-1], generator, device=draw.device)[..., None] < HARD
        (_, ordinary), (_, further) = self._parts()
        return self.mean + torch.where(hard, further, ordinary) * (draw - self.mean)

    def log_prob(self, z: Tensor) -> Tensor:
        # N(mean, s^2 Cov) at z is N(mean, Cov) at mean + (z - mean) / s, divided by s^D.
        parts = [
            self.base.log_prob(self.mean + (z - self.mean) / s)
            + math.log(w)
            - z.shape[-1] * math.log(s)
            for w, s in self._parts()
        ]
        return torch.stack(parts).logsumexp(0)

    def cdf(self, z: Tensor) -> Tensor:
        u = (z - self.mean) / self.variance.sqrt()
        return sum(w * normal_cdf(u / s) for w, s in self._parts())

    def crps(self, z: Tensor) -> Tensor:
        std, parts = self.variance.sqrt(), self._parts()
        to_target = sum(w * _expected_distance(z - self.mean, s * std) for w, s in parts)
        # of E|x - x'| in 2 std / sqrt(2 pi)
        spread = sum(v * w * math.hypot(r, s) for v, r in parts for w, s in parts)
        return to_target - spread * std / math.sqrt(2 * math.pi)

    def mahalanobis(self, z: Tensor) -> Tensor:
        return self.base.mahalanobis(z)

    def tempered(self, scale: float | Tensor) -> Prediction:
        return self.base.tempered(scale).tailed(self.ratio)

    def tailed(self, ratio: float) -> Prediction:
        if _scales(ratio) is not None:
            raise ValueError(
                f"this law has tails already, of ratio {self.ratio}; got another of {ratio}."
            )
        return self

    def map(self, change: Callable[[Tensor], Tensor]) -> Prediction:
        return self.base.map(change).tailed(self.ratio)

    @staticmethod
    def concatenated(laws: Sequence[TailedPrediction]) -> Prediction:
        return laws[0].base.concatenated([law.base for law in laws]).tailed(laws[0].ratio)


@dataclass(frozen=True)
class FullPrediction(Prediction):
    """N(mean, L L^T), L lower triangular (..., D, D); `variance` is the diagonal of L L^T."""

    scale_tril: Tensor

    @classmethod
    def of(cls, mean: Tensor, scale_tril: Tensor) -> FullPrediction:
        """From a mean (..., D) and a Cholesky factor (..., D, D) that broadcasts against it."""
        scale_tril = scale_tril.expand(*mean.shape, mean.shape[-1])
        return cls(mean, scale_tril.square().sum(-1), scale_tril)

    def sample(self, generator: Generator | None = None) -> Tensor:
        return self.mean + (self.scale_tril @ _noise(self.mean, generator)[..., None])[..., 0]

    def log_prob(self, z: Tensor) -> Tensor:
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (self.mahalanobis(z) + LOG_TWO_PI * z.shape[-1]) - log_det

    def mahalanobis(self, z: Tensor) -> Tensor:
        whitened = torch.linalg.solve_triangular(
            self.scale_tril, (z - self.mean)[..., None], upper=False
        )
        return whitened[..., 0].square().sum(-1)

    def tempered(self, scale: float | Tensor) -> FullPrediction:
        return replace(
            self,
            variance=self.variance * _squared(scale),
            scale_tril=self.scale_tril * _along(scale, -1),
        )


@dataclass(frozen=True)
class LowRankPrediction(Prediction):
    """N(mean, diag(own) + V V^T), V (..., D, r): `variance` is the covariance's diagonal. O(D r^2)
    through Woodbury.
    """

    own: Tensor
    factor: Tensor

    @classmethod
    def of(cls, mean: Tensor, own: Tensor, factor: Tensor) -> LowRankPrediction:
        """From a mean (..., D), the dimensions' own variances (..., D) and shared factors (..., D,
        r).
        """
        return cls(mean, own + factor.square().sum(-1), own, factor)

    def sample(self, generator: Generator | None = None) -> Tensor:
        shared = _noise(self.mean, generator, (*self.mean.shape[:-1], self.factor.shape[-1], 1))
        own = self.own.sqrt() * _noise(self.mean, generator)
        return self.mean + own + (self.factor @ shared)[..., 0]

    def log_prob(self, z: Tensor) -> Tensor:
        law = torch.distributions.LowRankMultivariateNormal(
            self.mean, self.factor, self.own, validate_args=False
        )
        return law.log_prob(z)

    def mahalanobis(self, z: Tensor) -> Tensor:
        return _low_rank_mahalanobis(z - self.mean, self.own, self.factor)

    def tempered(self, scale: float | Tensor) -> LowRankPrediction:
        square = _squared(scale)
        return replace(
            self,
            variance=self.variance * square,
            own=self.own * square,
            factor=self.factor * _along(scale, -1),
        )


def _low_rank_mahalanobis(x: Tensor, own: Tensor, factor: Tensor) -> Tensor:
    """x^T (diag(own) + V V^T)^-1 x by Woodbury: x (..., D), V (..., D, r) -> (...)."""
    weighted = factor / own[..., None]
    core = torch.eye(factor.shape[-1], dtype=x.dtype, device=x.device) + factor.mT @ weighted
    projected = (weighted.mT @ x[..., None])[..., 0]
    return (x.square() / own).sum(-1) - (projected * torch.linalg.solve(core, projected)).sum(-1)


@dataclass(frozen=True)
class MixturePrediction(Prediction):
    """sum_k w_k N(m_k, diag s_k^2): log weights (..., K), means and variances of the components
    (..., K, D).

    `mean` and `variance` are the mixture's own; `within` and `between` are the two parts of its
    variance."""

    log_weights: Tensor
    means: Tensor
    variances: Tensor

    @classmethod
    def of(cls, log_weights: Tensor, means: Tensor, variances: Tensor) -> MixturePrediction:
        """From normalised log weights (..., K) and components (..., K, D)."""
        w = log_weights.exp()[..., None]
        mean = (w * means).sum(-2)
        variance = (w * (variances + (means - mean[..., None, :]).square())).sum(-2)
        return cls(mean, variance, log_weights, means, variances)

    @property
    def within(self) -> Tensor:
        """sum_k w_k s_k^2, (..., D)."""
        return (self.log_weights.exp()[..., None] * self.variances).sum(-2)

    @property
    def between(self) -> Tensor:
        """sum_k w_k (m_k - mean)^2, (..., D)."""
        squared = (self.means - self.mean[..., None, :]).square()
        return (self.log_weights.exp()[..., None] * squared).sum(-2)

    def draw_component(self, generator: Generator | None = None) -> Prediction:
        """One component, drawn by its weight: a Gaussian law of (..., D)."""
        # Gumbel's trick: one argmax instead of a multinomial, over any leading axes.
        like = self.mean
        shape = self.log_weights.shape
        uniform = draws.uniform(shape, generator, device=like.device, dtype=like.dtype)
        tiny = torch.finfo(uniform.dtype).tiny
        k = (self.log_weights - (-(uniform.clamp(min=tiny)).log()).clamp(min=tiny).log()).argmax(-1)
        k = k[..., None, None].expand(*self.mean.shape[:-1], 1, self.mean.shape[-1])
        return Prediction(
            self.means.gather(-2, k)[..., 0, :], self.variances.gather(-2, k)[..., 0, :]
        )

    def sample(self, generator: Generator | None = None) -> Tensor:
        return self.draw_component(generator).sample(generator)

    def log_prob(self, z: Tensor) -> Tensor:
        components = Prediction(self.means, self.variances).log_prob(z[..., None, :])  # (..., K)
        return (self.log_weights + components).logsumexp(-1)

    def cdf(self, z: Tensor) -> Tensor:
        below = normal_cdf((z[..., None, :] - self.means) / self.variances.sqrt())
        return (self.log_weights.exp()[..., None] * below).sum(-2)

    def crps(self, z: Tensor) -> Tensor:
        """Closed form of Grimit et al. (2006); O(K^2 D)."""
        w = self.log_weights.exp()[..., None]
        distance = _expected_distance(z[..., None, :] - self.means, self.variances.sqrt())
        to_target = (w * distance).sum(-2)
        spread = torch.zeros_like(to_target)
        # One component against all: K^2 at once would not fit memory for many particles.
        for k in range(w.shape[-2]):
            gap = self.means[..., k : k + 1, :] - self.means
            std = (self.variances[..., k : k + 1, :] + self.variances).sqrt()
            spread = spread + w[..., k, :] * (w * _expected_distance(gap, std)).sum(-2)
        return to_target - spread / 2

    def mahalanobis(self, z: Tensor) -> Tensor:
        factor = (self.log_weights / 2).exp()[..., None] * (self.means - self.mean[..., None, :])
        return _low_rank_mahalanobis(z - self.mean, self.within, factor.mT)

    def tempered(self, scale: float | Tensor) -> MixturePrediction:
        """Each component widened about its own mean: branches stay where they are, unlike under
        scaling about the mixture's mean."""
        inner = _along(scale, -2)
        return replace(
            self,
            variance=self.between + self.within * _squared(scale),
            variances=self.variances * _squared(inner),
        )

    def tailed(self, ratio: float) -> MixturePrediction:
        """Each component with the tails of `Prediction.tailed`: two components about its mean, so
        branches keep their mass.
        """
        scales = _scales(ratio)
        if scales is None:
            return self
        return replace(
            self,
            log_weights=torch.cat([self.log_weights + math.log(w) for w, _ in scales], -1),
            means=torch.cat([self.means for _ in scales], -2),
            variances=torch.cat([self.variances * s * s for _, s in scales], -2),
        )


class EnsemblePrediction(MixturePrediction):
    """The members' Gaussians, weighted alike (K = M), with the two kinds of uncertainty apart."""

    def tempered(self, scale: float | Tensor) -> EnsemblePrediction:
        """The law of mean + scale (x - mean): disagreement is uncertainty like any other, so it is
        widened too.
        """
        inner = _along(scale, -2)
        centre = self.mean[..., None, :]
        return replace(
            self,
            variance=self.variance * _squared(scale),
            means=centre + inner * (self.means - centre),
            variances=self.variances * _squared(inner),
        )

    @property
    def aleatoric(self) -> Tensor:
        """The noise that the members agree on: mean_m s_m^2, (..., D)."""
        return self.within

    @property
    def epistemic(self) -> Tensor:
        """Their disagreement about the mean: Var_m m_m, (..., D)."""
        return self.between


def beta_nll(prediction: Prediction, target: Tensor, beta: float = 0.5) -> Tensor:
    """beta-NLL (Seitzer et al., 2022): mean over elements of sg(variance^beta) * NLL -> scalar."""
    nll = 0.5 * (
        (target - prediction.mean).square() / prediction.variance + prediction.variance.log()
    )
    return (prediction.variance.detach() ** beta * nll).mean()
