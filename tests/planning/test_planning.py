"""Claims about planners, over score functions whose answer is known."""

import itertools
import time
import warnings

import pytest
import torch
from benchmarks.planning import PlainCEM, lqr, maze, precise_planners, random_lqr
from benchmarks.planning import bowl as bowl_problem

from gjwm.planning import (
    CEM,
    ICEM,
    MPPI,
    CategoricalCEM,
    GradientPlanner,
    Plan,
    RandomShooting,
)
from gjwm.planning.noise import coloured_noise


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def bowl(target):
    return lambda a: (a - target[:, None]).square().sum((-2, -1))


def test_cem_finds_the_bottom_of_a_bowl_for_every_env_at_once():
    target = 1.6 * torch.rand(3, 6, 2, generator=g()) - 0.8
    plan = CEM(samples=512, iterations=12, noise_beta=0.0, min_std=1e-3).plan(
        bowl(target), torch.zeros(3, 6, 2), generator=g()
    )
    assert plan.mean.shape == plan.std.shape == (3, 6, 2) and plan.cost.shape == (3,)
    assert plan.cost.max() < 0.02 * target.square().sum((-2, -1)).min()
    torch.testing.assert_close(bowl(target)(plan.mean[:, None])[:, 0], plan.cost)


def test_plans_stay_within_the_action_bounds():
    target = torch.full((1, 5, 1), 3.0)
    for planner in (CEM(), ICEM(), MPPI(), GradientPlanner()):
        plan = planner.plan(bowl(target), torch.zeros(1, 5, 1), generator=g())
        assert plan.mean.max() <= 1 and plan.mean.mean() > 0.9


def test_a_plan_is_never_worse_than_its_warm_start():
    target = 0.1 * torch.randn(4, 12, 2, generator=g())
    for planner in (
        CEM(samples=8, elites=2, iterations=1),
        ICEM(samples=8, elites=2, iterations=2),
        MPPI(samples=8, elites=2, iterations=1),
        RandomShooting(samples=4),
        GradientPlanner(starts=2, iterations=3),
    ):
        plan = planner.plan(bowl(target), target, generator=g())
        assert plan.cost.max() == 0


def test_the_same_generator_gives_the_same_plan():
    target = torch.randn(2, 4, 1, generator=g())
    for planner in (CEM(), ICEM(), MPPI(), RandomShooting(), GradientPlanner()):
        first, second = (
            planner.plan(bowl(target), torch.zeros(2, 4, 1), generator=g(5)).mean for _ in range(2)
        )
        assert torch.equal(first, second)


def test_envs_are_planned_independently():
    target = torch.rand(2, 4, 1, generator=g())
    far = torch.stack([target[0], -target[1]])
    first, second = (
        CEM().plan(bowl(t), torch.zeros(2, 4, 1), generator=g(5)).mean for t in (target, far)
    )
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])


def test_nan_costs_are_avoided_and_all_nan_is_an_error():
    def half_broken(a):
        cost = a.square().sum((-2, -1))
        return torch.where(a[:, :, 0, 0] > 0, torch.nan, cost)

    for planner in (CEM(), ICEM(), MPPI(), RandomShooting(), GradientPlanner()):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            plan = planner.plan(half_broken, torch.zeros(1, 4, 1), generator=g())
        assert [str(w.message) for w in told] == [
            "the score is NaN for some candidates; they are dropped from the plan."
        ]
        assert plan.cost.isfinite().all() and plan.mean[0, 0, 0] <= 0 and plan.std.isfinite().all()
        with pytest.raises(ValueError, match="NaN"):
            planner.plan(lambda a: a.sum((-2, -1)) * torch.nan, torch.zeros(1, 4, 1))


def test_dropped_candidates_have_no_say_in_the_refit():
    """All but three candidates are dropped: mean and std come from those three alone."""

    def mostly_broken(a):
        cost = a.square().sum((-2, -1))
        cost[:, 3:] = torch.nan
        return cost

    with pytest.warns(RuntimeWarning, match="dropped"):
        plan = CEM(
            samples=64,
            elites=16,
            iterations=1,
            momentum=0.0,
            memory=0.0,
            min_std=0.0,
            covariance="diagonal",
        ).plan(mostly_broken, torch.zeros(1, 4, 1), generator=g())
    seen = []
    with pytest.warns(RuntimeWarning, match="dropped"):
        CEM(samples=64, elites=16, iterations=1, covariance="diagonal").plan(
            lambda a: seen.append(a.clone()) or mostly_broken(a),
            torch.zeros(1, 4, 1),
            generator=g(),
        )
    torch.testing.assert_close(plan.std[0], seen[0][0, :3].std(0, correction=0))


def test_coloured_noise_has_unit_variance_and_drifts():
    white, red = (coloured_noise((4000, 16, 1), beta, generator=g()) for beta in (0.0, 2.0))
    for noise in (white, red):
        torch.testing.assert_close(noise.var((0, 2)), torch.ones(16), atol=0.12, rtol=0)

    def neighbours(x):
        return (x[:, 1:] * x[:, :-1]).mean().item()

    assert abs(neighbours(white)) < 0.02 and neighbours(red) > 0.6
    # the last action is no neighbour of the first
    assert abs((red[:, 0] * red[:, -1]).mean().item()) < neighbours(red) - 0.3


# -- known optima


@pytest.mark.parametrize("name", ["CEM", "ICEM", "MPPI", "GradientPlanner"])
@pytest.mark.parametrize("problem", [bowl_problem(), lqr()], ids=lambda p: p.name)
def test_planners_find_known_optima(name, problem):
    """Within 1% by sampling and 0.1% by gradient, in every one of the problems; never below the
    optimum.
    """
    plan = problem.solve(precise_planners(problem.bound)[name])
    tolerance = 1e-3 if name == "GradientPlanner" else 1e-2
    ratio = plan.cost / problem.optimum
    assert ratio.max() <= 1 + tolerance and ratio.min() >= 1 - 1e-4


@pytest.mark.parametrize("planner", [CEM, ICEM, MPPI])
def test_the_defaults_of_sampling_find_optima(planner):
    """No argument but the bounds: within 1% on random bowls of 24 actions, whose targets change
    sign from step to step, and on LQR."""
    for seed in range(2):
        target = 2 * torch.rand(4, 12, 2, generator=g(seed)) - 1
        plan = planner().plan(
            lambda a, t=target: bowl(t)(a) + 1, torch.zeros(4, 12, 2), g(10 + seed)
        )
        assert 1 <= plan.cost.min() and plan.cost.max() < 1.01
        problem = lqr()
        assert (
            1 - 1e-4
            <= problem.ratio(problem.solve(planner(low=-problem.bound, high=problem.bound), seed))
            < 1.01
        )


@pytest.mark.parametrize(
    ("planner", "worst"), [(CEM, 0.02), (ICEM, 0.02), (MPPI, 0.01), (GradientPlanner, 0.01)]
)
def test_the_defaults_end_near_the_optimum_of_random_bounded_lqrs(planner, worst):
    """Of 20 problems on which nothing was tuned, all with active bounds: within 0.2% on average,
    within 1% in each, CEM and ICEM within 2%.
    """
    problem = random_lqr()
    plan = problem.solve(planner())
    excess = plan.cost / problem.optimum - 1
    assert (plan.mean.abs() > 0.999).any(2).any(1).all()
    assert excess.min() >= -1e-5 and excess.mean() < 2e-3 and excess.max() < worst


def test_the_defaults_of_random_shooting_explore_as_those_of_the_others_do():
    assert (
        RandomShooting().noise_beta == CEM().noise_beta
        and RandomShooting().init_std == CEM().init_std
    )


@pytest.mark.parametrize("name", ["CEM", "ICEM", "MPPI"])
def test_sampling_finds_the_shorter_way_round_a_wall(name):
    problem = maze()
    plan = problem.solve(precise_planners(problem.bound)[name])
    assert 1 - 1e-4 <= problem.ratio(plan) <= 1.01
    assert plan.mean[0, :5, 1].sum() > 0.9  # over the top, not the longer way below


def test_the_optimum_of_the_maze_is_a_bound_and_the_long_way_costs_two_and_a_half_times_as_much():
    problem = maze()
    corner = torch.tensor([0.0, 1.0])
    legs = [(corner - torch.tensor([-1.0, 0.0])) / 5, (torch.tensor([1.0, 0.0]) - corner) / 5]
    best = torch.stack([legs[0]] * 5 + [legs[1]] * 5)[None, None]
    assert problem.score(best).item() == pytest.approx(0.8, rel=1e-3)
    straight = torch.tensor([0.2, 0.0]).expand(1, 1, 10, 2)
    assert problem.score(straight).item() == torch.inf


def test_planning_beats_plain_cem_at_the_same_budget_on_a_smooth_problem():
    problem = lqr()
    plain = problem.solve(PlainCEM(samples=64, iterations=4, elites=8)).cost.mean()
    ours = problem.solve(ICEM(samples=64, iterations=4, elites=8, decay=1.0)).cost.mean()
    assert ours < plain


# -- options of all


PLANNERS = [CEM, ICEM, MPPI, RandomShooting, GradientPlanner]


@pytest.mark.parametrize("planner", [*PLANNERS, CategoricalCEM])
def test_the_generator_may_be_given_by_position(planner):
    score, start = bowl(torch.full((1, 6, 4), 0.3)), torch.zeros(1, 6, 4)
    by_position, by_name = (
        planner().plan(score, start, g(3)),
        planner().plan(score, start, generator=g(3)),
    )
    assert torch.equal(by_position.mean, by_name.mean)


@pytest.mark.parametrize("planner", PLANNERS)
def test_bounds_scale_the_whole_search(planner):
    """Wide and shifted bounds give the same plan as the unit box on the same problem in other
    units.
    """
    target = torch.rand(2, 5, 2, generator=g())
    unit = planner().plan(bowl(target), torch.zeros(2, 5, 2), generator=g(1))
    low, high = [0.0, -10.0], [4.0, 10.0]
    centre, half = torch.tensor([2.0, 0.0]), torch.tensor([2.0, 10.0])
    wide = planner(low=low, high=high).plan(
        lambda a: bowl(target)((a - centre) / half), centre.expand(2, 5, 2), generator=g(1)
    )
    torch.testing.assert_close((wide.mean - centre) / half, unit.mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(wide.std / half, unit.std, atol=1e-4, rtol=0)


@pytest.mark.parametrize("planner", PLANNERS)
def test_action_blocks_hold_each_action(planner):
    target = torch.full((2, 7, 1), 0.5)
    plan = planner(repeat=3).plan(bowl(target), torch.zeros(2, 7, 1), generator=g())
    assert plan.mean.shape == plan.std.shape == (2, 7, 1)
    blocks = [plan.mean[:, 0:3], plan.mean[:, 3:6], plan.mean[:, 6:]]
    assert all((block == block[:, :1]).all() for block in blocks)


@pytest.mark.parametrize("planner", [*PLANNERS, CategoricalCEM])
def test_a_double_precision_warm_start_gives_a_double_precision_plan(planner):
    target = torch.rand(1, 6, 4, generator=g(), dtype=torch.float64)
    plan = planner().plan(bowl(target), torch.zeros(1, 6, 4, dtype=torch.float64), g())
    assert {plan.mean.dtype, plan.std.dtype, plan.cost.dtype} == {torch.float64}


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_time_budget_ends_the_search_with_the_best_plan_so_far(planner):
    def slow(a):
        time.sleep(0.02)
        return bowl(target)(a)

    target = torch.rand(1, 4, 1, generator=g())
    options = {} if planner is RandomShooting else {"iterations": 100}
    since = time.perf_counter()
    plan = planner(budget_ms=100, **options).plan(slow, torch.zeros(1, 4, 1), generator=g())
    assert time.perf_counter() - since < 1.0  # a hundred rounds would take two seconds and more
    torch.testing.assert_close(bowl(target)(plan.mean[:, None])[:, 0], plan.cost)


@pytest.mark.parametrize("planner", [CEM, ICEM, MPPI])
def test_it_stops_early_once_the_elites_agree(planner):
    target = torch.rand(3, 4, 1, generator=g()) - 0.5
    start = torch.zeros(3, 4, 1)
    patient, early = (
        planner(iterations=30, min_std=1e-3, tolerance=t).plan(bowl(target), start, generator=g())
        for t in (0.0, 0.02)
    )
    assert early.evaluations < 0.6 * patient.evaluations
    assert early.cost.max() < 0.02 * bowl(target)(start[:, None]).max()


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_proposal_competes(planner):
    """A needle in a haystack that no search would find."""
    needle = torch.rand(2, 6, 2, generator=g(3)) * 2 - 1

    def score(a):
        return (
            1
            - torch.exp(-1e4 * (a - needle[:, None]).square().sum((-2, -1)))
            + 1e-3 * a.square().sum((-2, -1))
        )

    proposals = torch.cat([torch.zeros(2, 2, 6, 2), needle[:, None]], 1)
    blind = planner().plan(score, torch.zeros(2, 6, 2), generator=g())
    told = planner().plan(score, torch.zeros(2, 6, 2), generator=g(), proposals=proposals)
    assert blind.cost.min() > 0.9 and told.cost.max() < 0.1


def test_icem_shrinks_its_population_and_keeps_elites():
    sizes, firsts = [], []

    def score(a):
        sizes.append(a.shape[1])
        firsts.append(a[0, :8].clone())
        return a.square().sum((-2, -1))

    plan = ICEM(samples=100, iterations=4, elites=20, decay=1.5, keep=0.4).plan(
        score, torch.ones(1, 3, 1), generator=g()
    )
    assert sizes == [100, 66, 44, 40]
    assert (
        firsts[2][:8].square().sum((-2, -1)) <= firsts[1][:8].square().sum((-2, -1)) + 1e-6
    ).all()
    assert plan.elites.shape == (1, 20, 3, 1) and plan.evaluations == sum(sizes)


def test_a_full_covariance_follows_a_valley_that_a_diagonal_cannot():
    """A rotated, badly conditioned bowl."""
    rotation, _ = torch.linalg.qr(torch.randn(12, 12, generator=g(4)))
    scale = torch.logspace(0, 3, 12)

    def score(a):
        return ((a - 0.4).flatten(2) @ rotation).square() @ scale

    full, diagonal = (
        CEM(
            samples=200,
            elites=40,
            iterations=25,
            noise_beta=0.0,
            min_std=1e-3,
            covariance=c,
            memory=0.3,
        ).plan(score, torch.zeros(3, 6, 2), generator=g())
        for c in ("full", "diagonal")
    )
    assert full.cost.max() < 0.1 * diagonal.cost.min()


def test_mppi_follows_the_best_when_cold_and_averages_when_hot():
    target = torch.rand(1, 4, 1, generator=g())
    options = dict(
        samples=64, elites=64, iterations=1, min_std=0.0, covariance="diagonal", memory=0.0
    )
    cold, hot = (
        MPPI(temperature=t, **options).plan(bowl(target), torch.zeros(1, 4, 1), generator=g())
        for t in (1e-4, 1e4)
    )
    assert cold.std.max() < 1e-3 and hot.std.min() > 0.3


@pytest.mark.parametrize("planner", [*PLANNERS, CategoricalCEM])
def test_a_plan_requires_no_grad_though_the_score_has_parameters(planner):
    w, graphs = torch.nn.Parameter(torch.ones(())), []

    def score(a):
        cost = (w * (a - 0.3)).square().sum((-2, -1))
        graphs.append(cost.requires_grad)
        return cost

    plan = planner().plan(score, torch.zeros(1, 6, 4), g())
    assert not any(
        x.requires_grad for x in (plan.mean, plan.std, plan.cost, plan.elites) if x is not None
    )
    assert any(graphs) == getattr(planner, "differentiates", False) and w.grad is None


# -- gradients


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_whatever_the_caller_switched_off(mode):
    target = torch.rand(2, 4, 1, generator=g())
    with mode():
        plan = GradientPlanner().plan(bowl(target), torch.zeros(2, 4, 1), generator=g())
    assert plan.cost.max() < 1e-2 and not plan.mean.requires_grad


def test_a_score_without_gradient_is_named():
    with pytest.raises(ValueError, match="sampling planner"):
        GradientPlanner().plan(lambda a: a.detach().square().sum((-2, -1)), torch.zeros(1, 3, 1))


@pytest.mark.parametrize(
    "planner",
    [
        GradientPlanner(starts=8, survivors=2, init_std=0.1),
        GradientPlanner(survivors=None),
    ],
)
def test_a_finite_plan_survives_a_descent_into_nan(planner):
    """The cost falls to the right and is NaN beyond 0.2: all descents step into it, what they saw
    before still counts.
    """

    def cliff(a):
        cost = 2 - a.mean((-2, -1))
        return torch.where(a.mean((-2, -1)) > 0.2, torch.nan, cost)

    with pytest.warns(RuntimeWarning, match="dropped"):
        plan = planner.plan(cliff, torch.zeros(2, 4, 1), g())
    assert plan.cost.isfinite().all() and plan.mean.mean((-2, -1)).max() <= 0.2


def test_a_planner_made_in_inference_mode_differentiates():
    target = torch.rand(2, 4, 1, generator=g())
    with torch.inference_mode():
        made = GradientPlanner(low=-2.0, high=torch.tensor([3.0]))
    assert made.plan(bowl(target), torch.zeros(2, 4, 1), g()).cost.max() < 1e-1


# -- discrete actions ------------------------------------------------------------------------------


def shortest_path_cost(a):
    """Walk on a 5 x 5 grid from a corner to the opposite one; a wall with one gap. Moves: right,
    left, up, down, stay.
    """
    moves = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]], dtype=a.dtype)
    position, cost = torch.zeros(*a.shape[:2], 2), 0.0
    for step in a.unbind(2):
        tried = (position + step @ moves).clamp(0, 4)
        wall = (tried[..., 0] == 2) & (tried[..., 1] != 3)
        position = torch.where(wall[..., None], position, tried)
        cost = cost + (position != 4).any(-1)
    return cost + (position - 4).abs().sum(-1)


def test_categorical_cem_finds_the_shortest_path_of_a_grid_maze():
    """Eight moves reach the far corner, so seven steps end elsewhere: the optimum is 7 (from (0,
    0), wall at x = 2).
    """
    plan = CategoricalCEM(samples=1024, iterations=12, elites=64).plan(
        shortest_path_cost, torch.zeros(1, 10, 5), generator=g()
    )
    assert plan.cost.item() == 7
    assert (plan.mean.sum(-1) == 1).all() and ((plan.mean == 0) | (plan.mean == 1)).all()


def test_a_cold_env_is_planned_alike_whatever_its_neighbours_warm_start():
    weights, seen = torch.randn(2, 6, 4, generator=g()), []

    def score(a):
        seen.append(a[1].clone())
        return (a * weights[:, None]).sum((-2, -1))

    warm = torch.zeros(2, 6, 4)
    warm[0, :, 2] = 1
    for start in (torch.zeros(2, 6, 4), warm):
        CategoricalCEM(samples=16, elites=4, iterations=1).plan(score, start, g(1))
    assert torch.equal(seen[0], seen[1])
    CategoricalCEM(samples=16, elites=4, iterations=1).plan(
        lambda a: seen.append(a.clone()) or score(a), warm, g(1)
    )
    assert torch.equal(seen[-2][0, 0], warm[0])


def test_short_discrete_problems_are_enumerated_and_solved_exactly():
    weights = torch.randn(2, 3, 4, generator=g())

    def score(a):
        return (a * weights[:, None]).sum((-2, -1)) + 2 * (a[:, :, 0] * a[:, :, 1]).sum(-1)

    plan = CategoricalCEM(exhaustive=64).plan(score, torch.zeros(2, 3, 4))
    for b in range(2):
        best = min(
            sum(weights[b, h, k].item() for h, k in enumerate(ks)) + 2 * (ks[0] == ks[1])
            for ks in itertools.product(range(4), repeat=3)
        )
        assert plan.cost[b].item() == pytest.approx(best, abs=1e-5)
    assert plan.evaluations == 64


def test_multi_discrete_actions_have_one_choice_per_part():
    target = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0])

    def score(a):
        return (a - target).square().sum((-2, -1))

    plan = CategoricalCEM(groups=(2, 3), exhaustive=1).plan(
        score, torch.zeros(1, 6, 5), generator=g()
    )
    assert torch.equal(plan.mean[0], target.expand(6, 5))
    with pytest.raises(ValueError, match="one-hot parts"):
        CategoricalCEM(groups=(2, 2)).plan(score, torch.zeros(1, 6, 5))


# -- errors


def test_bad_settings_are_named():
    for planner in (CEM, ICEM, MPPI, CategoricalCEM):
        with pytest.raises(ValueError, match="elites"):
            planner(samples=4, elites=8)
    for planner in PLANNERS:
        for bad, said in (
            ({"low": 1.0, "high": -1.0}, "low < high"),
            ({"low": [-1, 1], "high": [1, 1]}, "low < high"),
            ({"low": [-1, -1], "high": [1, 1, 1]}, "as many low as high bounds"),
            ({"low": -3e38, "high": 3e38}, "finite bounds"),
            ({"high": float("inf")}, "finite bounds, got low=-1.0 and high=inf"),
            ({"low": float("nan")}, "finite bounds"),
            ({"repeat": 0}, "repeat"),
            ({"budget_ms": 0}, "budget_ms"),
        ):
            with pytest.raises(ValueError, match=said):
                planner(**bad)
    with pytest.raises(ValueError, match="temperature"):
        MPPI(temperature=0)
    with pytest.raises(ValueError, match="decay"):
        ICEM(decay=0.5)
    with pytest.raises(ValueError, match="covariance"):
        CEM(covariance="dense")
    with pytest.raises(ValueError, match="smoothing"):
        CategoricalCEM(smoothing=0)


@pytest.mark.parametrize("planner", [*PLANNERS, CategoricalCEM])
def test_bad_calls_are_named(planner):
    score = bowl(torch.zeros(1, 3, 2))
    for start in (torch.zeros(1, 0, 2), torch.zeros(3, 2)):
        with pytest.raises(ValueError, match="warm start"):
            planner().plan(score, start)
    with pytest.raises(ValueError, match="NaN"):
        planner().plan(score, torch.full((1, 3, 2), torch.nan))
    for dtype in (torch.int64, torch.float16):
        with pytest.raises(ValueError, match="float32 or float64, got torch"):
            planner().plan(score, torch.zeros(1, 3, 2, dtype=dtype))
    with pytest.raises(ValueError, match=r"\(B, N\)"):
        planner().plan(lambda a: a.square().sum(-1), torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match="proposals"):
        planner().plan(score, torch.zeros(1, 3, 2), proposals=torch.zeros(1, 3, 2))


def test_another_number_of_actions_than_bounds_is_named():
    with pytest.raises(ValueError, match="bounds are for 3 actions"):
        CEM(low=[-1, -1, -1], high=[1, 1, 1]).plan(bowl(torch.zeros(1, 3, 2)), torch.zeros(1, 3, 2))


def test_a_plan_unpacks():
    mean, std, cost = Plan(torch.zeros(1, 2, 3), torch.ones(1, 2, 3), torch.zeros(1))
    assert mean.shape == std.shape == (1, 2, 3) and cost.shape == (1,)


@pytest.mark.parametrize("planner", [CEM, ICEM, MPPI])
def test_the_elites_follow_the_number_of_samples_unless_named(planner):
    assert planner(samples=16).elites in (2, 4) and planner(samples=16, elites=5).elites == 5
    plan = planner(samples=16, iterations=2).plan(
        lambda a: a.square().sum((-1, -2)), torch.ones(1, 3, 2)
    )
    assert plan.cost < 6
