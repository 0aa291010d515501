"""Claims about what predictions are measured against: a linear law is exact where the world is
linear, noise is measured.
"""

import gymnasium
import numpy as np
import pytest
import torch

from gjwm.data.acting import make_vec
from gjwm.data.collect import Episode, collect_episodes
from gjwm.evaluation.baselines import linear_gaussian_report, noise_floor, open_loop_windows
from gjwm.models.dynamics import GaussianDynamics
from gjwm.models.world_model import WorldModel


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def trajectories(step, episodes=200, steps=20):
    z, a = (
        [torch.randn(episodes, 3, generator=g(1))],
        0.5 * torch.randn(episodes, steps, 2, generator=g(2)),
    )
    for t in range(steps):
        z.append(step(z[-1], a[:, t], torch.randn(episodes, 3, generator=g(3 + t))))
    return torch.stack(z, 1), a


def test_the_linear_law_is_exact_in_a_linear_world_and_not_in_another():
    mix = torch.tensor([[0.9, 0.2, 0.0], [-0.2, 0.9, 0.0], [0.0, 0.1, 0.8]])
    push = torch.tensor([[0.3, 0.0], [0.0, 0.3], [0.2, 0.2]])
    z, a = trajectories(lambda z, a, e: z @ mix.T + a @ push.T)
    report = linear_gaussian_report(z, a, horizon=8)
    assert min(report["r2_by_horizon"]) > 0.999
    assert len(report["r2_ci95_by_horizon"][0]) == 8
    z, a = trajectories(lambda z, a, e: torch.sin(3 * z) + a @ push.T)
    assert linear_gaussian_report(z, a, horizon=8)["r2_by_horizon"][-1] < 0.5


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_the_skill_of_the_linear_law_in_a_noisy_linear_world_is_what_it_knows_of_z(scale):
    z, a = trajectories(lambda z, a, e: 0.9 * z + 0.3 * e, episodes=600)
    report = linear_gaussian_report(scale * z, a, horizon=2)
    known = 0.5 * (z[300:, 1:].flatten(0, 1).var(0) / 0.3**2).log().mean().item()
    assert report["skill_nats_per_dim"] == pytest.approx(known, abs=0.01)


def test_the_linear_law_shows_no_skill_on_collapsed_latents():
    z, a = trajectories(lambda z, a, e: 0.9 * z + 0.3 * e)
    assert linear_gaussian_report(2.6e-5 * z, a, horizon=2)["skill_nats_per_dim"] < -1


def test_windows_are_half_a_horizon_apart_and_whole():
    z, a = torch.arange(21.0).view(1, 21, 1), torch.arange(20.0).view(1, 20, 1)
    truth, actions, starts = open_loop_windows(z, a, 8)
    assert starts == [0, 4, 8, 12] and truth.shape == (1, 4, 9, 1) and actions.shape == (1, 4, 8, 1)
    assert truth[0, 3, 0] == actions[0, 3, 0] == 12


class Position(torch.nn.Module):
    """z is the position alone: what is left unpredictable is exactly the world's noise."""

    latent_dim = 2

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, o):
        return self.scale * o[..., :2]


class Drift(gymnasium.Env):
    """x' = 0.9 x + 0.1 a + noise of standard deviation 0.3, in two dimensions."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=2)
        return self.observe(), {}

    def get_state(self):
        return self.x.copy()

    def set_state(self, state):
        self.x = np.array(state)

    def observe(self):
        return self.x.astype(np.float32)

    def step(self, action):
        self.x = 0.9 * self.x + 0.1 * action + 0.3 * self.np_random.normal(size=2)
        return self.observe(), 0.0, False, False, {}


gymnasium.register("test/Drift-v0", entry_point=Drift)


def lanes(count):
    return make_vec("test/Drift-v0", count)


def recorded(env, count, steps):
    for i in range(count):
        o, a = [env.reset(seed=i)[0]], env.np_random.uniform(-1, 1, (steps, 2)).astype(np.float32)
        o += [env.step(action)[0] for action in a]
        yield Episode(np.stack(o), a, None, None, None, np.stack(o).astype(np.float64))


def world_of(encoder):
    return WorldModel(encoder, GaussianDynamics(2, 2)).eval()


def test_the_floor_of_a_noisy_world_is_its_noise():
    env = Drift()
    episodes = list(recorded(env, 600, 12))
    floor = noise_floor(world_of(Position()), lanes(600), episodes, horizon=8)
    variance = np.stack([e.o for e in episodes]).reshape(-1, 2).var(0, ddof=1).sum()
    noise = 2 * 0.09 * (1 - 0.81 ** np.arange(1, 9)) / 0.19
    assert not floor["deterministic"]
    np.testing.assert_allclose(floor["r2_by_horizon"], 1 - noise / variance, atol=0.05)


def test_a_deterministic_world_has_no_noise():
    settings = {"obs": "state", "terminate_on_goal": False}
    episodes = list(
        collect_episodes("gjwm/two-room-v0", settings, episodes=8, length=24, record_state=True)
    )
    envs = make_vec("gjwm/two-room-v0", 8, **settings)
    floor = noise_floor(world_of(Position()), envs, episodes, horizon=8)
    assert (
        floor["deterministic"] and min(floor["r2_by_horizon"]) > 1 - 1e-6 and floor["windows"] == 8
    )


def test_steps_whose_frame_stack_still_shows_the_restart_have_no_floor():
    episodes = list(recorded(Drift(), 8, 12))
    floor = noise_floor(world_of(Position()), lanes(8), episodes, horizon=4, frame_stack=3)
    assert [r2 is None for r2 in floor["r2_by_horizon"]] == [True, False, False, False]
