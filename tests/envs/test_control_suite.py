"""Claims about the dm_control environments."""

import copy
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.seeding import np_random

import gjwm.envs
from gjwm.envs import rendering
from gjwm.envs.control_suite import ControlSuiteEnv
from gjwm.envs.task_names import TASKS


def make(name, **kwargs):
    return gym.make(f"gjwm.envs:gjwm/{name}-v0", **kwargs).unwrapped


def actions(env, count, seed=0):
    return (
        np.random.default_rng(seed)
        .uniform(-1, 1, (count, *env.action_space.shape))
        .astype(np.float32)
    )


def flat(observation):
    return np.concatenate([np.ravel(part) for part in observation.values()]).astype(np.float32)


def checked(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(infinity|Box|reproducib|render_mode).*")
        check_env(env)


DOMAINS = sorted({domain for domain, _ in TASKS})
HEAVY = ("dog", "humanoid_CMU", "quadruped")  # seconds for a claim that takes others a tenth
# One task of each domain in the fast suite, all 51 with the slow ones.
every_task = pytest.mark.parametrize(
    ("domain", "task"),
    [
        pytest.param(
            domain,
            task,
            id=f"{domain}-{task}",
            marks=[pytest.mark.slow]
            if domain in HEAVY or task != dict(TASKS[::-1])[domain]
            else [],
        )
        for domain, task in TASKS
    ],
)


def documented():
    """(domain, task) -> state and action sizes and milliseconds of a control step, as
    docs/environments.md has them.
    """
    text = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    rows = [row for row in rows if len(row) == 7 and row[2].isdigit()]
    return {
        (row[0], task): tuple(int(x) for x in row[2:5])
        for row in rows
        for task in row[1].split(", ")
    }


def test_task_names_are_those_of_the_suite():
    rendering.choose_backend()  # dm_control looks for a screen otherwise
    from dm_control import suite

    assert set(TASKS) == set(suite.ALL_TASKS)
    assert all(f"gjwm/{domain}-{task}-v0" in gym.registry for domain, task in TASKS)
    assert gjwm.envs.TASKS is TASKS
    assert set(documented()) == set(TASKS)


@pytest.mark.parametrize("obs", ["state", "pixels", "both"])
@pytest.mark.parametrize("name", ["reacher-easy", "point_mass-easy"])
def test_gymnasium_finds_nothing_wrong(name, obs):
    env = make(name, obs=obs, size=32, action_repeat=2, render_mode="rgb_array")
    checked(env)
    env.close()


@every_task
def test_every_task_is_dm_controls_own(domain, task):
    """Observations, rewards and ends of 200 random steps, equal in every bit; and through action
    repeat.
    """
    rendering.choose_backend()
    from dm_control import suite

    env, repeated = make(f"{domain}-{task}"), make(f"{domain}-{task}", action_repeat=4)
    theirs = suite.load(domain, task, task_kwargs={"random": 0})
    # Ours gives each episode a generator of its own, whose seed gymnasium's generator draws.
    word = np_random(3)[0].integers(2**32, dtype=np.uint32)
    theirs.task._random = np.random.RandomState(word)
    timestep = theirs.reset()
    sizes = (
        *env.observation_space.shape,
        *env.action_space.shape,
        round(1000 * theirs.control_timestep()),
    )
    assert documented()[domain, task] == sizes
    np.testing.assert_array_equal(env.reset(seed=3)[0], flat(timestep.observation))
    np.testing.assert_array_equal(repeated.reset(seed=3)[0], flat(timestep.observation))
    spec = theirs.action_spec()
    low, high = (spec.minimum, spec.maximum) if domain != "lqr" else (-1.0, 1.0)
    total = 0.0
    for step, action in enumerate(np.repeat(actions(env, 50), 4, 0)):
        timestep = theirs.step((low + high) / 2 + (high - low) / 2 * action.astype(np.float64))
        o, reward, terminated, truncated, _ = env.step(action)
        np.testing.assert_array_equal(o, flat(timestep.observation))
        assert (
            reward == timestep.reward and not terminated and not truncated and not timestep.last()
        )
        total += reward
        if step % 4 == 3:
            o, reward, terminated, truncated, _ = repeated.step(action)
            np.testing.assert_array_equal(o, flat(timestep.observation))
            assert reward == total and not terminated and not truncated
            total = 0.0


@every_task
def test_a_state_carries_physics_and_the_generator(domain, task):
    """100 steps on, and the resets after them, go as they went, whatever the env did in between."""
    env = make(f"{domain}-{task}")
    env.reset(seed=3)
    for a in actions(env, 10, seed=1):
        env.step(a)
    state, o, drawn = env.get_state(), env.observe(), env._task._random.get_state()[1]

    def future(env):
        steps = [env.step(a)[:4] for a in actions(env, 100)]
        # Tasks draw at resets only, or the state would lack what they draw.
        return (
            np.stack([x[0] for x in steps]),
            [x[1:] for x in steps],
            env.get_state(),
            env.reset()[0],
            env.reset()[0],
        )

    first = future(env)
    env.reset(seed=9)
    env.set_state(state)
    np.testing.assert_array_equal(env.observe(), o)
    np.testing.assert_array_equal(env.get_state(), state)
    for before, now in zip(first, future(env)):
        np.testing.assert_array_equal(now, before)
    env.reset(seed=3)
    np.testing.assert_array_equal(env._task._random.get_state()[1], drawn)


EPISODES = """
import hashlib, sys, logging
import gymnasium as gym, numpy as np
import gjwm.envs
from gjwm.envs.task_names import TASKS

logging.disable(logging.WARNING)
for name, kwargs in [(f"{d}-{t}", {}) for d, t in dict(TASKS).items()] + [
    ("reacher-easy", {"obs": "pixels", "frame_stack": 2}),
    ("quadruped-walk", {"obs": "both", "size": 32}),
]:
    env = gym.make(f"gjwm/{name}-v0", **kwargs).unwrapped
    rng, seen = np.random.default_rng(0), hashlib.sha256()
    for observation in [env.reset(seed=7)[0]] + [
        env.step(rng.uniform(-1, 1, env.action_space.shape))[0] for _ in range(10)
    ] + [env.reset()[0]]:
        for part in observation.values() if isinstance(observation, dict) else [observation]:
            seen.update(part.tobytes())
    print(name, *kwargs, seen.hexdigest())
"""


def test_a_seed_reproduces_an_episode_of_every_domain_in_another_process():
    runs = [
        subprocess.Popen([sys.executable, "-c", EPISODES], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    first, second = (run.communicate()[0].splitlines() for run in runs)
    assert len(first) == len({line.split()[-1] for line in first}) == len(DOMAINS) + 2
    assert first == second


@every_task
def test_gymnasium_finds_nothing_wrong_with_any_task(domain, task):
    env = make(f"{domain}-{task}", action_repeat=2)
    checked(env)


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
def test_gymnasium_finds_nothing_wrong_with_the_pictures_of_any_domain(domain):
    env = make(f"{domain}-{dict(TASKS[::-1])[domain]}", obs="both", size=32, action_repeat=2)
    checked(env)
    env.close()


def test_different_seeds_differ_and_unseeded_resets_go_on():
    env = make("reacher-easy")
    first, second = env.reset(seed=1)[0], env.reset(seed=2)[0]
    assert not np.array_equal(first, second)
    third = env.reset()[0]
    assert not np.array_equal(second, third)
    env.reset(seed=2)
    np.testing.assert_array_equal(env.reset()[0], third)


def test_the_time_limit_truncates_and_never_terminates():
    env = make("point_mass-easy", action_repeat=4)
    env.reset(seed=0)
    flags = [env.step(np.zeros(2))[2:4] for _ in range(250)]
    assert not any(terminated for terminated, _ in flags)
    assert [truncated for _, truncated in flags] == [False] * 249 + [True]


@pytest.mark.parametrize(
    "name",
    [
        "reacher-easy",
        "point_mass-easy",
        "point_mass-hard",
        "cartpole-swingup",
        "pendulum-swingup",
        "cheetah-run",
    ],
)
def test_simulate_agrees_with_stepping(name):
    env = make(name, action_repeat=2)
    states = []
    for seed in (0, 1):
        env.reset(seed=seed)
        env.step(actions(env, 1)[0])
        states.append(env.get_state())
    plans = np.stack([[actions(env, 8, seed=10 * b + n) for n in range(3)] for b in range(2)])
    simulated = env.simulate(np.stack(states), plans)
    before = env.get_state()
    np.testing.assert_array_equal(before, states[1])
    for b in range(2):
        for n in range(3):
            env.reset(seed=9)
            env.set_state(states[b])
            path = [env.position]
            for a in plans[b, n]:
                env.step(a)
                path.append(env.position)
            np.testing.assert_allclose(simulated[b, n], path, atol=1e-6)


def test_acrobots_position_is_its_tip_and_joint_positions_do_not_jump():
    env = make("acrobot-swingup")
    env.reset(seed=0)
    np.testing.assert_allclose(
        env.position, env._physics.named.data.site_xpos["tip", ["x", "z"]], atol=1e-9
    )
    env = make("quadruped-run")
    env.reset(seed=0)
    position = env.position
    env._data.qpos[3:7] *= -1  # the same rotation
    env._data.qpos[7] += 2 * np.pi
    np.testing.assert_allclose(env.position, position, atol=1e-9)


def test_the_true_state_holds_every_number_of_every_joint():
    """A free body has seven, a ball joint four, a hinge its cosine and sine, a slide one."""
    env = gym.make("gjwm/quadruped-walk-v0").unwrapped
    env.reset(seed=0)
    numbers = {0: 7, 1: 4, 2: 1, 3: 2}  # by MuJoCo's mjtJoint
    expected = sum(numbers[int(kind)] for kind in env._model.jnt_type)
    assert env.true_state()["qpos"].shape == (expected,) == (39,)


def test_reacher_position_is_the_fingertip():
    env = make("reacher-easy")
    for seed in range(5):
        env.reset(seed=seed)
        np.testing.assert_allclose(
            env.position, env._physics.named.data.geom_xpos["finger", :2], atol=1e-9
        )
    assert env.success_radius == 0.02
    assert env.true_state()["qpos"].shape == (4,)


def test_frame_stack_keeps_the_newest_frame_last():
    env, single = (
        make("reacher-easy", obs="pixels", frame_stack=2),
        make("reacher-easy", obs="pixels"),
    )
    first, frame = env.reset(seed=0)[0], single.reset(seed=0)[0]
    np.testing.assert_array_equal(first, np.concatenate([frame, frame]))
    for a in actions(env, 3):
        stacked, following = env.step(a)[0], single.step(a)[0]
        np.testing.assert_array_equal(stacked, np.concatenate([frame, following]))
        frame = following


FAITHFUL = """
import numpy as np, gymnasium as gym
from gjwm.envs.rendering import choose_backend
from gymnasium.utils.seeding import np_random
choose_backend()  # before dm_control is imported
from dm_control import suite

for name, camera in (("reacher-easy", 0), ("quadruped-escape", 2), ("cartpole-swingup", 0)):
    kwargs = dict(obs="pixels", size=48, renderer="faithful", render_mode="rgb_array")
    env = gym.make(f"gjwm/{name}-v0", **kwargs).unwrapped
    theirs = suite.load(*name.split("-"), task_kwargs={"random": 0})
    theirs.task._random = np.random.RandomState(np_random(5)[0].integers(2**32, dtype=np.uint32))
    theirs.reset()
    fast = gym.make(f"gjwm/{name}-v0", obs="pixels", size=48).unwrapped
    frame, quick = env.reset(seed=5)[0], fast.reset(seed=5)[0]
    shots = [(frame, theirs.physics.render(48, 48, camera_id=camera))]
    action = np.full(env.action_space.shape, 0.5)
    spec = theirs.action_spec()
    for _ in range(3):
        quick = fast.step(action)[0]  # another OpenGL context of the same thread in between
        theirs.step((spec.minimum + spec.maximum) / 2 + (spec.maximum - spec.minimum) / 2 * 0.5)
        shots.append((env.step(action)[0], None))
        theirs.physics.contexts.gl.make_current().__enter__().call(theirs.physics.contexts.gl._platform_make_current)
        shots[-1] = (shots[-1][0], theirs.physics.render(48, 48, camera_id=camera))
    assert all((ours == stock.transpose(2, 0, 1)).all() for ours, stock in shots), name
    assert (shots[0][0] != shots[-1][0]).any() and (env.render() == shots[-1][1]).all()
    assert (quick != shots[-1][0]).mean() > 0.2  # the two renderers look different
    print(name)
"""


@pytest.mark.slow
def test_the_faithful_renderer_draws_what_dm_control_draws():
    done = subprocess.run(
        [sys.executable, "-c", FAITHFUL], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stdout.split() == [
        "reacher-easy",
        "quadruped-escape",
        "cartpole-swingup",
    ], done.stderr


def test_copies_share_a_faithful_renderer_and_draw_their_own_scenes():
    env = make("reacher-easy", obs="pixels", size=32, renderer="faithful")
    first = env.reset(seed=0)[0]
    other = copy.deepcopy(env)
    other.reset(seed=1)
    assert other._renderer is env._renderer and (other.observe() != first).any()
    env._frames.clear()
    np.testing.assert_array_equal(env.observe(), first)
    env.close()
    with pytest.raises(ValueError, match="'pretty'; pass 'fast' or 'faithful'"):
        make("reacher-easy", renderer="pretty")


@pytest.mark.parametrize("renderer", ["fast", "faithful"])
def test_copies_draw_their_own_terrain(renderer):
    env = make("quadruped-escape", obs="pixels", size=24, renderer=renderer)
    first = env.reset(seed=0)[0]
    other = copy.deepcopy(env)
    other.reset(seed=1)
    env._frames.clear()
    np.testing.assert_array_equal(env.observe(), first)
    env.close()


def test_cameras():
    assert (
        make("quadruped-walk")._renderer.camera_id,
        make("walker-walk")._renderer.camera_id,
    ) == (2, 0)
    free, fixed = (
        make("walker-walk", obs="pixels", camera=camera).reset(seed=0)[0] for camera in (-1, 0)
    )
    assert (free != fixed).any()
    with pytest.raises(ValueError, match="cameras 0 to 1 and the free one, -1; camera=7"):
        make("walker-walk", camera=7)


def test_a_hidden_target_is_in_no_picture():
    shown, hidden = (
        make("reacher-easy", obs="pixels"),
        make("reacher-easy", obs="pixels", hidden=("target",)),
    )
    a, b = shown.reset(seed=0)[0], hidden.reset(seed=0)[0]
    assert (a != b).any()
    state = hidden.get_state()
    moved = hidden.reset(seed=0)[0].copy()
    hidden._model.geom("target").pos[:2] += 0.1
    hidden.set_state(hidden.get_state())
    np.testing.assert_array_equal(hidden.observe(), moved)
    assert state.shape == hidden.get_state().shape
    with pytest.raises(ValueError, match=r"'nonsense' to hide; env.hidden=\[\] hides nothing"):
        make("reacher-easy", hidden=("nonsense",))


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match="no task 'reacher-esy'; the nearest are reacher-easy"):
        ControlSuiteEnv(domain="reacher", task="esy")
    with pytest.raises(gym.error.NameNotFound, match="ball_in_cup-catch"):
        make("cup-catch")


def test_bad_actions_and_states_are_named():
    env = make("reacher-easy")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        env.step(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="get_state"):
        env.set_state(np.zeros(3))
    state = env.get_state()
    clipped = env.step(np.array([5.0, -5.0]))[0]
    env.set_state(state)
    np.testing.assert_array_equal(env.step(np.array([1.0, -1.0]))[0], clipped)


def test_state_needs_no_opengl_at_all():
    # quadruped-escape sends its terrain to OpenGL at every reset.
    code = """
import gymnasium as gym
for name in ("reacher-easy", "quadruped-escape"):
    e = gym.make(f"gjwm.envs:gjwm/{name}-v0", obs="state")
    e.reset(seed=0)
    print(e.step(e.action_space.sample())[0].shape)
"""
    environment = {**os.environ, "MUJOCO_GL": "disable"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "(6,)" in done.stdout and "(101,)" in done.stdout


@pytest.mark.parametrize("named", ["bogus", "glfw"])
def test_an_opengl_that_does_not_work_is_named_and_state_needs_none(named):
    code = """
from gjwm.envs.making import make_env
for name in ("gjwm/reacher-easy-v0", "InvertedPendulum-v5"):
    e = make_env(name, obs="state")
    e.reset(seed=0)
    e.step(e.action_space.sample())
    try:
        make_env(name, obs="pixels")
    except RuntimeError as error:
        print(error)
"""
    environment = {
        k: v
        for k, v in os.environ.items()
        if k not in ("DISPLAY", "WAYLAND_DISPLAY", "PYOPENGL_PLATFORM")
    }
    environment["MUJOCO_GL"] = named
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all(
        line.startswith(f"MUJOCO_GL={named} does not work here: unset it or install EGL")
        for line in lines
    )


def test_without_any_opengl_the_error_says_what_to_install(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_works", lambda name: False)
    with pytest.raises(RuntimeError, match="libegl1"):
        rendering.choose_backend()
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(
        RuntimeError, match=r"MUJOCO_GL=osmesa does not work here: unset it or install.*libegl1"
    ):
        rendering.choose_backend()
    monkeypatch.setattr(rendering, "_works", lambda name: name == "osmesa")
    assert rendering.choose_backend() == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "off")
    with pytest.raises(RuntimeError, match="MUJOCO_GL=off"):
        rendering.choose_backend()


def test_a_copy_has_the_same_future_and_leaves_the_original_alone():
    for name in ("reacher-easy", "point_mass-hard", "ball_in_cup-catch"):
        env = make(name, obs="pixels", frame_stack=2)
        env.reset(seed=0)
        for a in actions(env, 3):
            env.step(a)
        state = env.get_state()
        other = copy.deepcopy(env)
        futures = []
        for each in (other, env):
            futures.append([each.step(a)[0] for a in actions(env, 4, seed=2)])
            futures.append([each.reset()[0]])  # the task's generator is copied, not shared
            if each is other:
                np.testing.assert_array_equal(env.get_state(), state)
        np.testing.assert_array_equal(futures[0], futures[2])
        np.testing.assert_array_equal(futures[1], futures[3])


@pytest.mark.parametrize("closed", ["fast", "faithful"])
def test_closing_one_renderer_leaves_the_pictures_of_the_others(closed):
    env = make(
        "cheetah-run",
        obs="pixels",
        size=32,
        renderer="fast" if closed == "faithful" else "faithful",
    )
    expected = [env.reset(seed=seed)[0] for seed in range(3)]
    other = make("reacher-easy", obs="pixels", size=32, renderer=closed)
    other.reset(seed=0)
    env.reset(seed=0)  # its context is current now
    other.close()
    np.testing.assert_array_equal([env.reset(seed=seed)[0] for seed in range(3)], expected)
    env.close()


@pytest.mark.parametrize("before", ["", "import torch"])
def test_environments_left_open_end_in_silence(before):
    code = f"""
{before}
import gymnasium
kinds = ("fast", "faithful")
name = "gjwm.envs:gjwm/reacher-easy-v0"
envs = [gymnasium.make(name, obs="pixels", renderer=kind) for kind in kinds]
print([bool(env.reset(seed=0)[0].std() > 0) for env in envs])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == "[True, True]"
    assert done.stderr == ""


@pytest.mark.parametrize("task", ["reacher-easy", "point_mass-easy"])
def test_a_position_is_seen_where_the_picture_shows_it(task):
    """The body whose position it is, moved a little, changes the picture there."""
    env = gym.make(
        f"gjwm.envs:gjwm/{task}-v0", obs="state", render_mode="rgb_array", size=128
    ).unwrapped
    env.reset(seed=3)
    at = env.image_position(env.position) * 128
    before = env.render().astype(int)
    position = env.position
    while np.linalg.norm(env.position - position) < 0.08:
        env.step(np.full(env.action_space.shape, 0.9, np.float32))
    y, x = np.nonzero(np.abs(env.render().astype(int) - before).sum(-1) > 60)
    for place in (at, env.image_position(env.position) * 128):  # where it was, and where it is
        assert np.hypot(x - place[0], y - place[1]).min() < 3


def test_a_position_that_is_no_point_on_the_ground_is_seen_nowhere():
    env = gym.make("gjwm.envs:gjwm/cartpole-swingup-v0", obs="state").unwrapped
    env.reset(seed=0)
    assert env.image_position(env.position) is None


def test_the_fast_renderers_models_carry_no_sky_and_are_light():
    """A hundred lanes of a batch are a hundred models: dm_control's are 11.8 MB each."""
    light, faithful = make("cartpole-swingup"), make("cartpole-swingup", renderer="faithful")
    assert light.unwrapped._model.nbuffer < 5e5 < 1e7 < faithful.unwrapped._model.nbuffer


def test_threads_may_build_at_once_and_each_gets_its_own_sky():
    def build(k):
        return make("cartpole-swingup", renderer=("fast", "faithful")[k % 2])._model.nbuffer

    with ThreadPoolExecutor(4) as pool:
        sizes = list(pool.map(build, range(12)))
    assert all(size < 5e5 for size in sizes[::2]) and all(size > 1e7 for size in sizes[1::2])
