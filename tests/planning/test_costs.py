"""Claims about costs, most of them by hand."""

import math

import pytest
import torch

from gjwm.planning.costs import (
    CosineGoalCost,
    CVaRCost,
    DisagreementCost,
    EffortCost,
    ExpectedGoalCost,
    GoalCost,
    MahalanobisGoalCost,
    RewardCost,
    RiskCost,
    SaturatingGoalCost,
    ShellCost,
    SmoothnessCost,
    SumCost,
)


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def test_goal_cost_by_hand():
    z = torch.tensor([[[[9.0, 9.0], [1.0, 1.0], [3.0, 1.0]]]])
    cost = GoalCost(torch.tensor([[1.0, 1.0]]), nearest=1.0, mean=0.1)
    assert cost(z, torch.zeros(1, 1, 2, 1)).item() == pytest.approx(0 + 0.1 * (0 + 2) / 2)
    with pytest.raises(ValueError, match="trajectories"):
        cost(z[..., :1], torch.zeros(1, 1, 2, 1))
    with pytest.raises(ValueError, match="one goal per env"):
        GoalCost(torch.zeros(3))


def test_the_final_distance_can_count_too():
    z = torch.tensor([[[[9.0], [1.0], [3.0]]]])
    cost = GoalCost(torch.tensor([[1.0]]), nearest=0.0, mean=0.0, final=2.0)
    assert cost(z, torch.zeros(1, 1, 2, 1)).item() == 8.0


def test_far_misses_are_alike_to_the_saturating_cost():
    a, goal = torch.zeros(1, 1, 1, 1), torch.zeros(1, 2)
    cost = SaturatingGoalCost(goal, width=0.5, nearest=1.0, mean=0.0)
    at = [cost(torch.full((1, 1, 2, 2), x / math.sqrt(2)), a).item() for x in (0.0, 0.5, 5.0, 50.0)]
    assert at == pytest.approx([0, 1 - math.exp(-0.5), 1, 1], abs=1e-6)
    with pytest.raises(ValueError, match="width"):
        SaturatingGoalCost(goal, width=0.0)


def test_direction_is_all_that_the_cosine_sees():
    z, a = torch.randn(2, 3, 5, 4, generator=g()), torch.zeros(2, 3, 4, 1)
    goal = torch.randn(2, 4, generator=g(1))
    cost = CosineGoalCost(goal)
    torch.testing.assert_close(cost(7 * z, a), cost(z, a))
    assert cost(goal[:, None, None].expand(2, 1, 5, 4), a[:, :1]).abs().max() < 1e-6
    assert cost(-goal[:, None, None].expand(2, 1, 5, 4), a[:, :1]).min() == pytest.approx(2 * 1.1)


def particles(mean, std, count=20000):
    """(1, 1, P, 2, D): a start and one step, distributed as N(mean, std^2)."""
    z = torch.randn(1, 1, count, 2, len(mean), generator=g())
    return torch.tensor(mean) + torch.tensor(std) * z, torch.zeros(1, 1, 1, 1)


def test_the_expected_squared_distance_is_that_of_the_mean_plus_the_variance():
    z, a = particles([1.0, 2.0], [0.5, 1.0])
    cost = ExpectedGoalCost(torch.zeros(1, 2), nearest=1.0, mean=0.0)(z, a).item()
    assert cost == pytest.approx((1 + 4 + 0.25 + 1) / 2, rel=0.02)


def test_expectation_comes_before_the_nearest_approach():
    """Two particles that pass the goal at different times: never there in expectation, yet each is
    once.
    """
    z = torch.tensor([[[[5.0], [0.0], [4.0]], [[5.0], [4.0], [0.0]]]])[None]
    a, goal = torch.zeros(1, 1, 2, 1), torch.zeros(1, 1)
    assert GoalCost(goal, mean=0.0)(z, a).item() == 0
    assert ExpectedGoalCost(goal, mean=0.0)(z, a).item() == 8


def test_mahalanobis_is_the_gaussian_log_density_of_the_goal():
    z, a = particles([1.0, 2.0], [0.5, 1.0], 200000)
    goal = torch.tensor([[0.2, 2.5]])
    cost = MahalanobisGoalCost(goal, nearest=1.0, mean=0.0)(z, a).item()
    normal = torch.distributions.Normal(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.0]))
    assert cost == pytest.approx(
        -2 * normal.log_prob(goal).mean().item() - math.log(2 * math.pi), rel=0.02
    )
    known = MahalanobisGoalCost(goal, variance=torch.tensor([0.25, 1.0]), nearest=1.0, mean=0.0)
    point = torch.tensor([1.0, 2.0]).expand(1, 1, 2, 2)
    assert known(point, a).item() == pytest.approx(cost, rel=0.02)
    with pytest.raises(ValueError, match="particles"):
        MahalanobisGoalCost(goal)(point, a)


def test_uncertainty_does_not_buy_nearness():
    """The log-determinant: of two plans that miss by the same, the surer one wins while it misses
    by less than its std.
    """
    goal = torch.zeros(1, 1)
    (sure, a), (unsure, _) = particles([0.1], [0.2]), particles([0.1], [2.0])
    cost = MahalanobisGoalCost(goal, nearest=1.0, mean=0.0)
    assert cost(sure, a).item() < cost(unsure, a).item()


def test_the_predicted_return_by_hand():
    z = torch.tensor([[[[1.0], [2.0], [4.0]]]])
    a = torch.tensor([[[[0.5], [-0.5]]]])
    reward = lambda z, a: z[..., 0] + a[..., 0]  # noqa: E731
    plain = RewardCost(reward, discount=0.5)
    assert plain(z, a).item() == -(1.5 + 0.5 * 1.5)
    valued = RewardCost(reward, discount=0.5, value=lambda z: 10 * z[..., 0])
    assert valued(z, a).item() == -(1.5 + 0.5 * 1.5 + 0.25 * 40)
    # The first step ends the episode with probability 0.8: what comes after counts a fifth.
    ending = RewardCost(
        reward,
        discount=0.5,
        value=lambda z: 10 * z[..., 0],
        termination=lambda z, a: 0.8 * (a[..., 0] > 0).float(),
    )
    assert ending(z, a).item() == pytest.approx(-(1.5 + 0.2 * (0.5 * 1.5 + 0.25 * 40)))
    twice = z[:, :, None].expand(1, 1, 3, 3, 1)
    assert plain(twice, a).item() == plain(z, a).item()
    with pytest.raises(ValueError, match="reward head"):
        RewardCost(lambda z, a: z)(z, a)
    with pytest.raises(ValueError, match="discount"):
        RewardCost(reward, discount=0.0)


def test_smoothness_and_effort_by_hand():
    a = torch.tensor([[[[0.0], [1.0], [-1.0]]]])
    z = torch.zeros(1, 1, 4, 2)
    assert SmoothnessCost()(z, a).item() == pytest.approx((1 + 4) / 2)
    assert EffortCost()(z, a).item() == pytest.approx(2 / 3)
    assert SmoothnessCost()(z, a[:, :, :1]).item() == 0


def last_value(z, a):
    return z[..., -1, 0]


def test_risk_by_hand():
    z = torch.tensor([0.0, 0.0, 0.0, 4.0]).view(1, 1, 4, 1, 1).expand(1, 1, 4, 3, 1)
    a = torch.zeros(1, 1, 2, 1)
    assert RiskCost(last_value, kappa=0.0)(z, a).item() == 1
    assert RiskCost(last_value, kappa=2.0)(z, a).item() == pytest.approx(1 + 2 * math.sqrt(3))
    assert CVaRCost(last_value, alpha=0.25)(z, a).item() == 4
    assert CVaRCost(last_value, alpha=0.5)(z, a).item() == 2
    assert CVaRCost(last_value, alpha=1.0)(z, a).item() == 1
    assert DisagreementCost()(z, a).item() == 3
    for cost in (RiskCost(last_value), CVaRCost(last_value), DisagreementCost()):
        with pytest.raises(ValueError, match="particles"):
            cost(z[:, :, 0], a)
    with pytest.raises(ValueError, match="alpha"):
        CVaRCost(last_value, alpha=0)


def test_every_particle_is_judged_with_its_own_plan():
    z, a = torch.randn(2, 3, 4, 6, 5, generator=g()), torch.randn(2, 3, 5, 2, generator=g(1))
    cost = GoalCost(torch.zeros(2, 5))
    each = torch.stack([cost(z[:, :, p], a) for p in range(4)], -1)
    torch.testing.assert_close(RiskCost(cost, kappa=0.0)(z, a), each.mean(-1))
    torch.testing.assert_close(cost(z, a), each.mean(-1))


def test_gaussian_latents_lie_on_the_shell_and_others_do_not():
    a = torch.zeros(1, 500, 4, 1)
    for dim in (8, 64):
        z = torch.randn(1, 500, 5, dim, generator=g())
        inside, outside = ShellCost()(z, a), ShellCost()(2 * z, a)
        assert inside.mean() < 0.1 and outside.mean() > 5
        shrunk = 0.2 * z
        assert ShellCost()(shrunk, a).max() == 0 and ShellCost(inside=True)(shrunk, a).mean() > 1


def test_a_sum_is_its_terms():
    z, a = torch.randn(2, 3, 5, 4, generator=g()), torch.randn(2, 3, 4, 1, generator=g(1))
    goal, smooth = GoalCost(torch.zeros(2, 4)), SmoothnessCost()
    cost = SumCost({"goal": goal, "smooth": (0.1, smooth)})
    torch.testing.assert_close(cost(z, a), goal(z, a) + 0.1 * smooth(z, a))
    torch.testing.assert_close(cost.terms(z, a)["smooth"], 0.1 * smooth(z, a))
    with pytest.raises(ValueError, match="at least one"):
        SumCost({})
