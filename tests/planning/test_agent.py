"""Claims about the agent: warm starts, segments, particles, proposals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from gjwm.models.calibration import Calibration
from gjwm.models.dynamics import (
    EnsembleDynamics,
    GaussianDynamics,
    LinearGaussianDynamics,
    MixtureDynamics,
)
from gjwm.models.encoders import ConvEncoder, MLPEncoder
from gjwm.models.world_model import WorldModel
from gjwm.planning import (
    CEM,
    ICEM,
    AgentOptions,
    GradientPlanner,
    MPCAgent,
    Plan,
    RecedingHorizon,
)
from gjwm.planning.agent import default_planner, particle_rollout
from gjwm.planning.costs import DisagreementCost, GoalCost, RiskCost, SumCost

ROOT = Path(__file__).parents[2]


def g(seed=0):
    return torch.Generator().manual_seed(seed)


class Counting:
    """A planner that returns the warm start plus one and counts its calls."""

    def __init__(self):
        self.starts = []

    def plan(self, score, mean, *, generator=None):
        self.starts.append(mean.clone())
        steps = torch.arange(mean.shape[1], dtype=mean.dtype)[None, :, None].expand_as(mean) / 10
        return Plan(steps, torch.ones_like(mean), torch.zeros(len(mean)))


def test_segments_run_open_loop_and_warm_start_the_next_plan():
    planner = Counting()
    controller = RecedingHorizon(planner, horizon=4, action_dim=1, replan_every=2)
    actions = [controller.act(None, 2)[0, 0].item() for _ in range(4)]
    assert actions == pytest.approx([0.0, 0.1, 0.0, 0.1]) and len(planner.starts) == 2
    assert planner.starts[1][0, :, 0].tolist() == pytest.approx([0.2, 0.3, 0.3, 0.3])


def test_a_masked_reset_makes_all_envs_replan_and_an_all_false_one_none():
    planner = Counting()
    controller = RecedingHorizon(planner, horizon=4, action_dim=1, replan_every=4)
    controller.act(None, 2)
    controller.reset([False, False])
    assert not controller.needs_plan
    controller.reset(np.array([0, 1]))
    assert controller.needs_plan
    controller.act(None, 2)
    assert planner.starts[1][0, :, 0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.3])
    assert planner.starts[1][1].abs().sum() == 0


@pytest.mark.parametrize(
    "mask", [[True, False], np.array([1, 0]), np.array([True, False]), torch.tensor([True, False])]
)
def test_reset_forgets_only_the_masked_envs(mask):
    """A list or an array, of bools or ints."""
    planner = Counting()
    controller = RecedingHorizon(planner, horizon=3, action_dim=1)
    controller.act(None, 2)
    controller.reset(mask)
    controller.act(None, 2)
    assert planner.starts[1][0].abs().sum() == 0 and planner.starts[1][1].abs().sum() > 0
    controller.reset()
    controller.act(None, 3)
    assert planner.starts[2].shape == (3, 3, 1) and planner.starts[2].abs().sum() == 0
    with pytest.raises(ValueError, match="expected a reset mask"):
        controller.reset([True])
    with pytest.raises(ValueError, match="true or false"):
        controller.reset([0, 1, 2])


def test_an_action_is_the_callers_to_change():
    controller = RecedingHorizon(Counting(), horizon=3, action_dim=1)
    action = controller.act(None, 2)
    action += 5
    assert controller.plan.mean[:, 0].abs().max() == 0


def test_the_rest_of_a_plan_in_blocks_competes_when_blocks_stay_whole():
    def score(a):
        seen.append(a[0, 0].clone())
        return (a - torch.linspace(-1, 1, 6)[:, None]).square().sum((-2, -1))

    for replan_every, same in ((2, True), (1, False)):
        seen = []
        controller = RecedingHorizon(
            CEM(iterations=1, repeat=2),
            horizon=6,
            action_dim=1,
            replan_every=replan_every,
            generator=g(),
        )
        for _ in range(replan_every):
            controller.act(score, 1)
        plan = controller.plan.mean[0]
        controller.act(score, 1)
        rest = torch.cat([plan[replan_every:], plan[-1:].expand(replan_every, -1)])
        assert torch.allclose(seen[-1], rest) == same


def model():
    torch.manual_seed(0)
    return WorldModel(MLPEncoder((3,), 4, hidden=(16,)), GaussianDynamics(4, 2, hidden=16)).eval()


def test_agent_gives_bounded_actions_that_do_not_depend_on_the_chunk():
    world_model, o = model(), torch.randn(5, 3, generator=g())
    goal = torch.zeros(5, 4)
    actions = []
    for chunk in (1, 10_000):
        agent = MPCAgent(
            world_model,
            CEM(samples=64, elites=8, iterations=3),
            GoalCost(goal),
            horizon=4,
            generator=g(1),
            options=AgentOptions(chunk=chunk),
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
    for unbatched in (torch.zeros(3), np.zeros(3), 0.0):
        with pytest.raises(ValueError, match=r"expects observations \(B, 3\), got .*o\[None\]"):
            agent.act(unbatched)
    with pytest.raises(ValueError, match="replan_every"):
        MPCAgent(model(), CEM(), GoalCost(torch.zeros(1, 4)), horizon=3, replan_every=4)
    with pytest.raises(ValueError, match="horizon >= 1"):
        MPCAgent(model(), CEM(), GoalCost(torch.zeros(1, 4)), horizon=0)
    with pytest.raises(ValueError, match="particles"):
        MPCAgent(model(), CEM(), GoalCost(torch.zeros(1, 4)), particles=0)
    for name in ("policy_plans", "history", "chunk"):
        with pytest.raises(ValueError, match=f"{name} >= 1"):
            AgentOptions(**{name: 0})
    with pytest.raises(ValueError, match="act first"):
        MPCAgent(model(), CEM(), GoalCost(torch.zeros(1, 4))).explain()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": "x"}, "model must be a gjwm.models.world_model.WorldModel, got 'x'"),
        ({"planner": "icem"}, r"such as gjwm.planning.ICEM\(\), got 'icem'"),
        ({"planner": ICEM}, r"such as gjwm.planning.ICEM\(\), got <class"),
        ({"horizon": 5.5}, "horizon must be a whole number, got 5.5"),
        ({"replan_every": 1.5}, "replan_every must be a whole number, got 1.5"),
    ],
)
def test_agent_names_what_it_cannot_be_made_of(wrong, said):
    with pytest.raises(ValueError, match=said):
        MPCAgent(**{"model": model(), "cost": GoalCost(torch.zeros(1, 4))} | wrong)


def test_observations_may_be_numpy_arrays():
    o = np.random.default_rng(0).normal(size=(2, 3))
    from_numpy, from_torch = (
        MPCAgent(model(), CEM(), GoalCost(torch.zeros(2, 4)), horizon=3, generator=g()).act(x)
        for x in (o, torch.from_numpy(o).float())
    )
    torch.testing.assert_close(from_numpy, from_torch)


def test_the_last_plans_elites_compete_in_the_next_one_and_are_reset_with_their_env():
    first_rounds = []

    def score(a):
        first_rounds.append(a.clone())
        return (a - 0.3).square().sum((-2, -1))

    controller = RecedingHorizon(
        ICEM(samples=32, elites=8, iterations=1), horizon=4, action_dim=1, generator=g(), reuse=0.5
    )
    controller.act(score, 2)
    kept = controller.plan.elites[:, :4]
    controller.reset(torch.tensor([False, True]))
    controller.act(score, 2)
    shifted = torch.cat([kept[:, :, 1:], kept[:, :, -1:]], 2)
    assert torch.equal(first_rounds[-1][0, 1:5], shifted[0])
    assert (first_rounds[-1][1, :5] == 0).all()


def test_gradient_planners_act_under_inference_mode():
    """Encoded in inference mode, a latent could not be differentiated through."""
    world_model, o = model(), torch.randn(3, 3, generator=g())
    goal = torch.randn(3, 4, generator=g(1))
    planner = GradientPlanner(starts=4, iterations=5)
    agent = MPCAgent(world_model, planner, GoalCost(goal), horizon=4, generator=g(1))
    with torch.inference_mode():
        action = agent.act(o.clone())
    assert action.shape == (3, 2) and action.abs().max() <= 1
    assert all(p.grad is None for p in world_model.parameters())


def test_a_policy_prior_is_rolled_out_and_competes():
    world_model, o = model(), torch.randn(2, 3, generator=g())
    with torch.no_grad():
        z0 = world_model.encode(o)
        policy_actions = []
        z = z0
        for _ in range(3):
            policy_actions.append(torch.tanh(z[:, :2]))
            z = world_model.predict(z, policy_actions[-1]).mean
    # Only the policy's own plan is cheap.
    wanted = torch.stack(policy_actions, 1)

    def cost(z, a):
        return (a - wanted[:, None]).abs().amax((-2, -1))

    agent = MPCAgent(
        world_model,
        CEM(samples=16, elites=2, iterations=1),
        cost,
        horizon=3,
        options=AgentOptions(policy=lambda z: torch.tanh(z[..., :2])),
    )
    agent.act(o)
    torch.testing.assert_close(agent.plan.mean, wanted, atol=1e-5, rtol=0)
    bad = MPCAgent(world_model, CEM(), cost, horizon=3, options=AgentOptions(policy=lambda z: z))
    with pytest.raises(ValueError, match="expected the policy"):
        bad.act(o)


def test_particles_share_their_noise_between_candidates_and_follow_the_model():
    world_model = model()
    z0, a = torch.randn(2, 4, generator=g()), torch.rand(2, 5, 3, 2, generator=g(1))
    a[:, 1] = a[:, 0]
    noise = torch.randn(2, 1, 4000, 3, 4, generator=g(2))
    with torch.no_grad():
        z = particle_rollout(world_model, z0, a, noise)
        assert z.shape == (2, 5, 4000, 4, 4)
        assert torch.equal(z[:, 0], z[:, 1]) and not torch.equal(z[:, 0], z[:, 2])
        one = world_model.predict(z0, a[:, 0, 0])
        torch.testing.assert_close(z[:, 0, :, 1].mean(1), one.mean, atol=0.05, rtol=0)
        torch.testing.assert_close(z[:, 0, :, 1].var(1), one.variance, atol=0.05, rtol=0.1)
        still = particle_rollout(world_model, z0, a, torch.zeros(2, 1, 1, 3, 4))[:, :, 0]
        torch.testing.assert_close(still, world_model.rollout(z0, a))


@pytest.mark.parametrize(
    ("dynamics", "said"),
    [
        (lambda: MixtureDynamics(4, 2, hidden=16), "MixturePrediction"),
        (lambda: EnsembleDynamics(4, 2, members=2, hidden=16), "EnsemblePrediction"),
        (lambda: LinearGaussianDynamics(4, 2), "FullPrediction"),
        (
            lambda: GaussianDynamics(4, 2, hidden=16, covariance="low_rank", rank=2),
            "LowRankPrediction",
        ),
        (lambda: GaussianDynamics(4, 2, hidden=16, backbone="gru", memory_width=8), "memory"),
    ],
)
def test_particles_of_other_laws_are_refused_and_the_models_own_samples_take_their_place(
    dynamics, said
):
    torch.manual_seed(0)
    world_model = WorldModel(MLPEncoder((3,), 4, hidden=(16,)), dynamics()).eval()
    cost = RiskCost(GoalCost(torch.zeros(2, 4)), kappa=1.0)
    planner = CEM(samples=16, elites=4, iterations=2)
    with pytest.raises(ValueError, match=f"{said}.*AgentOptions.rollout="):
        MPCAgent(world_model, planner, cost, horizon=3, particles=4)
    generator = g()
    agent = MPCAgent(
        world_model,
        planner,
        cost,
        horizon=3,
        generator=generator,
        options=AgentOptions(
            rollout=lambda z0, a, past=None: world_model.rollout(
                z0, a, particles=4, generator=generator, past=past
            )
        ),
    )
    for seed in (0, 1):
        assert agent.act(torch.randn(2, 3, generator=g(seed))).shape == (2, 2)


@pytest.mark.parametrize("backbone", ["gru", "transformer"])
def test_with_a_memory_each_env_is_planned_with_the_past_since_its_own_reset(backbone):
    torch.manual_seed(0)
    dynamics = GaussianDynamics(4, 2, hidden=16, backbone=backbone, memory_width=8, window=4)
    world_model = WorldModel(MLPEncoder((3,), 4, hidden=(16,)), dynamics).eval()
    seen = []

    def rollout(z0, a, past=None):
        seen.append((z0, past))
        return world_model.rollout(z0, a, past=past)

    options = AgentOptions(history=5, rollout=rollout)
    cost = GoalCost(torch.zeros(3, 4))
    agent = MPCAgent(world_model, Counting(), cost, horizon=3, options=options)
    o = torch.randn(9, 3, 3, generator=g())
    with torch.no_grad():
        z = world_model.encode(o)
    a = []
    for t in range(9):
        if t == 7:
            agent.reset([False, True, False])
        a.append(agent.act(o[t]))
        candidates = torch.randn(3, 2, 3, 2, generator=g(t))
        seen.clear()
        with torch.no_grad():
            path = agent.imagine(z[t], candidates)
        for env in range(3):
            # the last reset, or as long ago as is kept
            since = max(7 if env == 1 and t >= 7 else 0, t - 5)
            past = None
            if since < t:
                past = (
                    torch.stack([z[s, env] for s in range(since, t)])[None],
                    torch.stack(a[since:t])[None, :, env],
                )
            with torch.no_grad():
                expected = world_model.rollout(z[t, env][None], candidates[env][None], past=past)
            torch.testing.assert_close(path[env][None], expected, atol=1e-5, rtol=1e-5)
        # envs with pasts of one length are planned together
        assert len(seen) == (2 if t >= 7 else 1)
    agent.reset()
    agent.act(o[0])
    seen.clear()
    agent.imagine(z[0], candidates)
    assert seen[0][1] is None


def test_a_memory_reads_the_steps_between_plans_too_and_changes_what_is_planned():
    torch.manual_seed(0)
    dynamics = GaussianDynamics(4, 2, hidden=16, backbone="gru", memory_width=8)
    world_model = WorldModel(MLPEncoder((3,), 4, hidden=(16,)), dynamics).eval()
    options = dict(horizon=4, replan_every=2)
    planner = CEM(samples=64, elites=8, iterations=3)
    agent = MPCAgent(world_model, planner, GoalCost(torch.ones(2, 4)), generator=g(), **options)
    o = torch.randn(5, 2, 3, generator=g(1))
    for t in range(5):
        agent.act(o[t])
    assert agent._history.groups(2)[0][1][0].shape == (2, 5, 4)
    remembered = agent.plan.cost
    torch.testing.assert_close(agent.explain()["cost"], remembered, atol=1e-4, rtol=1e-4)
    forgetful = MPCAgent(world_model, planner, GoalCost(torch.ones(2, 4)), generator=g(), **options)
    forgetful.act(o[4])
    z0 = world_model.encode(o[4])
    with torch.no_grad():
        same_plan = forgetful.imagine(z0, agent.plan.mean[:, None])
        assert not torch.allclose(same_plan, agent.imagine(z0, agent.plan.mean[:, None]), atol=1e-3)


def test_a_calibrated_models_tails_do_not_hinder_particles():
    world_model = model()
    world_model.calibration = Calibration([1.5], [0.0], tail=3.0)
    agent = MPCAgent(world_model, Counting(), GoalCost(torch.zeros(2, 4)), horizon=3, particles=4)
    assert agent.act(torch.randn(2, 3, generator=g())).shape == (2, 2)


def test_without_a_price_on_risk_the_plan_is_that_of_the_mean_cost():
    world_model, o = model(), torch.randn(3, 3, generator=g())
    goal = torch.randn(3, 4, generator=g(1))
    plans = []
    for cost in (
        GoalCost(goal),
        RiskCost(GoalCost(goal), kappa=0.0),
        RiskCost(GoalCost(goal), kappa=3.0),
    ):
        agent = MPCAgent(
            world_model,
            CEM(samples=64, elites=8),
            cost,
            horizon=4,
            generator=g(1),
            particles=6,
            options=AgentOptions(chunk=100),
        )
        agent.act(o)
        plans.append(agent.plan.mean)
    torch.testing.assert_close(plans[0], plans[1], atol=1e-5, rtol=0)
    assert not torch.allclose(plans[0], plans[2], atol=1e-2)


def test_an_ensemble_can_be_judged_by_its_disagreement():
    """Two members agree where the first action is negative: that is where the plan goes."""
    members = [model(), model()]

    def rollout(z0, a):
        paths = torch.stack([m.rollout(z0, a) for m in members], 2)
        paths[:, :, 1, 1:] += a[..., :1].clamp(min=0)
        return paths

    agent = MPCAgent(
        members[0],
        CEM(),
        DisagreementCost(),
        horizon=3,
        generator=g(),
        options=AgentOptions(rollout=rollout),
    )
    agent.act(torch.randn(2, 3, generator=g()))
    assert agent.plan.mean[..., 0].max() <= 1e-3 and agent.plan.cost.max() < 1e-6


def test_a_plan_is_explained_by_the_terms_of_its_cost():
    world_model, o = model(), torch.randn(2, 3, generator=g())
    goal = torch.zeros(2, 4)
    cost = SumCost(
        {"goal": GoalCost(goal), "effort": (0.5, lambda z, a: a.square().mean((-2, -1)))}
    )
    agent = MPCAgent(
        world_model, CEM(samples=32, elites=4), cost, horizon=4, generator=g(), particles=3
    )
    agent.act(o)
    terms = agent.explain()
    assert set(terms) == {"goal", "effort"}
    torch.testing.assert_close(
        terms["goal"] + terms["effort"], agent.plan.cost, atol=1e-5, rtol=1e-4
    )
    plain = MPCAgent(
        world_model, CEM(samples=32, elites=4), GoalCost(goal), horizon=4, generator=g()
    )
    plain.act(o)
    torch.testing.assert_close(plain.explain()["cost"], plain.plan.cost, atol=1e-5, rtol=1e-4)


def test_a_goal_is_a_cost_of_its_latents_and_one_may_serve_all_envs():
    world_model, o = model(), torch.randn(2, 3, generator=g())
    goal = torch.randn(3, generator=g(1))
    plans = []
    with torch.no_grad():
        z = world_model.encode(goal[None].expand(2, 3))
    for asked in (dict(cost=GoalCost(z)), dict(goal=goal), dict(goal=goal.expand(2, 3).numpy())):
        agent = MPCAgent(world_model, horizon=3, generator=g(), **asked)
        agent.act(o)
        plans.append(agent.plan.mean)
    torch.testing.assert_close(plans[1], plans[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(plans[2], plans[0], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="give one of the two"):
        MPCAgent(world_model)
    for wrong in (torch.zeros(2, 4), torch.zeros(1, 1, 3), 0.0):
        with pytest.raises(ValueError, match=r"goal of the observations' shape \(3,\)"):
            MPCAgent(world_model, goal=wrong)
    with pytest.raises(ValueError, match=r"expected a goal \(B, 3\) as an array.*got a str"):
        MPCAgent(world_model, goal="goal.png")


def test_pictures_of_another_dtype_are_refused_as_goals_and_observations():
    encoder = ConvEncoder((3, 16, 16), 4, channels=(4,), hidden=8)
    world_model = WorldModel(encoder, GaussianDynamics(4, 2, hidden=16)).eval()
    picture = torch.randint(256, (1, 3, 16, 16), generator=g())
    agent = MPCAgent(world_model, Counting(), goal=picture.to(torch.uint8), horizon=3)
    for wrong in (picture.float(), picture.double() / 255):
        for call in (lambda o: MPCAgent(world_model, goal=o), agent.act, world_model.encode):
            with pytest.raises(ValueError, match=f"pictures of uint8.*got {wrong.dtype}"):
                call(wrong)


def test_an_ensemble_is_planned_on_its_members_own_paths():
    torch.manual_seed(0)
    dynamics = EnsembleDynamics(4, 2, members=3, hidden=16, std_hidden=8)
    world_model = WorldModel(MLPEncoder((3,), 4, hidden=(16,)), dynamics).eval()
    cost = GoalCost(torch.zeros(1, 4))
    agent = MPCAgent(world_model, Counting(), cost, horizon=3)
    o, a = torch.randn(2, 3, generator=g()), torch.randn(2, 5, 3, 2, generator=g(1))
    agent.act(o)
    with torch.no_grad():
        z0 = world_model.encode(o)
        paths = agent.imagine(z0, a)
        torch.testing.assert_close(paths, dynamics.rollout_members(z0, a))
        each = torch.stack([cost(paths[:, :, m], a) for m in range(3)], -1)
        torch.testing.assert_close(cost(paths, a), each.mean(-1))


@pytest.mark.slow
def test_a_compiled_agent_plans_the_same():
    world_model, o = model(), torch.randn(2, 3, generator=g())
    goal = torch.zeros(2, 4)
    plans = []
    for compile in (False, True):
        agent = MPCAgent(
            world_model,
            CEM(samples=32, elites=4),
            GoalCost(goal),
            horizon=4,
            generator=g(),
            options=AgentOptions(compile=compile),
        )
        agent.act(o)
        plans.append(agent.plan.mean)
    torch.testing.assert_close(plans[0], plans[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name, groups", [("cem", ()), ("categorical", (3,))])
def test_the_default_planner_is_the_command_lines(name, groups):
    settings = OmegaConf.load(ROOT / "configs" / "planner" / f"{name}.yaml")
    assert vars(instantiate(settings)) == vars(default_planner(groups))
