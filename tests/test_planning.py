"""Claims about planners, costs and the agent."""

import pytest
import torch

from gjwm.agent import MPCAgent, RecedingHorizon
from gjwm.costs import GoalCost
from gjwm.dynamics import GaussianDynamics
from gjwm.encoders import MLPEncoder
from gjwm.planning import CEM, RandomShooting, coloured_noise
from gjwm.world_model import WorldModel


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
    plan = CEM().plan(bowl(target), torch.zeros(1, 5, 1), generator=g())
    assert plan.mean.max() <= 1 and plan.mean.mean() > 0.9


def test_a_plan_is_never_worse_than_its_warm_start():
    target = 0.1 * torch.randn(4, 12, 2, generator=g())
    for planner in (CEM(samples=8, elites=2, iterations=1), RandomShooting(samples=4)):
        plan = planner.plan(bowl(target), target, generator=g())
        assert plan.cost.max() == 0


def test_the_same_generator_gives_the_same_plan():
    target = torch.randn(2, 4, 1, generator=g())
    first, second = (CEM().plan(bowl(target), torch.zeros(2, 4, 1), generator=g(5)).mean for _ in range(2))
    assert torch.equal(first, second)


def test_envs_are_planned_independently():
    target = torch.rand(2, 4, 1, generator=g())
    far = torch.stack([target[0], -target[1]])
    first, second = (CEM().plan(bowl(t), torch.zeros(2, 4, 1), generator=g(5)).mean for t in (target, far))
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])


def test_nan_costs_are_avoided_and_all_nan_is_an_error():
    def half_broken(a):
        cost = a.square().sum((-2, -1))
        return torch.where(a[:, :, 0, 0] > 0, torch.nan, cost)

    plan = CEM().plan(half_broken, torch.zeros(1, 4, 1), generator=g())
    assert plan.cost.isfinite().all() and plan.mean[0, 0, 0] <= 0
    with pytest.raises(ValueError, match="NaN"):
        CEM().plan(lambda a: torch.full(a.shape[:2], torch.nan), torch.zeros(1, 4, 1))


def test_coloured_noise_has_unit_variance_and_drifts():
    white, red = (coloured_noise((4000, 16, 1), beta, generator=g()) for beta in (0.0, 2.0))
    for noise in (white, red):
        torch.testing.assert_close(noise.var((0, 2)), torch.ones(16), atol=0.12, rtol=0)

    def neighbours(x):
        return (x[:, 1:] * x[:, :-1]).mean().item()

    assert abs(neighbours(white)) < 0.02 and neighbours(red) > 0.6
    assert (
        abs((red[:, 0] * red[:, -1]).mean().item()) < neighbours(red) - 0.3
    )  # the last action is no neighbour of the first


def test_goal_cost_by_hand():
    z = torch.tensor([[[[9.0, 9.0], [1.0, 1.0], [3.0, 1.0]]]])
    cost = GoalCost(torch.tensor([[1.0, 1.0]]), nearest=1.0, mean=0.1)
    assert cost(z, torch.zeros(1, 1, 2, 1)).item() == pytest.approx(0 + 0.1 * (0 + 2) / 2)
    with pytest.raises(ValueError, match="trajectories"):
        cost(z[..., :1], torch.zeros(1, 1, 2, 1))
    with pytest.raises(ValueError, match="one goal per env"):
        GoalCost(torch.zeros(3))


class Counting:
    """A planner that returns the warm start plus one and counts its calls."""

    def __init__(self):
        self.starts = []

    def plan(self, score, mean, *, generator=None):
        from gjwm.planning import Plan

        self.starts.append(mean.clone())
        steps = torch.arange(mean.shape[1], dtype=mean.dtype)[None, :, None].expand_as(mean) / 10
        return Plan(steps, torch.ones_like(mean), torch.zeros(len(mean)))


def test_segments_run_open_loop_and_warm_start_the_next_plan():
    planner = Counting()
    controller = RecedingHorizon(planner, horizon=4, action_dim=1, replan_every=2)
    actions = [controller.act(None, 2)[0, 0].item() for _ in range(4)]
    assert actions == pytest.approx([0.0, 0.1, 0.0, 0.1]) and len(planner.starts) == 2
    assert planner.starts[1][0, :, 0].tolist() == pytest.approx([0.2, 0.3, 0.3, 0.3])


def test_reset_forgets_only_the_masked_envs():
    planner = Counting()
    controller = RecedingHorizon(planner, horizon=3, action_dim=1)
    controller.act(None, 2)
    controller.reset(torch.tensor([True, False]))
    controller.act(None, 2)
    assert planner.starts[1][0].abs().sum() == 0 and planner.starts[1][1].abs().sum() > 0
    controller.reset()
    controller.act(None, 3)
    assert planner.starts[2].shape == (3, 3, 1) and planner.starts[2].abs().sum() == 0


def model():
    torch.manual_seed(0)
    return WorldModel(MLPEncoder((3,), 4, hidden=(16,)), GaussianDynamics(4, 2, hidden=16)).eval()


def test_agent_gives_bounded_actions_that_do_not_depend_on_the_chunk():
    world_model, o = model(), torch.randn(5, 3, generator=g())
    goal = torch.zeros(5, 4)
    actions = []
    for chunk in (1, 10_000):
        agent = MPCAgent(
            world_model, CEM(samples=64, elites=8, iterations=3), GoalCost(goal), horizon=4, generator=g(1), chunk=chunk
        )
        actions.append(agent.act(o))
    assert actions[0].shape == (5, 2) and actions[0].abs().max() <= 1
    torch.testing.assert_close(actions[0], actions[1], atol=1e-4, rtol=0)


def test_agent_names_nan_and_wrong_shapes():
    agent = MPCAgent(model(), CEM(), GoalCost(torch.zeros(1, 4)))
    with pytest.raises(ValueError, match="NaN"):
        agent.act(torch.full((1, 3), torch.nan))
    with pytest.raises(ValueError, match="built for"):
        agent.act(torch.zeros(1, 7))
    with pytest.raises(ValueError, match="replan_every"):
        MPCAgent(model(), CEM(), GoalCost(torch.zeros(1, 4)), horizon=3, replan_every=4)
    with pytest.raises(ValueError, match="elites"):
        CEM(samples=4, elites=8)
    with pytest.raises(ValueError, match="warm start"):
        CEM().plan(bowl(torch.zeros(1, 2, 1)), torch.zeros(2, 1))
