"""Claims about mixture dynamics: forks stay forks, and one component is a Gaussian."""

import pytest
import torch

from gjwm.models.dynamics import GaussianDynamics, MixtureDynamics, Prediction


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_component_is_the_gaussian_likelihood():
    torch.manual_seed(0)
    mixture = MixtureDynamics(3, 2, components=1, hidden=16, mixture_hidden=16, entropy=0.0)
    z, a, y = randn(5, 4, 3), randn(5, 4, 2, seed=1), randn(5, 4, 3, seed=2)
    law = mixture.predict(z, a)
    torch.testing.assert_close(law.means[..., 0, :], law.mean)
    gaussian = Prediction(law.mean, law.variances[..., 0, :])
    torch.testing.assert_close(law.log_prob(y), gaussian.log_prob(y))
    torch.testing.assert_close(mixture.nll(z, a, y), -gaussian.log_prob(y).mean() / 3)


def test_the_likelihood_moves_neither_latents_nor_regression():
    torch.manual_seed(0)
    mixture = MixtureDynamics(3, 2, components=4, hidden=16, mixture_hidden=16)
    z, a = randn(5, 4, 3).requires_grad_(), randn(5, 4, 2, seed=1)
    mixture.nll(z, a, z + 1).backward()
    assert z.grad is None
    assert {n.split(".")[0] for n, p in mixture.named_parameters() if p.grad is not None} == {
        "mixture"
    }
    before = mixture.predict(z, a)
    with torch.no_grad():
        mixture.body[-1][-1].bias += 1.0
    torch.testing.assert_close(mixture.predict(z, a).means, before.means)


def test_a_planners_gradient_passes_through_particles():
    torch.manual_seed(0)
    mixture = MixtureDynamics(3, 2, components=2, hidden=16, mixture_hidden=16)
    a = randn(2, 4, 2, seed=1).requires_grad_()
    mixture.rollout(randn(2, 3), a, particles=5, generator=torch.Generator().manual_seed(0))[
        ..., -1, :
    ].sum().backward()
    assert (a.grad.abs().sum((0, 2)) > 0).all()  # of every step's action


def fork(n, seed, share=0.3):
    """z' = z + (0, 1) with probability `share`, else z - (0, 1), and noise of standard deviation
    0.1.
    """
    z, a = 0.3 * randn(n, 1, 2, seed=seed), randn(n, 1, 1, seed=seed + 1)
    up = torch.rand(n, 1, generator=torch.Generator().manual_seed(seed + 2)) < share
    y = z + 0.1 * randn(n, 1, 2, seed=seed + 3)
    y[..., 1] += torch.where(up, 1.0, -1.0)
    return z, a, y


def trained(dynamics, steps=400):
    optimizer = torch.optim.Adam(dynamics.parameters(), lr=3e-3)
    for i in range(steps):
        z, a, y = fork(256, 10 * i)
        optimizer.zero_grad()
        means = dynamics.training_means(torch.cat([z, y], 1), a)
        ((means - y).square().mean() + dynamics.nll(z, a, y)).backward()
        optimizer.step()
    return dynamics.eval()


@pytest.fixture(scope="module")
def mixture():
    torch.manual_seed(0)
    return trained(MixtureDynamics(2, 1, components=4, hidden=32, mixture_hidden=32))


def test_both_branches_keep_their_mass_where_a_gaussian_covers_the_wall_between(mixture):
    torch.manual_seed(0)
    gaussian = trained(GaussianDynamics(2, 1, hidden=32, std_hidden=32))
    z, a, y = fork(2000, 10**6)
    g = torch.Generator().manual_seed(0)
    shares = {}
    for name, dynamics in (("mixture", mixture), ("gaussian", gaussian)):
        with torch.no_grad():
            moved = dynamics.predict(z, a).sample(g)[..., 1] - z[..., 1]
        shares[name] = [
            (moved > 0.5).float().mean().item(),
            (moved.abs() <= 0.5).float().mean().item(),
        ]
    assert shares["mixture"][0] == pytest.approx(0.3, rel=0.2) and shares["mixture"][1] < 0.03
    with torch.no_grad():  # two estimates of one expectation
        torch.testing.assert_close(
            mixture.predict(z, a).mean, mixture.mean(z, a), atol=0.15, rtol=0
        )
    assert shares["gaussian"][1] > 0.25  # mass where nothing ever goes
    with torch.no_grad():
        assert (mixture.predict(z, a).log_prob(y) - gaussian.predict(z, a).log_prob(y)).mean() > 0.5


def test_a_forecast_keeps_both_branches_over_the_horizon(mixture):
    z0, a = 0.1 * randn(6, 2), torch.zeros(6, 2, 1)
    with torch.no_grad():
        law = mixture.forecast(z0, a, particles=400, generator=torch.Generator().manual_seed(0))
    assert law.mean.shape == (6, 2, 2) and law.means.shape == (6, 2, 400, 2)
    torch.testing.assert_close(law.log_weights.exp().sum(-1), torch.ones(6, 2))
    torch.testing.assert_close(law[:, 0].mean, mixture.predict(z0, a[:, 0]).mean, atol=0.15, rtol=0)
    # After one step hardly any mass lies between the branches; after two there are three places,
    # -2, 0 and 2.
    half = torch.tensor([0.0, 0.5])
    between = (law[:, 0].cdf(z0 + half) - law[:, 0].cdf(z0 - half))[:, 1]
    middle = (law[:, 1].cdf(z0 + half) - law[:, 1].cdf(z0 - half))[:, 1]
    assert between.max() < 0.1 and middle.mean().item() == pytest.approx(2 * 0.3 * 0.7, rel=0.25)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="components"):
        MixtureDynamics(2, 1, components=0)
    with pytest.raises(ValueError, match="min_std"):
        MixtureDynamics(2, 1, min_std=2.0)
