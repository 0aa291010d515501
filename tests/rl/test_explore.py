"""Behaviours that plan, and what they and others see of the world."""

import numpy as np
import pytest
import torch

from gjwm.data.behaviours import Coloured, Mixture, Scripted, Uniform, behaviour_from_weights
from gjwm.data.collect import collect_dataset, collect_episodes
from gjwm.data.coverage import Coverage
from gjwm.data.dataset import Episode
from gjwm.data.planned_behaviours import Curious, Planned
from gjwm.models.dynamics import EnsembleDynamics, GaussianDynamics
from gjwm.models.encoders import MLPEncoder
from gjwm.models.heads import RewardHead
from gjwm.models.world_model import WorldModel

torch.set_num_threads(1)
SMALL = dict(samples=24, elites=6, iterations=2, horizon=4, replan_every=2)
DOT = dict(env_id="gjwm/point_mass-easy-v0", env_kwargs={"obs": "state"}, length=9, workers=0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Untrained runs: with a reward head, and with an ensemble."""
    folder = tmp_path_factory.mktemp("runs")
    (sample,) = collect_episodes(**DOT, episodes=1)
    shape = list(sample.o.shape[1:])
    torch.manual_seed(0)
    head = RewardHead(latent_dim=3, action_dim=2)
    WorldModel(MLPEncoder(shape, latent_dim=3), GaussianDynamics(3, 2), {"reward": head}).save(
        folder / "rewarded" / "checkpoint.pt"
    )
    WorldModel(MLPEncoder(shape, latent_dim=3), EnsembleDynamics(3, 2, members=3)).save(
        folder / "ensemble" / "checkpoint.pt"
    )
    return folder


def play(behaviour, **changes):
    return list(
        collect_episodes(**(DOT | {"behaviour": behaviour, "episodes": 2, "seed": 1} | changes))
    )


@pytest.mark.parametrize("kind", ["reward", "goal", "curious"])
def test_an_episode_that_is_planned_depends_on_its_number_only(runs, kind):
    behaviour = {
        "reward": Planned(run=str(runs / "rewarded"), **SMALL),
        "goal": Planned(
            run=str(runs / "rewarded" / "checkpoint.pt"), objective="goal", goal_steps=4, **SMALL
        ),
        "curious": Curious(run=str(runs / "ensemble"), **SMALL),
    }[kind]
    first, second = play(behaviour)
    assert first.a.shape == (9, 2) and np.abs(first.a).max() <= 1 and first.a.std() > 0
    (alone,) = play(behaviour, episodes=range(1, 2))
    np.testing.assert_array_equal(alone.a, second.a)
    assert not np.array_equal(first.a, second.a)


def test_a_player_of_states_makes_data_of_pixels(runs):
    behaviour = Planned(run=str(runs / "rewarded"), **SMALL)
    (pixels,) = play(behaviour, env_kwargs={"obs": "pixels", "size": 16}, episodes=1)
    (state,) = play(behaviour, episodes=1)
    assert pixels.o.shape == (10, 3, 16, 16)
    np.testing.assert_array_equal(pixels.a, state.a)
    (both,) = play(behaviour, env_kwargs={"obs": "both", "size": 16}, episodes=1)
    np.testing.assert_array_equal(both.a, state.a)


def test_planned_episodes_of_a_batched_world_do_not_depend_on_their_batch(tmp_path):
    torch.manual_seed(0)
    (sample,) = collect_episodes("gjwm/two-room-v0", {"obs": "state"}, episodes=1, length=1)
    model = WorldModel(
        MLPEncoder(list(sample.o.shape[1:]), latent_dim=3), EnsembleDynamics(3, 2, members=2)
    )
    model.save(tmp_path / "checkpoint.pt")
    mixture = Mixture({Curious(run=str(tmp_path), **SMALL): 1, Uniform(): 1, Scripted(): 1})
    arguments = dict(
        env_id="gjwm/two-room-v0", env_kwargs={"obs": "state"}, behaviour=mixture, length=6, seed=2
    )
    together = list(collect_episodes(**arguments, episodes=5))
    (alone,) = collect_episodes(**arguments, episodes=range(3, 4))
    np.testing.assert_array_equal(together[3].a, alone.a)


def test_reward_is_sought_where_the_model_predicts_it(runs, monkeypatch):
    # A reward head that likes one corner of the actions: the planner must find that corner.
    monkeypatch.setattr(RewardHead, "forward", lambda self, z, a: a[..., 0] - a[..., 1])
    options = SMALL | dict(samples=64, iterations=6, noise=0.0)
    (episode, _) = play(Planned(run=str(runs / "rewarded"), **options))
    assert episode.a[:, 0].mean() > 0.7 and episode.a[:, 1].mean() < -0.7


def test_curiosity_goes_where_members_disagree(runs, monkeypatch):
    # Members that agree unless the first action is positive.
    def rollout_members(self, z0, a):
        spread = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1) * a[..., None, :, :1].clamp(min=0)
        path = torch.cat([torch.zeros_like(spread[..., :1, :]), spread], -2)
        return path.expand(*path.shape[:-1], self.latent_dim)

    monkeypatch.setattr(EnsembleDynamics, "rollout_members", rollout_members)
    options = SMALL | dict(samples=64, iterations=6, noise=0.0)
    (episode, _) = play(Curious(run=str(runs / "ensemble"), **options))
    assert episode.a[:, 0].mean() > 0.7


def test_what_cannot_be_planned_is_one_sentence(runs):
    with pytest.raises(
        RuntimeError,
        match=r"needs an ensemble .* has GaussianDynamics; train it with dynamics=ensemble",
    ):
        play(Curious(run=str(runs / "rewarded"), **SMALL))
    with pytest.raises(RuntimeError, match="has no reward head; train it with heads"):
        play(Planned(run=str(runs / "ensemble"), objective="reward", **SMALL))
    with pytest.raises(RuntimeError, match="no checkpoint at"):
        play(Planned(run=str(runs / "none"), **SMALL))
    with pytest.raises(ValueError, match="objective must be one of auto, reward, goal"):
        Planned(run="x", objective="fame")
    with pytest.raises(RuntimeError, match="was trained with 2 actions, the env has 1"):
        play(Curious(run=str(runs / "ensemble"), **SMALL), env_id="gjwm/cartpole-swingup-v0")
    with pytest.raises(RuntimeError, match="was trained on observations"):
        play(Curious(run=str(runs / "ensemble"), **SMALL), env_id="gjwm/reacher-easy-v0")


def test_settings_name_every_behaviour():
    made = behaviour_from_weights(
        {"planner": {"run": "r", "weight": 2}, "curiosity": {"run": "e", "noise": 0.3}}
    )
    assert made.behaviours == [Planned(run="r"), Curious(run="e", noise=0.3)]
    assert behaviour_from_weights({"coloured": {"beta": 1}}).beta == 1
    with pytest.raises(ValueError, match="planner does not take"):
        behaviour_from_weights({"planner": 1})


# -- coverage
# --  ----------------------------------------------------------------------------------------------


def recorded(**fields):
    steps = len(next(iter(fields.values()))) - 1
    no = np.zeros(steps, bool)
    o = fields.pop("o", np.zeros((steps + 1, 1), np.float32))
    return Episode(o, np.zeros((steps, 1)), np.zeros(steps), no, no, **fields)


def test_cells_are_counted_and_weighed_by_how_evenly_they_are_visited():
    coverage = Coverage(cell=1.0)
    coverage.add(recorded(position=np.array([[0.5, 0.5], [0.7, 0.1], [2.5, 0.5], [2.5, -0.5]])))
    coverage.add(recorded(position=np.array([[0.1, 0.9], [9.0, 9.0]])))
    report = coverage.report()
    assert (report["of"], report["frames"], report["cells"]) == ("position", 6, 4)
    assert report["effective_cells"] == pytest.approx(
        np.exp(-(0.5 * np.log(0.5) + 3 / 6 * np.log(1 / 6)))
    )
    even = Coverage(cell=1.0)
    even.add(recorded(position=np.arange(10.0)[:, None]))
    assert even.report()["effective_cells"] == pytest.approx(10)
    assert Coverage().report()["cells"] == 0


def test_without_a_position_vectors_count_and_without_vectors_pictures():
    vector, picture = Coverage(cell=0.1), Coverage()
    vector.add(recorded(o=np.array([[0.0], [0.05], [0.31]], np.float32)))
    assert vector.report()["of"] == "observation" and vector.report()["cells"] == 2
    frames = np.zeros((3, 3, 32, 48), np.uint8)
    frames[1, :, 4:8, 6:12], frames[2] = 255, 3  # a block turns white; a shade too small to count
    picture.add(recorded(o=frames))
    assert picture.report()["of"] == "pixels" and picture.report()["cells"] == 2


def test_collection_reports_that_moving_sees_more_of_a_room_than_standing_still(tmp_path):
    seen = {}
    for name, behaviour in (("still", Coloured(scale=0)), ("moving", Uniform())):
        result = collect_dataset(
            tmp_path / name, "gjwm/two-room-v0", {"obs": "state"}, behaviour, episodes=40, length=60
        )
        seen[name] = result["coverage"]
        assert seen[name]["of"] == "position" and seen[name]["frames"] == 40 * 61
    assert seen["still"]["cells"] <= 40 < seen["moving"]["cells"]
    assert seen["still"]["effective_cells"] < 0.7 * seen["moving"]["effective_cells"]
