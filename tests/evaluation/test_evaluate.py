"""Claims about the judge: it gives known models the figures they deserve, and a world its own
goals.
"""

import json

import numpy as np
import pytest
import torch

from gjwm.data.behaviours import Coloured
from gjwm.data.collect import Episode, collect_episodes, make_env
from gjwm.evaluation.evaluate import (
    Details,
    GoalEpisodes,
    attempt_goals,
    calibration_by_horizon,
    evaluate,
    goal_pairs_ahead,
    goal_pairs_from_resets,
    hold_policy,
    marginal_report,
    model_policy,
    oracle_policy,
    planning_report,
    prediction_report,
    probe_report,
    random_policy,
)
from gjwm.models.dynamics import Dynamics, EnsembleDynamics, GaussianDynamics, Prediction
from gjwm.models.encoders import MLPEncoder
from gjwm.models.world_model import WorldModel
from gjwm.planning import CEM
from gjwm.planning.costs import GoalCost

TWO_ROOM = {"obs": "state", "goal": "other-room", "terminate_on_goal": False}


def g(seed=0):
    return torch.Generator().manual_seed(seed)


class Known(Dynamics):
    """z' = 0.9 z + a + noise of standard deviation 0.3, known exactly: what a perfect model would
    report.
    """

    def __init__(self, believed_std=0.3):
        super().__init__(3, 3)
        self.std = believed_std

    def _inputs(self, a):
        return a

    def _step(self, z, inputs, context):
        return 0.9 * z + inputs

    def _law(self, mean, z, a, context):
        return Prediction(mean, torch.full_like(mean, self.std**2))


def known_trajectories(episodes=400, steps=24, noise=0.3):
    z = [torch.randn(episodes, 3, generator=g(1))]
    a = 0.3 * torch.randn(episodes, steps, 3, generator=g(2))
    for t in range(steps):
        z.append(0.9 * z[-1] + a[:, t] + noise * torch.randn(episodes, 3, generator=g(3 + t)))
    return torch.stack(z, 1), a


def test_an_exact_model_of_a_noiseless_world_predicts_everything():
    z, a = known_trajectories(noise=0.0)
    report = prediction_report(Known(), z, a, horizon=8, generator=g())
    np.testing.assert_allclose(report["r2_by_horizon"], 1, atol=1e-5)
    np.testing.assert_allclose(report["r2_ci95_by_horizon"], 1, atol=1e-5)
    assert report["rank_accuracy"] == 1.0
    copied = np.array(report["copy_last_r2_by_horizon"])
    assert (np.diff(copied) < 0).all() and copied[-1] < 0.5  # nothing changes? less and less true


def test_the_skill_of_the_true_law_is_its_entropy_and_beats_copying():
    z, a = known_trajectories()
    report = prediction_report(Known(), z, a, horizon=4, generator=g())
    # Nats per dimension that N(0, I) needs for itself, less the entropy of N(0, 0.3^2): -log 0.3.
    assert report["skill_nats_per_dim"] == pytest.approx(-np.log(0.3), abs=0.02)
    assert report["skill_nats_per_dim"] > report["skill_copy_last_nats_per_dim"] + 0.1
    assert report["rank_chance"] < report["rank_accuracy"] < 1


def test_particles_of_the_true_law_are_calibrated_and_of_a_false_one_are_not():
    z, a = known_trajectories()
    options = dict(horizons=(5,), particles=200, generator=g(9))
    honest = calibration_by_horizon(Known(), z, a, **options)
    for report in (honest, honest["horizon_5"]):
        assert report["coverage_90"] == pytest.approx(0.9, abs=0.02)
    bold = calibration_by_horizon(Known(believed_std=0.1), z, a, **options)
    assert bold["coverage_90"] < 0.6 and bold["horizon_5"]["coverage_90"] < 0.6


def test_sampled_rollouts_relax_to_the_marginal_and_mean_rollouts_shrink():
    """z' = 0.9 z + a + noise with these actions has variance (0.09 + 0.09) / 0.19 in the long run,
    half of it known from actions."""
    z, a = known_trajectories(episodes=2000)
    report = marginal_report(Known(), z, a, generator=g())
    assert report["steps"] == 24
    assert report["variance_per_dim"] == pytest.approx(report["encoded_variance_per_dim"], rel=0.05)
    assert report["mean_variance_per_dim"] == pytest.approx(0.09 / 0.19, rel=0.1)
    assert report["epps_pulley"] < 3 * report["epps_pulley_null"] < report["mean_epps_pulley"]


def test_probes_read_what_is_there_and_only_that():
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(40):
        position = rng.uniform(-1, 1, (16, 2))
        true_state = {
            "position": position,
            "hidden": rng.normal(size=(16, 1)),
            "constant": np.ones((16, 1)),
        }
        episodes.append(Episode(None, None, None, None, None, None, position, true_state))
    z = torch.from_numpy(np.stack([e.position for e in episodes])) @ torch.randn(
        2, 6, dtype=torch.float64, generator=g()
    )
    report = probe_report(z, episodes, steps=300, generator=g())
    assert min(report[k] for k in ("linear_r2", "knn_r2", "mlp_r2")) > 0.97
    assert report["variables"]["hidden"]["linear_r2"] < 0.1
    assert "constant" not in report["variables"]  # nothing to read
    for row in report["variables"].values():
        for kind in ("linear", "knn", "mlp"):
            low, high = row[f"{kind}_r2_ci95"]
            assert low < high and low - 1e-6 <= row[f"{kind}_r2"] <= high + 1e-6


def test_success_is_the_nearest_approach_after_the_start():
    distance = np.array([[0.01, 0.2, 0.3], [0.3, 0.02, 0.3], [0.3, 0.2, 0.05], [0.3, 0.1, 0.019]])
    report = planning_report(
        GoalEpisodes(distance, np.ones(4), 0.001, np.zeros((4, 2, 2))), radius=0.02
    )
    assert report["success_rate"] == 0.5  # starting at the goal is no success
    assert report["episodes"] == 4 and report["ci95"][0] < 0.5 < report["ci95"][1]
    assert report["closest_distance_mean"] == pytest.approx((0.2 + 0.02 + 0.05 + 0.019) / 4)


@pytest.fixture(scope="module")
def reacher_episodes():
    kwargs = {"obs": "state", "action_repeat": 2}
    made = collect_episodes(
        "gjwm/reacher-easy-v0",
        kwargs,
        Coloured(),
        episodes=6,
        length=30,
        workers=0,
        record_state=True,
    )
    return kwargs, list(made)


def test_a_goal_ahead_is_the_state_that_the_same_episode_reached(reacher_episodes):
    kwargs, episodes = reacher_episodes
    env = make_env("gjwm/reacher-easy-v0", **kwargs)
    pairs = goal_pairs_ahead(env, episodes, offset=12, count=6, rng=np.random.default_rng(0))
    for i, episode in enumerate(episodes):
        t = next(t for t in range(19) if np.array_equal(episode.sim_state[t], pairs.start[i]))
        assert np.array_equal(episode.sim_state[t + 12], pairs.goal[i])
        np.testing.assert_allclose(pairs.goal_position[i], episode.position[t + 12], atol=1e-9)
    with pytest.raises(ValueError, match="7 goal pairs need"):
        goal_pairs_ahead(env, episodes, offset=12, count=7, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="longer episodes than 30"):
        goal_pairs_ahead(env, episodes, offset=31, count=6, rng=np.random.default_rng(0))


def test_replaying_the_recorded_actions_reaches_the_goal_exactly(reacher_episodes):
    """The attempt starts and steps as the episode did: nothing is lost in between, so a perfect
    policy can score 100%.
    """
    kwargs, episodes = reacher_episodes
    envs = [make_env("gjwm/reacher-easy-v0", **kwargs) for _ in episodes]
    pairs = goal_pairs_ahead(envs[0], episodes, offset=12, count=6, rng=np.random.default_rng(0))
    starts = [
        next(t for t in range(19) if np.array_equal(e.sim_state[t], s))
        for e, s in zip(episodes, pairs.start, strict=True)
    ]
    recorded = iter(np.stack([e.a[t : t + 12] for e, t in zip(episodes, starts, strict=True)], 1))
    attempts = attempt_goals(envs, pairs, lambda o, s: next(recorded), steps=12)
    np.testing.assert_allclose(attempts.distance[:, -1], 0, atol=1e-9)
    assert attempts.distance[:, 0].min() > 1e-3


def test_the_oracle_crosses_the_door_and_chance_does_not():
    envs = [make_env("gjwm/two-room-v0", **TWO_ROOM) for _ in range(8)]
    pairs = goal_pairs_from_resets(envs[0], count=8, seed=3)
    assert ((pairs.start[:, 0] < 0.5) != (pairs.goal_position[:, 0] < 0.5)).all()
    planner = CEM(samples=128, iterations=4, elites=16)
    oracle = oracle_policy(envs[0], planner, pairs, horizon=24, replan_every=6, generator=g())
    radius = envs[0].unwrapped.success_radius
    rates = [
        planning_report(attempt_goals(envs, pairs, policy, steps=60), radius)["success_rate"]
        for policy in (oracle, random_policy(2, np.random.default_rng(0)), hold_policy(2))
    ]
    assert rates[0] >= 7 / 8 and rates[1] <= 1 / 8 and rates[2] == 0


def tiny_evaluation(seed=0, details=None):
    episodes = list(
        collect_episodes("gjwm/two-room-v0", TWO_ROOM, episodes=12, length=30, record_state=True)
    )
    torch.manual_seed(0)
    shape = episodes[0].o.shape[1:]
    model = WorldModel(
        MLPEncoder(shape, 4, hidden=(16,)), GaussianDynamics(4, 2, hidden=16, std_hidden=8)
    ).eval()
    return evaluate(
        model,
        "gjwm/two-room-v0",
        TWO_ROOM,
        episodes,
        CEM(samples=32, iterations=2, elites=8),
        goals="reset",
        pairs=4,
        steps=6,
        horizon=6,
        probe_steps=100,
        seed=seed,
        details=details,
    )


@pytest.fixture(scope="module")
def evaluated():
    details = Details()
    return tiny_evaluation(details=details), details


def test_kappa_plans_on_each_members_own_path():
    torch.manual_seed(0)
    model = WorldModel(
        MLPEncoder((6,), 4, hidden=(16,)), EnsembleDynamics(4, 2, members=3, hidden=16)
    ).eval()
    env = make_env("gjwm/two-room-v0", obs="state", goal="other-room")
    pairs = goal_pairs_from_resets(env, count=5, seed=0)
    o = torch.randn(5, 6, generator=g())
    planner = CEM(samples=32, iterations=2, elites=4)
    with torch.no_grad():
        goal, z0 = model.encode(torch.from_numpy(pairs.goal_observation)), model.encode(o)
        for kappa in (None, 0.0, 2.0):
            policy = model_policy(
                model, planner, pairs, horizon=5, replan_every=1, generator=g(), kappa=kappa
            )
            policy.agent.act(o)
            a = policy.agent.plan.mean[:, None]
            paths = model.dynamics.rollout_members(z0, a)  # (B, 1, M, H+1, D)
            each = torch.stack([GoalCost(goal)(paths[:, :, m], a)[:, 0] for m in range(3)], -1)
            expected = GoalCost(goal)(model.rollout(z0, a), a)[:, 0]
            if kappa is not None:
                expected = each.mean(-1) + kappa * each.std(-1, correction=0)
            torch.testing.assert_close(policy.agent.plan.cost, expected)
    plain = WorldModel(MLPEncoder((6,), 4, hidden=(16,)), GaussianDynamics(4, 2, hidden=16)).eval()
    with pytest.raises(ValueError, match="these dynamics are GaussianDynamics"):
        model_policy(plain, planner, pairs, horizon=5, replan_every=1, generator=g(), kappa=1.0)


def test_goals_of_neighbouring_seeds_are_others():
    env = make_env("gjwm/two-room-v0", obs="state", goal="other-room")
    one, again, next_ = (
        goal_pairs_from_resets(env, count=6, seed=seed).goal_position for seed in (1, 1, 2)
    )
    assert np.array_equal(one, again)
    assert np.linalg.norm(one[:, None] - next_[None], axis=-1).min() > 1e-6


def test_the_report_holds_every_promised_figure_as_plain_json_and_repeats(evaluated):
    report, _ = evaluated
    again = json.loads(json.dumps(report))
    assert {"r2_by_horizon", "skill_nats_per_dim", "rank_accuracy"} <= set(again["prediction"])
    assert len(again["prediction"]["r2_by_horizon"]) == 6
    assert {"linear_r2", "knn_r2"} <= set(again["probe"])
    assert {"effective_rank", "effective_rank_ideal", "epps_pulley", "epps_pulley_null"} <= set(
        again["gaussianity"]
    )
    assert {f"coverage_{level}" for level in (50, 80, 90, 95)} <= set(again["calibration"])
    figures = {"success_rate", "return_mean", "ci95", "episodes", "seconds_per_step"}
    for row in (again["planning"], *(again["planning"][k] for k in ("random", "hold", "oracle"))):
        assert figures <= set(row) and row["episodes"] == 4
    assert again["planning"]["protocol"]["success_radius"] == 0.05

    def timeless(x):
        skipped = ("seconds_per_step", "timings")
        return (
            {k: timeless(v) for k, v in x.items() if k not in skipped} if isinstance(x, dict) else x
        )

    assert timeless(tiny_evaluation()) == timeless(report)


def test_details_are_what_the_figures_were_made_of(evaluated):
    report, details = evaluated
    distance = details.arrays["distance_model"]
    assert distance.shape == (4, 7) and details.attempts.actions.shape == (4, 6, 2)
    assert (distance[:, 1:].min(1) <= 0.05).mean() == report["planning"]["success_rate"]
    assert {"distance_random", "distance_hold", "distance_oracle"} <= set(details.arrays)
    # the dot stays where it is
    np.testing.assert_array_equal(np.diff(details.arrays["distance_hold"]), 0)
    assert [step for step, _ in details.plans] == list(range(6))  # replan_every=1
    assert details.plans[0][1].shape == (4, 6, 2)
    # the first action of the plan
    np.testing.assert_allclose(details.attempts.actions[:, 0], details.plans[0][1][:, 0])
    assert set(report["timings"]) >= {"prediction", "representation", "planning with the model"}


def test_bad_protocols_are_named():
    with pytest.raises(ValueError, match="'ahead' or 'reset'"):
        evaluate(None, "gjwm/two-room-v0", TWO_ROOM, [], CEM(), goals="sideways")
