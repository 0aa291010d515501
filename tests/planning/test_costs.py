"""Claims about costs, most of them by hand."""

import inspect
import math

import pytest
import torch

from gjwm.models import Reach
from gjwm.planning.costs import (
    DisagreementCost,
    GoalCost,
    ReachCost,
    RewardCost,
    RiskCost,
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


def test_the_last_latents_can_count_alone():
    z = torch.tensor([[[[9.0, 9.0, 9.0], [7.0, 1.0, 3.0], [8.0, 2.0, 1.0]]]])
    goal, a = torch.tensor([[1.0, 1.0, 1.0]]), torch.zeros(1, 1, 2, 1)
    alone = GoalCost(goal[:, 1:], mean=0.1)(z[..., 1:], a)
    torch.testing.assert_close(GoalCost(goal, mean=0.1, last=2)(z, a), alone)
    for wrong in (0, 4, 1.5):
        with pytest.raises(ValueError, match=f"last 1 to 3 latents.*got last={wrong}"):
            GoalCost(goal, last=wrong)


def test_reach_counts_the_slow_direction_more():
    reach = Reach(2, 2)
    reach.net = torch.nn.Identity()
    reach.set_matrix(torch.tensor([0.9, 0.1]).diag())
    goal = torch.zeros(1, 2)
    z = torch.tensor([[[[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]])
    a = torch.zeros(1, 2, 1, 1)
    cost = ReachCost(goal, reach, latent=0.0)
    slow, fast = ((rho / (1 - rho**2)) ** 3 for rho in (0.9, 0.1))
    expected = [weight / (2 * (slow + fast)) for weight in (slow, fast)]
    torch.testing.assert_close(cost(z, a), torch.tensor([expected]))
    both = ReachCost(goal, reach, latent=0.3)
    torch.testing.assert_close(both(z, a), torch.tensor([expected]) + 0.3 * 1.1 / 2)
    there = torch.cat([z, torch.zeros(1, 2, 1, 2)], 2)  # one more step, at the goal
    a = a.expand(1, 2, 2, 1)
    torch.testing.assert_close(cost(there, a), torch.tensor([expected]) / 2)  # the mean
    torch.testing.assert_close(both(there, a), torch.tensor([expected]) / 2 + 0.3 * 0.1 / 4)
    particles = torch.stack([there, there], 2)
    torch.testing.assert_close(both(particles, a), both(there, a))
    for wrong in (Reach(2, 2), None):
        with pytest.raises(ValueError, match="Reach"):
            ReachCost(goal, wrong)


def test_the_final_distance_can_count_too():
    z = torch.tensor([[[[9.0], [1.0], [3.0]]]])
    cost = GoalCost(torch.tensor([[1.0]]), nearest=0.0, mean=0.0, final=2.0)
    assert cost(z, torch.zeros(1, 1, 2, 1)).item() == 8.0


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


def last_value(z, a):
    return z[..., -1, 0]


def test_risk_by_hand():
    z = torch.tensor([0.0, 0.0, 0.0, 4.0]).view(1, 1, 4, 1, 1).expand(1, 1, 4, 3, 1)
    a = torch.zeros(1, 1, 2, 1)
    assert RiskCost(last_value, kappa=0.0)(z, a).item() == 1
    assert RiskCost(last_value, kappa=2.0)(z, a).item() == pytest.approx(1 + 2 * math.sqrt(3))
    assert DisagreementCost()(z, a).item() == 3
    for cost in (RiskCost(last_value), DisagreementCost()):
        with pytest.raises(ValueError, match="particles"):
            cost(z[:, :, 0], a)


def test_every_particle_is_judged_with_its_own_plan():
    z, a = torch.randn(2, 3, 4, 6, 5, generator=g()), torch.randn(2, 3, 5, 2, generator=g(1))
    cost = GoalCost(torch.zeros(2, 5))
    each = torch.stack([cost(z[:, :, p], a) for p in range(4)], -1)
    torch.testing.assert_close(RiskCost(cost, kappa=0.0)(z, a), each.mean(-1))
    torch.testing.assert_close(cost(z, a), each.mean(-1))


def test_a_sum_is_its_terms():
    z, a = torch.randn(2, 3, 5, 4, generator=g()), torch.randn(2, 3, 4, 1, generator=g(1))
    goal = GoalCost(torch.zeros(1, 4))

    def smooth(z, a):
        return a.diff(dim=-2).square().mean((-2, -1))

    cost = SumCost({"goal": goal, "smooth": (0.1, smooth)})
    torch.testing.assert_close(cost(z, a), goal(z, a) + 0.1 * smooth(z, a))
    torch.testing.assert_close(cost.terms(z, a)["smooth"], 0.1 * smooth(z, a))
    with pytest.raises(ValueError, match="at least one"):
        SumCost({})


def test_a_risk_of_goals_takes_a_goal_cost_s_own_arguments():
    """`RiskCost.to_goal` names them again, so that settings can be checked against them."""
    takes = [inspect.signature(call).parameters for call in (GoalCost, RiskCost.to_goal)]
    alike, of_risk = ({n: (p.default, p.annotation) for n, p in each.items()} for each in takes)
    assert of_risk.pop("kappa") and of_risk == alike
