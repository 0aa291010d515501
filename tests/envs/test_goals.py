"""Claims about goal-conditioned variants."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import gjwm.envs
from gjwm.envs.goals import GoalEnv
from gjwm.envs.making import make_env
from gjwm.envs.task_names import TASKS


def make(name="reacher-easy", **kwargs):
    return gym.make(f"gjwm.envs:gjwm/{name}-goal-v0", **kwargs).unwrapped


def actions(env, count, seed=0):
    return (
        np.random.default_rng(seed)
        .uniform(-1, 1, (count, *env.action_space.shape))
        .astype(np.float32)
    )


@pytest.mark.parametrize(
    "kwargs", [{}, {"obs": "both", "size": 16, "goal": "both", "frame_stack": 2}]
)
def test_gymnasium_finds_nothing_wrong(kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(infinity|Box|reproducib|render).*")
        check_env(make(**kwargs), skip_render_check=True)


@pytest.mark.parametrize("domain", sorted({domain for domain, _ in TASKS}))
def test_every_task_has_goals_that_a_walk_leads_to(domain):
    task = next(task for name, task in TASKS if name == domain)
    env = make(f"{domain}-{task}", offset=10)
    base = gym.make(f"gjwm/{domain}-{task}-v0").unwrapped
    o, info = env.reset(seed=3)
    # the start is the task's own
    np.testing.assert_array_equal(o["observation"], base.reset(seed=3)[0])
    assert not info["is_success"] and info["distance"] > env.success_radius
    base.set_state(info["goal_state"])
    np.testing.assert_array_equal(base.position, o["desired_goal"])
    env.reset(seed=3, options={"state": info["goal_state"], "goal_state": info["goal_state"]})
    reached = env.reset(options={"state": info["goal_state"], "goal_state": info["goal_state"]})[1]
    assert reached["is_success"] and reached["distance"] == 0


def test_a_seed_decides_start_and_goal_and_the_goal_is_fresh_in_each_episode():
    env, other = make(), make()
    first, again = env.reset(seed=5), other.reset(seed=5)
    np.testing.assert_array_equal(first[1]["goal_state"], again[1]["goal_state"])
    goals = [env.reset()[0]["desired_goal"] for _ in range(3)]
    assert len(np.unique(np.stack([first[0]["desired_goal"], *goals]), axis=0)) == 4
    np.testing.assert_array_equal(other.reset()[0]["desired_goal"], goals[0])
    drawn = make(goals="reset").reset(seed=5)[0]
    np.testing.assert_array_equal(drawn["observation"], first[0]["observation"])
    assert (drawn["desired_goal"] != first[0]["desired_goal"]).any()


def test_goals_of_a_gymnasium_environment_do_not_follow_from_its_start():
    env = GoalEnv(make_env("Pendulum-v1"), goals="reset")
    starts, goals = [], []
    for seed in range(50):
        o, info = env.reset(seed=seed)
        starts.append(np.arctan2(o["observation"][1], o["observation"][0]))
        goals.append(info["goal_state"][0])
    assert abs(np.corrcoef(starts, goals)[0, 1]) < 0.4
    # The walk's first action is the generator's first draw, as the start's angle was.
    env = GoalEnv(make_env("Pendulum-v1"))
    first = []
    for seed in range(50):
        env.reset(seed=seed, options={"goal_state": env.world.get_state()})
        first.append(env.np_random.uniform())
    assert abs(np.corrcoef(starts, first)[0, 1]) < 0.4


def test_the_walk_to_the_goal_leaves_the_time_limit_alone():
    env = make(offset=400)
    env.reset(seed=0)
    truncated = [env.step(np.zeros(2))[3] for _ in range(1000)]
    assert truncated == [False] * 999 + [True]


@pytest.mark.parametrize("reward", ["sparse", "dense"])
def test_reward_is_that_of_the_goals_one_by_one_and_in_batches(reward):
    env = make(reward=reward)
    o, _ = env.reset(seed=0)
    seen, given = [o], []
    for a in actions(env, 30):
        o, r, terminated, _, info = env.step(a)
        seen.append(o)
        given.append(r)
        assert (
            r == env.compute_reward(o["achieved_goal"], o["desired_goal"], info) and not terminated
        )
        assert info["is_success"] == (info["distance"] <= 0.02)
        assert r == (-info["distance"] if reward == "dense" else -float(not info["is_success"]))
    achieved, desired = (
        np.stack([o[key] for o in seen[1:]]) for key in ("achieved_goal", "desired_goal")
    )
    np.testing.assert_array_equal(env.compute_reward(achieved, desired, {}), given)
    # In hindsight: had the last position been the goal, the last step would have reached it, and
    # the first would not.
    relabelled = env.compute_reward(achieved, np.broadcast_to(achieved[-1], achieved.shape), {})
    assert relabelled[-1] == 0 and relabelled[0] < 0
    assert env.compute_reward(achieved.reshape(5, 6, 2), desired.reshape(5, 6, 2)).shape == (5, 6)
    with pytest.raises(ValueError, match=r"positions \(\.\.\., 2\)"):
        env.compute_reward(np.zeros(3), np.zeros(3))


def test_a_goal_is_also_an_image_of_its_state():
    env = make(obs="pixels", size=24, frame_stack=2, goal="both")
    o, info = env.reset(seed=1)
    wanted = o["desired_goal"]["pixels"]
    assert wanted.shape == (3, 24, 24) and (wanted != o["achieved_goal"]["pixels"]).any()
    np.testing.assert_array_equal(o["achieved_goal"]["pixels"], o["observation"][-3:])
    env.world.set_state(info["goal_state"])
    np.testing.assert_array_equal(env.world.observe()[-3:], wanted)
    assert env.compute_reward(o["desired_goal"], o["desired_goal"]) == 0
    batch = {"state": np.zeros((4, 2)), "pixels": np.zeros((4, 3, 24, 24), np.uint8)}
    assert env.compute_reward(batch, batch).shape == (4,)


def test_a_state_carries_the_goal_and_the_generator():
    env = make()
    env.reset(seed=0)
    env.step(actions(env, 1)[0])
    state, o = env.get_state(), env.observe()
    future = [env.step(a)[:2] for a in actions(env, 20, seed=1)] + [env.reset()]
    env.reset(seed=8)
    env.set_state(state)
    for key in o:
        np.testing.assert_array_equal(env.observe()[key], o[key])
    for before, a in zip(future, actions(env, 20, seed=1)):
        now = env.step(a)
        np.testing.assert_array_equal(now[0]["achieved_goal"], before[0]["achieved_goal"])
        assert now[1] == before[1]
    np.testing.assert_array_equal(env.reset()[1]["goal_state"], future[-1][1]["goal_state"])
    env.set_state(env.goal_state())
    np.testing.assert_array_equal(env.observe()["achieved_goal"], env.observe()["desired_goal"])


def test_the_goal_ends_the_episode_if_asked():
    env = make(terminate_on_goal=True)
    _, info = env.reset(seed=0)
    env.world.set_state(info["goal_state"])
    env.world._data.qvel[:] = 0
    _, reward, terminated, _, info = env.step(np.zeros(2))
    assert terminated and reward == 0 and info["is_success"]


@pytest.mark.parametrize("name", ["Pendulum-v1", "gjwm/two-room-v0"])
def test_other_environments_can_have_goals_too(name):
    env = GoalEnv(make_env(name, obs="state"), goals="ahead", offset=12)
    o, info = env.reset(seed=0)
    assert env.observation_space.contains(o) and not info["is_success"]
    o = env.step(env.action_space.sample())[0]
    assert env.observation_space.contains(o)


def test_bad_input_is_named():
    assert gjwm.envs.TASKS is TASKS
    for wrong in ({"goal": "words"}, {"goals": "never"}, {"reward": "high"}, {"offset": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            make(**wrong)
    with pytest.raises(ValueError, match="obs='pixels'"):
        make(goal="both")
    with pytest.raises(ValueError, match="no get_state"):
        GoalEnv(gym.make("Pendulum-v1"))
    env = make()
    with pytest.raises(ValueError, match="'state' and 'goal_state'"):
        env.reset(options={"goal": 1})
    with pytest.raises(ValueError, match="from get_state"):
        env.set_state(np.zeros(4))
