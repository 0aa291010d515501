"""Claims about the field's own tasks: pictures, physics and ends are those of the packages that
publish them. Most need the extra: pip install 'gjwm[arena]'.
"""

import copy
import importlib.util
import sys
import warnings
from contextlib import closing

import mujoco
import numpy as np
import pytest
import torch
from PIL import Image

from gjwm.data.behaviours import Scripted
from gjwm.data.collect import collect_episodes
from gjwm.envs import make_vec
from gjwm.envs.arena import stable_worldmodel
from gjwm.envs.making import make_env
from gjwm.evaluation.goals import (
    GoalPairs,
    OracleActor,
    attempt_goals,
    simulator_planner,
)
from gjwm.planning import CEM

TWO_ROOM = "gjwm/arena-two-room-v0"
PUSH_T = "gjwm/arena-push-t-v0"
REACHER = "gjwm/arena-reacher-v0"
CUBE = "gjwm/arena-cube-v0"
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


# -- Push-T ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def push_t():
    return make_env(PUSH_T, obs="both").unwrapped


@published
def test_episodes_of_push_t_are_the_published_ones_in_every_bit(push_t):
    stable_worldmodel("envs.pusht.env")
    import stable_worldmodel as published_package

    world = published_package.World("swm/PushT-v1", num_envs=1, image_shape=(64, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its spaces warn of its own values
        for seed in range(2):
            world.reset(seed=seed)
            o, _ = push_t.reset(seed=seed)
            for _ in range(30):
                pixels = np.moveaxis(world.infos["pixels"][0, 0], -1, 0)
                np.testing.assert_array_equal(o["pixels"], pixels)
                state = world.infos["state"][0, 0].astype(np.float32)
                np.testing.assert_array_equal(o["state"], state)
                action = push_t.expert_action()
                _, reward, _, _, world.infos = world.envs.step(action[None])
                o, own, *_ = push_t.step(action)
                assert own == reward[0]


@published
@pytest.mark.parametrize("apart", [0.98, 1.02])
def test_success_is_the_published_one(push_t, apart):
    """20 pixels of disc and T together, a ninth of half a turn, whichever is further."""
    rng = np.random.default_rng(0)
    push_t.reset(seed=0)
    goal, world = push_t.get_state(), push_t._env
    there = push_t.position
    for _ in range(10):
        way = rng.normal(size=4)
        for move, turn in ((20 * apart * way / np.linalg.norm(way), 0.3), (0, np.pi / 9 * apart)):
            state = goal.copy()
            state[:4] += move
            state[4] += turn * rng.choice([-1, 1]) + 2 * np.pi * rng.integers(-1, 2)
            push_t.set_state(state)
            reached = push_t.goal_distance(push_t.position, there) <= push_t.success_radius
            theirs, _ = world.eval_state(goal_vector(goal), world._get_obs())
            assert reached == theirs == (apart < 1)


def goal_vector(state):
    return np.concatenate([state[:4], state[4:5] % (2 * np.pi), state[5:7]])


@published
def test_a_state_of_push_t_brings_its_future_back(push_t):
    """Exactly from a state that was set; from one that was lived through, up to what contacts
    remember."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (20, 2)).astype(np.float32)
    for seed in range(3):
        push_t.reset(seed=seed)
        for _ in range(20):
            push_t.step(push_t.expert_action())
        state = push_t.get_state()
        lived, first, again = (pushed(push_t, actions, at) for at in (None, state, state))
        np.testing.assert_array_equal(first, again)
        np.testing.assert_allclose(lived[0], first[0], atol=0.5)
        path = push_t.simulate(state[None], actions[None, None])[0, 0]
        np.testing.assert_array_equal(path[1:], first.astype(np.float32))
    with pytest.raises(ValueError, match="state"):
        push_t.set_state(np.zeros(7))
    push_t.set_state(push_t.goal_state())
    np.testing.assert_allclose(push_t.position, push_t.goal, atol=1e-9)


def pushed(env, actions, state):
    if state is not None:
        env.set_state(state)
    path = []
    for action in actions:
        env.step(action)
        path.append(env.position)
    return np.array(path)


@published
def test_its_weak_policy_stays_around_the_t_and_depends_on_the_episode_alone():
    kwargs = {"obs": "state"}
    sizes = dict(length=60, workers=0)
    behaviour = Scripted(noise=0.0)
    first = list(collect_episodes(PUSH_T, kwargs, behaviour, episodes=3, **sizes))
    again = list(collect_episodes(PUSH_T, kwargs, behaviour, episodes=range(2, 3), **sizes))
    np.testing.assert_array_equal(first[2].a, again[0].a)
    for e in first:
        aim = e.o[:-1, :2] + 100 * e.a
        free = np.abs(e.a).max(1) < 1  # a disc that is far away heads for the T as fast as it can
        assert free.any()
        assert np.abs(aim - e.o[:-1, 2:4])[free].max() <= 100.001


# -- Reacher ---------------------------------------------------------------------------------------


@published
def test_the_reacher_moves_as_the_published_one_in_every_bit():
    env = make_env(REACHER, obs="state").unwrapped
    theirs = stable_worldmodel("envs.dmcontrol.reacher").ReacherDMControlWrapper("qpos_match")
    theirs.reset(seed=0)
    physics = theirs.env.physics
    env.reset(seed=0)
    env._data.qpos[:], env._data.qvel[:] = physics.data.qpos, physics.data.qvel
    env._data.qacc_warmstart[:] = physics.data.qacc_warmstart
    mujoco.mj_forward(env._model, env._data)
    rng = np.random.default_rng(0)
    for _ in range(50):
        action = rng.uniform(-1, 1, 2)
        theirs.step(action)
        env.step(action)
        np.testing.assert_array_equal(env.position, physics.data.qpos)
    for off, there in (([0.049, -0.049], True), ([0.051, 0.0], False), ([0.0, -0.051], False)):
        theirs.set_target_qpos(env.position + off)
        own = env.goal_distance(env.position, env.position + off) <= env.success_radius
        assert own == there == (theirs.env.task.get_termination(physics) is not None)


def test_the_oracle_brings_both_joints_of_the_reacher_to_their_goal():
    with closing(make_vec(REACHER, 3, obs="state")) as envs:
        envs.reset(seed=0)
        start = envs.get_state()
        rng = np.random.default_rng(0)
        for _ in range(25):
            envs.step(rng.uniform(-1, 1, (3, 2)).astype(np.float32))
        goal = envs.position
        pairs = GoalPairs(start, envs.get_state(), goal, goal)
        oracle = OracleActor(
            goal,
            simulator_planner(CEM(), 12, 2),
            horizon=12,
            replan_every=2,
            generator=torch.Generator().manual_seed(0),
        )
        attempts = attempt_goals(envs, pairs, oracle, steps=50)
        assert attempts.reached(envs.success_radius).all()
        np.testing.assert_allclose(
            attempts.distance[:, 0], np.abs(envs_position(envs, start) - goal).max(1)
        )


def envs_position(envs, states):
    envs.set_state(states)
    return envs.position


# -- the cube --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cube():
    return make_env(CUBE, obs="both").unwrapped


@published
@pytest.mark.slow
def test_a_state_of_the_cube_is_all_that_its_future_depends_on(cube):
    first, _ = cube.reset(seed=3)
    again, _ = cube.reset(seed=3)
    np.testing.assert_array_equal(first["state"], again["state"])
    np.testing.assert_array_equal(first["pixels"], again["pixels"])
    for _ in range(40):
        cube.step(cube.expert_action())
    assert cube.position[2] > 0.05  # held, above the table
    state = cube.get_state()
    actions = np.random.default_rng(0).uniform(-1, 1, (15, 5)).astype(np.float32)
    twin = copy.deepcopy(cube)
    lived = []
    for action in actions:
        cube.step(action)
        lived.append(cube.get_state())
    path = cube.simulate(state[None], actions[None, None])[0, 0]
    np.testing.assert_array_equal(path[1:], [at_cube(twin, s) for s in lived])
    twin.set_state(state)
    for action, there in zip(actions, lived):
        twin.step(action)
        np.testing.assert_array_equal(twin.get_state(), there)


def at_cube(env, state):
    env.set_state(state)
    return env.position.astype(np.float32)


@published
@pytest.mark.slow
def test_the_published_oracle_brings_the_cube_to_its_target(cube):
    steps = []
    for seed in range(4):
        cube.reset(seed=seed)
        start = np.linalg.norm(cube.position - cube.goal)
        for step in range(200):
            _, reward, terminated, truncated, _ = cube.step(cube.expert_action())
            near = np.linalg.norm(cube.position - cube.goal) <= cube.success_radius
            assert reward == near and not terminated and truncated == (step == 199)
            if near:
                steps.append(step)
                break
        assert start > 0.04
    assert len(steps) == 4 and min(steps) > 5


@published
@pytest.mark.slow
def test_pictures_show_the_cube_from_the_published_camera(cube):
    camera = cube._env.cameras["front_pixels"]
    right, up = np.reshape(camera["xyaxes"], (2, 3))
    axes = np.stack([right, up, np.cross(right, up)])
    half = np.tan(np.radians(cube._env.model.camera("front_pixels").fovy[0]) / 2)
    for seed in range(3):
        cube.reset(seed=seed)
        x, y, z = axes @ (cube.position - camera["pos"])
        expected = 32 + 32 / half * np.array([-y / -z, x / -z])  # row and column
        red, green, blue = cube.picture().astype(int)
        seen = np.argwhere((red - green > 50) & (red - blue > 40)).mean(0) + 0.5
        assert np.abs(seen - expected).max() < 1.5  # pixels, of a cube of six
