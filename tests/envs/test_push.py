"""Claims about pushing: nothing overlaps, the quasi-static laws hold, and a mirrored push is a
mirrored motion.
"""

import math

import numpy as np
import pytest
import torch

from gjwm.envs import push
from gjwm.envs.push import (
    FRICTION,
    HALF_LENGTH,
    HALF_WIDTH,
    MOMENT_ARM,
    OVERLAP,
    RADIUS,
    PushEnv,
    PushVectorEnv,
    PushWorld,
)


def rotated(state: np.ndarray, angle: float) -> np.ndarray:
    """States (n, 8) turned about the middle of the square."""
    c, s = math.cos(angle), math.sin(angle)
    turned = state.copy()
    for k in (0, 2, 5):
        x, y = state[:, k] - 0.5, state[:, k + 1] - 0.5
        turned[:, k], turned[:, k + 1] = 0.5 + c * x - s * y, 0.5 + s * x + c * y
    turned[:, [4, 7]] += angle
    return turned


def mirrored(state: np.ndarray) -> np.ndarray:
    """States (n, 8) seen in a mirror along y: x becomes 1 - x, angles their negative (from the
    other end of the block).
    """
    other = state.copy()
    other[:, [0, 2, 5]] = 1 - state[:, [0, 2, 5]]
    other[:, [4, 7]] = math.pi - state[:, [4, 7]]
    return other


def planes(state: np.ndarray, dtype=torch.float64):
    return tuple(torch.from_numpy(state.T.copy()).to(dtype))


def near_contact(n: int, seed: int = 0) -> np.ndarray:
    """States in which the disc is about to touch the block, well inside the square."""
    env = PushVectorEnv(num_envs=n, obs="state", terminate_on_goal=False)
    env.reset(seed=seed)
    for _ in range(12):
        env.step(env.expert_action())
    return env.get_state()


@pytest.mark.slow
def test_disc_and_block_never_overlap_and_stay_inside():
    n = 400
    env = PushVectorEnv(num_envs=n, obs="state", terminate_on_goal=False, max_episode_steps=10_000)
    env.reset(seed=0)
    rng, moved, worst = np.random.default_rng(0), 0, 0.0
    for t in range(250):
        if t % 15 == 0:
            wander = rng.uniform(-1.5, 1.5, (n, 2))
        state = env.get_state()
        # into the block, and with it into walls and corners
        chase = 3 * (state[:, 2:4] - state[:, :2]) / 0.1
        env.step(np.where((t // 20) % 2, chase, wander).astype(np.float32))
        after = env.get_state()
        moved += (np.abs(after[:, 2:5] - state[:, 2:5]).max(1) > 0).sum()
        x, y, bx, by, angle, *_ = planes(after)
        *_, depth = push.nearest(x, y, bx, by, torch.cos(angle), torch.sin(angle))
        worst = max(worst, depth.max().item())
        corners = [
            (
                bx + u * torch.cos(angle) - v * torch.sin(angle),
                by + u * torch.sin(angle) + v * torch.cos(angle),
            )
            for u in (-HALF_LENGTH, HALF_LENGTH)
            for v in (-HALF_WIDTH, HALF_WIDTH)
        ]
        assert all((c > -1e-6).all() and (c < 1 + 1e-6).all() for corner in corners for c in corner)
        assert (torch.stack([x, y]) > RADIUS - 1e-6).all() and (
            torch.stack([x, y]) < 1 - RADIUS + 1e-6
        ).all()
    assert worst <= 2 * OVERLAP and moved > 20_000
    # every state is one that set_state accepts
    env.simulate(env.get_state(), np.zeros((n, 1, 1, 2)))


def test_without_contact_the_block_rests_and_the_disc_goes_where_it_is_told():
    env = PushEnv(obs="state", terminate_on_goal=False)
    env.reset(seed=0, options={"state": [0.1, 0.1, 0.6, 0.6, 0.3, 0.4, 0.4, 0.0]})
    env.step(np.array([1.0, -0.5], np.float32))
    assert env.get_state()[:5] == pytest.approx([0.13, 0.085, 0.6, 0.6, 0.3], abs=1e-6)


def test_a_push_through_the_centre_translates_and_one_beside_it_turns():
    """A contact at p that sticks and advances by w turns the block by p x w / (c^2 + |p|^2)."""
    world = PushWorld(obs="state")
    gap = RADIUS + HALF_WIDTH
    for offset in (0.0, 0.03, -0.03):
        start = np.array([[0.5 + offset, 0.5 - gap, 0.5, 0.5, 0.0, 0.4, 0.4, 0.0]])
        after = world.advance(planes(start), planes(np.array([[0.0, 0.01]])))
        advance, arm = push.SPEED * 0.01, MOMENT_ARM**2 + offset**2 + HALF_WIDTH**2
        assert float(after[4]) == pytest.approx(offset * advance / arm, rel=0.02, abs=1e-12)
        assert float(after[3]) - 0.5 == pytest.approx(advance * (1 - offset**2 / arm), rel=0.02)


def test_the_motion_is_normal_to_the_limit_surface_and_the_force_within_the_cone():
    """The law itself, for pushes from all sides: the twist (v, w) = (f, m / c^2) of an f that
    friction allows.
    """
    g = torch.Generator().manual_seed(0)
    n = 5000
    angle = 2 * math.pi * torch.rand(n, generator=g, dtype=torch.float64)
    p, q = 0.2 * torch.cos(angle), 0.2 * torch.sin(angle)
    p, q = p.clamp(-HALF_LENGTH, HALF_LENGTH), q.clamp(-HALF_WIDTH, HALF_WIDTH)
    corner = (p.abs() == HALF_LENGTH) & (q.abs() == HALF_WIDTH)
    on_end = (p.abs() == HALF_LENGTH) & ~corner
    nx = torch.where(on_end, -p.sign(), torch.where(corner, -p.sign() * 0.6, 0.0))
    ny = torch.where(on_end, 0.0, torch.where(corner, -q.sign() * 0.8, -q.sign()))
    depth = 0.001 + 0.004 * torch.rand(n, generator=g, dtype=torch.float64)
    along = 0.01 * (torch.rand(n, generator=g, dtype=torch.float64) - 0.5)
    vx, vy, w = push.shove(p, q, nx, ny, depth, along)
    moment = w * MOMENT_ARM**2
    assert torch.allclose(moment, p * vy - q * vx, atol=1e-12)  # v is f, up to the common factor
    normal, tangent = vx * nx + vy * ny, vy * nx - vx * ny
    assert (normal > 0).all() and (tangent.abs() <= FRICTION * normal + 1e-12).all()
    point_x, point_y = vx - w * q, vy + w * p  # how the contact moves
    # exactly out of the disc's way
    assert torch.allclose(point_x * nx + point_y * ny, depth, atol=1e-12)
    slip = (point_y * nx - point_x * ny) - along
    sticks = tangent.abs() < FRICTION * normal - 1e-9
    assert torch.allclose(slip[sticks], torch.zeros(1, dtype=torch.float64), atol=1e-12)
    assert 0.2 < sticks.double().mean() < 0.95
    assert (
        (slip * tangent)[~sticks] <= 1e-12
    ).all()  # friction drags the block after the disc, never the other way


def test_mirrored_and_turned_states_move_mirrored_and_turned():
    world, start, rng = PushWorld(obs="state"), near_contact(200), np.random.default_rng(0)
    ways = {
        "mirror": (mirrored, lambda a: a * [-1, 1]),
        "half turn": (lambda s: rotated(s, math.pi), lambda a: -a),
        "quarter turn": (
            lambda s: rotated(s, math.pi / 2),
            lambda a: np.stack([-a[:, 1], a[:, 0]], 1),
        ),
    }
    for other_of, other_action in ways.values():
        state, other, touched = planes(start), planes(other_of(start)), 0
        for _ in range(6):
            before, action = (
                state,
                np.clip(5 * (start[:, 2:4] - start[:, :2]) + rng.normal(size=(200, 2)) / 3, -1, 1),
            )
            state = world.advance(state, planes(action))
            other = world.advance(other, planes(other_action(action)))
            touched += (state[2] != before[2]).sum().item()
        got = np.stack([p.numpy() for p in other], 1)
        due = other_of(np.stack([p.numpy() for p in state], 1))
        assert np.abs(got - due).max() < 1e-9 and touched > 100


def test_where_the_block_lies_does_not_matter_to_how_it_moves():
    world, start = PushWorld(obs="state"), near_contact(100)
    inner = start[(np.abs(start[:, 2:4] - 0.5) < 0.15).all(1)]
    shift = np.array([0.02, -0.03, 0.02, -0.03, 0, 0, 0, 0])
    action = np.clip(5 * (inner[:, 2:4] - inner[:, :2]), -1, 1)
    a, b = (
        world.advance(planes(inner), planes(action)),
        world.advance(planes(inner + shift), planes(action)),
    )
    assert (
        np.abs(
            np.stack([p.numpy() for p in b], 1) - np.stack([p.numpy() for p in a], 1) - shift
        ).max()
        < 1e-12
    )


def test_finer_steps_change_little(monkeypatch):
    """Four sub-steps are within 0.002 of 64 for 97 of 100 pushes of 0.12; the others go round a
    corner of the block.
    """
    world, start = PushWorld(obs="state"), near_contact(300)
    action = planes(np.clip(5 * (start[:, 2:4] - start[:, :2]), -1, 1))
    ends = []
    for substeps in (4, 16, 64):
        monkeypatch.setattr(push, "SUBSTEPS", substeps)
        state = planes(start)
        for _ in range(4):
            state = world.advance(state, action)
        ends.append(torch.stack(state[2:4]))
    coarse, fine = (ends[0] - ends[2]).abs().amax(0), (ends[1] - ends[2]).abs().amax(0)
    assert (coarse < 2e-3).double().mean() > 0.97 and fine.mean() < coarse.mean() / 3


def test_a_block_at_the_border_holds_the_disc_back():
    env = PushEnv(obs="state", terminate_on_goal=False)
    env.reset(seed=0, options={"state": [0.75, 0.5, 0.9, 0.5, 0.0, 0.4, 0.4, 0.0]})
    for _ in range(5):
        env.step(np.array([1.0, 0.0], np.float32))
    x, y, bx, _, angle, *_ = env.get_state()
    assert [x, bx, angle] == pytest.approx(
        [0.9 - HALF_LENGTH - RADIUS, 0.9, 0.0], abs=1e-4
    ) and y == pytest.approx(0.5)


def test_the_distance_of_poses_counts_a_turn_by_its_lever():
    env = PushEnv(obs="state", turn=math.pi)
    env.reset(
        seed=0, options={"state": [0.1, 0.1, 0.5, 0.5, 0.3, 0.53, 0.46, 0.3 + 0.8 + 2 * math.pi]}
    )
    distance = np.linalg.norm(env.position - env.goal)
    assert distance == pytest.approx(math.hypot(0.05, 2 * push.LEVER * math.sin(0.4)), abs=1e-6)


def test_episodes_begin_apart_and_unsolved_with_goals_within_the_turn():
    for turn in (0.3, math.pi):
        env = PushVectorEnv(num_envs=3000, obs="state", turn=turn)
        env.reset(seed=0)
        state = env.get_state()
        x, y, bx, by, angle, *_ = planes(state)
        assert push.nearest(x, y, bx, by, torch.cos(angle), torch.sin(angle))[-1].max() < 0
        assert np.linalg.norm(env.position - env.goal, axis=1).min() > 2 * env.success_radius
        assert np.abs(state[:, 7] - state[:, 4]).max() <= turn + 1e-5
        env.set_state(env.goal_state())  # is a state, and at the goal
        assert np.linalg.norm(env.position - env.goal, axis=1).max() < 1e-6


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_scripted_policy_pushes_nearly_every_block_to_its_pose(noise):
    env = PushVectorEnv(num_envs=200, obs="state", max_episode_steps=200)
    env.reset(seed=0)
    reached, rng = np.zeros(200, bool), np.random.default_rng(0)
    for _ in range(199):
        action = (env.expert_action() + noise * rng.normal(size=(200, 2))).clip(-1, 1)
        reached |= env.step(action.astype(np.float32))[4]["success"]
    assert reached.mean() >= 0.95


def test_the_picture_shows_disc_and_block_and_the_goal_image_the_goal():
    env = PushEnv(size=96)
    for angle in (0.0, 0.7, 2.0, -2.5):
        env.reset(seed=0, options={"state": [0.2, 0.3, 0.6, 0.55, angle, 0.4, 0.45, -1.0]})
        picture, floor = env.observe().astype(float), np.array(push.raster.FLOOR)[:, None, None]
        grid = (np.arange(96) + 0.5) / 96

        def centre(weight, grid=grid):
            return (weight.sum(0) * grid).sum() / weight.sum(), (
                weight.sum(1) * grid
            ).sum() / weight.sum()

        red = np.clip(picture[0] - picture[2] - 30, 0, None)
        assert centre(red) == pytest.approx((0.2, 0.3), abs=0.005)
        block = np.abs(picture - floor).sum(0) * (red == 0)
        head = (picture.sum(0) < 180).astype(float)
        bx, by = centre((block > 200).astype(float))
        assert (bx, by) == pytest.approx((0.6, 0.55), abs=0.01)
        hx, hy = centre(head)
        assert math.atan2(hy - by, hx - bx) == pytest.approx(angle, abs=0.15)
    state = env.goal_state()
    image = env.goal_image()
    env.set_state(state)
    assert np.array_equal(env.observe(), image)
