"""Claims about `make_vec`: many environments are the single ones, whatever runs them, and a lost
process is no lost run.
"""

import multiprocessing
import os
import signal
import sys
import textwrap
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from gjwm.envs import make_vec, rendering
from gjwm.envs.making import make_env
from gjwm.envs.suite_tasks import FORMULAS
from gjwm.envs.workers import Worker, WorkerDied, cores

MODULE = """
    import os, time
    import gymnasium as gym
    import numpy as np
    from gymnasium import spaces

    class Walk(gym.Env):
        '''A random walk of `length` steps. Above 0.9 an action kills, below -0.9 it is an error.'''

        def __init__(self, length=5, broken=None):
            if broken == "dies":
                os._exit(4)
            if broken == "fails":
                raise ArithmeticError("no walk today")
            self.length, self.tag = length, os.environ.get("GJWM_TEST_TAG", "")
            self.observation_space = spaces.Dict({
                "x": spaces.Box(-np.inf, np.inf, (2,), np.float32), "t": spaces.Discrete(1000),
            })
            self.action_space = spaces.Box(-1, 1, (1,), np.float32)

        def observe(self):
            return {"x": np.array([self.x, self.drawn], np.float32), "t": self.t}

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.x, self.t, self.drawn = (options or {}).get("x", 0.0), 0, self.np_random.uniform()
            return self.observe(), {"drawn": self.drawn}

        def step(self, action):
            if action[0] > 0.9:
                os._exit(3)
            if action[0] < -0.9:
                raise ArithmeticError("too far left")
            self.x, self.t = self.x + float(action[0]) + self.np_random.uniform(), self.t + 1
            last = self.t == self.length
            return self.observe(), self.x, last and self.x > 2, last, {"moved": self.t}

        def pid(self):
            return os.getpid()

        def get_state(self):
            return np.array([self.x, self.t, self.drawn])

        def set_state(self, state):
            self.x, self.t, self.drawn = float(state[0]), int(state[1]), float(state[2])

    gym.register("gjwm-test/walk-v0", Walk)
"""
WALK = "walk_env_for_tests:gjwm-test/walk-v0"


@pytest.fixture(scope="module", autouse=True)
def walk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("module")
    (folder / "walk_env_for_tests.py").write_text(textwrap.dedent(MODULE))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield
    sys.modules.pop("walk_env_for_tests", None)
    gym.registry.pop("gjwm-test/walk-v0", None)


def random_actions(env, steps, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.9, 0.9, (steps, env.num_envs, *env.single_action_space.shape)).astype(
        np.float32
    )


def leaves(observation):
    return (
        [observation[name] for name in sorted(observation)]
        if isinstance(observation, dict)
        else [observation]
    )


def play(env, actions, seed=0):
    """Everything a run returns but infos, as flat lists of arrays; final observations where an
    episode ended.
    """
    out = [leaves(env.reset(seed=seed)[0])]
    for action in actions:
        observation, reward, terminated, truncated, infos = env.step(action)
        out.append([*leaves(observation), reward, terminated, truncated])
        assert ("_final_obs" in infos) == bool((terminated | truncated).any())
        for i in (terminated | truncated).nonzero()[0]:
            out.append(leaves(infos["final_obs"][i]))
    return out


def one_by_one(env_id, n, actions, seed=0, **kwargs):
    """What `play` must return, from single environments."""
    envs = [make_env(env_id, **kwargs) for _ in range(n)]
    stack = lambda found: [np.stack(parts) for parts in zip(*(leaves(o) for o in found))]  # noqa: E731
    out = [stack([env.reset(seed=seed + i)[0] for i, env in enumerate(envs)])]
    for action in actions:
        steps = [list(env.step(a)) for env, a in zip(envs, action)]
        finals = []
        for env, step in zip(envs, steps):
            if step[2] or step[3]:
                finals.append(leaves(step[0]))
                step[0] = env.reset()[0]
        out.append(
            [
                *stack([step[0] for step in steps]),
                *(np.array([s[k] for s in steps]) for k in (1, 2, 3)),
            ]
        )
        out += finals
    for env in envs:
        env.close()
    return out


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert len(x) == len(y)
        for u, v in zip(x, y):
            np.testing.assert_array_equal(u, v)


# -- the same numbers ------------------------------------------------------------------------------

FAST = [
    "cartpole-three_poles",
    "cartpole-swingup_sparse",
    "pendulum-swingup",
    "reacher-easy",
    "cheetah-run",
    "ball_in_cup-catch",
    "point_mass-hard",
    "walker-run",
    "finger-spin",  # without a formula
    "lqr-lqr_2_1",  # ends by itself
]
SLOW = [f"{domain}-{task}" for domain, task in FORMULAS if f"{domain}-{task}" not in FAST]
SLOW += ["humanoid-walk", "swimmer-swimmer6", "acrobot-swingup", "hopper-hop", "quadruped-escape"]


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_control_tasks_in_a_batch_are_the_single_ones_to_the_last_bit(name):
    env_id, kwargs = f"gjwm/{name}-v0", {"action_repeat": 3, "max_episode_steps": 30}
    env = make_vec(env_id, 2, **kwargs)
    assert type(env).__name__ == "ControlSuiteVectorEnv"
    actions = random_actions(env, 70)
    assert_same(play(env, actions), one_by_one(env_id, 2, actions, **kwargs))
    env.close()


def test_the_tasks_own_time_limit_cuts_an_action_repeat_short():
    env_id, kwargs = "gjwm/point_mass-easy-v0", {"action_repeat": 300}  # of 1000 control steps
    env = make_vec(env_id, 2, **kwargs)
    actions = random_actions(env, 9)
    played = play(env, actions)
    assert_same(played, one_by_one(env_id, 2, actions, **kwargs))
    assert [bool(step[3].all()) for step in played[1:] if len(step) == 4] == [
        False,
        False,
        False,
        True,
    ] * 2 + [False]


def test_a_time_limit_from_registration_holds_in_a_batch():
    env_id = "gjwm-test/short-reacher-v0"
    gym.register(
        env_id,
        "gjwm.envs.control_suite:ControlSuiteEnv",
        max_episode_steps=7,
        kwargs={"domain": "reacher", "task": "easy"},
    )
    try:
        env = make_vec(env_id, 2, action_repeat=2)
        assert type(env).__name__ == "ControlSuiteVectorEnv"
        actions = random_actions(env, 9)
        played = play(env, actions)
        assert_same(played, one_by_one(env_id, 2, actions, action_repeat=2))
        env.close()
    finally:
        gym.registry.pop(env_id)
    ended = [t for t, step in enumerate([s for s in played if len(s) > 3], 1) if step[3].all()]
    assert 7 in ended


def test_what_varies_between_episodes_varies_in_a_batch_too():
    env_id, kwargs = (
        "gjwm/reacher-easy-v0",
        {"variation": ["mass", "colour"], "max_episode_steps": 5},
    )
    env = make_vec(env_id, 3, **kwargs)
    actions = random_actions(env, 12)
    played = play(env, actions)
    assert_same(played, one_by_one(env_id, 3, actions, **kwargs))
    plain = make_vec(env_id, 3, max_episode_steps=5)
    assert any(
        not np.array_equal(a, b) for x, y in zip(played, play(plain, actions)) for a, b in zip(x, y)
    )


def test_goals_come_along():
    env_id, kwargs = "gjwm/point_mass-easy-goal-v0", {"offset": 3, "max_episode_steps": 4}
    env = make_vec(env_id, 2, **kwargs)
    observation, infos = env.reset(seed=0)
    assert (
        observation.keys() == {"observation", "achieved_goal", "desired_goal"}
        and "goal_state" in infos
    )
    actions = random_actions(env, 9)
    assert_same(play(env, actions), one_by_one(env_id, 2, actions, **kwargs))
    assert env.workers == 0
    env = make_vec("gjwm/reacher-easy-goal-v0", 4, obs="pixels", goal="both", size=16)
    assert env.workers == min(4, cores()) and env.observation_space["desired_goal"][
        "pixels"
    ].shape == (4, 3, 16, 16)
    env.close()


def test_episodes_are_as_long_as_asked_for_alone_and_in_a_batch():
    for env_id, steps, kwargs in [
        ("Pendulum-v1", 300, {}),
        ("CartPole-v1", 600, {"terminate": False}),
        ("gjwm/two-room-v0", 150, {"obs": "state", "terminate_on_goal": False}),
        ("gjwm/fork-v0", 60, {"obs": "state"}),
        ("gjwm/point_mass-easy-goal-v0", 30, {}),
        (WALK, 7, {"length": 99}),  # does not take the argument
    ]:
        single, batch = (
            make_env(env_id, max_episode_steps=steps, **kwargs),
            make_vec(env_id, 2, max_episode_steps=steps, **kwargs),
        )
        single.reset(seed=0), batch.reset(seed=0)
        action = np.zeros((2, *single.action_space.shape), np.float32)
        for t in range(1, steps + 1):
            assert single.step(action[0])[3] == (t == steps)
            assert (batch.step(action)[3] == (t == steps)).all()
        batch.close()
    for make in (make_env, lambda env_id, **kwargs: make_vec(env_id, 2, **kwargs)):
        for name in ("reacher-easy", "reacher-easy-goal"):
            with pytest.raises(
                ValueError, match=r"after 1000 control steps.* 1 to 1000 .*got 1200"
            ):
                make(f"gjwm/{name}-v0", max_episode_steps=1200)
        make("gjwm/reacher-easy-v0", max_episode_steps=4, action_repeat=300).close()
    with pytest.raises(ValueError, match="at least 1 or None, got 0"):
        make_env("Pendulum-v1", max_episode_steps=0)


def test_threads_change_nothing():
    from gjwm.envs.control_vector import ControlSuiteVectorEnv

    runs = []
    for threads in (1, 3):
        env = ControlSuiteVectorEnv(
            make_env("gjwm/cheetah-run-v0", max_episode_steps=7), 5, threads=threads
        )
        assert env._physics.threads == threads
        runs.append(play(env, random_actions(env, 20)))
        env.close()
    assert_same(*runs)


@pytest.mark.parametrize("obs", ["pixels", "both"])
def test_pictures_do_not_depend_on_the_number_of_workers(obs):
    env_id = "gjwm/reacher-easy-v0"
    kwargs = {"obs": obs, "size": 32, "frame_stack": 2, "action_repeat": 2, "max_episode_steps": 4}
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 3, 2)).astype(np.float32)
    expected = one_by_one(env_id, 3, actions, seed=5, **kwargs)
    for workers in (0, 2) if obs == "pixels" else (1,):
        env = make_vec(env_id, 3, workers=workers, **kwargs)
        assert env.workers == len(set(env.pids)) == workers
        assert_same(play(env, actions, seed=5), expected)
        env.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_any_gymnasium_id_is_the_single_one(workers):
    kwargs = {"length": 6}
    env = make_vec(WALK, 3, workers=workers, **kwargs)
    actions = random_actions(env, 20)
    assert_same(play(env, actions), one_by_one(WALK, 3, actions, **kwargs))
    env.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_discrete_env_is_what_gymnasiums_own_vector_env_makes_of_it(workers):
    ours = make_vec("CartPole-v1", 3, workers=workers)
    theirs = SyncVectorEnv(
        [lambda: gym.make("CartPole-v1")] * 3, autoreset_mode=AutoresetMode.SAME_STEP
    )
    assert ours.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(ours.reset(seed=1)[0], theirs.reset(seed=1)[0])
    ended = 0
    for t in range(60):
        a = rng.integers(2, size=3)
        # one-hot, or whole numbers
        mine, other = (ours.step(np.eye(2)[a] if t % 2 else a), theirs.step(a))
        for x, y in zip(mine[:4], other[:4]):
            np.testing.assert_array_equal(x, y)
        assert ("final_obs" in mine[4]) == ("final_obs" in other[4])
        if "final_obs" in mine[4]:
            ended += 1
            np.testing.assert_array_equal(mine[4]["_final_obs"], other[4]["_final_obs"])
            for x, y in zip(mine[4]["final_obs"], other[4]["final_obs"]):
                assert (x is None) == (y is None)
                np.testing.assert_array_equal(x, y) if x is not None else None
    assert ended > 2
    ours.close()


def test_bounded_actions_are_rescaled_from_the_unit_box():
    env, single = make_vec("Pendulum-v1", 2), gym.make("Pendulum-v1")
    assert env.single_action_space.high == 1
    env.reset(seed=3), single.reset(seed=4)
    np.testing.assert_allclose(
        env.step(np.full((2, 1), 0.4))[0][1], single.step(np.array([0.8]))[0], rtol=1e-5
    )


# -- what step and reset return --------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_episode_ends_in_its_true_last_observation_and_the_next_begins_in_the_same_step(workers):
    env = make_vec(WALK, 3, workers=workers, length=4)
    observation, infos = env.reset(seed=0)
    np.testing.assert_allclose(infos["drawn"], observation["x"][:, 1], rtol=1e-6)
    x = observation["x"][:, 0]
    for t in range(1, 9):
        observation, reward, terminated, truncated, infos = env.step(np.full((3, 1), 0.1))
        if t % 4:
            assert not truncated.any() and (observation["t"] == t % 4).all()
            np.testing.assert_allclose(reward, observation["x"][:, 0], rtol=1e-6)
            assert "final_obs" not in infos and infos["moved"].tolist() == [t % 4] * 3
            continue
        assert truncated.all() and infos["_final_obs"].all() and (observation["t"] == 0).all()
        for i in range(3):
            last = infos["final_obs"][i]
            assert last["t"] == 4 and last["x"][0] == np.float32(reward[i]) and last["x"][0] > x[i]
            assert terminated[i] == (reward[i] > 2)
        assert infos["final_info"]["moved"].tolist() == [4, 4, 4] and "moved" not in infos
        np.testing.assert_allclose(infos["drawn"], observation["x"][:, 1], rtol=1e-6)
    env.close()


@pytest.mark.parametrize("env_id", ["gjwm/cartpole-swingup-v0", "gjwm/two-room-v0", WALK])
def test_on_a_device_everything_is_a_tensor_and_last_observations_cover_all_envs(env_id):
    kwargs = {"length": 3} if env_id == WALK else {"max_episode_steps": 3, "obs": "state"}
    env = make_vec(env_id, 4, device="cpu", **kwargs)
    observation, _ = env.reset(seed=0)
    action = torch.full((4, *env.single_action_space.shape), 0.1)
    before = [part.clone() for part in leaves(observation)]
    for t in range(3):
        kept = leaves(observation)
        observation, reward, terminated, truncated, infos = env.step(action)
        assert all(torch.equal(a, b) for a, b in zip(kept, before)), (
            "a step wrote into what an earlier one returned"
        )
        before = [part.clone() for part in leaves(observation)]
        assert reward.dtype == torch.float32 and terminated.dtype == truncated.dtype == torch.bool
        assert all(isinstance(part, torch.Tensor) for part in leaves(observation))
        assert ("final_obs" in infos) == (t == 2)
    assert truncated.all() and infos["_final_obs"].all()
    for last, first in zip(leaves(infos["final_obs"]), leaves(observation)):
        assert last.shape == first.shape and not torch.equal(last, first)
    env.close()


def test_unseeded_copies_differ_and_resets_go_on():
    env = make_vec("gjwm/reacher-easy-v0", 3)
    first, second = env.reset()[0], env.reset()[0]
    assert len({row.tobytes() for row in np.concatenate([first, second])}) == 6
    a, b = env.reset(seed=7)[0], env.reset(seed=[7, 8, 9])[0]
    np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="one seed or 3"):
        env.reset(seed=[1])


@pytest.mark.parametrize("kwargs", [{}, {"workers": 2}])
def test_states_are_taken_out_and_put_back(kwargs):
    env = make_vec("gjwm/cheetah-run-v0", 2, **kwargs)
    env.reset(seed=0)
    actions = random_actions(env, 6)
    env.step(actions[0])
    states = env.get_state()
    future = [env.step(a)[0] for a in actions]
    env.set_state(states)
    np.testing.assert_array_equal(future, [env.step(a)[0] for a in actions])
    env.reset(options={"state": states})
    np.testing.assert_array_equal(future[0], env.step(actions[0])[0])
    assert len(env.call("position")) == 2
    env.close()


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("gjwm/reacher-easy-v0", {}),
        ("gjwm/reacher-easy-v0", {"obs": "pixels", "frame_stack": 2, "workers": 0, "size": 32}),
        ("gjwm/ball_in_cup-catch-v0", {"obs": "both", "workers": 2, "size": 32}),
        ("Pendulum-v1", {"position": [0, 1]}),
        ("gjwm/two-room-v0", {"size": 32}),
    ],
)
def test_lanes_offer_what_a_single_environment_offers(env_id, kwargs):
    if env_id.startswith("gjwm/"):  # Gymnasium's own may lack the library that they draw with
        kwargs = {**kwargs, "render_mode": "rgb_array"}
    env = make_vec(env_id, 3, **kwargs)
    kwargs = {name: value for name, value in kwargs.items() if name != "workers"}
    singles = [make_env(env_id, **kwargs) for _ in range(3)]
    states = []
    for i, single in enumerate(singles):
        single.reset(seed=i)
        states.append(single.unwrapped.get_state())
    worlds = [single.unwrapped for single in singles]
    env.reset(seed=7)
    env.step(random_actions(env, 1)[0])
    env.set_state(np.stack(states))
    np.testing.assert_array_equal(env.get_state(), states)
    np.testing.assert_array_equal(env.position, [world.position for world in worlds])
    assert env.success_radius == worlds[0].success_radius
    if "render_mode" in kwargs:
        np.testing.assert_array_equal(env.render(), [world.render() for world in worlds])
    truth = env.true_state()
    for name, values in truth.items():
        np.testing.assert_array_equal(values, [world.true_state()[name] for world in worlds])
    seen = zip(*(leaves(world.observe()) for world in worlds))
    for found, expected in zip(leaves(env.observe()), seen, strict=True):
        np.testing.assert_array_equal(found, np.stack(expected))
    plans = np.random.default_rng(0).uniform(-1, 1, (3, 2, 3, *env.single_action_space.shape))
    expected = [w.simulate(s[None], p[None])[0] for w, s, p in zip(worlds, states, plans)]
    np.testing.assert_array_equal(env.simulate(np.stack(states), plans), expected)
    env.close()


# -- processes that die ----------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_the_others_go_on():
    kwargs = {"obs": "pixels", "size": 32, "max_episode_steps": 9}
    env, undisturbed = (
        make_vec("gjwm/reacher-easy-v0", 3, workers=workers, **kwargs) for workers in (2, 0)
    )
    actions = random_actions(env, 12)
    last, _ = env.reset(seed=0)
    undisturbed.reset(seed=0)
    for a in actions[:4]:
        last = env.step(a)[0]
        expected = undisturbed.step(a)[0]
    first, second = env.pids
    os.kill(first, signal.SIGKILL)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        observation, reward, terminated, truncated, infos = env.step(actions[4])
    assert len(caught) == 1 and caught[0].category is RuntimeWarning
    assert "SIGKILL" in str(caught[0].message) and "envs 0 to 1" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert env.pids[1] == second and env.pids[0] != first
    assert infos["worker_died"].tolist() == [True, True, False] == truncated.tolist()
    assert not terminated.any() and (reward[:2] == 0).all()
    for i in range(2):
        np.testing.assert_array_equal(infos["final_obs"][i], last[i])
        assert not np.array_equal(observation[i], last[i])
    expected = undisturbed.step(actions[4])[0]
    np.testing.assert_array_equal(observation[2], expected[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in range(5, 12):
            observation, _, _, truncated, infos = env.step(actions[t])
            np.testing.assert_array_equal(observation[2], undisturbed.step(actions[t])[0][2])
            assert "worker_died" not in infos
            assert truncated.tolist() == [False, False, t == 8]
    env.close()
    undisturbed.close()


def test_a_worker_killed_between_episodes_costs_nothing():
    env = make_vec(WALK, 2, workers=2)
    expected = env.reset(seed=4)[0]["x"]
    os.kill(env.pids[1], signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match="before its episodes began"):
        np.testing.assert_array_equal(env.reset(seed=4)[0]["x"], expected)
    env.close()


def test_a_worker_that_cannot_live_is_an_error_and_not_a_loop():
    env = make_vec(WALK, 2, workers=2)
    env.reset(seed=0)
    env.step(np.zeros((2, 1)))
    deadly = np.array([[0.0], [0.95]], np.float32)
    with pytest.warns(RuntimeWarning, match="exit code 3"):
        env.step(deadly)
    with pytest.warns(RuntimeWarning, match="exit code 3"):
        env.step(deadly)
    with pytest.raises(RuntimeError, match="3 in a row before a step was made"):
        env.step(deadly)
    env.close()


def test_killed_before_the_first_step_and_twice_in_a_row_a_worker_is_still_replaced():
    env = make_vec(WALK, 2, workers=2)
    begun = env.reset(seed=0)[0]
    for _ in range(2):
        os.kill(env.pids[1], signal.SIGKILL)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            observation, _, _, truncated, infos = env.step(np.zeros((2, 1)))
        assert (
            len(caught) == 1
            and caught[0].filename == __file__
            and "SIGKILL" in str(caught[0].message)
        )
        assert truncated.tolist() == infos["worker_died"].tolist() == [False, True]
        assert infos["final_obs"][1]["x"].tolist() == begun["x"][1].tolist()
        begun = observation
    for t in range(3, 5):
        observation, _, _, truncated, _ = env.step(np.zeros((2, 1)))
        assert observation["t"].tolist() == [t, t - 2] and not truncated.any()
    os.kill(env.pids[1], signal.SIGKILL)  # after a step it has all its lives again
    with pytest.warns(RuntimeWarning, match="SIGKILL"):
        env.step(np.zeros((2, 1)))
    env.close()


def test_the_same_misfortune_is_the_same_run():
    def run(env):
        drawn = [env.reset(seed=3)[0]["x"], env.reset()[0]["x"]]
        for t in range(4):
            if t in (1, 2):
                os.kill(env.pids[1], signal.SIGKILL)
                with pytest.warns(RuntimeWarning, match="SIGKILL"):
                    drawn.append(env.step(np.zeros((2, 1)))[0]["x"])
            else:
                drawn.append(env.step(np.zeros((2, 1)))[0]["x"])
        os.kill(env.pids[0], signal.SIGKILL)
        with pytest.warns(RuntimeWarning, match="before its episodes began"):
            drawn.append(env.reset()[0]["x"])
        return np.array(drawn)

    env, other = make_vec(WALK, 2, workers=2), make_vec(WALK, 2, workers=2)
    first = run(env)
    np.testing.assert_array_equal(first, run(env))
    np.testing.assert_array_equal(first, run(other))
    assert len(set(first[[1, 3, 4], 1, 1])) == 3
    env.close(), other.close()


def test_an_object_that_cannot_be_made_says_why_to_every_question():
    dead, failed = Worker(os._exit, 4), Worker(int, "three")
    with pytest.raises(WorkerDied, match="exit code 4"):
        dead.answer()
    for _ in range(2):
        with pytest.raises(ValueError, match="three") as caught:
            failed.call("bit_length")
    assert "in a worker process" in str(caught.value.__cause__)
    number = Worker(int, "3")
    assert number.call("bit_length") == 2
    for worker in (dead, failed, number):
        worker.close()


def test_workers_see_the_environment_variables_of_the_moment(monkeypatch):
    make_vec(WALK, 1, workers=1).close()  # the server that starts them is up
    monkeypatch.setenv("GJWM_TEST_TAG", "now")
    env = make_vec(WALK, 2, workers=2)
    assert env.call("tag") == ("now", "now") and len(set(env.call("pid"))) == 2
    env.close()


def test_closing_ends_the_processes():
    env = make_vec(WALK, 3, workers=3)
    pids = env.pids
    assert all(_lives(pid) for pid in pids)
    env.close()
    env.close()
    assert not any(_lives(pid) for pid in pids)
    env = make_vec(WALK, 2, workers=2)
    pids = env.pids
    del env  # forgotten, not closed
    assert not any(_lives(pid) for pid in pids)


def _lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _memory():
    """Resident set of this process, MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        (WALK, {"workers": 2}),
        ("gjwm/reacher-easy-v0", {"obs": "pixels", "workers": 0}),
        ("gjwm/cartpole-swingup-v0", {"obs": "state"}),
    ],
)
def test_two_hundred_open_and_closed_leave_nothing_behind(env_id, kwargs):
    def cycle():
        env = make_vec(env_id, 2, **kwargs)
        env.reset(seed=0)
        env.step(np.zeros((2, *env.single_action_space.shape), np.float32))
        env.close()

    for _ in range(5):
        cycle()
    before = _memory()
    for _ in range(200):
        cycle()
    assert _memory() - before < 50
    assert multiprocessing.active_children() == []


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("kwargs", [{}, {"workers": 2}])
def test_wrong_actions_name_the_env(kwargs):
    env = make_vec("gjwm/reacher-easy-v0", 3, **kwargs)
    env.reset(seed=0)
    action = np.zeros((3, 2))
    action[1, 1] = np.nan
    with pytest.raises(ValueError, match=r"env 1 .*NaN"):
        env.step(action)
    with pytest.raises(ValueError, match=r"\(3, 2\).*got \(2, 3\)"):
        env.step(np.zeros((2, 3)))
    env.step(np.zeros((3, 2)))  # nothing is broken by it
    env.close()
    with pytest.raises(ValueError, match=r"action of env 2 of CartPole-v1 is \[5\]"):
        make_vec("CartPole-v1", 3).step(np.array([0, 1, 5]))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_an_env_names_it_and_breaks_nothing(workers):
    env = make_vec(WALK, 3, workers=workers)
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match=r"env 1 of .*ArithmeticError: too far left"):
        env.step(np.array([[0.0], [-1.0], [0.0]]))
    env.reset(seed=0)
    assert (env.step(np.zeros((3, 1)))[0]["t"] == 1).all()
    env.close()


@pytest.mark.parametrize(
    ("env_id", "takes"),
    [
        ("gjwm/reacher-easy-v0", "action_repeat, camera, frame_stack"),
        ("gjwm/reacher-easy-goal-v0", "goals, hidden"),
        ("gjwm/point-maze-v0", "frame_stack, max_episode_steps, maze, obs"),
        ("gjwm/fork-v0", "max_episode_steps, noise, obs"),
        ("Pendulum-v1", "frame_stack, g, max_episode_steps"),
        ("HalfCheetah-v5", "camera_id, camera_name, ctrl_cost_weight"),
        (WALK, "takes broken, length."),
    ],
)
def test_an_unknown_argument_is_named_with_what_there_is(env_id, takes):
    for make in (make_env, lambda env_id, **kwargs: make_vec(env_id, 2, **kwargs)):
        with pytest.raises(ValueError, match="cannot be made with colour='red': ") as error:
            make(env_id, colour="red")
        said = str(error.value)
        assert "'colour'; it takes " in said and said.endswith(".") and takes in said
        assert said.count("red") == 1 and "domain" not in said


def test_impossible_requests_are_one_sentence(monkeypatch):
    with pytest.raises(gym.error.NameNotFound, match="reacher-easy"):
        make_vec("gjwm/reacher-eazy-v0", 2)
    with pytest.raises(ValueError, match="n >= 1"):
        make_vec("CartPole-v1", 0)
    with pytest.raises(ValueError, match="cannot be made with"):
        make_vec("gjwm/two-room-v0", 2, colour="red")
    with pytest.raises(ValueError, match="leave workers out"):
        make_vec("gjwm/two-room-v0", 2, workers=2)
    with pytest.raises(ValueError, match="'mujoco' or 'warp'"):
        make_vec("gjwm/reacher-easy-v0", 2, physics="moon")
    with pytest.raises(ValueError, match="not for CartPole"):
        make_vec("CartPole-v1", 2, physics="warp")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for env_id in ("CartPole-v1", "gjwm/two-room-v0"):
        with pytest.raises(ValueError, match="device='cuda' needs a CUDA GPU"):
            make_vec(env_id, 2, device="cuda")
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)
    with pytest.raises(ImportError, match=r"gjwm\[warp\]"):
        make_vec("gjwm/cheetah-run-v0", 2, physics="warp")
    with pytest.raises(ArithmeticError, match="no walk today"):
        make_vec(WALK, 2, workers=2, broken="fails")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_works", lambda name: False)
    with pytest.raises(RuntimeError, match="libegl1"):
        make_vec("gjwm/reacher-easy-v0", 2, obs="pixels")
