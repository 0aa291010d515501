"""Claims about the closed-form linear-Gaussian model: exact algebra, recovery of a known system,
exact propagation.
"""

import numpy as np
import pytest
import torch
from scipy import linalg

from gjwm.models.dynamics import LinearGaussianDynamics

D, A = 4, 2


def system(n, seed=0, dtype=torch.float64):
    """Independent transitions of a stable system with correlated noise; also F, G, c, Q."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(42)
    f = truth.standard_normal((D, D))
    f *= 0.8 / np.abs(np.linalg.eigvals(f)).max()
    g, c = 0.5 * truth.standard_normal((D, A)), 0.1 * truth.standard_normal(D)
    half = 0.1 * truth.standard_normal((D, D))
    z, a = rng.standard_normal((n, D)), rng.standard_normal((n, A))
    y = z @ f.T + a @ g.T + c + rng.standard_normal((n, D)) @ half.T
    data = tuple(torch.from_numpy(x).to(dtype) for x in (z, a, y))
    return data, f, g, c, half @ half.T


@pytest.mark.parametrize("seed", range(3))
def test_a_known_system_is_recovered(seed):
    data, f, g, _, q = system(10_000, seed)
    model = LinearGaussianDynamics(D, A)
    for part in zip(*(x.split(1000) for x in data)):
        model.update(*part)
    model.fit()
    for found, true in ((model.F, f), (model.G, g), (model.Q, q)):
        assert np.abs(found.numpy() - true).max() < 1e-2


def test_the_solution_is_that_of_plain_algebra():
    (z, a, y), *_ = system(300)
    model = LinearGaussianDynamics(D, A, ridge=0.0, min_std=0.0)
    model.update(z, a, y)
    model.fit()
    x = np.hstack([z, a, np.ones((300, 1))])
    gain, *_ = linalg.lstsq(x, y.numpy())
    residual = y.numpy() - x @ gain
    np.testing.assert_allclose(model.gain, gain.T, atol=1e-6)
    np.testing.assert_allclose(model.Q, residual.T @ residual / (300 - x.shape[1]), atol=1e-6)
    # The conditional of the joint Gaussian of (z, a) and z' is the same map.
    joint = np.cov(np.hstack([z, a, y]).T, bias=True)
    k = D + A
    np.testing.assert_allclose(
        model.gain[:, :k], joint[k:, :k] @ linalg.inv(joint[:k, :k]), atol=1e-5
    )
    # Predictive covariance with the parameters' uncertainty.
    law = model.predict(z[:5].float(), a[:5].float())
    expected = residual.T @ residual / (300 - x.shape[1])
    for i in range(5):
        inflation = 1 + x[i] @ linalg.inv(x.T @ x) @ x[i]
        np.testing.assert_allclose(
            law.scale_tril[i] @ law.scale_tril[i].T, expected * inflation, atol=1e-5
        )


def test_little_data_is_predicted_with_more_doubt():
    """Standardised squared errors average 1 out of sample only because the parameters' uncertainty
    is counted.
    """
    honest, plain = [], []
    for seed in range(40):
        data, *_ = system(24, seed=seed + 1)
        (z, a, y), *_ = system(500, seed=seed + 1000)
        model = LinearGaussianDynamics(D, A, min_std=1e-6)
        model.update(*data)
        law = model.fit().predict(z.float(), a.float())
        honest.append((law.mahalanobis(y.float()) / D).mean().item())
        gap = y.float() - law.mean
        plain.append(((gap @ torch.linalg.inv(model.Q)) * gap).sum(-1).mean().item() / D)
    # Student's t with the degrees of freedom left: the mean of M^2 / D is n / (n - 2) for n = 24 -
    # 7 - (D - 1).
    assert np.mean(honest) < 0.8 * np.mean(plain)
    assert np.mean(honest) == pytest.approx(17 / (17 - D - 1), rel=0.15)


def test_forecast_moments_are_those_of_particles():
    data, *_ = system(5000)
    model = LinearGaussianDynamics(D, A)
    model.update(*data)
    model.fit()
    g = torch.Generator().manual_seed(0)
    z0, a = torch.randn(2, D, generator=g), 2 * torch.rand(2, 6, A, generator=g) - 1
    law = model.forecast(z0, a)
    path = model.rollout(z0, a, 40_000, g)
    torch.testing.assert_close(law.mean, path[:, :, 1:].mean(1), atol=0.02, rtol=0)
    for h in (0, 5):
        covariance = law.scale_tril[:, h] @ law.scale_tril[:, h].mT
        sampled = torch.stack([path[b, :, h + 1].T.cov() for b in range(2)])
        torch.testing.assert_close(covariance, sampled, atol=0.02, rtol=0)
    torch.testing.assert_close(model.rollout(z0, a)[:, 1:], law.mean)


def test_before_data_the_law_is_the_marginal_and_training_updates_it():
    model = LinearGaussianDynamics(D, A)
    (z, a, y), *_ = system(512, dtype=torch.float32)
    law = model.predict(z, a)
    assert law.mean.abs().max() == 0 and torch.equal(law.variance, torch.ones(512, D))
    z, a, y = (x.view(64, 8, -1) for x in (z, a, y))
    model.eval().nll(z, a, y)
    assert model.count == 0
    before = model.nll(z, a, y).item()
    after = model.train().nll(z, a, y).item()
    assert after < before - 0.5 and model.count == 512
    model.nll(z, a, y)
    assert model.count.item() == pytest.approx(512 * 1.99)  # forgetting


def test_shrinkage_moves_the_noise_to_its_diagonal():
    data, *_ = system(1000)
    model = LinearGaussianDynamics(D, A, shrinkage=1.0)
    model.update(*data)
    model.fit()
    torch.testing.assert_close(model.Q, torch.diag(model.Q.diagonal()))


def test_bad_input_is_named():
    model = LinearGaussianDynamics(D, A)
    with pytest.raises(ValueError, match="without data"):
        model.fit()
    with pytest.raises(ValueError, match="as many latents"):
        model.update(torch.zeros(3, D), torch.zeros(2, A), torch.zeros(3, D))
    with pytest.raises(ValueError, match="NaN"):
        model.update(torch.full((3, D), torch.nan), torch.zeros(3, A), torch.zeros(3, D))
    with pytest.raises(ValueError, match="shrinkage"):
        LinearGaussianDynamics(D, A, shrinkage=2.0)
    data, *_ = system(100)
    for a in (torch.ones(100, A), data[0][:, :A]):  # constant as c is, and a copy of latents
        singular = LinearGaussianDynamics(D, A, ridge=0.0)
        singular.update(data[0], a, data[2])
        with pytest.raises(ValueError, match="ridge > 0"):
            singular.fit()
