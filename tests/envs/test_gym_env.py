"""Claims about the wrapper of other Gymnasium environments."""

import copy
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from gjwm.envs.making import make_env


class Buttons(gym.Env):
    """Numbers that buttons change, seen as a picture, a vector or a Dict; ends at 3."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, actions=None, observes="vector", render_mode=None):
        self.render_mode, self.observes = render_mode, observes
        self.action_space = actions or spaces.MultiDiscrete([3, 2], start=[5, 0])
        number = spaces.Box(-9, 9, (2, 1), np.float64)
        picture = spaces.Box(0, 255, (8, 12, 3), np.uint8)
        self.observation_space = {
            "vector": number,
            "picture": picture,
            "dict": spaces.Dict({"key": spaces.Discrete(2), "number": number}),
        }[observes]

    def _get_obs(self):
        if self.observes == "picture":
            return self.render()
        return {"key": 1, "number": self.state} if self.observes == "dict" else self.state

    def render(self):
        return np.full((8, 12, 3), int(10 * abs(self.state[0, 0])), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, (2, 1))
        return self._get_obs(), {}

    def step(self, action):
        self.last = action
        self.state = self.state + 1 + 0.1 * self.np_random.standard_normal((2, 1))
        return self._get_obs(), 1.0, bool(self.state[0, 0] > 3), False, {}


@pytest.fixture(autouse=True)
def buttons():
    gym.register("gjwm-test/buttons-v0", Buttons, max_episode_steps=50)
    yield
    gym.registry.pop("gjwm-test/buttons-v0")


def make(**kwargs):
    return make_env("gjwm-test/buttons-v0", **kwargs).unwrapped


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1", "MountainCar-v0", "HalfCheetah-v5"])
def test_gymnasium_finds_nothing_wrong(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(infinity|Box|reproducib|render).*")
        check_env(make_env(name).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("obs", ["state", "pixels", "both"])
def test_pictures_come_from_render(obs):
    env = make(obs=obs, size=6, frame_stack=2, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(infinity|Box|reproducib|render).*")
        check_env(env)
    o = env.reset(seed=0)[0]
    following = env.step(env.action_space.sample())[0]
    if obs == "state":
        assert o.shape == (2,)
        return
    o, following = (x["pixels"] if obs == "both" else x for x in (o, following))
    assert (
        (o[:3] == o[3:]).all()
        and (following[:3] == o[3:]).all()
        and (following[3:] != following[:3]).all()
    )
    assert env.render().shape == (6, 6, 3)


def test_an_observation_that_is_a_picture_is_the_picture():
    env = make(obs="pixels", size=6, observes="picture")
    assert env.reset(seed=0)[0].shape == (3, 6, 6)
    with pytest.raises(ValueError, match="observes pictures, not a state vector: use obs='pixels'"):
        make(observes="picture")
    assert make(observes="dict").reset(seed=0)[0].shape == (4,)  # one-hot key, then the number


def test_the_largest_entry_of_each_one_hot_part_is_the_action():
    env = make()
    env.reset(seed=0)
    assert env.action_groups == (3, 2) and env.action_space == spaces.Box(
        0.0, 1.0, (5,), np.float32
    )
    env.step(np.array([0.1, 0.2, 0.9, 0.0, -1.0]))
    np.testing.assert_array_equal(env._env.unwrapped.last, [7, 0])
    np.testing.assert_array_equal(
        env.executed(np.array([0.1, 0.2, 0.9, 0.0, -1.0])), [0, 0, 1, 1, 0]
    )
    env = make(actions=spaces.Discrete(3, start=-1))
    env.reset(seed=0)
    env.step(np.eye(3)[2])
    assert env._env.unwrapped.last == 1
    env = make(actions=spaces.MultiBinary(2))
    env.reset(seed=0)
    env.step(np.array([0.0, 1.0, 1.0, 0.0]))
    np.testing.assert_array_equal(env._env.unwrapped.last, [1, 0])
    env = make(actions=spaces.Box(np.float32(-2), np.float32(4), (2, 1)))
    env.reset(seed=0)
    env.step(np.array([-3.0, 0.5]))
    np.testing.assert_allclose(env._env.unwrapped.last, [[-2.0], [2.5]])


def test_rewards_add_up_over_action_repeat_until_the_end():
    env = make(action_repeat=8)
    env.reset(seed=0)
    _, reward, terminated, _, _ = env.step(env.action_space.sample())
    assert terminated and 2 <= reward < 8
    env = make(action_repeat=8, terminate=False)
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[1:4] == (8.0, False, False)
    env = make_env("gjwm-test/buttons-v0", terminate=False, max_episode_steps=5)
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[3] for _ in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize(
    "name",
    [
        "Pendulum-v1",
        "CartPole-v1",
        "Acrobot-v1",
        "MountainCarContinuous-v0",
        "HalfCheetah-v5",
        "Ant-v5",
        "Humanoid-v5",
        "buttons",
    ],
)
def test_a_state_brings_back_the_exact_future(name):
    env = make(terminate=False) if name == "buttons" else make_env(name).unwrapped
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (40, *env.action_space.shape))
    env.reset(seed=1)
    for a in actions[:3]:
        env.step(a)
    state, o = env.get_state(), env.observe()
    future = [env.step(a)[:3] for a in actions[3:]]
    env.reset(seed=2)
    env.set_state(state)
    np.testing.assert_array_equal(env.observe(), o)
    np.testing.assert_array_equal(env.get_state(), state)
    twin = copy.deepcopy(env)
    for each in (env, twin):
        for (o, reward, terminated), a in zip(future, actions[3:]):
            now = each.step(a)
            np.testing.assert_array_equal(now[0], o)
            assert now[1:3] == (reward, terminated)
    env.set_state(state)
    paths = env.simulate(state[None], actions[None, None, 3:9])
    path = [env.position]
    for a in actions[3:9]:
        env.step(a)
        path.append(env.position)
    np.testing.assert_array_equal(paths[0, 0], np.asarray(path, np.float32))


def test_position_is_what_success_is_measured_on():
    env = make_env("Pendulum-v1", position=[0, 1], success_radius=0.2).unwrapped
    o, _ = env.reset(seed=0)
    np.testing.assert_allclose(env.position, o[:2])
    assert env.success_radius == 0.2 and set(env.true_state()) == {"position", "observation"}


def test_without_opengl_pictures_of_mujoco_are_refused_with_the_fix(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "off")
    assert make_env("InvertedPendulum-v5").reset(seed=0)[0].shape == (4,)
    with pytest.raises(RuntimeError, match=r"MUJOCO_GL=off leaves no OpenGL.*libegl1"):
        make_env("InvertedPendulum-v5", obs="pixels")


def test_bad_input_is_named():
    env = make_env("Pendulum-v1").unwrapped
    env.reset(seed=0)
    with pytest.raises(
        ValueError, match=r"Pendulum-v1 expects actions of shape \(1,\), got \(2,\)"
    ):
        env.step(np.zeros(2))
    with pytest.raises(ValueError, match="NaN"):
        env.step(np.array([np.nan]))
    with pytest.raises(ValueError, match="get_state"):
        env.set_state(np.zeros(3))
    with pytest.raises(ValueError, match="'sound'"):
        make_env("Pendulum-v1", obs="sound")
    with pytest.raises(ValueError, match="unbounded actions"):
        make(actions=spaces.Box(-np.inf, np.inf, (2,)))
    with pytest.raises(ValueError, match="expected a bounded Box, Discrete"):
        make(actions=spaces.Text(4))
    with pytest.raises(ValueError, match="'hidden'"):
        make_env("Pendulum-v1", hidden=["target"])
    with pytest.raises(gym.error.NameNotFound, match="Pendulm-v1; the nearest id is Pendulum-v"):
        make_env("Pendulm-v1")
    world = make()
    world.reset(seed=0)
    world._env.unwrapped.state = None
    with pytest.raises(ValueError, match="does not say its state"):
        world.get_state()


@pytest.mark.parametrize(
    ("env_id", "hint"),
    [
        ("gjwm/xyzzyqwert-v0", "no environment gjwm/xyzzyqwert-v0; and none of a similar id."),
        ("gjwm/walker-stnd-v0", "nearest id is gjwm/walker-stand-v0."),
        ("CartPole-v9", "nearest id is CartPole-v1."),
        ("pendulum", "nearest id is Pendulum-v1."),
    ],
)
def test_only_an_id_that_is_alike_is_called_the_nearest(env_id, hint):
    with pytest.raises(gym.error.NameNotFound) as error:
        make_env(env_id)
    assert str(error.value).endswith(hint)


def test_a_module_that_is_not_there_is_told_with_the_id():
    with pytest.raises(ModuleNotFoundError, match="coridor:Corridor-v0 cannot be imported: No mod"):
        make_env("coridor:Corridor-v0")


def test_the_id_is_the_name():
    with pytest.raises(ValueError, match="cannot be made with name='x'"):
        make_env("Pendulum-v1", name="x")
