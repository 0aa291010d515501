"""Claims about films of the episodes that earned most and least."""

import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from gjwm._core.video import read_video
from gjwm.data.acting import RandomActor, Recorder
from gjwm.rl.films import film_extremes
from gjwm.rl.returns import play_returns


class Walk(gym.Env):
    """A point x on a line, moved by the action and a little by chance, which earns x - 1 at a step
    and ends an episode beyond 2; drawn as a picture as grey as x.
    """

    observation_space = spaces.Box(-9, 9, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1)
        return np.array([self.x], np.float32), {}

    def step(self, action):
        self.x += 0.5 * float(action[0]) + 0.1 * self.np_random.standard_normal()
        ended = abs(self.x) > 2
        return np.array([self.x], np.float32), self.x - 1, ended, False, {}

    def render(self):
        return np.full((40, 32, 3), np.clip(128 + 60 * self.x, 0, 255), np.uint8)


class Restless(Walk):
    """Chance that no seed decides."""

    def step(self, action):
        o, r, *rest = super().step(action)
        return o, r + np.random.default_rng().standard_normal(), *rest


for made in (Walk, Restless):
    gym.register(f"test/{made.__name__}-v0", made, max_episode_steps=30)


def played(env_id, **options):
    """What is measured, and what it is filmed from."""
    recorder = Recorder(RandomActor(1, np.random.default_rng(0)))
    returns, _ = play_returns(recorder, env_id, {}, episodes=5, seed=7, **options)
    return dict(returns=returns, actions=recorder.actions, seed=7)


def test_the_best_and_the_worst_episode_are_filmed_as_they_were(tmp_path):
    measured = played("test/Walk-v0")
    best, worst = film_extremes(tmp_path, "test/Walk-v0", {}, **measured)
    assert (best.name, worst.name) == ("best.mp4", "worst.mp4")
    for path, index in (
        (best, measured["returns"].argmax()),
        (worst, measured["returns"].argmin()),
    ):
        env = gym.make("test/Walk-v0")
        o, _ = env.reset(seed=7 + int(index))
        seen, ended = [o[0]], False
        while not ended:
            o, _, terminated, truncated, _ = env.step(measured["actions"][index, len(seen) - 1])
            seen, ended = [*seen, o[0]], terminated or truncated
        frames = np.stack([*read_video(path)])
        assert frames.shape[:1] == (len(seen),) and frames.shape[2] == 128
        middle = frames[:, 60:140, 20:100].mean((1, 2, 3))
        np.testing.assert_allclose(middle, np.clip(128 + 60 * np.array(seen), 0, 255), atol=4)
        assert path.stat().st_size < 100_000


def test_films_are_no_longer_than_500_frames_and_end_with_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr("gjwm.rl.films._FRAMES", 7)
    measured = played("test/Walk-v0")
    for path in film_extremes(tmp_path, "test/Walk-v0", {}, **measured):
        assert len([*read_video(path)]) == 7


def test_an_episode_that_does_not_repeat_is_no_film(tmp_path):
    (tmp_path / "best.mp4").write_text("of a run before")
    with pytest.raises(ValueError, match="when it was played again"):
        film_extremes(tmp_path, "test/Restless-v0", {}, **played("test/Restless-v0"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("obs", ["state", "pixels"])
def test_a_control_tasks_episodes_repeat(tmp_path, obs):
    """Measured in a batch of simulators or in a worker, and played again in a simulator alone."""
    kwargs = {"obs": obs, "action_repeat": 2, "max_episode_steps": 25}
    recorder = Recorder(RandomActor(1, np.random.default_rng(0)))
    name = "gjwm/cartpole-swingup-v0"
    returns, _ = play_returns(recorder, name, kwargs, episodes=3, seed=5, workers=0)
    options = dict(returns=returns, actions=recorder.actions, seed=5)
    for path in film_extremes(tmp_path, name, kwargs, **options):
        frames = np.stack([*read_video(path)])
        assert len(frames) == 26 and frames.std() > 10 and math.isfinite(frames.mean())
