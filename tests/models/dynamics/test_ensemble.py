"""Claims about ensembles: one batched product is M networks, and what they disagree on is what they
have not seen.
"""

import pytest
import torch

from gjwm.models.dynamics import EnsembleDynamics


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def ensemble():
    torch.manual_seed(0)
    return EnsembleDynamics(4, 2, members=3, hidden=16, std_hidden=8)


def member(ensemble, m, z, a):
    """Member m written out by itself."""

    def layer(linear, x):
        y = x @ linear.weight[m]
        return y if linear.bias is None else y + linear.bias[m]

    x = layer(ensemble.from_latent, z) + layer(ensemble.from_action, a)
    x = torch.nn.functional.silu(x)
    for module in ensemble.body[1]:
        x = layer(module, x) if hasattr(module, "weight") else module(x)
    return z + x


def test_a_rollout_of_no_steps_is_its_start():
    model, z0, a = EnsembleDynamics(4, 2, members=3), randn(5, 4), torch.zeros(5, 0, 2)
    torch.testing.assert_close(model.rollout(z0, a), z0[:, None])
    torch.testing.assert_close(model.rollout_members(z0, a), z0[:, None, None].expand(5, 3, 1, 4))
    torch.testing.assert_close(model.rollout(z0, a, 6), z0[:, None, None].expand(5, 6, 1, 4))


def test_each_member_is_a_network_of_its_own(ensemble):
    z, a = randn(6, 5, 4), randn(6, 5, 2, seed=1)
    law = ensemble.predict(z, a)
    for m in range(3):
        torch.testing.assert_close(law.means[..., m, :], member(ensemble, m, z, a))
    torch.testing.assert_close(law.mean, law.means.mean(-2))
    torch.testing.assert_close(law.epistemic, law.means.var(-2, unbiased=False))
    torch.testing.assert_close(law.aleatoric, law.variances.mean(-2))
    torch.testing.assert_close(law.variance, law.aleatoric + law.epistemic)


def test_mean_paths_follow_each_member_and_candidates_are_independent(ensemble):
    z0, a = randn(2, 4), randn(2, 5, 6, 2, seed=1)
    paths = ensemble.rollout_members(z0, a)
    assert paths.shape == (2, 5, 3, 7, 4)
    z = z0[:, None].expand(2, 5, 4)
    for h in range(6):
        z = member(ensemble, 1, z, a[:, :, h])
        torch.testing.assert_close(paths[:, :, 1, h + 1], z)
    torch.testing.assert_close(ensemble.rollout(z0, a), paths.mean(2))
    torch.testing.assert_close(ensemble.rollout(z0, a[:, 3]), paths[:, 3].mean(1))


def test_particles_keep_their_member():
    """Without noise of their own, particles fan out to M paths."""
    torch.manual_seed(0)
    ensemble = EnsembleDynamics(
        4, 2, members=3, hidden=16, std_hidden=8, min_std=1e-6, max_std=2e-6
    )
    z0, a = randn(1, 4), randn(1, 5, 2, seed=1)
    path = ensemble.rollout(z0, a, 60, torch.Generator().manual_seed(0))
    assert path.shape == (1, 60, 6, 4)
    assert len(torch.unique((path[0, :, -1] * 1e3).round(), dim=0)) == 3
    members = ensemble.rollout_members(z0, a)[:, :1].expand(1, 20, 6, 4)
    torch.testing.assert_close(path[:, ::3], members, atol=1e-3, rtol=0)


def test_any_number_of_particles_and_candidates(ensemble):
    z0, a = randn(2, 4), randn(2, 5, 6, 2, seed=1)
    assert ensemble.rollout(z0, a, 7, torch.Generator().manual_seed(0)).shape == (2, 5, 7, 7, 4)
    assert ensemble.rollout(z0, a[:, 0], 1, torch.Generator().manual_seed(0)).shape == (2, 1, 7, 4)


def test_each_member_learns_by_itself_and_the_likelihood_trains_spreads_alone(ensemble):
    z, a = randn(8, 5, 4).requires_grad_(), randn(8, 4, 2, seed=1)
    means = ensemble.training_means(z, a)
    assert means.shape == (2, 3, 8, 4, 4)
    (grad,) = torch.autograd.grad(means[:, 1].square().sum(), ensemble.from_latent.weight)
    assert grad[1].abs().sum() > 0 and grad[0].abs().sum() == grad[2].abs().sum() == 0
    ensemble.nll(z[:, :-1], a, z[:, 1:]).backward()
    assert z.grad is None
    reached = {n for n, p in ensemble.named_parameters() if p.grad is not None}
    assert reached == {n for n, _ in ensemble.named_parameters() if n.startswith("log_std")}


def test_members_agree_on_what_they_saw_and_disagree_elsewhere():
    torch.manual_seed(0)
    ensemble = EnsembleDynamics(2, 1, members=5, hidden=32, std_hidden=16)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=1e-2)
    for i in range(400):
        z = randn(128, 1, 2, seed=i).clamp(-1, 1)  # nothing outside the square was ever seen
        a = randn(128, 1, 1, seed=1000 + i).clamp(-1, 1)
        y = (2 * z).sin() + a + 0.1 * randn(128, 1, 2, seed=2000 + i)
        optimizer.zero_grad()
        means = ensemble.training_means(torch.cat([z, y], 1), a)
        ((means - y).square().mean() + ensemble.nll(z, a, y)).backward()
        optimizer.step()
    with torch.no_grad():
        seen = ensemble.predict(0.5 * randn(500, 2).clamp(-2, 2), torch.zeros(500, 1))
        unseen = ensemble.predict(3 + randn(500, 2).abs(), torch.zeros(500, 1))
    assert unseen.epistemic.mean() > 20 * seen.epistemic.mean()
    assert seen.aleatoric.mean().sqrt().item() == pytest.approx(0.1, rel=0.3)


def test_bad_arguments_are_named(ensemble):
    with pytest.raises(ValueError, match="members"):
        EnsembleDynamics(2, 1, members=1)
    with pytest.raises(ValueError, match="particle"):
        ensemble.rollout(randn(2, 4), randn(2, 3, 2), particles=0)
    with pytest.raises(ValueError, match="latents"):
        ensemble.predict(randn(2, 3), randn(2, 2))
