import types

import numpy as np
import pytest

from gjwm.data.acting import Moment
from gjwm.data.behaviours import (
    Coloured,
    Mixture,
    Scripted,
    Uniform,
    Wandering,
    behaviour_from_weights,
    noise_sequence,
)
from gjwm.envs.point_maze import PointMazeEnv
from gjwm.envs.push import PushEnv
from gjwm.envs.two_room import TwoRoomVectorEnv

T, A = 64, 2


def rngs(n, seed=0):
    return [np.random.default_rng([seed, i]) for i in range(n)]


def actions(behaviour, generators, env=None, length=T):
    actor = behaviour.start(length, A, generators)
    return np.stack([actor.act(None, Moment(env, t)) for t in range(length)], 1)  # (N, T, A)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_noise_sequence_has_unit_variance_and_spectrum_slope_minus_beta(beta):
    noise = np.stack([noise_sequence(512, 3, beta, rng) for rng in rngs(200)])
    assert noise.var() == pytest.approx(1, abs=0.1)
    # A window keeps the strong low frequencies from leaking into the weak high ones.
    power = (np.abs(np.fft.rfft(noise * np.hanning(512)[:, None], axis=1)) ** 2).mean((0, 2))
    band = slice(8, 200)
    slope = np.polyfit(np.log(np.fft.rfftfreq(512)[band]), np.log(power[band]), 1)[0]
    assert slope == pytest.approx(-beta, abs=0.1)


@pytest.mark.parametrize(
    "behaviour", [Uniform(), Coloured(), Coloured(beta=1.0, scale=3.0), Mixture({Uniform(): 1})]
)
def test_actions_are_float32_within_bounds(behaviour):
    a = actions(behaviour, rngs(20))
    assert a.shape == (20, T, A) and a.dtype == np.float32
    assert np.abs(a).max() <= 1 and a.std() > 0.3


@pytest.mark.parametrize(
    "behaviour", [Uniform(), Coloured(), Mixture({Uniform(): 1, Coloured(): 1})]
)
def test_an_episode_depends_on_its_generator_and_not_on_its_company(behaviour):
    together = actions(behaviour, rngs(6))
    np.testing.assert_array_equal(together[3:4], actions(behaviour, rngs(6)[3:4]))
    assert not np.array_equal(together[0], together[1])


def test_coloured_actions_drift_and_uniform_ones_do_not():
    def lag_one(a):
        return np.mean(a[:, 1:] * a[:, :-1]) / np.mean(a**2)

    assert lag_one(actions(Coloured(beta=2.0), rngs(100))) > 0.9
    assert abs(lag_one(actions(Uniform(), rngs(100)))) < 0.05


def test_a_mixture_chooses_one_behaviour_per_episode_in_proportion():
    still, moving = Coloured(scale=0.0), Uniform()
    a = actions(Mixture({still: 3, moving: 1}), rngs(400))
    resting = (a == 0).all((1, 2))
    assert resting.mean() == pytest.approx(0.75, abs=0.06)
    assert (a[~resting] != 0).all()  # no episode is part one, part the other
    with pytest.raises(ValueError, match="weights >= 0"):
        Mixture({still: 0.0})
    assert "Uniform(): 0.25" in repr(Mixture([(still, 3), (moving, 1)]))


def test_scripted_follows_the_expert_with_noise_and_stays_in_bounds():
    env = types.SimpleNamespace(expert_action=lambda: np.array([[0.5, -0.5], [1.0, 0.0]]))
    env.unwrapped = env
    exact = actions(Scripted(noise=0), rngs(2), env)
    assert (exact == np.array([[[0.5, -0.5]], [[1.0, 0.0]]], np.float32)).all()
    noisy = actions(Scripted(noise=0.2), rngs(2), env, length=2000)
    assert noisy[0].mean(0) == pytest.approx([0.5, -0.5], abs=0.03)
    assert noisy[0].std(0) == pytest.approx([0.2, 0.2], abs=0.03)
    assert noisy.max() <= 1
    nobody = types.SimpleNamespace()
    nobody.unwrapped = nobody
    with pytest.raises(ValueError, match="no expert_action"):
        actions(Scripted(), rngs(1), nobody)


def test_wandering_walks_straight_into_the_wall_and_through_the_door():
    env = TwoRoomVectorEnv(
        num_envs=200, obs="state", wall="random", door="random", terminate_on_goal=False
    )
    o = env.reset(seed=0)[0]
    actor = Wandering().start(50, 2, rngs(200))
    blocked, crossed = np.zeros(200), np.zeros(200)
    for t in range(50):
        a = actor.act(o, Moment(env, t))
        assert a.dtype == np.float32 and np.abs(a).max() <= 1
        before, o = o, env.step(a)[0]
        wall_x = o[:, 4]
        at_wall = np.abs(before[:, 0] - wall_x) < 0.1
        blocked += at_wall & (np.abs(o[:, 0] - before[:, 0] - 0.04 * a[:, 0]) > 1e-3)
        crossed += (o[:, 0] > wall_x) != (before[:, 0] > wall_x)
    # of 50 steps; aimless noise is blocked on 10 and crosses less than once
    assert blocked.mean() > 15 and crossed.mean() > 1


def test_wandering_says_what_it_lacks():
    nobody = types.SimpleNamespace()
    nobody.unwrapped = nobody
    with pytest.raises(ValueError, match="no random_place"):
        actions(Wandering(), rngs(1), nobody)
    with pytest.raises(ValueError, match="PointMazeWorld has no random_place"):
        actions(Wandering(), rngs(1), PointMazeEnv(obs="state"))
    with pytest.raises(ValueError, match="2 actions and 4 coordinates"):
        actions(Wandering(), rngs(1), PushEnv(obs="state"))
    for wrong in (dict(noise=-1), dict(patience=0), dict(near=0.0)):
        with pytest.raises(ValueError, match="Wandering expects"):
            Wandering(**wrong)


def test_settings_name_behaviours_their_weights_and_arguments():
    assert behaviour_from_weights({"coloured": 1.0}) == Coloured()
    mixture = behaviour_from_weights({"scripted": {"weight": 3, "noise": 0.1}, "uniform": 1})
    assert mixture.behaviours == [Scripted(noise=0.1), Uniform()]
    assert mixture.probabilities.tolist() == [0.75, 0.25]
    for wrong, match in [
        ({"pink": 1}, "no behaviour 'pink'"),
        ({"uniform": {"beta": 1}}, "does not take"),
        ({"uniform": -1}, "weights >= 0"),
        ({}, "weights >= 0"),
    ]:
        with pytest.raises(ValueError, match=match):
            behaviour_from_weights(wrong)
