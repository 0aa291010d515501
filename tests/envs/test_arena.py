"""Claims about the field's own tasks: pictures, physics and ends are those of the packages that
publish them. Most need the extra: pip install 'gjwm[arena]'.
"""

import importlib.util
import sys
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image

from gjwm.data.behaviours import Scripted
from gjwm.data.collect import collect_episodes
from gjwm.envs import make_vec
from gjwm.envs.making import make_env
from gjwm.evaluation.goals import (
    GoalPairs,
    OracleActor,
    attempt_goals,
    simulator_planner,
)
from gjwm.planning import CEM

TWO_ROOM = "gjwm/arena-two-room-v0"
published = pytest.mark.skipif(
    importlib.util.find_spec("stable_worldmodel") is None,
    reason="needs the extra [arena]: pip install 'gjwm[arena]'",
)


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_worldmodel", None)
    monkeypatch.setitem(sys.modules, "stable_worldmodel.envs.two_room", None)
    with pytest.raises(ImportError, match=r"needs stable-worldmodel: pip install 'gjwm\[arena\]'"):
        make_env(TWO_ROOM)


@pytest.fixture(scope="module")
def env():
    return make_env(TWO_ROOM, obs="both").unwrapped


def anywhere(rng):
    return rng.uniform(21, 203, 4).astype(np.float32).astype(float)


@published
def test_pictures_are_the_published_ones_in_every_bit(env):
    import stable_worldmodel

    world = stable_worldmodel.World("swm/TwoRoom-v1", num_envs=1, image_shape=(64, 64))
    for seed in range(3):
        world.reset(seed=seed)
        o, _ = env.reset(seed=seed)
        pixels = np.moveaxis(world.infos["pixels"][0, 0], -1, 0)
        np.testing.assert_array_equal(o["pixels"], pixels)
    rng = np.random.default_rng(0)
    corners = np.array([[21, 21, 0, 0], [203, 203, 0, 0], [112.4, 49.7, 0, 0]])
    for state in [*corners, *(anywhere(rng) for _ in range(20))]:
        env.set_state(state)
        theirs = Image.fromarray(np.ascontiguousarray(env._env.render()))
        theirs = np.asarray(theirs.resize((64, 64), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(env.picture(), np.moveaxis(theirs, -1, 0))


@published
def test_simulated_steps_are_the_published_ones_in_every_bit(env):
    rng = np.random.default_rng(1)
    near_wall = np.array([[97, 60, 0, 0], [125, 66, 0, 0], [110, 49, 0, 0], [105, 34, 0, 0]])
    for start in [*near_wall, *(anywhere(rng) for _ in range(4))]:
        env.reset(options={"state": start})
        actions = rng.uniform(-1.5, 1.5, (20, 2)).astype(np.float32)
        path = env.simulate(env.get_state()[None], actions[None, None])[0, 0]
        for action, place in zip(actions, path[1:]):
            env.step(action)
            np.testing.assert_array_equal(env.position, place.astype(float))


@published
def test_an_episode_ends_within_sixteen_pixels_of_its_goal_or_after_a_hundred_steps():
    behaviour = Scripted(noise=2.0)
    kwargs = {"obs": "state"}
    first = list(collect_episodes(TWO_ROOM, kwargs, behaviour, episodes=12, length=150, workers=0))
    again = list(
        collect_episodes(TWO_ROOM, kwargs, behaviour, episodes=range(10, 12), length=150, workers=0)
    )
    np.testing.assert_array_equal(first[10].o, again[0].o)
    ends = [e.terminated[-1] for e in first]
    assert any(ends) and not all(ends)
    for e in first:
        apart = np.linalg.norm(e.o[:, :2] - e.o[:, 2:4], axis=1)
        assert (apart[1:-1] >= 16).all()
        assert (apart[-1] < 16) == e.terminated[-1]
        assert e.terminated[-1] or len(e.a) == 100


@published
def test_a_state_is_all_that_the_future_depends_on(env):
    env.reset(seed=5)
    state = env.get_state()
    action = env.expert_action()
    o, *_ = env.step(action)
    env.reset(seed=6)
    env.set_state(state)
    np.testing.assert_array_equal(env.expert_action(), action)
    again, *_ = env.step(action)
    np.testing.assert_array_equal(o["pixels"], again["pixels"])
    np.testing.assert_array_equal(o["state"], again["state"])
    env.set_state(env.goal_state())
    np.testing.assert_array_equal(env.position, env.goal)
    for wrong in (np.zeros(3), np.array([np.nan, 0, 0, 0]), np.array([300.0, 0, 0, 0])):
        with pytest.raises(ValueError, match="state"):
            env.set_state(wrong)
    with pytest.raises(ValueError, match="actions of shape"):
        env.step(np.zeros(3))


@published
def test_episodes_without_a_seed_follow_from_the_last_one(env):
    def starts():
        env.reset(seed=3)
        return [env.reset()[0]["state"] for _ in range(2)]

    first, again = starts(), starts()
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any()


@published
def test_the_oracle_knows_the_way_through_the_door():
    places = np.array([[60.0, 180], [170, 150], [80, 120], [180, 40]])
    goals = np.array([[170.0, 180], [50, 60], [140, 120], [190, 180]])
    with closing(make_vec(TWO_ROOM, 4, obs="state")) as envs:
        pairs = GoalPairs(np.hstack([places, goals]), np.hstack([goals, goals]), goals, goals)
        oracle = OracleActor(
            goals,
            simulator_planner(CEM(), 8, 2),
            horizon=8,
            replan_every=4,
            generator=torch.Generator().manual_seed(0),
        )
        reached = attempt_goals(envs, pairs, oracle, steps=80).reached(envs.success_radius)
        assert reached.all()
        ways = envs.way_length(pairs.start, places, goals)
    straight = np.linalg.norm(goals - places, axis=1)
    assert (ways[:3] > straight[:3] + 10).all() and ways[3] == pytest.approx(straight[3])
