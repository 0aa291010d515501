"""Worker processes import their env by module name, so the small envs here register themselves in a
module of their own.
"""

import os
import sys
import textwrap
import time

import gymnasium as gym
import numpy as np
import pytest
import torch

from gjwm._core.nested import nested
from gjwm.data.acting import FunctionActor
from gjwm.data.behaviours import Coloured, Mixture, Scripted, Uniform, Wandering
from gjwm.data.collect import CHUNK, collect_dataset, collect_episodes, make_env
from gjwm.data.dataset import dataset_info, load_buffer, read_episodes

torch.set_num_threads(1)

MODULE = """
    import os
    import gymnasium as gym
    import numpy as np
    from gymnasium import spaces

    class Drift(gym.Env):
        '''A point on a line, drawn as a grey level, up to the edge; seeds say where it starts.'''

        def __init__(
            self, frame_stack=1, fail_beyond=None, die_beyond=None, die_once=None, largest=1.0
        ):
            self.k, self.fail, self.die = frame_stack, fail_beyond, die_beyond
            self.marker = die_once
            self.observation_space = spaces.Box(0, 255, (frame_stack, 4, 4), np.uint8)
            self.action_space = spaces.Box(-largest, largest, (2,), np.float32)

        def frame(self):
            return np.full((1, 4, 4), int(128 + 40 * self.x), np.uint8)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.x = self.np_random.uniform(-1, 1)
            self.frames = [self.frame()] * self.k
            return np.concatenate(self.frames), {}

        def step(self, action):
            self.x += 0.2 * float(action[0])
            if self.fail is not None and abs(self.x) > self.fail:
                raise ArithmeticError("too far")
            if self.die is not None and abs(self.x) > self.die:
                os._exit(3)
            if self.marker is not None:
                try:
                    open(self.marker, "x").close()
                except FileExistsError:
                    pass
                else:
                    os._exit(3)
            self.frames = [*self.frames[1:], self.frame()]
            return np.concatenate(self.frames), float(self.x), abs(self.x) > 2, False, {}

        def get_state(self):
            return np.array([self.x])

        @property
        def position(self):
            return np.array([self.x])

        def true_state(self):
            return {"x": np.array(self.x)}

        def expert_action(self):
            return np.array([-np.sign(self.x), 0.0])

    gym.register("gjwm-test/drift-v0", Drift)
"""
DRIFT = "drift_env_for_tests:gjwm-test/drift-v0"


@pytest.fixture(scope="module", autouse=True)
def drift(tmp_path_factory):
    folder = tmp_path_factory.mktemp("module")
    (folder / "drift_env_for_tests.py").write_text(textwrap.dedent(MODULE))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield
    sys.modules.pop("drift_env_for_tests", None)
    gym.registry.pop("gjwm-test/drift-v0", None)


def collect(**changes):
    usual = dict(env_id=DRIFT, behaviour=Uniform(), episodes=8, length=12, seed=3, workers=0)
    return list(collect_episodes(**usual | changes))


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        nested(np.testing.assert_array_equal, *(dict(enumerate(each[:5])) for each in (x, y)))


def test_episodes_are_the_same_for_any_number_of_workers_and_any_first_episode():
    mixture = Mixture({Uniform(): 1, Coloured(): 1, Scripted(noise=0.3): 1})
    here = collect(behaviour=mixture)
    assert_same(here, collect(behaviour=mixture, workers=2))
    assert_same(here[3:], collect(behaviour=mixture, episodes=range(3, 8)))
    assert len({e.o.tobytes() for e in here}) == 8
    for a, b in zip(here, collect(behaviour=mixture, seed=4)):
        assert not np.array_equal(a.o[0], b.o[0]) or not np.array_equal(a.a, b.a)


def test_an_episode_has_one_observation_more_than_actions_and_ends_once():
    episodes = collect(behaviour=Coloured(scale=3), length=30, record_state=True)
    for e in episodes:
        steps = len(e.a)
        assert e.o.shape == (steps + 1, 1, 4, 4) and e.a.dtype == e.r.dtype == np.float32
        assert e.terminated[-1] != e.truncated[-1]
        assert not (e.terminated | e.truncated)[:-1].any()
        assert e.terminated[-1] == (abs(e.r[-1]) > 2)
        x = e.sim_state[:, 0]
        assert e.sim_state.shape == e.position.shape == (steps + 1, 1)
        np.testing.assert_allclose(e.r, x[1:], rtol=1e-6)
        np.testing.assert_allclose(np.diff(x), 0.2 * e.a[:, 0], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(e.true_state["x"], x)
        np.testing.assert_array_equal(e.o[:, 0, 0, 0], (128 + 40 * x).astype(np.uint8))
    assert any(e.terminated[-1] for e in episodes) and any(e.truncated[-1] for e in episodes)


class ToAndFro:
    """140 steps to and fro, then off to the edge."""

    def start(self, length, action_dim, rngs):
        def act(o, info):
            return np.array([[1.0 if info.step % 2 or info.step > 140 else -1.0, 0.0]])

        return FunctionActor(act)


def test_an_episode_takes_the_memory_of_the_steps_it_has():
    (whole,) = collect(episodes=1, length=10**13, behaviour=ToAndFro())
    assert 140 < len(whole.a) < 160 and whole.terminated[-1]
    assert whole.o.shape == (len(whole.a) + 1, 1, 4, 4) and whole.o.base.nbytes == whole.o.nbytes
    x = whole.r[0] - 0.2 * whole.a[0, 0] + 0.2 * np.r_[0, whole.a[:, 0].cumsum()]
    assert np.abs(whole.o[:, 0, 0, 0] - (128 + 40 * x)).max() < 1.1
    for length in (62, 63, 64, 127):
        (part,) = collect(episodes=1, length=length, behaviour=ToAndFro())
        np.testing.assert_array_equal(part.o, whole.o[: length + 1])


def test_stacked_observations_are_those_of_the_env(tmp_path):
    kwargs = {"frame_stack": 3}
    (episode,) = collect(env_kwargs=kwargs, episodes=1)
    env = make_env(DRIFT, **kwargs)
    seed = int(np.random.SeedSequence([3, 0]).spawn(2)[0].generate_state(1)[0] >> 1)
    o = [env.reset(seed=seed)[0], *(env.step(a)[0] for a in episode.a)]
    np.testing.assert_array_equal(episode.o, np.stack(o))
    collect_dataset(tmp_path, DRIFT, kwargs, episodes=1, length=12, seed=3, workers=0)
    assert_same([episode], list(read_episodes(tmp_path)))
    buffer = load_buffer(tmp_path)
    np.testing.assert_array_equal(buffer.sample(1, len(episode.a)).o[0].numpy(), episode.o)


def test_a_dataset_collected_in_parts_is_the_dataset_collected_at_once(tmp_path):
    common = dict(length=12, seed=3, workers=0, shard_bytes=800)
    for part in (3, 5):
        report = collect_dataset(tmp_path / "parts", DRIFT, episodes=part, **common)
        assert report["episodes"] == part and report["frames"] > part
        assert report["frames_per_second"] > 0
    collect_dataset(tmp_path / "once", DRIFT, episodes=8, **common)
    assert_same(list(read_episodes(tmp_path / "parts")), list(read_episodes(tmp_path / "once")))
    info = dataset_info(tmp_path / "parts")
    assert info["episodes"] == 8 and len(info["shards"]) > 2
    assert info["versions"]["gymnasium"] == gym.__version__
    with pytest.raises(ValueError, match="cannot be extended with env_kwargs"):
        collect_dataset(tmp_path / "once", DRIFT, {"frame_stack": 2}, episodes=1, **common)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_episode_is_named_and_the_finished_ones_are_kept(tmp_path, workers):
    kwargs = {"fail_beyond": 1.6}
    common = dict(episodes=40, length=20, seed=3)
    with pytest.raises(RuntimeError, match=r"episode \d+ of .*ArithmeticError: too far") as caught:
        collect_dataset(tmp_path, DRIFT, kwargs, Coloured(scale=2), workers=workers, **common)
    failed = int(str(caught.value).split()[1])
    kept = dataset_info(tmp_path)["episodes"]
    # A worker hands over several episodes at a time.
    assert kept == failed if workers == 0 else kept == failed - failed % CHUNK


def test_a_worker_that_dies_again_and_again_does_not_hang():
    since = time.monotonic()
    with (
        pytest.warns(RuntimeWarning, match="exit code 3"),
        pytest.raises(RuntimeError, match="so did the one before it"),
    ):
        collect(env_kwargs={"die_beyond": 0.5}, workers=1, length=50)
    assert time.monotonic() - since < 60


def test_episodes_lost_with_a_worker_are_recorded_again(tmp_path):
    expected = collect()
    marker = tmp_path / "died"
    said = r"exit code 3\) in episodes \d to \d of .*a new one records them"
    with pytest.warns(RuntimeWarning, match=said) as caught:
        assert_same(expected, collect(env_kwargs={"die_once": str(marker)}, workers=2))
    assert marker.exists() and len(caught) == 1


def test_impossible_requests_are_one_sentence(tmp_path):
    for name, value in [("episodes", 0), ("episodes", 2.5), ("length", "8"), ("workers", "all")]:
        with pytest.raises(ValueError, match=f"^{name} must be .*a whole number, .* got {value!r}"):
            collect(**{name: value})
    with pytest.raises(ValueError, match="episodes must be a whole number"):
        collect(episodes=range(0))
    with pytest.raises(ValueError, match="unbounded actions"):
        collect(env_kwargs={"largest": np.inf})
    with pytest.raises(RuntimeError, match="no expert_action"):
        collect(env_id="MountainCarContinuous-v0", behaviour=Scripted(), episodes=1)


def test_discrete_actions_are_recorded_one_hot_as_they_were_carried_out():
    (episode,) = collect(
        env_id="CartPole-v1", behaviour=Coloured(), episodes=1, length=8, record_state=True
    )
    assert set(episode.a.ravel().tolist()) == {0.0, 1.0} and (episode.a.sum(1) == 1).all()
    env = gym.make("CartPole-v1").unwrapped
    env.reset(seed=0)
    env.state = tuple(episode.sim_state[0, :4])
    for t, action in enumerate(episode.a):
        np.testing.assert_array_equal(env.step(int(action.argmax()))[0], episode.o[t + 1])


@pytest.mark.parametrize("renderer", [None, "faithful"])
def test_a_dataset_keeps_the_renderer(tmp_path, renderer):
    kwargs = {"obs": "pixels", "size": 16} | ({"renderer": renderer} if renderer else {})
    arguments = dict(episodes=1, length=2, workers=0)
    collect_dataset(tmp_path, "gjwm/pendulum-swingup-v0", kwargs, **arguments)
    assert dataset_info(tmp_path)["renderer"].split()[0] == (renderer or "fast")
    with pytest.raises(ValueError, match="cannot be extended"):
        other = {"obs": "pixels", "size": 16, "renderer": "fast" if renderer else "faithful"}
        collect_dataset(tmp_path, "gjwm/pendulum-swingup-v0", other, **arguments)


def test_actions_lie_in_the_unit_box_whatever_the_bounds_of_the_env():
    (episode,) = collect(env_id="Pendulum-v1", behaviour=Coloured(), episodes=1, length=20)
    assert np.abs(episode.a).max() <= 1
    env = gym.make("Pendulum-v1").unwrapped
    env.reset(seed=0)
    cosine, sine, env.state[1] = episode.o[0]
    env.state[0] = np.arctan2(sine, cosine)
    for t, action in enumerate(episode.a):
        o = env.step(2 * action)[0]  # Pendulum's torques lie in [-2, 2]
        np.testing.assert_allclose(o, episode.o[t + 1], atol=1e-4)


@pytest.mark.parametrize(
    "behaviour", [Uniform(), Mixture({Scripted(noise=0.3): 1, Coloured(): 1}), Wandering()]
)
def test_torch_native_episodes_have_equal_length_and_do_not_depend_on_their_batch(behaviour):
    arguments = dict(
        env_id="gjwm/two-room-v0", env_kwargs={"obs": "both", "frame_stack": 2}, behaviour=behaviour
    )
    together = collect(**arguments, episodes=6, length=70, record_state=True)
    alone = collect(**arguments, episodes=range(4, 5), length=70)
    assert_same(together[4:5], alone)
    for e in together:
        assert e.o["pixels"].shape == (71, 6, 64, 64) and e.a.shape == (70, 2)
        assert not e.terminated.any() and e.truncated.tolist() == [False] * 69 + [True]
        np.testing.assert_allclose(e.sim_state[:, :2], e.position)
        # Agent and goal never jump: no autoreset happened on the way.
        assert np.abs(np.diff(e.position, axis=0)).max() < 0.1
        assert (e.sim_state[:, 2:4] == e.sim_state[0, 2:4]).all()
    assert np.abs(together[0].position - together[1].position).max() > 0.01


def test_a_torch_native_time_limit_shortens_the_recording():
    (episode,) = collect(env_id="gjwm/two-room-v0", env_kwargs={"max_episode_steps": 9}, episodes=1)
    assert len(episode.a) == 9


def test_control_suite_episodes_are_the_same_in_a_worker_process():
    kwargs = {"obs": "pixels", "size": 32, "frame_stack": 2}
    arguments = dict(env_id="gjwm/reacher-easy-v0", env_kwargs=kwargs, episodes=6, length=5)
    here = collect(**arguments, record_state=True)
    assert_same(here, collect(**arguments, workers=1))
    env = make_env(arguments["env_id"], **arguments["env_kwargs"])
    try:
        for e in here:
            assert e.o.shape == (6, 6, 32, 32)
            assert (e.o[0, :3] == e.o[0, 3:]).all() and (e.o[1:, :3] == e.o[:-1, 3:]).all()
            env.reset(seed=0)
            env.unwrapped.set_state(e.sim_state[3])
            np.testing.assert_allclose(env.unwrapped.position, e.position[3])
            np.testing.assert_array_equal(env.unwrapped.observe()[3:], e.o[3, 3:])
    finally:
        env.close()
