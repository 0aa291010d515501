"""Claims about Gaussian and deterministic latent dynamics, their rollouts and their spread."""

import pytest
import torch

from gjwm.models.dynamics import (
    DeterministicDynamics,
    GaussianDynamics,
    Prediction,
    beta_nll,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def dynamics():
    torch.manual_seed(0)
    return GaussianDynamics(5, 2, hidden=32, std_hidden=16)


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
    variance = dynamics.predict(z, a).variance
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
        beta_nll(
            Prediction(torch.zeros_like(noise), dynamics.predict(z, a).variance), noise
        ).backward()
        optimizer.step()
    std = dynamics.predict(torch.zeros(2, 1), torch.tensor([[0.0], [1.0]])).variance.sqrt()
    assert std[0].item() == pytest.approx(0.1, rel=0.3) and std[1].item() == pytest.approx(
        0.5, rel=0.2
    )


def test_bad_shapes_are_named(dynamics):
    with pytest.raises(ValueError, match="latents"):
        dynamics.predict(randn(3, 4), randn(3, 2))
    with pytest.raises(ValueError, match="z0"):
        dynamics.rollout(randn(3, 5), randn(2, 4, 2))
    with pytest.raises(ValueError, match="particle"):
        dynamics.rollout(randn(3, 5), randn(3, 4, 2), particles=0)
    with pytest.raises(ValueError, match="min_std"):
        GaussianDynamics(2, 1, min_std=2.0)


@pytest.mark.parametrize("covariance", ["diagonal", "low_rank", "full"])
def test_the_likelihood_trains_the_spread_alone(covariance):
    dynamics = GaussianDynamics(3, 2, hidden=16, std_hidden=16, covariance=covariance, rank=2)
    z, a = randn(8, 4, 3).requires_grad_(), randn(8, 4, 2, seed=1)
    nll = dynamics.nll(z, a, z + 1)
    if nll.requires_grad:  # the full covariance is counted, not learned
        nll.backward()
        assert {n for n, p in dynamics.named_parameters() if p.grad is not None} == {
            n for n, _ in dynamics.named_parameters() if n.startswith("log_std")
        }
    assert z.grad is None and nll.isfinite()


def test_counted_residuals_are_the_training_residuals_covariance():
    torch.manual_seed(0)
    gaussian, deterministic = (
        GaussianDynamics(3, 1, covariance="full", min_std=1e-3),
        DeterministicDynamics(3, 1),
    )
    mix = randn(3, 3, seed=5)
    total = torch.zeros(3, 3)
    for i in range(20):
        z, a = randn(64, 2, 3, seed=10 + i), randn(64, 2, 1, seed=40 + i)
        noise = randn(64, 2, 3, seed=70 + i) @ mix
        with torch.no_grad():
            gaussian.nll(z, a, gaussian.mean(z, a) + noise)
            deterministic.nll(z, a, deterministic.mean(z, a) + noise)
        total += noise.flatten(0, 1).T @ noise.flatten(0, 1) / 128 / 20
    law = gaussian.predict(z, a)
    torch.testing.assert_close(
        (law.scale_tril @ law.scale_tril.mT)[0, 0], total, atol=1e-3, rtol=1e-3
    )
    torch.testing.assert_close(
        deterministic.predict(z, a).variance[0, 0], total.diagonal(), atol=1e-3, rtol=1e-3
    )
    before = deterministic.residuals.moment.clone()
    deterministic.eval().nll(z, a, z)
    assert torch.equal(before, deterministic.residuals.moment)


KINDS = pytest.mark.parametrize(
    "kind",
    [lambda: GaussianDynamics(3, 2, covariance="full"), lambda: DeterministicDynamics(3, 2)],
    ids=["full", "one"],
)


@KINDS
def test_residuals_are_counted_in_full_precision_under_autocast(kind):
    torch.manual_seed(0)
    dynamics, z, a = kind(), randn(8, 4, 3), randn(8, 4, 2, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (
            torch.float32,
            torch.bfloat16,
        ):  # the encoder's output under autocast is the second
            assert dynamics.nll(z.to(dtype), a, (z + 1).to(dtype)).isfinite()
        mean = dynamics.mean(z, a)
    rows = ((z + 1).float() - mean.float()).flatten(0, 1)
    expected = rows.T @ rows / 32
    moment = dynamics.residuals.moment
    torch.testing.assert_close(
        moment, expected if moment.dim() == 2 else expected.diagonal(), atol=0.02, rtol=0.02
    )
    assert moment.dtype == torch.float32


@KINDS
def test_a_spoiled_batch_is_an_error_and_leaves_the_counted_residuals(kind):
    dynamics, z, a = kind(), randn(8, 4, 3), randn(8, 4, 2, seed=1)
    dynamics.nll(z, a, z + 1)
    before, spoiled = dynamics.residuals.moment.clone(), z + 1
    spoiled[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 NaN or infinite values"):
        dynamics.nll(z, a, spoiled)
    assert torch.equal(dynamics.residuals.moment, before) and dynamics.residuals.batches == 1


def test_a_low_rank_covariance_learns_correlated_noise_that_a_diagonal_cannot():
    direction = torch.tensor([1.0, -1.0, 1.0, 0.0])
    nats = {}
    for covariance in ("diagonal", "low_rank"):
        torch.manual_seed(0)
        dynamics = GaussianDynamics(
            4, 1, hidden=16, std_hidden=32, covariance=covariance, rank=1, min_std=0.05
        )
        for p in dynamics.body.parameters():
            torch.nn.init.zeros_(p)  # the mean is z, the truth
        optimizer = torch.optim.Adam(dynamics.log_std.parameters(), lr=1e-2)
        for i in range(300):
            z, a = randn(256, 1, 4, seed=i), torch.zeros(256, 1, 1)
            y = (
                z
                + 0.1 * randn(256, 1, 4, seed=1000 + i)
                + randn(256, 1, 1, seed=2000 + i) * direction / 2
            )
            optimizer.zero_grad()
            dynamics.nll(z, a, y).backward()
            optimizer.step()
        nats[covariance] = -dynamics.predict(z, a).log_prob(y).mean().item() / 4
    truth = (
        0.5 * torch.logdet(0.01 * torch.eye(4) + torch.outer(direction, direction) / 4).item() / 4
        + 1.4189
    )
    assert (
        nats["low_rank"] == pytest.approx(truth, abs=0.1)
        and nats["diagonal"] > nats["low_rank"] + 0.3
    )


def test_a_forecast_has_the_exact_first_step_and_the_particles_moments_after(dynamics):
    z0, a = randn(3, 5), randn(3, 4, 2, seed=1)
    law = dynamics.forecast(z0, a, particles=8, generator=torch.Generator().manual_seed(0))
    assert law.mean.shape == law.variance.shape == (3, 4, 5)
    first = dynamics.predict(z0, a[:, 0])
    torch.testing.assert_close(law.mean[:, 0], first.mean)
    torch.testing.assert_close(law.variance[:, 0], first.variance)
    path = dynamics.rollout(z0, a, 8, torch.Generator().manual_seed(0))
    torch.testing.assert_close(law.mean[:, 3], path[:, :, 4].mean(1))
    torch.testing.assert_close(law.variance[:, 3], path[:, :, 4].var(1))


def test_the_activation_is_the_means():
    torch.manual_seed(0)
    bent = GaussianDynamics(5, 2, hidden=16, std_hidden=8, activation="relu")
    # A network of kinks is linear between them: its second difference along a short line is 0.
    z, a = randn(1, 5).double(), randn(1, 2, seed=1).double()
    line = z + 1e-3 * torch.arange(3.0)[:, None] * randn(1, 5, seed=2).double()
    curve = bent.double().mean(line, a.expand(3, 2)).detach()
    assert (curve[0] - 2 * curve[1] + curve[2]).abs().max() < 1e-13
    smooth = (
        GaussianDynamics(5, 2, hidden=16, std_hidden=8).double().mean(line, a.expand(3, 2)).detach()
    )
    assert (smooth[0] - 2 * smooth[1] + smooth[2]).abs().max() > 1e-9
    assert bent.config["activation"] == "relu"
    with pytest.raises(ValueError, match="activation must be one of silu, relu, got 'tanh'"):
        GaussianDynamics(5, 2, activation="tanh")


def test_training_means_are_the_rollout_and_one_step_predictions(dynamics):
    z, a = randn(3, 5, 5), randn(3, 4, 2, seed=1)
    open_loop, one_step = dynamics.training_means(z, a)
    torch.testing.assert_close(open_loop, dynamics.rollout(z[:, 0], a)[:, 1:])
    torch.testing.assert_close(one_step, dynamics.predict(z[:, :-1], a).mean)
