"""MuJoCo Warp's simulators, on the CPU: dm_control's numbers on the same states. Needs the extra:
pip install 'gjwm[warp]'.
"""

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco_warp", reason="needs the extra [warp]: pip install 'gjwm[warp]'")

from gjwm.envs import make_vec
from gjwm.envs.making import make_env
from gjwm.envs.warp import TASKS

NAMES = ["cartpole-swingup", "pendulum-swingup", "reacher-easy", "cheetah-run", "ball_in_cup-catch"]
N = 4


def vector(name, n=N, **kwargs):
    return make_vec(f"gjwm/{name}-v0", n, physics="warp", **kwargs)


def single(name, **kwargs):
    return make_env(f"gjwm/{name}-v0", **kwargs).unwrapped


def succeed(env):
    """Change the simulator's state to one that is rewarded."""
    physics, model, data = env._physics, env._physics.named.model, env._physics.named.data
    data.qvel[:] = 0
    if env.domain == "cartpole":
        data.qpos[:] = [0.1, 0.05]
    elif env.domain == "pendulum":
        data.qpos[:] = 0.05
    elif env.domain == "reacher":
        model.geom_pos["target", :2] = data.geom_xpos["finger", :2] + 0.01
    elif env.domain == "cheetah":
        data.qvel["rootx"] = 7.0
    else:
        data.qpos["ball_x"] += physics.ball_to_target()[0]
        data.qpos["ball_z"] += physics.ball_to_target()[1]
    physics.forward()


@pytest.mark.parametrize("name", NAMES)
def test_observations_and_rewards_are_dm_controls_on_the_same_states(name):
    env, batch = single(name), vector(name)
    rng, references, states = np.random.default_rng(0), [], []
    batch.reset(seed=0)
    for i in range(N):
        env.reset(seed=i)
        for _ in range(20 * i):
            env.step(rng.uniform(-1, 1, env.action_space.shape))
        if i % 2:
            succeed(env)
        data = env._data
        states.append(
            [
                np.array(x)
                for x in (data.qpos, data.qvel, data.qacc_warmstart, env._model.geom_pos, data.ctrl)
            ]
        )
        references.append((env.observe(), env._task.get_reward(env._physics)))
    *parts, controls = (np.stack(part) for part in zip(*states))
    with batch._on_device():
        batch._put(np.arange(N), *parts)
        batch._fields.data("ctrl")[:] = torch.from_numpy(controls)
        reward, observation = batch._formula.reward(batch._fields), batch._look()
    expected = np.array([reward for _, reward in references])
    assert expected[1::2].min() > 0.5 > expected[::2].min()
    np.testing.assert_allclose(observation.numpy(), np.stack([o for o, _ in references]), atol=1e-4)
    np.testing.assert_allclose(reward.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_episodes_begin_as_the_single_ones_and_soon_steps_agree(name):
    kwargs = {"action_repeat": 2, "max_episode_steps": 3}
    batch, envs = vector(name, **kwargs), [single(name, **kwargs) for _ in range(N)]
    start = batch.reset(seed=[5, 6, 7, 8])[0]
    np.testing.assert_allclose(
        start, np.stack([env.reset(seed=5 + i)[0] for i, env in enumerate(envs)]), atol=1e-4
    )
    rng = np.random.default_rng(0)
    for t in range(1, 7):
        actions = rng.uniform(-1, 1, (N, *envs[0].action_space.shape)).astype(np.float32)
        observation, reward, terminated, truncated, infos = batch.step(actions)
        steps = [env.step(a) for env, a in zip(envs, actions)]
        assert not terminated.any() and truncated.all() == truncated.any() == (t % 3 == 0)
        np.testing.assert_allclose(reward, [step[1] for step in steps], atol=1e-3)
        last = np.stack([step[0] for step in steps])
        if t % 3:
            assert "final_obs" not in infos
            np.testing.assert_allclose(observation, last, atol=2e-3)
        else:
            np.testing.assert_allclose(np.stack(infos["final_obs"]), last, atol=2e-3)
            np.testing.assert_allclose(
                observation, np.stack([env.reset()[0] for env in envs]), atol=1e-4
            )
            assert batch._steps.tolist() == [0] * N


def test_torch_reads_warps_own_memory_and_returns_fresh_tensors():
    batch = vector("cartpole-swingup", device="cpu", max_episode_steps=2)
    assert batch._fields.data("qpos").data_ptr() == batch._data.qpos.ptr
    first, _ = batch.reset(seed=0)
    kept = first.clone()
    second, reward, _, truncated, infos = batch.step(torch.ones(N, 1))
    assert torch.equal(first, kept) and reward.dtype == torch.float32 and not infos
    third, _, _, truncated, infos = batch.step(torch.ones(N, 1))
    assert truncated.all() and infos["_final_obs"].all()
    assert (
        not torch.equal(third, infos["final_obs"]) and (infos["final_obs"] - second).abs().max() < 1
    )


def test_states_are_taken_out_and_put_back():
    batch = vector("reacher-easy")
    batch.reset(seed=0)
    states = batch.get_state()
    actions = np.random.default_rng(0).uniform(-1, 1, (4, N, 2))
    future = np.stack([batch.step(a)[0] for a in actions])
    positions = batch.position
    batch.reset(seed=1)
    batch.set_state(states)
    np.testing.assert_allclose(np.stack([batch.step(a)[0] for a in actions]), future, atol=1e-5)
    np.testing.assert_allclose(batch.position, positions, atol=1e-5)
    batch.reset(options={"state": states})
    np.testing.assert_allclose(batch.get_state(), states)
    with pytest.raises(ValueError, match="from get_state"):
        batch.set_state(states[:, 1:])


def test_pictures_show_the_scene_without_opengl(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    batch = vector("reacher-easy", obs="both", size=32, frame_stack=2, max_episode_steps=2)
    first, _ = batch.reset(seed=0)
    assert first["pixels"].shape == (N, 6, 32, 32) and first["pixels"].dtype == np.uint8
    np.testing.assert_array_equal(first["pixels"][:, :3], first["pixels"][:, 3:])
    assert (
        len({picture.tobytes() for picture in first["pixels"]}) == N and first["pixels"].std() > 5
    )
    second = batch.step(np.ones((N, 2)))[0]
    np.testing.assert_array_equal(second["pixels"][:, :3], first["pixels"][:, 3:])
    third, _, _, _, infos = batch.step(np.ones((N, 2)))
    last = np.stack([o["pixels"] for o in infos["final_obs"]])
    np.testing.assert_array_equal(last[:, :3], second["pixels"][:, 3:])
    np.testing.assert_array_equal(third["pixels"][:, :3], third["pixels"][:, 3:])
    # The target is red, and where the simulator has it: its pixels' mean follows the state.
    red = first["pixels"][:, 0].astype(int) - first["pixels"][:, 1:3].max(1) > 60
    columns = np.array([np.nonzero(mask)[1].mean() for mask in red])
    targets = batch_targets(seeds=range(N))
    assert np.corrcoef(columns, targets)[0, 1] > 0.95


def batch_targets(seeds):
    """x of the target in the single environments of these seeds."""
    env, found = single("reacher-easy"), []
    for seed in seeds:
        env.reset(seed=seed)
        found.append(float(env._physics.named.data.geom_xpos["target", "x"]))
    return found


def test_what_does_not_fit_is_one_sentence():
    batch = vector("pendulum-swingup")
    batch.reset(seed=0)
    action = np.zeros((N, 1))
    action[2] = np.nan
    for bad in (action, torch.from_numpy(action)):
        with pytest.raises(ValueError, match=r"env 2 .*NaN"):
            batch.step(bad)
    with pytest.raises(ValueError, match=r"got \(3, 1\)"):
        batch.step(torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"humanoid-run has no batched reward .*cheetah-run"):
        vector("humanoid-run")
    with pytest.raises(ValueError, match="must divide the 1000"):
        vector("pendulum-swingup", action_repeat=3)
    with pytest.raises(ValueError, match="cannot be made with"):
        vector("pendulum-swingup", colour="red")
    with pytest.raises(ValueError, match="leave workers out"):
        vector("pendulum-swingup", workers=1)
    assert ("point_mass", "hard") not in TASKS
    with batch._on_device():
        batch._fields.data("qpos")[1] = float("nan")
    batch._steps[:] = batch._limit - 1
    with pytest.raises(
        RuntimeError, match="env 1 of pendulum-swingup: the physics state is invalid"
    ):
        batch.step(np.zeros((N, 1)))
