"""What every torch-native world keeps: Gymnasium's contract, one episode per seed, and a batch that
is its members.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import gjwm.envs  # noqa: F401
from gjwm.data.behaviours import Scripted
from gjwm.data.collect import collect_episodes
from gjwm.envs import torch_world

IDS = (
    "two-room",
    "two-room-slippery",
    "two-room-noisy",
    "point-maze",
    "push",
    "torch-pendulum-swingup",
    "torch-cartpole-swingup",
)
NOISY = ("two-room-slippery", "two-room-noisy")
worlds = pytest.mark.parametrize("name", IDS)


def single(name: str, **kwargs):
    return gym.make(f"gjwm/{name}-v0", **kwargs).unwrapped


def vector(name: str, n: int, **kwargs):
    return gym.make_vec(
        f"gjwm/{name}-v0", num_envs=n, vectorization_mode="vector_entry_point", **kwargs
    )


def actions_of(seed: int, env, *shape: int) -> np.ndarray:
    """Actions that hold for a few steps, so that things are met."""
    rng, width = (
        np.random.default_rng(seed),
        getattr(env, "single_action_space", env.action_space).shape[0],
    )
    return np.repeat(rng.uniform(-1.2, 1.2, (-(-shape[0] // 5), *shape[1:], width)), 5, 0)[
        : shape[0]
    ].astype(np.float32)


def equal(a, b) -> bool:
    return all(equal(a[k], b[k]) for k in a) if isinstance(a, dict) else np.array_equal(a, b)


# -- Gymnasium -------------------------------------------------------------------------------------


@worlds
@pytest.mark.parametrize("obs", ["pixels", "state", "both"])
@pytest.mark.filterwarnings("error")
def test_gymnasium_checks_pass_without_warnings(name, obs):
    check_env(single(name, obs=obs, render_mode="rgb_array"), skip_render_check=False)


@pytest.mark.parametrize("maze", ["open", "u", "cross", "rooms", "medium", "spiral"])
def test_every_maze_has_an_id(maze):
    env = single(f"point-maze-{maze}")
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation) and np.array_equal(
        env.get_state()[2:4], [0, 0]
    )


@worlds
@pytest.mark.parametrize("obs", ["pixels", "state", "both"])
def test_a_vector_environment_is_gymnasiums_own_of_its_members(name, obs):
    """Bit for bit through autoresets, with the same last observations, spaces, flags and infos."""
    n, kwargs = 4, dict(obs=obs, size=32, frame_stack=2, max_episode_steps=7)
    # gym.make would keep max_episode_steps for a wrapper.
    make = type(single(name))
    kwargs |= gym.spec(f"gjwm/{name}-v0").kwargs
    sync = SyncVectorEnv([lambda: make(**kwargs)] * n, autoreset_mode=AutoresetMode.SAME_STEP)
    ours = vector(name, n, **kwargs)
    assert ours.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert (
        ours.observation_space == sync.observation_space and ours.action_space == sync.action_space
    )
    expected, got = sync.reset(seed=3)[0], ours.reset(seed=3)[0]
    assert equal(expected, got) and ours.observation_space.contains(got)
    ended = 0
    for action in actions_of(0, ours, 16, n):
        expected, *flags, expected_info = sync.step(action)
        got, *ours_flags, info = ours.step(action)
        assert equal(expected, got) and ours.observation_space.contains(got)
        assert all(np.array_equal(a, b) for a, b in zip(flags, ours_flags))
        assert not ours_flags[1].any() or "torch" not in name  # swing-ups never terminate
        assert ("final_obs" in info) == ("final_obs" in expected_info)
        for i in np.flatnonzero(info.get("_final_obs", [])):
            assert equal(info["final_obs"][i], expected_info["final_obs"][i])
            ended += 1
    assert ended >= 2 * n


@pytest.mark.slow
def test_a_seed_plays_the_same_episode_also_in_another_process():
    here = [fingerprint(name) for name in IDS]
    assert here == [fingerprint(name) for name in IDS]
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_torch_worlds as t; print(*(t.fingerprint(name) for name in t.IDS))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == here, done.stderr


def fingerprint(name: str) -> str:
    env, digest = single(name, obs="both", size=32), hashlib.sha256()
    observation, _ = env.reset(seed=5)
    for action in actions_of(1, env, 30):
        digest.update(observation["pixels"].tobytes() + observation["state"].tobytes())
        observation, *_ = env.step(action)
    return digest.hexdigest()


@worlds
def test_later_episodes_and_other_seeds_differ(name):
    env = single(name, obs="state")
    first, second = env.reset(seed=0)[0], env.reset()[0]
    assert not np.array_equal(first, second) and not np.array_equal(env.reset(seed=1)[0], first)
    assert np.array_equal(env.reset(seed=0)[0], first) and np.array_equal(env.reset()[0], second)
    entropy = [single(name, obs="state").reset()[0] for _ in range(2)]
    assert not np.array_equal(*entropy)
    named = vector(name, 3, obs="state").reset(seed=[0, 1, 0])[0]
    assert np.array_equal(named[0], named[2]) and not np.array_equal(named[0], named[1])
    starts = vector(name, 500, obs="state").reset(seed=0)[0]
    assert len(np.unique(starts, axis=0)) == 500


@worlds
def test_a_state_goes_on_identically_for_100_steps(name):
    """What get_state returns is all there is, the noise to come included."""
    kwargs = dict(
        gym.spec(f"gjwm/{name}-v0").kwargs,
        obs="state",
        terminate_on_goal=False,
        max_episode_steps=500,
    )
    make = type(single(name))
    env, other = make(**kwargs), make(**kwargs)
    env.reset(seed=0), other.reset(seed=99)
    actions = actions_of(2, env, 120)
    for action in actions[:20]:
        env.step(action)
    state = env.get_state()
    other.set_state(state)
    assert np.array_equal(other.get_state(), state)
    for action in actions[20:]:
        (observation, reward, *_), (expected, due, *_) = env.step(action), other.step(action)
        assert np.array_equal(observation, expected) and reward == due
    env.set_state(state)
    for action in actions[20:]:
        env.step(action)
    assert np.array_equal(env.get_state(), other.get_state())


@worlds
def test_time_limits_truncate_and_repeats_stop_at_them(name):
    make, kwargs = type(single(name)), gym.spec(f"gjwm/{name}-v0").kwargs
    env = make(**kwargs, obs="state", max_episode_steps=3, action_repeat=2)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, np.float32)
    assert [env.step(action)[2:4] for _ in range(3)] == [
        (False, False),
        (False, False),
        (False, True),
    ]
    whole = make(**kwargs, obs="state")
    assert whole._worlds.limit == {"two-room": 100, "point-maze": 200, "push": 100}.get(
        name.removesuffix("-slippery").removesuffix("-noisy"), 1000
    )
    uneven = make(**kwargs, obs="state", action_repeat=whole._worlds.limit - 1)
    uneven.reset(seed=0)
    assert [uneven.step(action)[3] for _ in range(2)] == [False, True]
    assert uneven._worlds.elapsed.item() == whole._worlds.limit


@pytest.mark.parametrize("name", [name for name in IDS if name not in NOISY])
def test_an_action_repeated_is_the_action_given_again(name):
    once, thrice = single(name, obs="state"), single(name, obs="state", action_repeat=3)
    once.reset(seed=0), thrice.reset(seed=0)
    for action in actions_of(3, once, 10):
        reward = sum(once.step(action)[1] for _ in range(3))
        got, total, *_ = thrice.step(action)
        assert np.array_equal(once.observe(), got) and total == pytest.approx(reward, abs=1e-5)


def test_an_episode_that_ends_within_a_repeat_stays_as_it_ended():
    env = gym.make_vec(
        "gjwm/point-maze-open-v0",
        num_envs=2,
        vectorization_mode="vector_entry_point",
        action_repeat=8,
    )
    env.reset(seed=0)
    start = [0.5, 0.5, 0.0, 0.0, 0.57, 0.5]
    env.set_state(np.array([start, [*start[:4], 0.2, 0.2]]))
    _, reward, terminated, _, info = env.step(np.array([[1, 0], [1, 0]], np.float32))
    assert reward.tolist() == [1.0, 0.0] and terminated.tolist() == [True, False]
    last = env.unwrapped._worlds
    assert last.elapsed[1] == 8 and info["_final_obs"].tolist() == [True, False]


@worlds
def test_frame_stacks_hold_the_last_pictures_oldest_first(name):
    stacked, plain = single(name, frame_stack=3, size=32), single(name, size=32)
    first, frame = stacked.reset(seed=2)[0], plain.reset(seed=2)[0]
    frames = [frame] * 3
    assert np.array_equal(first, np.concatenate(frames))
    for action in actions_of(4, stacked, 5):
        frames = [*frames[1:], plain.step(action)[0]]
        assert np.array_equal(stacked.step(action)[0], np.concatenate(frames))


# -- rollouts --------------------------------------------------------------------------------------


@worlds
def test_simulate_equals_stepping_and_changes_nothing(name):
    repeat = 1 if name in NOISY else 2
    env = vector(name, 5, obs="state", action_repeat=repeat, terminate_on_goal=False)
    if name in NOISY:
        env = vector(name, 5, obs="state", terminate_on_goal=False, slip=0.0, wind=0.0)
    env.reset(seed=0)
    states = env.get_state()
    # (B, N, H, A)
    actions = np.stack([actions_of(k, env, 12, 5) for k in range(3)], 0).transpose(2, 0, 1, 3)
    positions, returns = env.simulate(states, actions), env.simulate_return(states, actions)
    assert (
        positions.shape[:3] == (5, 3, 13)
        and positions.dtype == np.float32
        and returns.shape == (5, 3)
    )
    assert np.array_equal(env.get_state(), states)
    tensors = env.simulate(torch.from_numpy(states), torch.from_numpy(actions))
    assert isinstance(tensors, torch.Tensor) and np.array_equal(tensors.numpy(), positions)
    for n in range(3):
        env.set_state(states)
        total = np.zeros(5, np.float32)
        for t in range(12):
            assert np.array_equal(positions[:, n, t], env.position.astype(np.float32))
            total += env.step(actions[:, n, t])[1]
        assert np.allclose(positions[:, n, 12], env.position) and np.allclose(
            returns[:, n], total, atol=1e-5
        )


@pytest.mark.parametrize("name", NOISY)
def test_simulated_noise_has_the_worlds_own_spread(name):
    env = vector(name, 4000, obs="state", terminate_on_goal=False)
    env.reset(seed=0)
    y = 0.35 if "slippery" in name else 0.5
    state = np.array([[0.5, y, 0.9, 0.9, 0.5, 0.8 if "slippery" in name else 0.5]])
    env.set_state(state.repeat(4000, 0))
    env.step(np.zeros((4000, 2), np.float32))
    outcomes = env.simulate(
        state,
        np.zeros((1, 1, 1, 2), np.float32),
        particles=4000,
        generator=torch.Generator().manual_seed(0),
    )[0, 0, :, -1]
    assert (
        np.allclose(env.position.std(0), outcomes.std(0), rtol=0.06) and outcomes.std(0)[0] > 0.03
    )


@worlds
def test_gradients_of_a_rollout_agree_with_finite_differences(name):
    """float64, with an action held for some steps: through drag, gravity, walls that stop and
    contacts that slide.
    """
    world = single(name, obs="state")._worlds
    world.seed(0)
    rng, checked = np.random.default_rng(0), 0
    for seed in range(6):
        world.seed(seed)
        world.begin()
        state = tuple(plane.double() for plane in world.planes)

        def end(a: torch.Tensor, state=state) -> torch.Tensor:
            s = state
            for _ in range(10):
                s = world.advance(s, tuple(a[:, None]))
            return torch.cat(world.position_of(s)).sum() + sum(p.square().sum() for p in s)

        a = torch.tensor(rng.uniform(-0.9, 0.9, world.actions), requires_grad=True)
        (gradient,) = torch.autograd.grad(end(a), a)
        assert gradient.isfinite().all()
        step = 1e-6
        for k in range(world.actions):
            change = torch.zeros_like(a)
            change[k] = step
            with torch.no_grad():
                numeric = (end(a + change) - end(a - change)) / (2 * step)
            if abs(numeric - gradient[k]) < 1e-5 * (1 + abs(numeric)):
                checked += 1
    assert checked >= 6 * world.actions - 1  # a kink may lie within a step


@worlds
def test_gradients_flow_through_simulate(name):
    env = single(name, obs="state", terminate_on_goal=False)
    env.reset(seed=0)
    start = env.position
    while np.array_equal(env.position, start):  # until the disc has met the block
        env.step(env.expert_action())
    actions = (
        torch.from_numpy(env.expert_action()).mul(0.9).expand(1, 2, 6, -1).clone().requires_grad_()
    )
    env.simulate(env.get_state()[None], actions)[..., 1].sum().backward()
    assert actions.grad.isfinite().all() and actions.grad.abs().sum() > 0


# -- devices ---------------------------------------------------------------------------------------


@worlds
def test_nothing_waits_for_an_accelerator(name):
    """Tensors of the meta device have no values: whatever asked for one while stepping would
    raise.
    """
    env = vector(name, 8, obs="both", size=32, frame_stack=2, max_episode_steps=3, device="meta")
    env.reset(seed=0)
    actions = torch.zeros(env.action_space.shape, device="meta")
    for _ in range(5):
        observation, reward, *_, info = env.step(actions)
    assert reward.device.type == "meta" and "final_obs" in info
    assert observation["pixels"].shape == (8, 6, 32, 32)


@worlds
def test_a_device_gives_tensors_with_the_same_numbers_and_true_last_observations(name):
    kwargs = dict(obs="state", max_episode_steps=3)
    arrays, tensors = vector(name, 4, **kwargs), vector(name, 4, device="cpu", **kwargs)
    arrays.reset(seed=0), tensors.reset(seed=0)
    for action in actions_of(5, arrays, 7, 4):
        before = tensors.get_state()
        expected, *_, expected_info = arrays.step(action)
        got, *_, info = tensors.step(torch.from_numpy(action))
        assert isinstance(got, torch.Tensor) and np.array_equal(got.numpy(), expected)
        if "final_obs" in info:
            assert expected_info["_final_obs"].all() and not torch.equal(info["final_obs"], got)
            assert np.array_equal(np.stack(expected_info["final_obs"]), info["final_obs"].numpy())
            assert info["final_obs"].shape == got.shape and before.shape[0] == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@worlds
def test_cuda_plays_the_same_episodes_as_the_cpu(name):
    host, gpu = (
        vector(name, 64, obs="both", device="cpu"),
        vector(name, 64, obs="both", device="cuda"),
    )
    a, b = host.reset(seed=0)[0], gpu.reset(seed=0)[0]
    assert torch.allclose(host.get_state(), gpu.get_state().cpu(), atol=1e-6)
    assert (a["pixels"].int() - b["pixels"].cpu().int()).abs().max() <= 2
    for action in actions_of(0, host, 10, 64):
        host.step(action), gpu.step(torch.from_numpy(action).cuda())
    assert (host.position - gpu.position.cpu()).abs().median() < 1e-4


# -- random numbers --------------------------------------------------------------------------------


def test_draws_are_uniform_independent_and_normal():
    key, counter = torch.meshgrid(torch.arange(400), torch.arange(200), indexing="ij")
    u = torch.stack(torch_world.uniforms(key, counter, 3))
    assert u.min() >= 0 and u.max() < 1
    flat = u.flatten()
    histogram = torch.histc(flat, 20, 0, 1) / len(flat)
    assert (histogram - 0.05).abs().max() < 6 * (0.05 / len(flat)) ** 0.5
    # Neighbouring seeds, episodes and numbers have nothing in common.
    for shifted in (u[:, 1:] - 0.5, u[:, :, 1:] - 0.5, u[1:] - 0.5):
        other = {0: u[:, :-1], 1: u[:, :, :-1], 2: u[:-1]}[
            [tuple(u[:, 1:].shape), tuple(u[:, :, 1:].shape), tuple(u[1:].shape)].index(
                tuple(shifted.shape)
            )
        ]
        correlation = (shifted * (other - 0.5)).mean() * 12
        assert abs(correlation) < 5 / shifted.numel() ** 0.5
    n = torch.stack(torch_world.normals(key, counter, 2))
    assert n.isfinite().all() and abs(n.mean()) < 0.01 and abs(n.std() - 1) < 0.01
    assert abs((n**4).mean() - 3) < 0.1 and abs((n[0] * n[1]).mean()) < 0.02


def test_scripted_behaviour_collects_from_every_world():
    for name in (
        "point-maze",
        "push",
        "torch-pendulum-swingup",
        "torch-cartpole-swingup",
        "two-room-noisy",
    ):
        (episode,) = collect_episodes(
            f"gjwm/{name}-v0",
            {"obs": "state"},
            Scripted(noise=0.1),
            episodes=1,
            length=20,
            record_state=True,
        )
        assert (
            len(episode.a) == 20
            and np.isfinite(episode.o).all()
            and episode.position.shape[0] == 21
        )
        assert not episode.terminated.any() and "position" in episode.true_state


# -- errors ----------------------------------------------------------------------------------------


@worlds
def test_what_has_no_meaning_is_refused_in_one_sentence(name):
    env, many = single(name, obs="state"), vector(name, 2, obs="state")
    env.reset(seed=0), many.reset(seed=0)
    width = env.action_space.shape[0]
    with pytest.raises(ValueError, match=rf"action has shape \({width + 1},\); expected"):
        env.step(np.zeros(width + 1))
    with pytest.raises(ValueError, match="action contains NaN"):
        many.step(np.full((2, width), np.nan))
    with pytest.raises(ValueError, match=r"state has shape \(1,\); expected"):
        env.set_state(np.zeros(1))
    with pytest.raises(ValueError, match="; pass one that get_state could return"):
        env.set_state(np.full(len(env._worlds.state_names), np.nan))
    with pytest.raises(ValueError, match=r"expected \(2, N, H"):
        many.simulate(many.get_state(), np.zeros((3, 1, 1, width)))
    with pytest.raises(ValueError, match="seed holds 3 numbers for 2 environments"):
        many.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="obs is 'rgb'; pass"):
        single(name, obs="rgb")
    with pytest.raises(TypeError, match="colour"):
        single(name, colour="red")


@pytest.mark.parametrize(
    "name, kwargs, said",
    [
        ("point-maze", {"maze": "moon"}, "maze is 'moon'"),
        ("push", {"turn": 4.0}, "turn is 4.0"),
        ("push", {"reward": "none"}, "reward is 'none'"),
        ("torch-pendulum-swingup", {"reward": "none"}, "reward is 'none'"),
        ("torch-cartpole-swingup", {"success_radius": 0.0}, "success_radius is 0.0"),
        ("two-room", {"corridor": 0.2, "shortcut": 0.2, "door": 0.8}, "corridor is 0.2"),
        ("two-room", {"wind": 1.0}, "wind is 1.0"),
    ],
)
def test_arguments_say_what_came_and_what_to_pass(name, kwargs, said):
    with pytest.raises(ValueError, match=said) as error:
        single(name, **kwargs)
    assert "; pass " in str(error.value)


def test_what_an_environment_takes_can_be_asked_for():
    import inspect

    takes = inspect.signature(type(vector("point-maze", 1).unwrapped)).parameters
    assert {
        "num_envs",
        "maze",
        "obs",
        "size",
        "terminate_on_goal",
        "max_episode_steps",
        "device",
    } <= set(takes)
    assert "worlds" not in takes and takes["success_radius"].default == 0.05
    assert "device" not in inspect.signature(type(single("point-maze"))).parameters
