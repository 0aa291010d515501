"""The study of shape: its statistics, its worlds, and that models trained together are as if
alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from shape.arms import (
    Arm,
    directions,
    kl_statistic,
    normalised,
    penalty,
    shape_statistic,
    wasserstein_statistic,
)
from shape.measures import Closeness, attempts, data_of, floors, measured, plans
from shape.tables import comparisons, difference, holm
from shape.training import Settings, freeze, train
from shape.worlds import WORLDS
from shape_study import verdict_tables

from gjwm.objectives import epps_pulley

LAWS = {
    "gaussian": lambda g: torch.randn(3, 4000, 8, generator=g),
    "uniform": lambda g: math.sqrt(12) * (torch.rand(3, 4000, 8, generator=g) - 0.5),
    "laplace": lambda g: torch.distributions.Laplace(0, 1 / math.sqrt(2)).icdf(
        torch.rand(3, 4000, 8, generator=g).clamp(1e-6, 1 - 1e-6)
    ),
    "mixture": lambda g: (
        torch.randn(3, 8000, 8, generator=g)
        * torch.where(torch.rand(3, 8000, 1, generator=g) < 0.5, 0.1, 1.9).sqrt()
    ),
}


@pytest.mark.parametrize("law", LAWS)
def test_the_statistic_is_least_and_zero_at_its_own_law(law):
    g = torch.Generator().manual_seed(0)
    slices = directions(8, g)
    values = {other: shape_statistic(z(g), slices, law).mean() for other, z in LAWS.items()}
    assert abs(values[law]) < 2e-4
    assert all(values[other] > 10 * abs(values[law]) for other in LAWS if other != law)


def test_independence_asks_for_no_law_and_sees_what_covariances_do_not():
    g = torch.Generator().manual_seed(0)
    slices = directions(8, g)[:, 8:]
    products = [draw for name, draw in LAWS.items() if name != "mixture"]
    least = max(shape_statistic(z(g), slices, "independent").max() for z in products)
    assert shape_statistic(LAWS["mixture"](g), slices, "independent").min() > 5 * least
    x = torch.randn(4000, 4, generator=g)
    bent = torch.cat([x, (x.square() - 1) / math.sqrt(2)], 1)  # covariance I
    assert shape_statistic(bent, slices, "independent") > 5 * least


def test_gaussian_statistic_is_epps_pulley():
    g = torch.Generator().manual_seed(0)
    z, slices = torch.rand(200, 8, generator=g), directions(8, g)
    ours = shape_statistic(z, slices, "gaussian")
    theirs = epps_pulley(z @ slices, t_max=4.0, knots=9, unbiased=True).mean()
    # the same up to half the last knot's weight, exp(-8)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_cluster_statistic_has_no_bias_where_windows_hold_one_sample_many_times():
    g = torch.Generator().manual_seed(0)
    slices = directions(4, g)
    z = torch.randn(400, 16, 1, 4, generator=g).expand(-1, -1, 5, -1)
    clustered = shape_statistic(z, slices, "gaussian", cluster=True)
    pooled = shape_statistic(z.flatten(1, 2), slices, "gaussian")
    assert abs(clustered.mean()) < 3 * clustered.std() / 20
    assert pooled.mean() > 10 * abs(clustered.mean())


def test_whitening_is_exact_and_leaves_shape_alone():
    g = torch.Generator().manual_seed(0)
    h = torch.rand(2, 500, 6, generator=g) @ torch.randn(6, 6, generator=g) + 3
    z = normalised(h, "whiten")
    cov = z.mT @ z / 500
    torch.testing.assert_close(cov, torch.eye(6).expand(2, -1, -1), atol=2e-2, rtol=0)
    assert z.mean(1).abs().max() < 1e-4


def test_wasserstein_and_kl_at_known_laws():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, 20000, 4, generator=g)
    assert wasserstein_statistic(z, directions(4, g)).max() < 2e-3
    half = wasserstein_statistic(0.5 * z, directions(4, g))
    torch.testing.assert_close(half, torch.full((2,), 0.25), atol=1e-2, rtol=0)
    expected = (0.25 - 1 - math.log(0.25)) / 2  # per dimension
    torch.testing.assert_close(kl_statistic(0.5 * z), torch.full((2,), expected), atol=1e-2, rtol=0)


ARMS = [
    Arm("moments"),
    Arm("gaussian (SIGReg)", discrepancy="shape", lam=5.0),
    Arm("ema", norm="batch", target="ema"),
    Arm("nothing", norm="none"),
]


def test_models_trained_together_are_as_if_alone():
    world, seeds, settings = WORLDS["torus"], [3, 4], Settings(steps=8, batch=16)
    data = data_of(world, seeds, 24, torch.device("cpu"))
    together, _ = train(data, ARMS, seeds, settings)
    for s, seed in enumerate(seeds):
        own = data_of(world, [seed], 24, torch.device("cpu"))
        for a, arm in enumerate(ARMS):
            alone, _ = train(own, [arm], [seed], settings)
            for name, value in alone.items():
                # its gradient is rounding where the norm takes the mean off
                if name == "e3b" and arm.norm != "none":
                    continue
                torch.testing.assert_close(
                    together[name][s, a], value[0, 0], atol=2e-4, rtol=2e-3, msg=f"{arm} {name}"
                )


@pytest.mark.parametrize(
    "name",
    [
        "gaussian",
        "torus",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("box", "random-walls")),
    ],
)
def test_every_world_is_run_and_judged(name):
    world, seeds, device = WORLDS[name], [0], torch.device("cpu")
    data = data_of(world, seeds, 40, device)
    arms = ARMS[:2]
    w, extra = train(data, arms, seeds, Settings(steps=2, batch=16))
    model = freeze(w, arms, data)
    g = torch.Generator().manual_seed(0)
    values = extra | measured(world, model, data, data_of(world, [1], 20, device), g)
    start, goal = (part[None] for part in world.goals(2, g))
    values |= plans(world, model, data, start, goal, len(arms), g)
    assert all(value.shape == (1, 2) and value.isfinite().all() for value in values.values())
    z = model.encode(data.o.flatten(1, 2))
    cov = z[0, 0].T @ z[0, 0] / z.shape[2]
    torch.testing.assert_close(cov, torch.eye(16), atol=0.1, rtol=0)  # the whitened arms
    bounds = floors(world, start, goal, g)
    if name != "gaussian":  # the only world that moves by itself
        assert bounds["hold"].max() == 0


def test_goals_are_not_reached_by_holding_still():
    for world in WORLDS.values():
        start, goal = world.goals(50, torch.Generator().manual_seed(0))
        assert (world.distance(start, goal) > 2 * world.protocol.radius).all()


def test_a_model_meets_the_same_noise_whoever_is_judged_beside_it():
    world = WORLDS["gaussian"]
    start, goal = (part[None] for part in world.goals(3, torch.Generator().manual_seed(0)))

    def fast(state):
        return lambda actions: -actions.sum((-1, -2))

    alone, together = (
        attempts(world, start, goal, (1, arms), 3, fast, torch.Generator().manual_seed(1))
        for arms in (1, 2)
    )
    for one, two in zip(alone, together):
        assert torch.equal(one.expand_as(two), two)


def test_penalties_of_all_kinds_have_gradients():
    g = torch.Generator().manual_seed(0)
    slices = directions(16, g)
    for kind in ("shape", "wasserstein", "moments", "kl"):
        for time in ("step", "pooled", *(("cluster",) if kind == "shape" else ())):
            z = torch.rand(2, 32, 5, 16, generator=g, requires_grad=True)
            penalty(z, Arm("x", discrepancy=kind, time=time), slices).sum().backward()
            assert z.grad is not None and z.grad.isfinite().all() and z.grad.abs().max() > 0


def test_closeness_is_the_log_ratio_of_a_gaussian_pair():
    closeness = Closeness.__new__(Closeness)
    one = torch.ones(1, 1, 1, 1)
    closeness.mean, closeness.transform = torch.zeros(1, 1, 1, 1), one
    closeness.u, closeness.vh, closeness.rho = one, one, torch.full((1, 1, 1), 0.8)
    constant = -0.5 * math.log(1 - 0.64)
    near = closeness(torch.ones(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1)) + constant
    far = closeness(torch.ones(1, 1, 1, 1, 1), -torch.ones(1, 1, 1, 1)) + constant
    assert near.item() == pytest.approx(0.955270, abs=1e-5)
    assert far.item() == pytest.approx(-3.489174, abs=1e-5)


def test_the_verdict_holds_the_tables_that_its_rows_give():
    page = (Path(__file__).parent.parent / "docs" / "verdict.md").read_text()
    for table in verdict_tables():
        assert table in page, f"docs/verdict.md lacks:\n{table}"


def test_paired_differences_and_holm_at_known_values():
    ours, theirs = {0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.8, 1: 0.8, 2: 0.5, 3: 0.1}
    found = difference(ours, theirs)
    assert found["mean"] == pytest.approx(10) and found["seeds"] == 3
    assert found["half"] == pytest.approx(4.302653 * 10 / math.sqrt(3), rel=1e-4)
    assert found["p"] == pytest.approx(0.2254, abs=1e-3)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    with pytest.raises(ValueError, match="two seeds"):
        difference({0: 1.0}, {0: 1.0})


def test_worlds_that_were_not_judged_count_in_the_correction():
    rows = [
        {"world": "box", "arm": arm, "lam": "0.0", "seed": str(seed), "success": success}
        for arm, of_seeds in {"moments": "2435", "gaussian (SIGReg)": "3656"}.items()
        for seed, success in enumerate(f"0.{digit}" for digit in of_seeds)
    ]
    ours, theirs = ([float(r["success"]) for r in rows[at]] for at in (slice(4, 8), slice(4)))
    p = difference(dict(enumerate(ours)), dict(enumerate(theirs)))["p"]
    assert f"| {4 * p:.2g} |" in comparisons(rows)
    with pytest.raises(ValueError, match="8 rows of 4 seeds"):
        comparisons(rows + rows)
