"""Claims about latent dynamics and their predictions."""

import pytest
import torch

from gjwm.dynamics import GaussianDynamics, Prediction, beta_nll


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def dynamics():
    torch.manual_seed(0)
    return GaussianDynamics(5, 2, hidden=32, std_hidden=16)


def test_log_prob_is_that_of_independent_normals():
    p = Prediction(randn(4, 3), randn(4, 3, seed=1).exp())
    z = randn(4, 3, seed=2)
    expected = torch.distributions.Normal(p.mean, p.variance.sqrt()).log_prob(z).sum(-1)
    torch.testing.assert_close(p.log_prob(z), expected)


def test_samples_have_the_predicted_moments():
    p = Prediction(torch.full((20000, 2), 3.0), torch.full((20000, 2), 0.25))
    x = p.sample(torch.Generator().manual_seed(0))
    assert x.mean().item() == pytest.approx(3, abs=0.02) and x.std().item() == pytest.approx(0.5, abs=0.01)


def test_beta_nll_scales_the_gradient_of_the_mean_by_the_variance():
    mean, variance, y = randn(6).requires_grad_(), randn(6, seed=1).exp(), randn(6, seed=2)
    for beta in (0.0, 0.5, 1.0):
        (grad,) = torch.autograd.grad(beta_nll(Prediction(mean, variance), y, beta), mean)
        torch.testing.assert_close(grad, variance ** (beta - 1) * (mean.detach() - y) / 6)


def test_rollout_of_the_mean_is_repeated_prediction(dynamics):
    z0, a = randn(3, 5), randn(3, 4, 2, seed=1)
    path = dynamics.rollout(z0, a)
    assert path.shape == (3, 5, 5)
    z = z0
    for h in range(4):
        torch.testing.assert_close(path[:, h], z)
        z = dynamics.predict(z, a[:, h]).mean
    torch.testing.assert_close(path[:, 4], z)


def test_candidates_roll_out_as_they_would_alone(dynamics):
    z0, a = randn(3, 5), randn(3, 7, 4, 2, seed=1)
    together = dynamics.rollout(z0, a)
    assert together.shape == (3, 7, 5, 5)
    for n in range(7):
        torch.testing.assert_close(together[:, n], dynamics.rollout(z0, a[:, n]))


def test_one_step_particles_have_the_predicted_moments_and_replay(dynamics):
    z0, a = randn(2, 5), randn(2, 1, 2, seed=1)
    paths = dynamics.rollout(z0, a, particles=20000, generator=torch.Generator().manual_seed(0))
    assert paths.shape == (2, 20000, 2, 5)
    prediction = dynamics.predict(z0, a[:, 0])
    torch.testing.assert_close(paths[:, :, 1].mean(1), prediction.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(paths[:, :, 1].var(1), prediction.variance, atol=0.01, rtol=0.05)
    again = dynamics.rollout(z0, a, particles=20000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(paths, again)


def test_variance_stays_in_its_bounds_and_sends_no_gradient_to_latents(dynamics):
    z, a = (100 * randn(50, 5)).requires_grad_(), randn(50, 2, seed=1)
    variance = dynamics.variance(z, a)
    assert (variance >= 0.01**2 * 0.999).all() and (variance <= 1.25**2 * 1.001).all()
    variance.sum().backward()
    assert z.grad is None


def test_the_variance_learns_the_noise_it_sees():
    torch.manual_seed(0)
    dynamics = GaussianDynamics(1, 1, std_hidden=32)
    optimizer = torch.optim.Adam(dynamics.log_std.parameters(), lr=1e-2)
    g = torch.Generator().manual_seed(0)
    for _ in range(400):
        z, a = torch.randn(256, 1, generator=g), torch.rand(256, 1, generator=g)
        noise = (0.1 + 0.4 * a) * torch.randn(256, 1, generator=g)
        optimizer.zero_grad()
        beta_nll(Prediction(torch.zeros_like(noise), dynamics.variance(z, a)), noise).backward()
        optimizer.step()
    std = dynamics.variance(torch.zeros(2, 1), torch.tensor([[0.0], [1.0]])).sqrt()
    assert std[0].item() == pytest.approx(0.1, rel=0.3) and std[1].item() == pytest.approx(0.5, rel=0.2)


def test_bad_shapes_are_named(dynamics):
    with pytest.raises(ValueError, match="latents"):
        dynamics.predict(randn(3, 4), randn(3, 2))
    with pytest.raises(ValueError, match="z0"):
        dynamics.rollout(randn(3, 5), randn(2, 4, 2))
    with pytest.raises(ValueError, match="particle"):
        dynamics.rollout(randn(3, 5), randn(3, 4, 2), particles=0)
    with pytest.raises(ValueError, match="min_std"):
        GaussianDynamics(2, 1, min_std=2.0)
