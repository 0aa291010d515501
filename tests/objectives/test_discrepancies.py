"""Claims about every discrepancy: closed forms, gradients, symmetries, trajectories, masks, targets
and errors.
"""

import math

import numpy as np
import pytest
import torch
from scipy import special

from gjwm.objectives import (
    BHEP,
    W0,
    GaussianKL,
    GaussianTarget,
    JointEmbeddingObjective,
    NonFiniteLatentsError,
    NoRegularizer,
    SIGReg,
    SlicedEnergy,
    SlicedWasserstein,
    Subspaces,
    VICReg,
    bhep,
    energy_1d,
    epps_pulley,
    epps_pulley_exact,
    predictive_information,
    projections,
    random_directions,
    wasserstein_1d,
)


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=g(seed), dtype=dtype)


ALL = {
    "sigreg": SIGReg(16),
    "sigreg_pooled_u": SIGReg(16, time="pooled"),
    "sigreg_lewm": SIGReg.lewm(num_slices=16),
    "wasserstein": SlicedWasserstein(16),
    "wasserstein_per_step": SlicedWasserstein(16, time="per_step"),
    "energy": SlicedEnergy(16),
    "energy_v": SlicedEnergy(16, time="pooled", estimator="v"),
    "bhep": BHEP(),
    "bhep_v": BHEP(0.5, time="pooled", estimator="v"),
    "kl": GaussianKL(),
    "vicreg": VICReg(),
    "vicreg_per_step": VICReg(time="per_step"),
    "subspaces": Subspaces(SIGReg(8), dim=2),
    "none": NoRegularizer(),
}
EACH = pytest.mark.parametrize("discrepancy", ALL.values(), ids=ALL.keys())


# closed forms


@pytest.mark.parametrize(
    "mean, std, value", [(0, 0.5, 0.151685), (0, 2, 0.236092), (1, 1, 0.444344), (3, 1, 2.248576)]
)
def test_epps_pulley_of_a_gaussian_law(mean, std, value):
    quantiles = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    assert epps_pulley(
        (mean + std * quantiles)[:, None], knots=65, t_max=8.0
    ).item() == pytest.approx(value, abs=1e-4)


def test_null_variance_of_n_times_t():
    variance = 4 * math.pi * (5**-0.5 - 2**-0.5 + 1 / 3)
    statistic = 128 * epps_pulley(randn(128, 6000))
    assert statistic.var().item() == pytest.approx(variance, rel=0.08)


@pytest.mark.parametrize("knots", [2, 3, 4, 10, 17, 33])
def test_any_number_of_knots_gives_the_plain_quadrature(knots):
    x = 1.3 * randn(20, 4)
    t = torch.linspace(0, 4.0, knots, dtype=x.dtype)
    weight = torch.full_like(t, 2 * 4.0 / (knots - 1))
    weight[0] = weight[-1] = 4.0 / (knots - 1)
    phi = torch.exp(-t.square() / 2)
    angles = x[..., None] * t
    error = (angles.cos().mean(0) - phi).square() + angles.sin().mean(0).square()
    torch.testing.assert_close(epps_pulley(x, knots=knots, t_max=4.0), error @ (weight * phi))


@pytest.mark.parametrize("dim", [8, 32, 192])
def test_many_slices_tend_to_the_kernel_form(dim):
    """Averaged over the sphere, SIGReg is an MMD with kernel 1F1(1/2; D/2; -r^2/2)."""
    z = 0.9 * randn(48, dim) + 0.1

    def f(x):
        return special.hyp1f1(0.5, dim / 2, x)

    pairs = torch.cdist(z, z).square().numpy()
    norms = z.square().sum(1).numpy()
    oracle = W0 * (f(-pairs / 2).mean() - math.sqrt(2) * f(-norms / 4).mean() + 3**-0.5)
    values = epps_pulley(z @ random_directions(dim, 20_000, g(), like=z))
    assert (
        abs(values.mean().item() - oracle) < 4 * values.std().item() / math.sqrt(len(values)) + 3e-6
    )


def test_wasserstein_has_its_known_values():
    zero, signs = (
        torch.zeros(1, 1, dtype=torch.float64),
        torch.tensor([[-1.0], [1.0]], dtype=torch.float64),
    )
    assert wasserstein_1d(zero).item() == pytest.approx(1)
    assert wasserstein_1d(signs).item() == pytest.approx(0.404231, abs=1e-6)
    best = math.sqrt(2 / math.pi) * signs
    assert wasserstein_1d(best).item() == pytest.approx(1 - 2 / math.pi, abs=1e-9)
    grid = torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)[:, None]
    assert wasserstein_1d(0.7 + 2 * grid).item() == pytest.approx(0.7**2 + 1, rel=2e-3)


def test_energy_has_its_known_values_and_slices_add_up_to_the_full_distance():
    assert energy_1d(torch.zeros(1, 1, dtype=torch.float64)).item() == pytest.approx(
        0.467390, abs=1e-6
    )
    x = randn(9, 3)
    plain = (x[:, None] - x[None]).abs().mean((0, 1))
    cross = x * torch.erf(x / math.sqrt(2)) + math.sqrt(2 / math.pi) * torch.exp(-x.square() / 2)
    torch.testing.assert_close(energy_1d(x), 2 * cross.mean(0) - plain - 2 / math.sqrt(math.pi))
    d, z = 5, 0.7 * randn(40, 5) + 0.3
    e = math.gamma((d + 1) / 2) / math.gamma(d / 2)
    near = math.sqrt(2) * e * special.hyp1f1(-0.5, d / 2, -z.square().sum(1).numpy() / 2)
    full = 2 * near.mean() - torch.cdist(z, z).mean().item() - 2 * e
    assert math.sqrt(math.pi) * e * SlicedEnergy(40_000, time="pooled", estimator="v")(
        z, generator=g()
    ).item() == pytest.approx(full, rel=0.01)


def test_energy_leaves_out_pairs_of_one_group():
    x, group = randn(10, 3), torch.tensor([0, 1, 0, 2, 2, 2, 1, 0, 3, 1])
    other = group[:, None] != group
    pairs = ((x[:, None] - x[None]).abs() * other[..., None]).sum((0, 1)) / other.sum()
    both = energy_1d(x) + (x[:, None] - x[None]).abs().mean((0, 1))
    torch.testing.assert_close(energy_1d(x, group), both - pairs)


def test_bhep_null_law_and_population_value():
    d, n, b = 3, 64, 0.8
    x = [n * bhep(randn(n, d, seed=s), b).item() for s in range(800)]
    b2 = b * b
    assert np.mean(x) == pytest.approx(1 - (1 + 2 * b2) ** (-d / 2), rel=0.05)
    variance = 2 * (
        (1 + 4 * b2) ** (-d / 2) - 2 * ((1 + b2) * (1 + 3 * b2)) ** (-d / 2) + (1 + 2 * b2) ** -d
    )
    assert np.var(x) == pytest.approx(variance, rel=0.25)
    s2 = 0.25
    population = (
        (1 + 2 * b2 * s2) ** (-d / 2)
        - 2 * (1 + b2 * (1 + s2)) ** (-d / 2)
        + (1 + 2 * b2) ** (-d / 2)
    )
    assert bhep(0.5 * randn(4000, d), b, unbiased=True).item() == pytest.approx(
        population, rel=0.03
    )


def test_in_one_dimension_bhep_is_epps_pulley():
    x = 1.3 * randn(30, 1) + 0.2
    assert W0 * bhep(x, 1.0).item() == pytest.approx(
        epps_pulley(x, knots=65, t_max=8.0).item(), abs=1e-8
    )


def test_a_kernel_of_unit_width_is_blind_in_high_dimension_and_the_default_is_not():
    z = (0.5 * randn(64, 192)).requires_grad_()
    wide, narrow = (torch.autograd.grad(BHEP(beta)(z), z)[0].norm() for beta in ("auto", 1.0))
    assert wide > 1e6 * narrow


def test_gaussian_kl_has_its_closed_form():
    n, d = 4000, 5
    z = randn(n, d)
    z = z - z.mean(0)
    # mean 0 and covariance I exactly
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / n)).T
    assert GaussianKL(shrinkage=0)(2 * z).item() == pytest.approx(
        d / 2 * (3 - math.log(4)), abs=1e-9
    )
    s = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.1], dtype=torch.float64)
    assert GaussianKL(shrinkage=0)(z * s.sqrt()).item() == pytest.approx(
        0.5 * (s - 1 - s.log()).sum().item(), abs=1e-9
    )
    assert GaussianKL()(z + 2).item() == pytest.approx(0.5 * 4 * d, abs=1e-6)
    assert GaussianKL(per_dimension=True)(z + 2).item() == pytest.approx(2, abs=1e-6)
    with pytest.raises(ValueError, match="shrinkage > 0"):
        GaussianKL(shrinkage=0)(z[:4])


def test_total_collapse_costs_gaussian_kl_a_nat_per_dimension_unless_nothing_is_shrunk():
    d = 5
    z = randn(400, d)
    z = z - z.mean(0)
    for a in (0.05, 0.2):
        collapsed = GaussianKL(shrinkage=a)(0 * z).item()
        assert collapsed == pytest.approx(d / 2 * (a - 1 - math.log(a)), abs=1e-9)
    assert GaussianKL()(0 * z).item() / d == pytest.approx(1.02, abs=0.005)
    # and no gradient leads out of it, where without shrinkage it grows as 1 / standard deviation
    slope = {}
    for a in (0.05, 0.0):
        for std in (1e-3, 1e-4):
            s = torch.tensor(std, dtype=torch.float64, requires_grad=True)
            slope[a, std] = torch.autograd.grad(GaussianKL(shrinkage=a)(s * z), s)[0].item()
    assert slope[0.05, 1e-4] == pytest.approx(0.1 * slope[0.05, 1e-3], rel=1e-3)
    assert slope[0.0, 1e-4] == pytest.approx(10 * slope[0.0, 1e-3], rel=1e-3)
    assert GaussianKL(shrinkage=0)(1e-6 * z) > d * 13


# gradients, symmetries


@EACH
@pytest.mark.parametrize("shape", [(9, 4), (5, 3, 4)])
def test_gradients_are_right(discrepancy, shape):
    z = (0.8 * randn(*shape) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: discrepancy(x, generator=g(1)), (z,))


def test_gradients_are_right_with_masks_and_shared_clusters():
    z = randn(6, 3, 4).requires_grad_()
    mask = torch.ones(6, 3, dtype=torch.bool)
    mask[0, 2] = mask[3, 0] = mask[5] = False
    ids = torch.tensor([0, 1, 1, 2, 0, 3])
    for name in ("sigreg", "energy", "bhep", "sigreg_lewm", "kl"):
        assert torch.autograd.gradcheck(
            lambda x, name=name: ALL[name](x, mask=mask, clusters=ids, generator=g(1)), (z,)
        )


@EACH
def test_the_order_of_samples_does_not_matter(discrepancy):
    z, order = randn(24, 3, 4), torch.randperm(24, generator=g())
    torch.testing.assert_close(
        discrepancy(z, generator=g(1)), discrepancy(z[order], generator=g(1))
    )


@EACH
def test_bfloat16_autocast_does_not_reach_inside(discrepancy):
    z = randn(32, 3, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = discrepancy(z, generator=g(1))
    torch.testing.assert_close(inside, discrepancy(z, generator=g(1)), rtol=0, atol=0)


def test_every_constructor_has_defaults_and_prefers_a_gaussian_to_a_collapsed_batch():
    z = randn(256, 2, 12, dtype=torch.float32)
    for cls in (SIGReg, SlicedWasserstein, SlicedEnergy, BHEP, GaussianKL, VICReg, Subspaces):
        assert (
            cls()(0.1 * z, generator=g()) > cls()(0.5 * z, generator=g()) > cls()(z, generator=g())
        )


# trajectories


def ar1(batch, length, dim, rho, seed):
    noise = randn(batch, length, dim, seed=seed)
    x = [noise[:, 0]]
    for t in range(1, length):
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * noise[:, t])
    return torch.stack(x, 1)


@pytest.mark.parametrize("name", ["energy", "bhep"])
def test_pairs_across_trajectories_are_unbiased_and_pooled_ones_are_not(name):
    make = {"energy": lambda **k: SlicedEnergy(8, **k), "bhep": lambda **k: BHEP(**k)}[name]
    found = {"cluster": [], "pooled": []}
    for seed in range(300):
        z = ar1(16, 8, 4, 0.9, seed)
        for time, values in found.items():
            values.append(make(time=time)(z, generator=g(seed)).item())
    error = np.std(found["cluster"]) / math.sqrt(300)
    assert abs(np.mean(found["cluster"])) < 3 * error
    assert np.mean(found["pooled"]) > 10 * error


def test_masked_samples_do_not_count_whatever_they_hold():
    z, ids = randn(8, 4, 4), torch.tensor([0, 1, 1, 2, 3, 4, 4, 5])
    mask = torch.ones(8, 4, dtype=torch.bool)
    mask[:, 3] = False
    spoiled = z.clone()
    spoiled[:, 3] = torch.nan
    for name, d in ALL.items():
        for clusters in (None, ids):
            kept = d(z[:, :3], clusters=clusters, generator=g(1))
            masked = d(spoiled, mask=mask, clusters=clusters, generator=g(1))
            torch.testing.assert_close(masked, kept, msg=name)


def test_unequal_trajectories_weigh_every_sample_alike():
    """The cross-cluster estimate by hand: one slice, pairs of different rows only, ragged rows."""
    z, mask = randn(4, 3, 1), torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]]).bool()
    x, row = z[mask][:, 0], torch.arange(4)[:, None].expand(4, 3)[mask]
    t = torch.linspace(0, 5, 17, dtype=x.dtype)
    weight = torch.full_like(t, 2 * 5 / 16)
    weight[0] = weight[-1] = 5 / 16
    phi = torch.exp(-t.square() / 2)
    other = (row[:, None] != row)[..., None]
    square = (torch.cos((x[:, None, None] - x[None, :, None]) * t) * other).sum(
        (0, 1)
    ) / other.sum()
    by_hand = (
        weight * phi * (square - 2 * phi * torch.cos(x[:, None] * t).mean(0) + phi.square())
    ).sum()
    torch.testing.assert_close(SIGReg(3)(z, mask=mask, generator=g()), by_hand)


def test_chunks_do_not_change_the_result(monkeypatch):
    z = randn(6, 5, 7)
    whole = [d(z, generator=g(1)) for d in (ALL["sigreg"], ALL["sigreg_lewm"])]
    monkeypatch.setattr(projections, "CHUNK", {"cpu": 90})
    for d, value in zip((ALL["sigreg"], ALL["sigreg_lewm"]), whole):
        torch.testing.assert_close(d(z, generator=g(1)), value)


@pytest.mark.slow
def test_compiled_kernels_agree_with_eager_ones():
    z = randn(12, 5, 7)
    mask = torch.ones(12, 5, dtype=torch.bool)
    mask[2, 3] = False
    for kwargs in ({}, {"time": "pooled"}):
        for given in ({}, {"mask": mask}):
            found = []
            for compiled in (False, True):
                x = z.clone().requires_grad_()
                value = SIGReg(16, compile=compiled, **kwargs)(x, generator=g(1), **given)
                found.append((value, torch.autograd.grad(value, x)[0]))
            torch.testing.assert_close(found[0], found[1])


# presets


def test_presets_are_the_published_codes():
    z, slices = randn(16, 3, 8, dtype=torch.float32), 64
    t = torch.linspace(0, 3, 17)
    weight = torch.full((17,), 2 * 3 / 16)
    weight[0] = weight[-1] = 3 / 16
    phi = torch.exp(-t.square() / 2)
    a = torch.randn(8, slices, generator=g(1))
    projected = (z.transpose(0, 1) @ (a / a.norm(p=2, dim=0)))[..., None] * t  # (T, B, S, K)
    error = (projected.cos().mean(-3) - phi).square() + projected.sin().mean(-3).square()
    published = ((error @ (weight * phi)) * 16).mean()
    for preset in (SIGReg.lewm(num_slices=slices), SIGReg.lejepa(num_slices=slices)):
        torch.testing.assert_close(preset(z, generator=g(1)), published)
    assert SIGReg.lewm().num_slices == 1024 and SIGReg.lejepa().num_slices == 256
    losses = JointEmbeddingObjective.lejepa(
        0.02, discrepancy=SIGReg.lejepa(num_slices=slices)
    ).views(z, generator=g(1))
    invariance = (z.mean(1, keepdim=True) - z).square().mean()
    torch.testing.assert_close(losses["loss"], 0.98 * invariance + 0.02 * published)
    lewm = JointEmbeddingObjective.lewm(discrepancy=SIGReg.lewm(num_slices=slices))
    z_hat = randn(16, 2, 8, seed=5, dtype=torch.float32)
    expected = (z_hat - z[:, 1:]).square().mean() + 0.09 * published
    torch.testing.assert_close(lewm(z_hat, z[:, 1:], z, generator=g(1))["loss"], expected)


# targets


@pytest.mark.parametrize(
    "target",
    [
        GaussianTarget("diagonal", variances=[4.0, 1.0, 1.0, 0.5], min_eig=0.3),
        GaussianTarget("learned", dim=4, min_eig=0.3),
        GaussianTarget("shrunk", min_eig=0.3, momentum=1.0),
        GaussianTarget(),
    ],
    ids=lambda t: t.kind,
)
def test_a_target_has_trace_d_a_floor_and_is_matched_by_its_own_law(target):
    scale = torch.tensor([5.0, 1.0, 0.1, 0.01], dtype=torch.float64)
    target.whiten(randn(64, 4) * scale)
    if target.kind == "learned":
        torch.nn.init.normal_(target.turn, generator=g())
        torch.nn.init.normal_(target.log_share, std=3.0, generator=g())
    target.eval()
    values, vectors = target.eigen()
    covariance = vectors * values @ vectors.T
    assert values.sum().item() == pytest.approx(4)
    assert values.min() >= target.min_eig - 1e-9
    z = randn(4000, 4) @ torch.linalg.cholesky(covariance.detach()).T
    assert SIGReg(256, target=target)(z, generator=g()).abs() < 2e-3
    assert target.kind == "isotropic" or SIGReg(256)(z, generator=g()) > 4e-3


def test_collapse_costs_something_under_any_target_that_can_be_built():
    z = 0.01 * randn(256, 4)
    discrepancy = SIGReg(64, target=GaussianTarget("learned", dim=4, min_eig=0.1))
    optimizer = torch.optim.Adam(discrepancy.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        discrepancy(z, generator=g()).backward()
        optimizer.step()
    assert discrepancy(z, generator=g()) > 0.35  # a point mass has 0.409 per slice
    for floor in (0.0, -1.0):
        with pytest.raises(ValueError, match="collapsed encoder"):
            GaussianTarget("learned", dim=4, min_eig=floor)


def test_a_diagonal_target_keeps_its_floor():
    with pytest.raises(ValueError, match=r"variance 0.5 of dimension 3 is 0.308 .* min_eig=0.5"):
        GaussianTarget("diagonal", variances=[4.0, 1.0, 1.0, 0.5])
    with pytest.raises(ValueError, match="positive variances"):
        GaussianTarget("diagonal", variances=[1.0, -1.0])


@pytest.mark.parametrize("kind", ["shrunk", "learned"])
def test_subspaces_refuse_a_target_that_would_blend_their_bases(kind):
    with pytest.raises(ValueError, match=f"base with a {kind} target"):
        Subspaces(SIGReg(4, target=GaussianTarget(kind, dim=2)), dim=2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Subspaces(SIGReg(8), dim=2),
        lambda: SIGReg(8, target=GaussianTarget("shrunk", momentum=0.5)),
    ],
    ids=["subspaces", "shrunk"],
)
def test_what_is_built_on_first_use_survives_the_state_dict(make):
    used, fresh, z = make(), make(), randn(32, 4) * torch.tensor([2.0, 1.0, 1.0, 0.5])
    used(z, generator=g())
    fresh.load_state_dict(used.state_dict())
    if isinstance(used, Subspaces):
        assert torch.equal(fresh.projections, used.projections)
    else:
        assert fresh.target.dim == 4 and torch.equal(fresh.target.running, used.target.running)
    torch.testing.assert_close(fresh.eval()(z, generator=g()), used.eval()(z, generator=g()))


def test_a_learned_target_trains_with_the_latents():
    target = GaussianTarget("learned", dim=3, min_eig=0.2)
    z = (randn(64, 3) * torch.tensor([1.5, 0.7, 0.3])).requires_grad_()
    SIGReg(32, target=target)(z, generator=g()).backward()
    assert z.grad.abs().sum() > 0 and target.log_share.grad.abs().sum() > 0


# joint likelihood


def test_the_joint_alignment_cannot_be_lowered_by_shrinking():
    c, t = randn(50, 1).requires_grad_(), randn(50, 4, seed=1)
    t = t + 0.5 * c.detach()
    objective = JointEmbeddingObjective(NoRegularizer(), lam=0, align="joint")
    big, small = (objective(s * c.expand(-1, 4), s * t, s * t)["alignment"] for s in (1.0, 0.1))
    torch.testing.assert_close(big, small)
    (gradient,) = torch.autograd.grad(big, c)
    assert gradient.abs().max() > 1e-4  # and there is something to learn


def test_predictive_information_of_the_conditional_mean_is_the_mutual_information():
    c = randn(500, 3)
    t = c @ randn(3, 2, seed=1) + 0.5 * randn(500, 2, seed=2)
    joint = torch.cov(torch.cat([c, t], 1).T, correction=0)
    parts = (joint[:3, :3], joint[3:, 3:], joint)
    context, target, both = (torch.linalg.slogdet(s).logabsdet for s in parts)
    conditional_mean = t.mean(0) + (c - c.mean(0)) @ torch.linalg.solve(parts[0], joint[:3, 3:])
    got = predictive_information(conditional_mean, t, ridge=0.0)
    torch.testing.assert_close(got, 0.5 * (context + target - both))
    assert predictive_information(t, t).isfinite()  # a perfect prediction is worth a finite amount


# alignment


def test_masks_choose_the_errors_that_count():
    z, z_hat = randn(4, 4, 3), randn(2, 4, 3, 3, seed=1)
    squared = (z_hat - z[:, 1:]).square().mean(-1)  # (2, B, T)

    def alignment(mask=None):
        o = JointEmbeddingObjective(NoRegularizer(), 0.0)
        return o(z_hat, z[:, 1:], z, mask=mask)["alignment"]

    torch.testing.assert_close(alignment(), squared.mean())
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[0, 2] = False  # cuts the window of row 0 after one target
    valid = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]]).double()
    torch.testing.assert_close(alignment(mask=mask), (squared * valid).sum() / (2 * valid.sum()))


@pytest.mark.parametrize("align", ["mse", "joint"])
def test_masked_latents_reach_neither_the_value_nor_the_gradient(align):
    z, z_hat = randn(8, 4, 3), randn(8, 3, 3, seed=1)
    mask = torch.ones(8, 4, dtype=torch.bool)
    mask[2, 2:] = False
    o, found = JointEmbeddingObjective(VICReg(), 1.0, align=align), []
    for filler in (0.0, torch.nan):
        given, predicted = z.clone(), z_hat.clone()
        given[2, 2:], predicted[2, 1:] = filler, filler
        given.requires_grad_(), predicted.requires_grad_()
        loss = o(predicted, given[:, 1:], given, mask=mask)["loss"]
        found.append((loss, *torch.autograd.grad(loss, (given, predicted))))
    torch.testing.assert_close(found[1], found[0])
    assert found[0][1].abs().sum() > 0


def test_what_leaves_nothing_to_align_is_named():
    z, mask = randn(4, 4, 3), torch.ones(4, 4, dtype=torch.bool)
    mask[:, 0] = False
    with pytest.raises(ValueError, match="leaves no target"):
        JointEmbeddingObjective(VICReg())(z[:, 1:], z[:, 1:], z, mask=mask)


def test_bad_predictions_and_dimensions_are_named():
    z, z_hat = randn(4, 4, 3), randn(4, 3, 3, seed=1)
    z_hat[0, 0, :2] = torch.nan
    with pytest.raises(ValueError, match="2 NaN or infinite values in z_hat"):
        JointEmbeddingObjective(VICReg())(z_hat, z[:, 1:], z)
    with pytest.raises(ValueError, match="one dimension"):
        JointEmbeddingObjective(VICReg())(z[:, 1:, :0], z[:, 1:, :0], z[..., :0])


def test_any_module_of_z_alone_is_a_discrepancy():
    class Energy(torch.nn.Module):
        def forward(self, z):
            return z.square().mean()

    z, o = randn(4, 4, 3), JointEmbeddingObjective(Energy(), 2.0)
    ids = torch.arange(4)
    losses = o(z[:, 1:], z[:, 1:], z, clusters=ids, generator=g())
    assert losses["loss"].item() == pytest.approx(2 * z.square().mean().item())
    assert o.views(z, generator=g())["discrepancy"].item() == pytest.approx(
        z.square().mean().item()
    )
    with pytest.raises(ValueError, match="takes no mask"):
        o(z[:, 1:], z[:, 1:], z, mask=torch.ones(4, 4, dtype=torch.bool))


def test_views_need_two():
    with pytest.raises(ValueError, match="two views"):
        JointEmbeddingObjective().views(randn(8, 3))


# errors


@EACH
def test_bad_latents_are_one_clear_error(discrepancy):
    z = randn(6, 4)
    for bad, count in ((torch.nan, 1), (torch.inf, 2)):
        spoiled = z.clone()
        spoiled.view(-1)[:count] = bad
        with pytest.raises(
            ValueError, match=rf"{count} NaN or infinite values in z of shape \(6, 4\)"
        ):
            discrepancy(spoiled)
    with pytest.raises(ValueError, match="two samples"):
        discrepancy(z[:1])
    with pytest.raises(ValueError, match="at least one dimension"):
        discrepancy(z[:, :0])
    with pytest.raises(ValueError, match="leaves no sample"):
        discrepancy(z, mask=torch.zeros(6, dtype=torch.bool))
    with pytest.raises(ValueError, match="bool mask"):
        discrepancy(z, mask=torch.ones(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="clusters"):
        discrepancy(z, clusters=torch.zeros(5, dtype=torch.long))


@EACH
def test_huge_latents_are_an_error_or_have_a_finite_discrepancy(discrepancy):
    z = 1e20 * randn(6, 4, dtype=torch.float32)
    try:
        assert discrepancy(z, generator=g()).isfinite()
    except NonFiniteLatentsError as error:
        assert "finite latents as large as" in str(error)


@pytest.mark.parametrize("discrepancy", [BHEP(), VICReg(), SlicedWasserstein(4), GaussianKL()])
def test_latents_that_overflow_are_named(discrepancy):
    with pytest.raises(NonFiniteLatentsError, match="finite latents as large as"):
        discrepancy(1e20 * randn(6, 4, dtype=torch.float32))


@pytest.mark.parametrize("statistic", [epps_pulley, epps_pulley_exact])
def test_epps_pulley_needs_floating_point_samples_and_ignores_autocast(statistic):
    for bad in (torch.zeros(0, 3), torch.zeros(4, 3, dtype=torch.long), torch.zeros(4)):
        with pytest.raises(ValueError, match="floating-point samples"):
            statistic(bad)
    x = randn(40, 3, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(statistic(x), statistic(x.double()).float(), atol=2e-6, rtol=0)
        assert statistic(x.bfloat16()).dtype == torch.float32


def test_a_wrong_dimension_is_named():
    with pytest.raises(ValueError, match="3 dimensions"):
        SIGReg(4, target=GaussianTarget("learned", dim=3))(randn(6, 4))
    subspaces = Subspaces(SIGReg(4), dim=2)
    subspaces(randn(6, 4))
    with pytest.raises(ValueError, match=r"R\^4"):
        subspaces(randn(6, 5))
    with pytest.raises(ValueError, match="needs dim"):
        GaussianTarget("learned")
    for name in (SlicedEnergy, BHEP):
        with pytest.raises(ValueError, match="at least two episodes"):
            name()(randn(1, 6, 4))


def test_a_gaussian_likelihood_of_learned_embeddings_rewards_contraction_alone():
    def terms(x):
        s = x.T @ x / len(x)
        mahalanobis = (x @ torch.linalg.inv(s) * x).sum(1).mean()
        return mahalanobis, torch.linalg.slogdet(s).logabsdet / 2

    x = randn(50, 6).requires_grad_()
    mahalanobis, log_det = terms(x)
    assert mahalanobis.item() == pytest.approx(6, abs=1e-9)  # D, whatever the data
    assert torch.autograd.grad(mahalanobis, x)[0].abs().max() < 1e-12
    shrunk = terms(0.1 * x)
    assert (shrunk[1] - log_det).item() == pytest.approx(6 * math.log(0.1))
    objective = JointEmbeddingObjective(NoRegularizer(), lam=0, align="joint")
    big, small = (objective(*(s * x[:, k : k + 1] for k in (0, 1, 1))) for s in (1.0, 0.1))
    assert small["alignment"].item() == pytest.approx(big["alignment"].item(), abs=1e-6)
