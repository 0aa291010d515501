"""Claims about the dm_control environments."""

import copy
import os
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import gjwm.envs
from gjwm.envs import rendering
from gjwm.envs.task_names import TASKS


def make(name, **kwargs):
    return gym.make(f"gjwm.envs:gjwm/{name}-v0", **kwargs).unwrapped


def actions(env, count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *env.action_space.shape)).astype(np.float32)


def test_task_names_are_those_of_the_suite():
    rendering.choose_backend()  # dm_control looks for a screen otherwise
    from dm_control import suite

    assert set(TASKS) == set(suite.ALL_TASKS)
    assert all(f"gjwm/{domain}-{task}-v0" in gym.registry for domain, task in TASKS)
    assert gjwm.envs.TASKS is TASKS


@pytest.mark.parametrize("obs", ["state", "pixels", "both"])
@pytest.mark.parametrize("name", ["reacher-easy", "point_mass-easy"])
def test_gymnasium_finds_nothing_wrong(name, obs):
    env = make(name, obs=obs, size=32, action_repeat=2, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(infinity|Box|reproducib|render_mode).*")
        check_env(env)
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("domain", sorted({domain for domain, _ in TASKS}))
def test_every_task_resets_and_steps(domain):
    for name, task in TASKS:
        if name != domain:
            continue
        env = make(f"{name}-{task}", obs="state")
        o, _ = env.reset(seed=0)
        o, r, terminated, truncated, _ = env.step(env.action_space.sample())
        assert env.observation_space.contains(o) and np.isfinite(o).all() and np.isfinite(r)
        assert not terminated and not truncated


def test_a_seed_reproduces_an_episode_bit_for_bit():
    def episode():
        env = make("reacher-easy", obs="both", size=32, frame_stack=2)
        o = [env.reset(seed=7)[0]] + [env.step(a)[0] for a in actions(env, 5)]
        return np.stack([x["pixels"] for x in o]), np.stack([x["state"] for x in o])

    for first, second in zip(episode(), episode()):
        np.testing.assert_array_equal(first, second)


def test_different_seeds_differ_and_unseeded_resets_go_on():
    env = make("reacher-easy")
    first, second = env.reset(seed=1)[0], env.reset(seed=2)[0]
    assert not np.array_equal(first, second)
    third = env.reset()[0]
    assert not np.array_equal(second, third)
    env.reset(seed=2)
    np.testing.assert_array_equal(env.reset()[0], third)


def test_the_time_limit_truncates_and_never_terminates():
    env = make("point_mass-easy", action_repeat=4)
    env.reset(seed=0)
    flags = [env.step(np.zeros(2))[2:4] for _ in range(250)]
    assert not any(terminated for terminated, _ in flags)
    assert [truncated for _, truncated in flags] == [False] * 249 + [True]


def test_rewards_add_up_over_action_repeat():
    one, three = make("cartpole-balance"), make("cartpole-balance", action_repeat=3)
    one.reset(seed=0), three.reset(seed=0)
    a = np.array([0.3])
    assert three.step(a)[1] == pytest.approx(sum(one.step(a)[1] for _ in range(3)))


@pytest.mark.parametrize(
    "name",
    ["reacher-easy", "finger-turn_hard", "point_mass-hard", "cheetah-run", "ball_in_cup-catch", "swimmer-swimmer6"],
)
def test_set_state_brings_back_the_exact_future(name):
    env = make(name, obs="state")
    env.reset(seed=0)
    for a in actions(env, 4, seed=1):
        env.step(a)
    state = env.get_state()
    future = [env.step(a)[0] for a in actions(env, 6)]
    env.reset(seed=5)
    env.set_state(state)
    np.testing.assert_array_equal(env.get_state(), state)
    np.testing.assert_array_equal([env.step(a)[0] for a in actions(env, 6)], future)


@pytest.mark.parametrize(
    "name",
    ["reacher-easy", "point_mass-easy", "point_mass-hard", "cartpole-swingup", "pendulum-swingup", "cheetah-run"],
)
def test_simulate_agrees_with_stepping(name):
    env = make(name, action_repeat=2)
    states = []
    for seed in (0, 1):
        env.reset(seed=seed)
        env.step(actions(env, 1)[0])
        states.append(env.get_state())
    plans = np.stack([[actions(env, 8, seed=10 * b + n) for n in range(3)] for b in range(2)])
    simulated = env.simulate(np.stack(states), plans)
    before = env.get_state()
    np.testing.assert_array_equal(before, states[1])
    for b in range(2):
        for n in range(3):
            env.reset(seed=9)
            env.set_state(states[b])
            path = [env.position]
            for a in plans[b, n]:
                env.step(a)
                path.append(env.position)
            np.testing.assert_allclose(simulated[b, n], path, atol=1e-6)


def test_reacher_position_is_the_fingertip():
    env = make("reacher-easy")
    for seed in range(5):
        env.reset(seed=seed)
        np.testing.assert_allclose(env.position, env._physics.named.data.geom_xpos["finger", :2], atol=1e-9)
    assert env.success_radius == 0.02
    assert env.true_state()["qpos"].shape == (4,)


def test_frame_stack_keeps_the_newest_frame_last():
    env, single = make("reacher-easy", obs="pixels", frame_stack=2), make("reacher-easy", obs="pixels")
    first, frame = env.reset(seed=0)[0], single.reset(seed=0)[0]
    np.testing.assert_array_equal(first, np.concatenate([frame, frame]))
    for a in actions(env, 3):
        stacked, following = env.step(a)[0], single.step(a)[0]
        np.testing.assert_array_equal(stacked, np.concatenate([frame, following]))
        frame = following


def test_a_hidden_target_is_in_no_picture():
    shown, hidden = make("reacher-easy", obs="pixels"), make("reacher-easy", obs="pixels", hidden=("target",))
    a, b = shown.reset(seed=0)[0], hidden.reset(seed=0)[0]
    assert (a != b).any()
    state = hidden.get_state()
    moved = hidden.reset(seed=0)[0].copy()
    hidden._model.geom("target").pos[:2] += 0.1
    hidden.set_state(hidden.get_state())
    np.testing.assert_array_equal(hidden.observe(), moved)
    assert state.shape == hidden.get_state().shape
    with pytest.raises(ValueError, match="nonsense"):
        make("reacher-easy", hidden=("nonsense",))


def test_bad_actions_and_states_are_named():
    env = make("reacher-easy")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        env.step(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="get_state"):
        env.set_state(np.zeros(3))
    state = env.get_state()
    clipped = env.step(np.array([5.0, -5.0]))[0]
    env.set_state(state)
    np.testing.assert_array_equal(env.step(np.array([1.0, -1.0]))[0], clipped)


def test_state_needs_no_opengl_at_all():
    code = (
        "import gymnasium as gym; e = gym.make('gjwm.envs:gjwm/reacher-easy-v0', obs='state');"
        "e.reset(seed=0); print(e.step(e.action_space.sample())[0].shape)"
    )
    environment = {**os.environ, "MUJOCO_GL": "disable"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(6,)" in done.stdout


def test_without_any_opengl_the_error_says_what_to_install(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_works", lambda name: False)
    with pytest.raises(RuntimeError, match="libegl1"):
        rendering.choose_backend()
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert rendering.choose_backend() == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "off")
    with pytest.raises(RuntimeError, match="MUJOCO_GL=off"):
        rendering.choose_backend()


def test_a_copy_has_the_same_future_and_leaves_the_original_alone():
    for name in ("reacher-easy", "point_mass-hard", "ball_in_cup-catch"):
        env = make(name, obs="pixels", frame_stack=2)
        env.reset(seed=0)
        for a in actions(env, 3):
            env.step(a)
        state = env.get_state()
        other = copy.deepcopy(env)
        futures = []
        for each in (other, env):
            futures.append([each.step(a)[0] for a in actions(env, 4, seed=2)])
            futures.append([each.reset()[0]])  # the task's generator is copied, not shared
            if each is other:
                np.testing.assert_array_equal(env.get_state(), state)
        np.testing.assert_array_equal(futures[0], futures[2])
        np.testing.assert_array_equal(futures[1], futures[3])


def test_environments_left_open_end_in_silence():
    code = """
import gymnasium
envs = [gymnasium.make("gjwm.envs:gjwm/reacher-easy-v0", obs="pixels") for _ in range(2)]
print([env.reset(seed=0)[0].std() > 0 for env in envs])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == "[np.True_, np.True_]"
    assert done.stderr == ""


@pytest.mark.parametrize("task", ["reacher-easy", "point_mass-easy"])
def test_a_position_is_seen_where_the_picture_shows_it(task):
    """The body whose position it is, moved a little, changes the picture there."""
    env = gym.make(f"gjwm.envs:gjwm/{task}-v0", obs="state", render_mode="rgb_array", render_size=128).unwrapped
    env.reset(seed=3)
    at = env.image_position(env.position) * 128
    before = env.render().astype(int)
    position = env.position
    while np.linalg.norm(env.position - position) < 0.08:
        env.step(np.full(env.action_space.shape, 0.9, np.float32))
    y, x = np.nonzero(np.abs(env.render().astype(int) - before).sum(-1) > 60)
    for place in (at, env.image_position(env.position) * 128):  # where it was, and where it is
        assert np.hypot(x - place[0], y - place[1]).min() < 3


def test_a_position_that_is_no_point_on_the_ground_is_seen_nowhere():
    env = gym.make("gjwm.envs:gjwm/cartpole-swingup-v0", obs="state").unwrapped
    env.reset(seed=0)
    assert env.image_position(env.position) is None
