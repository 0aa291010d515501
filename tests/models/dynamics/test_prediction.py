"""Claims about the laws of the next latent, against torch.distributions, closed forms and
samples.
"""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from gjwm.models.dynamics import (
    EnsemblePrediction,
    FullPrediction,
    LowRankPrediction,
    MixturePrediction,
    Prediction,
    gaussian_crps,
)

D = 4


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def diagonal(*lead):
    return Prediction(randn(*lead, D), randn(*lead, D, seed=1).exp())


def full(*lead):
    tril = torch.tril(randn(*lead, D, D, seed=2), -1) + torch.diag_embed(
        randn(*lead, D, seed=1).exp()
    )
    return FullPrediction.of(randn(*lead, D), tril)


def low_rank(*lead):
    return LowRankPrediction.of(
        randn(*lead, D), randn(*lead, D, seed=1).exp(), randn(*lead, D, 2, seed=2)
    )


def mixture(*lead):
    log_weights = randn(*lead, 3).log_softmax(-1)
    return MixturePrediction.of(
        log_weights, 2 * randn(*lead, 3, D, seed=1), randn(*lead, 3, D, seed=2).exp() / 2
    )


def ensemble(*lead):
    log_weights = torch.full((*lead, 3), -math.log(3), dtype=torch.float64)
    return EnsemblePrediction.of(
        log_weights, randn(*lead, 3, D, seed=1), randn(*lead, 3, D, seed=2).exp()
    )


LAWS = {"diagonal": diagonal, "full": full, "low_rank": low_rank, "mixture": mixture}
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


def covariance(p):
    """Of a law without leading axes."""
    if isinstance(p, FullPrediction):
        return p.scale_tril @ p.scale_tril.T
    if isinstance(p, LowRankPrediction):
        return torch.diag(p.own) + p.factor @ p.factor.T
    if isinstance(p, MixturePrediction):
        w, gap = p.log_weights.exp(), p.means - p.mean
        return torch.diag((w[:, None] * p.variances).sum(0)) + (w[:, None] * gap).T @ gap
    return torch.diag(p.variance)


@every_law
def test_samples_have_the_mean_and_covariance_promised(law):
    p = law()
    many = p.map(lambda x: x.expand(100_000, *x.shape))
    x = many.sample(torch.Generator().manual_seed(0))
    scale = covariance(p).abs().max().item()
    torch.testing.assert_close(x.mean(0), p.mean, atol=0.02 * math.sqrt(scale), rtol=0)
    torch.testing.assert_close(x.T.cov(), covariance(p), atol=0.03 * scale, rtol=0)
    torch.testing.assert_close(covariance(p).diagonal(), p.variance)


@pytest.mark.parametrize("law", [diagonal, full, low_rank])
def test_gaussian_log_prob_and_mahalanobis_are_those_of_their_covariance(law):
    p, z = law(5), randn(5, D, seed=9)
    for i in range(5):
        reference = MultivariateNormal(p.mean[i], covariance(p[i]))
        torch.testing.assert_close(p.log_prob(z)[i], reference.log_prob(z[i]))
        gap = z[i] - p.mean[i]
        torch.testing.assert_close(
            p.mahalanobis(z)[i], gap @ torch.linalg.solve(covariance(p[i]), gap)
        )


def test_mixture_log_prob_is_the_weighted_sum_of_its_components():
    p, z = mixture(5), randn(5, D, seed=9)
    density = sum(
        p.log_weights[:, k].exp() * Prediction(p.means[:, k], p.variances[:, k]).log_prob(z).exp()
        for k in range(3)
    )
    torch.testing.assert_close(p.log_prob(z), density.log())
    gap = z[0] - p.mean[0]
    torch.testing.assert_close(p.mahalanobis(z)[0], gap @ torch.linalg.solve(covariance(p[0]), gap))
    torch.testing.assert_close(p.within + p.between, p.variance)


@every_law
def test_cdf_is_the_share_of_samples_below_and_crps_the_sample_formula(law):
    p, z = law(), randn(D, seed=9)
    x = p.map(lambda t: t.expand(40_000, *t.shape)).sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(p.cdf(z), (x <= z).double().mean(0), atol=0.01, rtol=0)
    expected = (x - z).abs().mean(0) - (x[::2] - x[1::2]).abs().mean(0) / 2
    torch.testing.assert_close(p.crps(z), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    "law", [diagonal, full, low_rank, ensemble], ids=["diagonal", "full", "low_rank", "ensemble"]
)
def test_tempering_scales_deviations_and_keeps_the_mean(law):
    p, scale = law(6), torch.full((6, 1), 1.7, dtype=torch.float64)
    tempered = p.tempered(scale)
    torch.testing.assert_close(tempered.mean, p.mean)
    torch.testing.assert_close(tempered.variance, p.variance * 1.7**2)
    z = randn(6, D, seed=9)
    inner = p.mean + (z - p.mean) / 1.7  # change of variables
    torch.testing.assert_close(tempered.log_prob(z), p.log_prob(inner) - D * math.log(1.7))
    torch.testing.assert_close(p.tempered(1.7).log_prob(z), tempered.log_prob(z))


def test_tempering_a_mixture_leaves_its_branches_where_they_are():
    p, scale = mixture(6), torch.full((6, 1), 1.7, dtype=torch.float64)
    tempered = p.tempered(scale)
    torch.testing.assert_close(tempered.means, p.means)
    again = MixturePrediction.of(p.log_weights, p.means, p.variances * 1.7**2)
    torch.testing.assert_close(tempered.variance, again.variance)
    torch.testing.assert_close(tempered.mean, again.mean)
    z = randn(6, D, seed=9)
    torch.testing.assert_close(tempered.log_prob(z), again.log_prob(z))
    torch.testing.assert_close(p.tempered(1.7).variance, tempered.variance)


@pytest.mark.parametrize(
    "law", [diagonal, full, low_rank, ensemble], ids=["diagonal", "full", "low_rank", "ensemble"]
)
def test_tails_keep_mean_and_variance_and_are_a_mixture_of_two_scales(law):
    p, z = law(6), randn(6, D, seed=9)
    heavy = p.tailed(3.0)
    torch.testing.assert_close(heavy.mean, p.mean)
    if law is not ensemble:
        torch.testing.assert_close(heavy.variance, p.variance)
        torch.testing.assert_close(heavy.mahalanobis(z), p.mahalanobis(z))
        unit = math.sqrt(0.9 + 0.1 * 9)
        parts = [p.tempered(s / unit).log_prob(z) + math.log(w) for w, s in ((0.9, 1), (0.1, 3))]
        torch.testing.assert_close(heavy.log_prob(z), torch.stack(parts).logsumexp(0))
    assert p.tailed(1.0) is p
    far = p.mean + 8 * p.variance.sqrt()
    assert (heavy.log_prob(far) > p.log_prob(far)).all()
    # It stays one law whatever is done to it.
    torch.testing.assert_close(
        heavy.tempered(1.7).log_prob(z), p.tempered(1.7).tailed(3.0).log_prob(z)
    )
    torch.testing.assert_close(heavy[2:].log_prob(z[2:]), heavy.log_prob(z)[2:])
    both = heavy.concatenated([heavy[:2], heavy[2:]])
    assert type(both) is type(heavy)
    torch.testing.assert_close(both.log_prob(z), heavy.log_prob(z))
    with pytest.raises(ValueError, match="ratio"):
        p.tailed(0.5)


@pytest.mark.parametrize("law", [diagonal, full, mixture], ids=["diagonal", "full", "mixture"])
def test_a_tailed_laws_cdf_and_crps_are_those_of_its_samples(law):
    p, z = law().tailed(3.0), randn(D, seed=9)
    x = p.map(lambda t: t.expand(40_000, *t.shape)).sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(p.cdf(z), (x <= z).double().mean(0), atol=0.01, rtol=0)
    torch.testing.assert_close(x.var(0), p.variance, rtol=0.06, atol=0.02)
    expected = (x - z).abs().mean(0) - (x[::2] - x[1::2]).abs().mean(0) / 2
    torch.testing.assert_close(p.crps(z), expected, atol=0.02, rtol=0.03)


def test_tails_and_temperature_leave_every_branch_its_mass():
    p = mixture(6)
    heavy = p.tempered(1.7).tailed(3.0)
    w = heavy.log_weights.exp().unflatten(-1, (2, -1))
    torch.testing.assert_close(w.sum(-2), p.log_weights.exp())
    torch.testing.assert_close(heavy.means.unflatten(-2, (2, -1))[:, 1], p.means)
    torch.testing.assert_close(heavy.variance, p.tempered(1.7).variance)


def test_log_prob_is_that_of_independent_normals():
    p, z = diagonal(4), randn(4, D, seed=2)
    expected = torch.distributions.Normal(p.mean, p.variance.sqrt()).log_prob(z).sum(-1)
    torch.testing.assert_close(p.log_prob(z), expected)


def test_crps_has_its_closed_form_values():
    one = torch.ones((), dtype=torch.float64)
    assert gaussian_crps(0 * one, one, 0 * one).item() == pytest.approx(0.233695, abs=1e-6)
    y = randn(200_000)
    assert gaussian_crps(0 * y, torch.ones_like(y), y).mean().item() == pytest.approx(
        1 / math.sqrt(math.pi), abs=3e-3
    )
