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
    env, branches = ForkEnv(obs="state", up_probability=share, noise=0.01), []
    env.reset(seed=0)
    for _ in range(2000):
        env.set_state(np.array([JUNCTION - 0.01, 0, 0]))
        *_, info = env.step(np.ones(1, np.float32))
        assert info["forked"]
        branches.append(env.get_state()[1])
    assert set(branches) == {-1, 1}
    assert np.mean(np.array(branches) == -1) == pytest.approx(share, abs=0.04)


def test_going_back_undoes_the_choice_and_staying_keeps_it():
    env = ForkEnv(obs="state", noise=0.0)
    env.reset(seed=0, options={"state": np.array([JUNCTION + 0.05, 1, 0])})
    env.step(np.zeros(1, np.float32))
    assert env.get_state()[1] == 1
    env.step(-np.ones(1, np.float32))
    assert env.get_state()[1] == 0 and env.get_state()[0] == pytest.approx(JUNCTION - 0.03)


def test_steps_have_the_given_speed_noise_and_sway_and_stay_on_the_road():
    env = ForkEnv(obs="state", noise=0.02, sway=0.01, speed=0.05)
    env.reset(seed=0)
    moved, aside = [], []
    for _ in range(2000):
        env.set_state(np.array([0.2, 0, 0]))
        env.step(np.array([0.5], np.float32))
        progress, branch, sway = env.get_state()
        moved.append(progress - 0.2)
        aside.append(sway)
        assert branch == 0
        np.testing.assert_allclose(env.position[1], 0.5 + sway)
    assert np.mean(moved) == pytest.approx(0.025, abs=0.002) and np.std(moved) == pytest.approx(
        0.02, rel=0.1
    )
    assert np.mean(aside) == pytest.approx(0, abs=0.001) and np.std(aside) == pytest.approx(
        0.01, rel=0.1
    )
    env.reset(seed=0)
    rewards = []
    for _ in range(60):
        observation, reward, *_ = env.step(np.ones(1, np.float32))
        assert env.observation_space.contains(observation)
        rewards.append(reward)
    assert np.mean(rewards[30:]) > 0.9 and env.get_state()[0] > 0.9


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_no_state_is_reached_exactly_also_at_the_ends(end):
    env = ForkEnv(obs="state")
    env.reset(seed=0)
    reached = []
    for _ in range(500):
        env.set_state(np.array([end, end, 0]))
        env.step(np.array([2 * end - 1], np.float32))
        reached.append(abs(env.get_state()[0] - end))
    assert len(set(reached)) == 500  # a clipped normal deviate would be 0 half of the time
    assert np.mean(reached) == pytest.approx(0.03 * np.sqrt(2 / np.pi), rel=0.1)


def test_the_branches_are_apart_from_the_first_step_on():
    up, down = place(JUNCTION, -1), place(JUNCTION, 1)
    env = ForkEnv()
    assert down[1] - up[1] > 9.9 * env.sway  # five standard deviations to either side of the middle
    middle = place(np.linspace(JUNCTION + 0.1, 1, 20), 0)  # what a mean of both futures predicts
    x, y = (middle * env.size).astype(int).T
    wall = env._road[:, y, x].max(0)
    assert (wall < 100).all()  # dark: nothing ever goes there


def test_the_picture_shows_the_dot_where_it_is():
    env = ForkEnv(size=64)
    for state in ([0.1, 0, 0], [0.6, -1, 0.02], [1.0, 1, -0.02]):
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
    with pytest.raises(ValueError, match="sway"):
        ForkEnv(sway=-0.1)
    env = ForkEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros(2, np.float32))
    for state in ([0.2, 1, 0], [0.8, 0, 0], [1.5, 1, 0], [0.8, 1], [0.8, 1, np.nan]):
        with pytest.raises(ValueError, match="state"):
            env.set_state(np.array(state))
    with pytest.raises(ValueError, match="options"):
        env.reset(options={"where": 1})
