"""Claims about seeded variation of the control suite."""

import copy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import gjwm.envs
from gjwm.envs.variation import _FIELDS, FACTORS, Variation

VISUAL = [name for name in FACTORS if name != "mass"]


def make(name="cheetah-run", **kwargs):
    return gym.make(f"gjwm.envs:gjwm/{name}-v0", obs="both", size=32, **kwargs).unwrapped


def actions(env, count, seed=0):
    return (
        np.random.default_rng(seed)
        .uniform(-1, 1, (count, *env.action_space.shape))
        .astype(np.float32)
    )


def play(env, seed, steps=5):
    o = [env.reset(seed=seed)[0]] + [env.step(a)[0] for a in actions(env, steps)]
    return {key: np.stack([x[key] for x in o]) for key in ("pixels", "state")}


def model_arrays(env):
    names = [name for fields in _FIELDS.values() for name in fields]
    return {name: getattr(env._model, name).copy() for name in names}


def test_no_factor_is_exactly_the_environment_without_variation():
    base = play(make(), 3)
    for nothing in (None, {}, (), dict.fromkeys(FACTORS, False), {"colour": 0.0}):
        same = play(make(variation=nothing), 3)
        for key in base:
            np.testing.assert_array_equal(same[key], base[key])


@pytest.mark.parametrize("factor", FACTORS)
def test_a_factor_changes_what_it_names_and_nothing_else(factor):
    base_env, env = make(), make(variation=[factor])
    base, varied = play(base_env, 3), play(env, 3)
    assert (base["pixels"] != varied["pixels"]).any()
    assert np.array_equal(base["state"], varied["state"]) == (factor in VISUAL)
    plain, changed = model_arrays(base_env), model_arrays(env)
    for other, fields in _FIELDS.items():
        for name in fields:
            if other != factor:
                np.testing.assert_array_equal(changed[name], plain[name])
    if factor != "distractors":
        assert any((changed[name] != plain[name]).any() for name in _FIELDS[factor])


@pytest.mark.parametrize("name", ["walker-walk", "cheetah-run", "reacher-easy", "quadruped-walk"])
@pytest.mark.parametrize("factor", FACTORS)
def test_little_strength_changes_little(factor, name):
    base, env = make(name), make(name, variation={factor: 1e-3})
    for seed in range(3):
        a, b = (e.reset(seed=seed)[0]["pixels"].astype(int) for e in (base, env))
        change = np.abs(a - b)
        if factor in ("camera", "mass"):  # things move a little, and edges are not smoothed
            assert (change > 2).mean() < 0.02
        else:
            assert change.max() <= 2


@pytest.mark.parametrize("name", ["walker-walk", "cheetah-run", "quadruped-walk"])
def test_what_shares_a_material_keeps_one_colour(name):
    base, env = make(name)._model, make(name, variation=["colour"])
    env.reset(seed=0)
    model = env._model
    for part, count in (("geom", model.ngeom), ("site", model.nsite)):
        rgba, material = getattr(model, f"{part}_rgba"), getattr(model, f"{part}_matid")
        default = (getattr(base, f"{part}_rgba") == np.array([0.5, 0.5, 0.5, 1], np.float32)).all(1)
        for i in range(count):
            of_material = material[i] >= 0 and default[i]
            assert (rgba[i] == getattr(base, f"{part}_rgba")[i]).all() == of_material
    assert (model.mat_rgba[:, :3] != base.mat_rgba[:, :3]).any(1).all()


@pytest.mark.parametrize(
    "name", ["cheetah-run", "reacher-easy", "quadruped-walk", "swimmer-swimmer6"]
)
def test_a_seed_decides_the_variation_whatever_came_before(name):
    everything = dict.fromkeys(FACTORS, True)
    env, other = make(name, variation=everything), make(name, variation=everything)
    first = play(env, 3)
    play(other, 8)
    other.reset()
    again = play(other, 3)
    for key in first:
        np.testing.assert_array_equal(again[key], first[key])
    different = play(other, 4)
    assert (different["pixels"] != first["pixels"]).mean() > 0.1


def test_a_factor_does_not_depend_on_the_others():
    alone, together = make(variation=["mass"]), make(variation=FACTORS)
    alone.reset(seed=1), together.reset(seed=1)
    for name in _FIELDS["mass"]:
        np.testing.assert_array_equal(getattr(alone._model, name), getattr(together._model, name))
    np.testing.assert_array_equal(play(alone, 2)["state"], play(together, 2)["state"])


def test_ranges_are_what_they_say_and_strength_narrows_them():
    base = make()._model
    ratios, moves, turns, lights = [], [], [], []
    for strength in (1.0, 0.25):
        env = make(variation={"mass": strength, "camera": strength, "light": strength})
        for seed in range(20):
            env.reset(seed=seed)
            moving = base.body_mass > 0
            ratios.append(env._model.body_mass[moving] / base.body_mass[moving])
            np.testing.assert_allclose(
                env._model.body_inertia[moving] / base.body_inertia[moving],
                ratios[-1][:, None] * np.ones(3),
            )
            moves.append(np.abs(env._model.cam_pos[0] - base.cam_pos[0]).max() / base.stat.extent)
            turns.append(2 * np.arccos(min(1.0, abs(env._model.cam_quat[0] @ base.cam_quat[0]))))
            lights.append(env._model.light_diffuse / base.light_diffuse)
            assert env._model.body_subtreemass[0] == pytest.approx(env._model.body_mass.sum())
    wide, narrow = np.stack(ratios[:20]), np.stack(ratios[20:])
    assert 0.5 <= wide.min() < 0.6 and 1.7 < wide.max() <= 2
    assert 2**-0.25 <= narrow.min() and narrow.max() <= 2**0.25
    assert 0.05 < max(moves[:20]) <= 0.1 and max(moves[20:]) <= 0.025
    assert max(turns[:20]) <= np.deg2rad(5) and max(turns) > np.deg2rad(2)
    assert 0.5 <= np.min(lights[:20]) and np.max(lights[:20]) <= 2


def test_camera_rotation_agrees_between_quaternion_and_matrix():
    import mujoco

    env = make(variation=["camera"])
    env.reset(seed=0)
    base = make()._model
    rotations = []
    for model in (base, env._model):
        matrix = np.empty(9)
        mujoco.mju_quat2Mat(matrix, model.cam_quat[0])
        rotations.append(matrix.reshape(3, 3))
    turn = rotations[0].T @ rotations[1]
    np.testing.assert_allclose(
        base.cam_mat0[0].reshape(3, 3) @ turn, env._model.cam_mat0[0].reshape(3, 3), atol=1e-9
    )


def test_a_state_carries_its_variation():
    env = make("reacher-easy", variation=FACTORS)
    env.reset(seed=0)
    env.step(actions(env, 1)[0])
    state, o = env.get_state(), env.observe()
    twin = copy.deepcopy(env)
    future = [env.step(a)[0] for a in actions(env, 10)]
    env.reset(seed=6)
    env.set_state(state)
    for each in (env, twin):
        for key in o:
            np.testing.assert_array_equal(each.observe()[key], o[key])
        for before, a in zip(future, actions(env, 10)):
            now = each.step(a)[0]
            np.testing.assert_array_equal(now["state"], before["state"])
            np.testing.assert_array_equal(now["pixels"], before["pixels"])


def test_simulate_knows_the_masses_of_each_state():
    env = make("reacher-easy", variation=["mass"])
    states, paths = [], []
    plan = actions(env, 12)
    for seed in (0, 1):
        env.reset(seed=0)
        start = env.get_state()
        start[-11] = np.float64(1000 + seed)  # the same pose, other masses
        env.set_state(start)
        states.append(start)
        path = [env.position]
        for a in plan:
            env.step(a)
            path.append(env.position)
        paths.append(path)
    assert np.abs(np.subtract(*paths)).max() > 1e-3
    simulated = env.simulate(np.stack(states), np.broadcast_to(plan, (2, 1, *plan.shape)))
    np.testing.assert_allclose(simulated[:, 0], paths, atol=1e-6)


def test_distractors_drift_over_the_picture_and_stay_in_it():
    model = make()._model
    dots = Variation(["distractors"], model, 0)
    black = np.zeros((3, 64, 64), np.uint8)
    seen = [dots.draw_over(black.copy(), 7, t) for t in (0.0, 0.02, 50.0)]
    covered = [(picture > 0).any(0).mean() for picture in seen]
    assert 0.005 < min(covered) and max(covered) < 6 * np.pi * 0.07**2
    assert 0 < (seen[0] != seen[1]).any(0).mean() < 0.1  # a small move in a fiftieth of a second
    few = Variation({"distractors": 1 / 6}, model, 0).draw_over(black.copy(), 7, 0.0)
    assert 0 < (few > 0).any(0).sum() < (seen[0] > 0).any(0).sum()


def test_gymnasium_finds_nothing_wrong():
    env = make("reacher-easy", variation=FACTORS, render_mode="rgb_array")
    check_env(env)
    assert env.render().shape == (32, 32, 3)


def test_bad_input_is_named():
    assert gjwm.envs.TASKS
    with pytest.raises(ValueError, match="no variation 'color'; the nearest is colour"):
        make(variation={"color": True})
    with pytest.raises(ValueError, match="strength from 0 to 1, got 2"):
        make(variation={"mass": 2})
    with pytest.raises(ValueError, match="free camera"):
        make(variation=["camera"], camera=-1)
