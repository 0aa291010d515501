"""Claims about the forking road: the branch is drawn and not chosen, and the picture shows it."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from gjwm.envs.fork import JUNCTION, ForkEnv, place


@pytest.mark.parametrize("obs", ["pixels", "state"])
@pytest.mark.filterwarnings("error")
def test_gymnasium_checks_pass_without_warnings(obs):
    env = gym.make("gjwm.envs:gjwm/fork-v0", obs=obs, render_mode="rgb_array")
    check_env(env.unwrapped)


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_the_same_action_leads_up_or_down_with_the_given_probability(share):
    env, branches = ForkEnv(obs="state", up_probability=share), []
    env.reset(seed=0)
    for _ in range(2000):
        env.set_state(np.array([JUNCTION - 0.01, 0]))
        *_, info = env.step(np.ones(1, np.float32))
        assert info["forked"]
        branches.append(env.get_state()[1])
    assert set(branches) == {-1, 1}
    assert np.mean(np.array(branches) == -1) == pytest.approx(share, abs=0.04)


def test_going_back_undoes_the_choice_and_staying_keeps_it():
    env = ForkEnv(obs="state", noise=0.0)
    env.reset(seed=0, options={"state": np.array([JUNCTION + 0.05, 1])})
    env.step(np.zeros(1, np.float32))
    assert env.get_state()[1] == 1
    env.step(-np.ones(1, np.float32))
    assert env.get_state()[1] == 0 and env.get_state()[0] == pytest.approx(JUNCTION - 0.03)


def test_steps_have_the_given_speed_and_noise_and_stay_on_the_road():
    env = ForkEnv(obs="state", noise=0.02, speed=0.05)
    env.reset(seed=0)
    moved = []
    for _ in range(2000):
        env.set_state(np.array([0.2, 0]))
        env.step(np.array([0.5], np.float32))
        moved.append(env.get_state()[0] - 0.2)
    assert np.mean(moved) == pytest.approx(0.025, abs=0.002) and np.std(moved) == pytest.approx(0.02, rel=0.1)
    for _ in range(60):
        observation, reward, *_ = env.step(np.ones(1, np.float32))
        assert env.observation_space.contains(observation)
    assert reward == 1.0 and env.get_state()[0] > 0.9


def test_the_picture_shows_the_dot_where_it_is():
    env = ForkEnv(size=64)
    for state in ([0.1, 0], [0.6, -1], [1.0, 1]):
        env.reset(seed=0, options={"state": np.array(state)})
        difference = np.abs(env.observe().astype(float) - env._road).sum(0)
        weight = difference / difference.sum()
        grid = (np.arange(64) + 0.5) / 64
        seen = [(weight.sum(0) * grid).sum(), (weight.sum(1) * grid).sum()]
        np.testing.assert_allclose(seen, place(*state), atol=0.01)
        np.testing.assert_allclose(env.position, place(*state))


def test_the_same_seed_plays_the_same_episode_and_time_truncates():
    runs = []
    for _ in range(2):
        env = ForkEnv(obs="state", max_episode_steps=30)
        observations = [env.reset(seed=5)[0]]
        for t in range(30):
            observation, _, terminated, truncated, _ = env.step(np.ones(1, np.float32))
            observations.append(observation)
            assert not terminated and truncated == (t == 29)
        runs.append(np.stack(observations))
    np.testing.assert_array_equal(*runs)


def test_bad_arguments_actions_and_states_are_named():
    with pytest.raises(ValueError, match="obs"):
        ForkEnv(obs="sound")
    with pytest.raises(ValueError, match="up_probability"):
        ForkEnv(up_probability=2.0)
    env = ForkEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros(2, np.float32))
    for state in ([0.2, 1], [0.8, 0], [1.5, 1], [0.8]):
        with pytest.raises(ValueError, match="state"):
            env.set_state(np.array(state))
    with pytest.raises(ValueError, match="options"):
        env.reset(options={"where": 1})
