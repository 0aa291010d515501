"""Claims about the judge: it gives known models the figures they deserve, and a world its own
goals.
"""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

from gjwm.cli.app import main
from gjwm.data.acting import HoldActor, Moment, RandomActor, RecordedActor, as_array, make_vec
from gjwm.data.behaviours import Coloured
from gjwm.data.collect import collect_episodes
from gjwm.data.dataset import Episode
from gjwm.data.handle import HELD_OUT
from gjwm.evaluation import Details, Evaluation, evaluate, held_out_episodes
from gjwm.evaluation.calibration import calibration_by_horizon
from gjwm.evaluation.evaluate import Task
from gjwm.evaluation.goals import (
    GoalEpisodes,
    OracleActor,
    attempt_goals,
    goal_pairs_ahead,
    goal_pairs_from_resets,
    planning_report,
    simulator_planner,
)
from gjwm.evaluation.prediction import marginal_report, prediction_report
from gjwm.evaluation.probes import probe_report
from gjwm.models.dynamics import Dynamics, EnsembleDynamics, GaussianDynamics, Prediction
from gjwm.models.encoders import MLPEncoder
from gjwm.models.world_model import Origin, WorldModel
from gjwm.planning import CEM, CategoricalCEM, GoalCost
from gjwm.reporting.films import film
from gjwm.training.recipe import calibrate

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


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_the_skill_of_the_true_law_is_what_it_knows_of_z_and_beats_copying(scale):
    z, a = known_trajectories()
    truth = Known(0.3 * scale)
    report = prediction_report(truth, scale * z, scale * a, horizon=4, generator=g())
    # The entropy of z's own Gaussian less that of N(0, 0.3^2), in whatever units.
    known = 0.5 * (z[:, 1:].flatten(0, 1).var(0) / 0.3**2).log().mean().item()
    assert report["skill_nats_per_dim"] == pytest.approx(known, abs=0.01)
    assert report["skill_nats_per_dim"] > report["skill_copy_last_nats_per_dim"] + 0.1
    assert report["rank_chance"] < report["rank_accuracy"] < 1


def test_collapsed_latents_show_no_skill():
    """Whose spread stays above its floor, as that of trained dynamics does."""
    z, a = known_trajectories()
    report = prediction_report(Known(0.01), z, a, horizon=4, generator=g())
    copying = report["skill_copy_last_nats_per_dim"]
    for scale in (2.6e-5, 0.0):  # the variance of an encoder that has collapsed: 7e-10, or none
        report = prediction_report(Known(0.01), scale * z, scale * a, horizon=4, generator=g())
        assert report["skill_nats_per_dim"] < -3
        if scale:  # copying gains what it gains at any scale
            assert report["skill_copy_last_nats_per_dim"] == pytest.approx(copying, abs=0.02)
        assert report["variance_per_dim"] < 1e-9


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


def test_samples_of_an_ensemble_come_from_all_members():
    """Three of them, each sure of its own drift of -1, 0 or 1 per step: after T steps their paths
    lie T apart, and the law of all has variance 2/3 T^2 beside that of the start.
    """
    ensemble = EnsembleDynamics(2, 1, members=3, hidden=4, std_hidden=4, max_std=0.02).eval()
    last = ensemble.body[-1][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([-1.0, 0.0, 1.0])[:, None, None].expand_as(last.bias))
    z, a = torch.randn(3000, 9, 2, generator=g(1)), torch.zeros(3000, 8, 1)
    report = marginal_report(ensemble, z, a, generator=g())
    assert report["variance_per_dim"] == pytest.approx(1 + 2 / 3 * 8**2, rel=0.05)
    assert report == marginal_report(ensemble, z, a, generator=g())


@pytest.mark.slow
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
    envs = make_vec("gjwm/reacher-easy-v0", 6, **kwargs)
    pairs = goal_pairs_ahead(envs, episodes, offset=12, rng=np.random.default_rng(0))
    for i, episode in enumerate(episodes):
        t = next(t for t in range(19) if np.array_equal(episode.sim_state[t], pairs.start[i]))
        assert np.array_equal(episode.sim_state[t + 12], pairs.goal[i])
        np.testing.assert_allclose(pairs.goal_position[i], episode.position[t + 12], atol=1e-9)
    with pytest.raises(ValueError, match="6 goal pairs need"):
        goal_pairs_ahead(envs, episodes[:5], offset=12, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="longer episodes than 30"):
        goal_pairs_ahead(envs, episodes, offset=31, rng=np.random.default_rng(0))


def test_replaying_the_recorded_actions_reaches_the_goal_exactly(reacher_episodes):
    """The attempt starts and steps as the episode did: nothing is lost in between, so a perfect
    actor can score 100%.
    """
    kwargs, episodes = reacher_episodes
    envs = make_vec("gjwm/reacher-easy-v0", 6, **kwargs)
    pairs = goal_pairs_ahead(envs, episodes, offset=12, rng=np.random.default_rng(0))
    starts = [
        next(t for t in range(19) if np.array_equal(e.sim_state[t], s))
        for e, s in zip(episodes, pairs.start, strict=True)
    ]
    recorded = np.stack([e.a[t : t + 12] for e, t in zip(episodes, starts, strict=True)])
    attempts = attempt_goals(envs, pairs, RecordedActor(recorded), steps=12)
    np.testing.assert_allclose(attempts.distance[:, -1], 0, atol=1e-9)
    assert attempts.distance[:, 0].min() > 1e-3


class Steppers:
    """Two lanes that move by what is acted; counts the lanes that are simulated."""

    num_envs, success_radius = 2, 0.2
    single_action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self):
        self.simulated = []
        self.position = np.zeros((2, 1))

    def get_state(self):
        return self.position

    def simulate(self, states, actions):
        self.simulated.append(len(states))
        start = np.broadcast_to(states[:, None, None], (*actions.shape[:2], 1, 1))
        return (start + np.concatenate([0 * actions[:, :, :1], actions], 2).cumsum(2)).astype("f4")


def test_the_oracle_simulates_no_lane_whose_goal_a_plan_has_reached():
    envs, goals = Steppers(), np.array([[0.5], [100.0]])  # the second is out of reach
    planner = simulator_planner(CEM(), 4, 1)
    oracle = OracleActor(goals, planner, horizon=4, replan_every=2, generator=g())
    oracle.act(None, Moment(envs, 0))
    assert envs.simulated[0] == 2 and set(envs.simulated[1:]) == {1}
    path = oracle.controller.plan.mean.cumsum(1)
    assert (path[0] - 0.5).abs().min() <= 0.1 and path[1, -1] > 3


@pytest.mark.parametrize("planner", [simulator_planner(CEM(), 4, 1), CategoricalCEM(groups=(1,))])
def test_the_oracle_simulates_nothing_and_stands_still_where_the_goal_has_been_reached(planner):
    envs, goals = Steppers(), np.array([[3.0], [100.0]])
    oracle = OracleActor(goals, planner, horizon=4, replan_every=3, generator=g())
    actions = []
    for step in range(9):
        envs.simulated.clear()
        actions.append(as_array(oracle.act(None, Moment(envs, step))))
        envs.position = envs.position + actions[-1]
        if step > 4:  # the first lane has been there since the third step
            assert set(envs.simulated) <= {1}
    first, second = np.stack(actions, 1)[..., 0]
    assert envs.position[0, 0] >= 2.8 and (first[4:] == 0).all()
    assert (second[4:] > 0.5).all()
    envs.simulated.clear()
    oracle.reset(np.array([1, 0]))
    oracle.act(None, Moment(envs, 9))
    assert 2 in envs.simulated  # the start of another episode does not count


def test_the_oracle_goes_round_walls_with_plans_shorter_than_the_way():
    """By the straight line it stays behind the wall; by the way it turns away from the goal."""
    envs = make_vec("gjwm/point-maze-v0", 8, maze="u", obs="state", terminate_on_goal=False)
    pairs = goal_pairs_from_resets(envs, seed=3)
    start, goal = np.array([0.3, 0.3]), np.array([0.3, 0.7])  # the ends of the u
    pairs.start[:, :2], pairs.goal_position[:] = start, goal
    planner = simulator_planner(CEM(repeat=3), 6, 2)
    reached = []
    for cost in (None, GoalCost):
        oracle = OracleActor(
            pairs.goal_position, planner, horizon=6, replan_every=3, generator=g(), cost=cost
        )
        attempts = attempt_goals(envs, pairs, oracle, steps=50)
        reached.append(planning_report(attempts, envs.success_radius)["success_rate"])
    assert reached[0] == 1 and reached[1] == 0


@pytest.mark.parametrize("cheap", [False, True])
def test_the_oracle_crosses_the_door_and_chance_does_not(cheap):
    envs = make_vec("gjwm/two-room-v0", 8, **TWO_ROOM)
    pairs = goal_pairs_from_resets(envs, seed=3)
    assert ((pairs.start[:, 0] < 0.5) != (pairs.goal_position[:, 0] < 0.5)).all()
    planner = CEM(samples=128, iterations=4, elites=16)
    planner = simulator_planner(planner, 24, 2) if cheap else planner
    oracle = OracleActor(pairs.goal_position, planner, horizon=24, replan_every=6, generator=g())
    rates = [
        planning_report(attempt_goals(envs, pairs, actor, steps=60), envs.success_radius)
        for actor in (oracle, RandomActor(2, np.random.default_rng(0)), HoldActor(2))
    ]
    rates = [report["success_rate"] for report in rates]
    assert rates[0] >= 7 / 8 and rates[1] <= 1 / 8 and rates[2] == 0


def test_an_episode_that_ends_at_its_goal_goes_on():
    """Where a world ends an episode at its goal, the attempt is still at that goal afterwards."""
    ends = {**TWO_ROOM, "terminate_on_goal": True}
    envs = make_vec("gjwm/two-room-v0", 4, **ends)
    pairs = goal_pairs_from_resets(envs, seed=0)
    there = type(pairs)(pairs.goal, pairs.goal, pairs.goal_position, pairs.goal_observation)
    attempts = attempt_goals(envs, there, HoldActor(2), steps=3)
    np.testing.assert_allclose(attempts.distance, 0, atol=1e-6)


def tiny_model():
    torch.manual_seed(0)
    model = WorldModel(
        MLPEncoder((6,), 4, hidden=(16,)), GaussianDynamics(4, 2, hidden=16, std_hidden=8)
    ).eval()
    model.origin = Origin(
        env_id="gjwm/two-room-v0", env_kwargs=TWO_ROOM, behaviour={"uniform": 1}, length=30
    )
    return model


def tiny_evaluation(details=None):
    settings = Evaluation(
        episodes=12, length=30, pairs=4, steps=6, horizon=6, replan_every=1, probe_steps=100, seed=0
    )
    planner = CEM(samples=32, iterations=2, elites=8)
    return evaluate(tiny_model(), settings, planner=planner, details=details)


@pytest.fixture(scope="module")
def evaluated():
    details = Details()
    return tiny_evaluation(details=details), details


def test_goals_of_neighbouring_seeds_are_others():
    envs = make_vec("gjwm/two-room-v0", 6, obs="state", goal="other-room")
    one, again, next_ = (goal_pairs_from_resets(envs, seed=s).goal_position for s in (1, 1, 2))
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


def test_everybody_gets_the_same_starts_and_goals(evaluated):
    _, details = evaluated
    model, *others = (
        details.arrays[f"distance_{n}"] for n in ("model", "random", "hold", "oracle")
    )
    for other in others:
        np.testing.assert_array_equal(other[:, 0], model[:, 0])  # before the first action
    assert len(set(model[:, 0])) == len(model)


def test_seeds_of_training_calibration_and_evaluation_never_meet(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    asked = []

    def collect(*arguments, seed, **options):
        asked.append(seed)
        return []

    def more(count, *, length, seed):
        asked.append(seed)
        raise InterruptedError

    monkeypatch.setattr(sys.modules["gjwm.evaluation.evaluate"], "collect_episodes", collect)
    for seed in (0, HELD_OUT - 1):
        held_out_episodes(Task("Pendulum-v1", {}, Coloured()), Evaluation(seed=seed))
        with pytest.raises(InterruptedError):
            calibrate(tiny_model(), SimpleNamespace(lengths=lambda: [9], more=more), seed=seed)
    assert HELD_OUT == 10**6 and asked == [10**6, 2 * 10**6, 2 * 10**6 - 1, 3 * 10**6 - 1]
    for name in ("seed", "evaluate.seed"):  # and so training's lie below all of them
        assert main(["run", f"{name}={HELD_OUT}"]) == 1
        assert f"{name} must be a whole number, at least 0 and below 1000000" in (
            capsys.readouterr().err
        )


def test_information_is_measured_where_it_is_asked_for(monkeypatch, evaluated):
    report, _ = evaluated
    assert "information" not in report
    measured = []
    monkeypatch.setattr(
        sys.modules["gjwm.evaluation.evaluate"],  # the attribute of that name is the function
        "information_report",
        lambda z, episodes, **options: measured.append((z.shape, len(episodes))) or {"found": 1},
    )
    settings = Evaluation(
        episodes=8, length=10, pairs=2, steps=2, horizon=3, oracle=False, probe_steps=1
    )
    planner = CEM(samples=8, iterations=1, elites=2)
    asked = evaluate(tiny_model(), replace(settings, information=True), planner=planner)
    assert asked["information"] == {"found": 1} and measured == [((8, 11, 4), 8)]
    assert "information" in asked["timings"]


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (dict(goals="sideways"), "null or 'ahead' or 'reset', got 'sideways'"),
        (dict(episodes=4), "evaluate.episodes must be a whole number, at least 8, got 4"),
        (dict(pairs=0), "pairs must be a whole number"),
        (dict(goals="ahead", goal_offset=None), "goal_offset must be a whole number"),
        (dict(horizon=2, replan_every=3), "cannot last for"),
        (dict(seed=-1), "seed must be"),
    ],
)
def test_bad_settings_are_named(wrong, match):
    with pytest.raises(ValueError, match=match):
        Evaluation(**wrong)


def test_what_does_not_fit_the_world_is_named_before_anything_is_collected():
    stranger = tiny_model()
    stranger.origin = None
    with pytest.raises(ValueError, match="does not say which environment"):
        evaluate(stranger)
    with pytest.raises(ValueError, match="draws no goals of its own"):
        evaluate(stranger, Evaluation(goals="reset"), env_id="gjwm/reacher-easy-v0")


def test_episodes_that_end_sooner_make_way_for_others_where_that_is_asked_for():
    task = Task("CartPole-v1", {"obs": "state"}, None)
    asked = Evaluation(episodes=10, length=20, leave_out_short=True, seed=3)
    said = []
    episodes = held_out_episodes(task, asked, workers=0, notify=said.append)
    assert [len(e.a) for e in episodes] == 10 * [20]
    played = int(said[0].split()[1])
    assert played > 10 and said == [
        f"of {played} held-out episodes the first 10 that last 20 steps"
    ]
    every = held_out_episodes(task, Evaluation(episodes=played, length=20, seed=3), workers=0)
    lasting = [e.o for e in every if len(e.a) == 20][:10]
    np.testing.assert_array_equal([e.o for e in episodes], lasting)
    with pytest.raises(ValueError, match=r"last for evaluate\.length=400 steps: shorten it"):
        held_out_episodes(task, Evaluation(episodes=8, length=400, leave_out_short=True), workers=0)


def test_a_model_of_another_task_is_told_before_episodes_are_collected(tmp_path):
    model = WorldModel(MLPEncoder((3,), latent_dim=4), GaussianDynamics(4, 1)).eval()
    model.origin = Origin(env_id="Pendulum-v1")
    said = []
    other = (
        r"^this model, of Pendulum-v1, takes observations \(3,\) and actions \(1,\), and "
        r"MountainCarContinuous-v0 has \(2,\) and \(1,\): judge it in its own task"
    )
    with pytest.raises(ValueError, match=other):
        evaluate(model, env_id="MountainCarContinuous-v0", notify=said.append)
    model.origin = Origin(env_id="gjwm/two-room-v0", env_kwargs={"obs": "pixels"})
    with pytest.raises(ValueError, match=r"takes observations \(3,\) and .* has \(3, 64, 64\)"):
        film(model, tmp_path / "goals.mp4", notify=said.append)
    assert not said
