"""Claims about the Gaussian joint-embedding objective."""

import math

import pytest
import torch

from gjwm.objectives import (
    EPPS_PULLEY_NULL_MEAN,
    W0,
    GaussianTarget,
    JointEmbeddingObjective,
    NoRegularizer,
    SIGReg,
    Subspaces,
    VICReg,
    epps_pulley,
    epps_pulley_exact,
    make_objective,
)
from gjwm.objectives.episodes import within_episodes
from gjwm.training.settings import ObjectiveSettings


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


@pytest.mark.parametrize(
    "samples, exact, knots_to_3, knots_to_5",
    [
        ([0.0], 0.4089231, 0.402048, 0.408921),
        ([1.0], 1.1930539, 1.186006, 1.193052),
        ([-1.0, 1.0], 0.1093574, 0.102830, 0.109357),
    ],
)
def test_epps_pulley_has_its_known_values(samples, exact, knots_to_3, knots_to_5):
    x = torch.tensor(samples, dtype=torch.float64)[:, None]
    assert epps_pulley_exact(x).item() == pytest.approx(exact, abs=1e-6)
    assert epps_pulley(x, t_max=3.0).item() == pytest.approx(knots_to_3, abs=1e-6)
    assert epps_pulley(x).item() == pytest.approx(knots_to_5, abs=1e-6)


def test_quadrature_agrees_with_the_closed_form_on_random_samples():
    x = 1.5 * randn(4, 50, 7) + 0.3
    torch.testing.assert_close(epps_pulley(x), epps_pulley_exact(x), atol=5e-6, rtol=0)


def test_rotation_form_has_the_gradient_that_autograd_gives_the_plain_form():
    x = randn(40, 5).requires_grad_()
    (fast,) = torch.autograd.grad(epps_pulley(x, t_max=5.0).sum(), x)
    (exact,) = torch.autograd.grad(epps_pulley_exact(x).sum(), x)
    torch.testing.assert_close(fast, exact, atol=1e-6, rtol=0)
    assert torch.autograd.gradcheck(lambda v: epps_pulley(v), (randn(6, 3).requires_grad_(),))


def test_single_precision_rotation_stays_accurate_at_large_arguments():
    x = 4 * randn(64, 32)
    torch.testing.assert_close(epps_pulley(x.float()).double(), epps_pulley(x), atol=2e-6, rtol=0)


def test_null_mean_of_n_times_t():
    x = randn(64, 4000)
    assert 64 * epps_pulley(x).mean().item() == pytest.approx(EPPS_PULLEY_NULL_MEAN, abs=0.03)


def ar1(batch, length, dim, rho, seed=0):
    noise = randn(batch, length, dim, seed=seed)
    x = [noise[:, 0]]
    for t in range(1, length):
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * noise[:, t])
    return torch.stack(x, 1)


def test_cluster_estimator_is_unbiased_on_correlated_trajectories_and_the_pooled_one_is_not():
    batch, length, rho = 16, 8, 0.9
    steps = torch.arange(length)
    correlation = rho ** (steps[:, None] - steps[None]).abs().double()
    bias = W0 / (batch * length**2) * ((3 - 2 * correlation).rsqrt() - 3**-0.5).sum().item()
    cluster, pooled = [], []
    for seed in range(300):
        z = ar1(batch, length, 4, rho, seed)
        g = seeded(seed)
        cluster.append(SIGReg(8)(z, generator=g).item())
        g = seeded(seed)
        pooled.append(SIGReg(8, time="pooled", estimator="v")(z, generator=g).item())
    cluster, pooled = torch.tensor(cluster), torch.tensor(pooled)
    error = cluster.std().item() / math.sqrt(len(cluster))
    assert abs(cluster.mean()) < 3 * error
    assert pooled.mean().item() == pytest.approx(bias, abs=3 * error)
    assert bias > 10 * error


def test_windows_of_one_episode_count_as_one_cluster():
    z = ar1(6, 4, 3, 0.5)
    doubled = z.repeat_interleave(2, 0)
    ids = torch.arange(6).repeat_interleave(2)
    g = [seeded(1) for _ in range(3)]
    single = SIGReg(16)(z, generator=g[0])
    torch.testing.assert_close(SIGReg(16)(doubled, clusters=ids, generator=g[1]), single)
    assert SIGReg(16)(doubled, generator=g[2]) > single
    with pytest.raises(ValueError, match="at least two episodes"):
        SIGReg(4)(z, clusters=torch.zeros(6, dtype=torch.long))


def test_u_estimator_on_independent_rows_equals_clusters_of_one():
    z = randn(32, 5)
    g = [seeded(1) for _ in range(2)]
    torch.testing.assert_close(
        SIGReg(16)(z, generator=g[0]), SIGReg(16)(z[:, None], generator=g[1])
    )


def test_lewm_settings_give_the_sum_over_n_per_time_step():
    z = randn(12, 4, 6)
    g = [seeded(2) for _ in range(2)]
    got = SIGReg(64, t_max=3.0, time="per_step", estimator="v", scale="n")(z, generator=g[0])
    a = torch.randn(6, 64, generator=g[1], dtype=torch.float64)
    x = z.transpose(0, 1) @ (a / a.norm(dim=0))
    torch.testing.assert_close(got, 12 * epps_pulley(x, t_max=3.0).mean())


@pytest.mark.parametrize("discrepancy", [SIGReg(128), VICReg()])
def test_collapsed_shrunk_and_correlated_latents_score_worse_than_gaussian(discrepancy):
    z = randn(2048, 8)

    def score(x):
        return discrepancy(x, generator=seeded(0)).item()

    assert score(0 * z) > score(0.5 * z) > score(z)
    assert score(z @ torch.ones(8, 8, dtype=z.dtype) / math.sqrt(8)) > score(z) + 0.01


def test_sigreg_sees_the_shape_that_two_moments_miss():
    signs = randn(4096, 2).sign()
    assert VICReg()(signs).item() < 2e-3
    assert SIGReg(256)(signs, generator=seeded(0)).item() > 0.01


def test_vicreg_matches_its_definition_by_hand():
    z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)  # covariance: all entries 2
    assert VICReg(std_weight=3.0, cov_weight=0.5)(z).item() == pytest.approx(0.5 * (2 * 4) / 2)
    assert VICReg()(torch.zeros(4, 3)).item() == pytest.approx(1 - 0.01)


def test_objective_adds_alignment_and_weighted_discrepancy():
    z, z_hat = randn(8, 4, 3), randn(2, 8, 3, 3, seed=1)
    g = [seeded(0) for _ in range(2)]
    losses = JointEmbeddingObjective(SIGReg(16), lam=7.0)(z_hat, z[:, 1:], z, generator=g[0])
    assert losses["alignment"].item() == pytest.approx((z_hat - z[:, 1:]).square().mean().item())
    assert losses["loss"].item() == pytest.approx(
        (losses["alignment"] + 7 * SIGReg(16)(z, generator=g[1])).item()
    )


def test_a_longer_batch_does_not_change_the_weight_of_the_discrepancy():
    z = 0.5 * randn(4096, 4)
    small, large = (SIGReg(256)(x, generator=seeded(0)).item() for x in (z[:512], z))
    assert small == pytest.approx(large, rel=0.1)


def test_detach_target_stops_only_the_target():
    z = randn(8, 4, 3).requires_grad_()
    z_hat = randn(8, 3, 3, seed=1).requires_grad_()
    JointEmbeddingObjective(NoRegularizer(), lam=0, detach_target=True)(z_hat, z[:, 1:], z)[
        "loss"
    ].backward()
    assert z.grad is None and z_hat.grad.abs().sum() > 0


def test_training_latents_by_sigreg_spreads_them_and_no_regularizer_does_not():
    z = (0.3 * randn(256, 6)).requires_grad_()
    before = z.detach().clone()
    optimizer, g = torch.optim.Adam([z], lr=0.05), seeded(0)
    for _ in range(150):
        optimizer.zero_grad()
        SIGReg(32)(z, generator=g).backward()
        optimizer.step()
    assert 0.85 < z.std(0).min() and z.std(0).max() < 1.15
    z.grad = None
    NoRegularizer()(z).backward()
    assert z.grad.abs().max() == 0 and before.std() < 0.35


@pytest.mark.parametrize(
    "bad",
    [dict(time="episode"), dict(estimator="w"), dict(scale="B"), dict(num_slices=0), dict(knots=1)],
)
def test_bad_arguments_are_named(bad):
    with pytest.raises(ValueError):
        SIGReg(**bad)(randn(4, 2))


def test_bad_shapes_are_named():
    for module in (SIGReg(), VICReg(), NoRegularizer()):
        with pytest.raises(ValueError, match="N, D"):
            module(torch.zeros(3))
        with pytest.raises(ValueError, match="two samples"):
            module(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="predictions"):
        JointEmbeddingObjective(NoRegularizer())(
            torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 4)
        )
    for lam in (-1, float("nan"), "5"):
        with pytest.raises(ValueError, match="number lam >= 0"):
            JointEmbeddingObjective(NoRegularizer(), lam=lam)
    with pytest.raises(ValueError, match=r"lam.*5"):
        ObjectiveSettings(lam="5")
    for nothing in (None, SIGReg):
        with pytest.raises(ValueError, match="its factory returned"):
            make_objective(nothing)


def test_contrasts_within_episodes_do_not_see_what_an_episode_keeps():
    """A latent of nothing but the layout is as Gaussian as any over all episodes; its contrasts are
    0.
    """
    ids = torch.arange(32).repeat(2)
    layout, motion = randn(32, 6)[ids, None].expand(64, 5, 6), randn(64, 5, 6, seed=1)
    marginal, within = (make_objective(SIGReg(256), law=law) for law in ("marginal", "within"))

    def discrepancy(objective, z):
        generator = seeded(3)
        return objective(z[:, 1:], z[:, 1:], z, clusters=ids, generator=generator)[
            "discrepancy"
        ].item()

    assert abs(discrepancy(marginal, layout)) < 0.02
    assert discrepancy(within, layout) == pytest.approx(0.4089, abs=1e-3)  # that of a point
    assert abs(discrepancy(within, motion)) < 0.02
    assert discrepancy(within, motion + 3 * layout) == pytest.approx(
        discrepancy(within, motion), abs=1e-9
    )


def test_contrasts_pair_the_windows_of_each_episode_in_the_order_they_come():
    z, ids = randn(7, 2, 3), torch.tensor([5, 2, 5, 2, 5, 9, 2])  # 5 and 2 come three times, 9 once
    contrasts, counts, episodes = within_episodes(
        z, ids, torch.tensor([[True, i != 3] for i in range(7)])
    )
    expected = torch.stack([z[1] - z[3], z[0] - z[2]]) / math.sqrt(2)
    torch.testing.assert_close(contrasts, expected)
    assert episodes.tolist() == [2, 5] and counts.tolist() == [[True, False], [True, True]]
    with pytest.raises(ValueError, match="half as many"):
        within_episodes(z, torch.arange(7))
    with pytest.raises(ValueError, match="episode ids"):
        within_episodes(z, None)


@pytest.mark.parametrize(("time", "known"), [(5, 0.82), (10, 0.68), (20, 0.49)])
def test_contrasts_of_slow_latents_vary_less_than_one(time, known):
    """1 less the mean correlation over the lag of two windows, here of one step, drawn anywhere in
    an episode of W = 50 steps: of an AR(1) with r = exp(-1 / time) it is
    (W + 2 sum_k (W - k) r^k) / W^2. Windows of different episodes would have 1.
    """
    count, length, r = 6000, 50, math.exp(-1 / time)
    lags = torch.arange(1, length)
    held = (length + 2 * ((length - lags) * r**lags).sum().item()) / length**2
    assert 1 - held == pytest.approx(known, abs=0.005)
    latents = [randn(count, 4)]
    for t in range(1, length):
        latents.append(r * latents[-1] + math.sqrt(1 - r * r) * randn(count, 4, seed=t))
    path = torch.stack(latents, 1)
    starts = torch.randint(length, (2 * count,), generator=seeded(1))
    ids = torch.arange(count).repeat(2)
    windows = path[ids, starts][:, None]
    contrasts, _, _ = within_episodes(windows, ids)
    assert contrasts.var().item() == pytest.approx(1 - held, rel=0.03)
    apart = within_episodes(windows, torch.arange(2 * count) // 2)[0]  # of neighbours in the batch
    assert apart.var().item() == pytest.approx(1, rel=0.03)


def episodes_of_latents(moving=6, static=3):
    """32 episodes, two windows of 5 latents each: some that move, some that tell the episode."""
    ids = torch.arange(32).repeat(2)
    layout = randn(32, static)[ids, None].expand(64, 5, static)
    return ids, torch.cat([randn(64, 5, moving, seed=1), layout], -1)


def test_slow_latents_are_also_pulled_together_across_windows_and_judged_apart():
    ids, z = episodes_of_latents()
    z = z + 0.1 * randn(*z.shape, seed=2)
    z_hat = z[:, 1:] + 0.3 * randn(64, 4, 9, seed=3)

    def losses(slow_dim, z=z, **given):
        objective = make_objective(SIGReg(64), 2.0, law="within", slow_dim=slow_dim, **given)
        hat = z_hat[..., : z.shape[-1]]
        return objective(hat, z[:, 1:], z, clusters=ids, generator=seeded(3))

    both = losses(3, slow_weight=0.5)
    torch.testing.assert_close(both["alignment"], losses(0)["alignment"])  # of all latents
    torch.testing.assert_close(both["discrepancy"], losses(0, z[..., :6])["discrepancy"])
    # Window i of the first half and i + 32 are those of one episode.
    torch.testing.assert_close(
        both["slow_alignment"], (z[:32, :, 6:] - z[32:, :, 6:]).square().mean()
    )
    parts = both["alignment"] + 2 * both["discrepancy"]
    total = parts + 0.5 * both["slow_alignment"] + 2 * both["slow_discrepancy"]
    torch.testing.assert_close(both["loss"], total)


@pytest.mark.slow
def test_slow_latents_find_what_changes_least():
    """Of a constant, a slow and a fast factor, all Gaussian over episodes, two slow latents hold
    the constant and the slow one."""
    constant = randn(512, 1, 1).repeat(2, 5, 1)
    slow, other = randn(512, 1, 1, seed=1), randn(512, 1, 1, seed=2)
    slow = torch.cat([slow, 0.9 * slow + (1 - 0.9**2) ** 0.5 * other]).expand(-1, 5, -1)
    fast = randn(1024, 1, 3, seed=3).expand(-1, 5, -1)  # of each window its own
    factors = torch.cat([constant, slow, fast], -1)
    ids = torch.arange(512).repeat(2)
    encoder = torch.nn.Linear(5, 4, bias=False, dtype=factors.dtype)
    torch.nn.init.normal_(encoder.weight, std=0.5, generator=seeded(4))
    objective = make_objective(SIGReg(64), 5.0, slow_dim=2, slow_weight=0.8)
    optimizer, generator = torch.optim.Adam(encoder.parameters(), lr=0.02), seeded(5)
    for _ in range(300):
        z = encoder(factors)
        loss = objective(z[:, 1:], z[:, 1:], z, clusters=ids, generator=generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = encoder.weight.detach()[2:].square()
    assert found[:, :2].sum() > 0.9 * found.sum()


def test_slow_latents_must_tell_episodes_apart_before_all_else():
    ids, told = episodes_of_latents()
    objective = make_objective(SIGReg(256), 5.0, law="within", slow_dim=3)

    def cost(last):
        z = torch.cat([told[..., :6], last], -1)
        losses = objective(z[:, 1:], z[:, 1:], z, clusters=ids, generator=seeded(3))
        return (losses["slow_alignment"] + 5 * losses["slow_discrepancy"]).item()

    layout = told[..., 6:]
    silent, moving, slow = (
        0 * layout,
        randn(64, 5, 3, seed=5),
        randn(64, 1, 3, seed=6).expand(64, 5, 3),
    )
    assert cost(layout) < 0.1
    assert cost(silent) > 1  # the same in all episodes
    assert cost(moving) > 1 and cost(slow) > 1  # also what only looks constant in one window


def test_slow_latents_that_cannot_be_are_named():
    ids, z = episodes_of_latents()
    objective = make_objective(SIGReg(16), slow_dim=9)
    with pytest.raises(ValueError, match="slow_dim=9 leaves none of 9 latents"):
        objective(z[:, 1:], z[:, 1:], z, clusters=ids)
    with pytest.raises(ValueError, match="slow latents compare two windows"):
        make_objective(SIGReg(16), slow_dim=3)(z[:, 1:], z[:, 1:], z, clusters=torch.arange(64))
    for wrong in (
        dict(slow_dim=-1),
        dict(slow_dim=1.5),
        dict(slow_dim=2, slow_weight=float("nan")),
    ):
        with pytest.raises(ValueError, match="whole slow_dim >= 0 and slow_weight >= 0"):
            make_objective(SIGReg(16), **wrong)
    with pytest.raises(ValueError, match="without a target"):
        make_objective(SIGReg(target=GaussianTarget("learned", dim=9)), slow_dim=3)


def test_a_discrepancy_that_remembers_its_space_serves_both():
    ids, z = episodes_of_latents()
    objective = make_objective(Subspaces(dim=2), law="within", slow_dim=3)
    for _ in range(2):
        losses = objective(z[:, 1:], z[:, 1:], z, clusters=ids, generator=seeded(3))
        assert losses["loss"].isfinite()


def test_masked_slow_latents_may_hold_anything():
    ids, z = episodes_of_latents()
    mask = torch.ones(64, 5, dtype=torch.bool)
    mask[:40, 3:] = False
    spoiled = torch.where(mask[..., None], z, float("nan"))
    objective = make_objective(SIGReg(64), law="within", slow_dim=3)

    def losses(z):
        generator = seeded(3)
        return objective(z[:, 1:], z[:, 1:], z, mask=mask, clusters=ids, generator=generator)

    for name, value in losses(spoiled).items():
        torch.testing.assert_close(value, losses(z)[name])
    mask[:32] = False
    with pytest.raises(ValueError, match="leaves no latent with its match"):
        make_objective(SIGReg(64), slow_dim=3)(z[:, 1:], z[:, 1:], z, mask=mask, clusters=ids)
