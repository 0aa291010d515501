"""Claims about the two-room world: its walls hold, its pictures are exact, and one environment is a
batch of one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from gjwm.envs import raster
from gjwm.envs import two_room_layout as layout
from gjwm.envs.two_room import TwoRoomEnv, TwoRoomVectorEnv


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def actions_of(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (*shape, 2)).astype(np.float32)


# -- physics ---------------------------------------------------------------------------------------


def move(position, action, wall_x, door_y, speed=0.04):
    """One step of agents at positions (..., 2) under actions (..., 2) -> (..., 2)."""
    (x, y), (dx, dy) = position.unbind(-1), (speed * action.clamp(-1.0, 1.0)).unbind(-1)
    return torch.stack(layout.sweep(x, y, dx, dy, layout.doorway(wall_x, door_y)), -1)


@pytest.mark.parametrize("speed", [0.01, 0.04, 0.3, 1.0])
def test_no_move_of_any_length_leaves_free_space_or_passes_a_wall(speed):
    """Wherever a step enters the wall's slab, the straight line itself must be within the
    doorway.
    """
    g = torch.Generator().manual_seed(0)
    n = 20_000
    position, _, wall_x, door_y = layout.draw_episode(
        torch.rand(n, layout.EPISODE_DRAWS, generator=g),
        wall=None,
        door=None,
        other_room=False,
        separation=0.1,
    )
    # Half of the agents start near the door, where walls are easiest to get wrong.
    near = torch.stack([wall_x, door_y], -1) + 0.15 * (torch.rand(n, 2, generator=g) - 0.5)
    use = layout.is_free(near, wall_x, door_y) & (torch.arange(n) % 2 == 0)
    position = torch.where(use[:, None], near, position)
    crossings = 0
    for _ in range(12):
        action = 2.4 * torch.rand(n, 2, generator=g) - 1.2
        action[torch.rand(n, generator=g) < 0.1, 0] = 0.0  # straight up or down
        new = move(position, action, wall_x, door_y, speed)
        assert layout.is_free(new, wall_x, door_y).all()

        left, right, top, bottom = layout.doorway(wall_x, door_y)
        x0, x1 = position[:, 0], new[:, 0]
        entered_left = (x0 <= left) & (x1 > left)
        entered_right = (x0 >= right) & (x1 < right)
        entered = entered_left | entered_right
        face = torch.where(entered_left, left, right)
        dx = speed * action[:, 0].clamp(-1, 1)
        at_face = position[:, 1] + (face - x0) / dx * speed * action[:, 1].clamp(-1, 1)
        assert ((at_face >= top - 1e-5) & (at_face <= bottom + 1e-5))[entered].all()
        crossings += int(entered.sum())
        position = new
    assert crossings > 100


def test_sliding_drops_the_blocked_component_and_keeps_the_other():
    wall_x, door_y = torch.tensor([0.5]), torch.tensor([0.5])
    face = 0.5 - layout.WALL_REACH
    slid = move(torch.tensor([[face - 0.01, 0.2]]), torch.tensor([[1.0, 0.5]]), wall_x, door_y)
    assert torch.allclose(slid, torch.tensor([[face, 0.22]]))
    post = 0.5 + layout.DOOR_CLEARANCE
    slid = move(torch.tensor([[0.5, post - 0.01]]), torch.tensor([[0.5, 1.0]]), wall_x, door_y)
    assert torch.allclose(slid, torch.tensor([[0.52, post]]))
    free = move(torch.tensor([[0.2, 0.3]]), torch.tensor([[-0.5, 1.0]]), wall_x, door_y)
    assert torch.allclose(free, torch.tensor([[0.18, 0.34]]))


def test_move_agrees_with_a_walk_of_tiny_straight_steps():
    """An oracle that knows only `is_free`: walk the segment in 2000 pieces and drop what is blocked
    first.
    """
    g = torch.Generator().manual_seed(1)
    n, pieces = 400, 2000
    wall_x, door_y = torch.full((n,), 0.5), torch.full((n,), 0.5)
    start = torch.tensor([0.5, 0.5]) + torch.tensor([0.3, 0.16]) * (
        torch.rand(n, 2, generator=g) - 0.5
    )
    start = start[layout.is_free(start, wall_x, door_y)]
    n = len(start)
    wall_x, door_y = wall_x[:n].double(), door_y[:n].double()
    action = 2 * torch.rand(n, 2, generator=g) - 1
    position, piece = start.double(), action.double() * 0.2 / pieces
    blocked = torch.zeros(n, 2, dtype=torch.bool)
    for _ in range(pieces):
        for axis in (1, 0):
            tried = position.clone()
            tried[:, axis] += piece[:, axis] * ~blocked[:, axis]
            fits = layout.is_free(tried, wall_x, door_y)
            blocked[:, axis] |= ~fits
            position = torch.where(fits[:, None], tried, position)
    moved = move(start, action, wall_x.float(), door_y.float(), 0.2)
    gap = (moved - position).abs().amax(-1)
    # A grazed post edge may go either way at the walk's resolution, so a few disagreements are
    # expected.
    assert (gap < 3e-4).float().mean() > 0.97
    assert blocked.any(-1).float().mean() > 0.3  # the case is not vacuous


@pytest.mark.parametrize("walls", ["fixed", "random"])
def test_episodes_start_free_with_goals_where_they_were_asked_for(walls):
    env = TwoRoomVectorEnv(
        num_envs=2000, obs="state", wall=walls, door=walls, goal="other-room", device="cpu"
    )
    env.reset(seed=0)
    state = env.get_state().float()
    position, goal, wall_x, door_y = state[:, :2], state[:, 2:4], state[:, 4], state[:, 5]
    assert (
        layout.is_free(position, wall_x, door_y).all()
        and layout.is_free(goal, wall_x, door_y).all()
    )
    assert ((position[:, 0] < wall_x) ^ (goal[:, 0] < wall_x)).all()
    assert (len(wall_x.unique()) > 1) == (len(door_y.unique()) > 1) == (walls == "random")

    anywhere = TwoRoomVectorEnv(num_envs=2000, obs="state", wall=walls, door=walls, device="cpu")
    anywhere.reset(seed=0)
    same_room = (anywhere.position[:, 0] < 0.5) == (anywhere.goal[:, 0] < 0.5)
    assert 0.4 < same_room.float().mean() < 0.6
    assert (anywhere.position - anywhere.goal).norm(dim=-1).min() > 2 * anywhere.success_radius


# -- pictures --------------------------------------------------------------------------------------


def render(position, wall_x, door_y, size):
    return layout.paint(layout.background(wall_x, door_y, size), position)


def brute_force_picture(x: float, y: float, wall_x: float, door_y: float, size: int) -> np.ndarray:
    """The whole picture from the definitions, pixel by pixel centre, in float64."""
    edges = np.arange(size) / size

    def share(low, high):
        return np.clip(np.minimum(edges + 1 / size, high) - np.maximum(edges, low), 0, None) * size

    half, gap = layout.WALL_THICKNESS / 2, layout.DOOR_HALF_WIDTH
    wall = (
        share(wall_x - half, wall_x + half)[None] * (1 - share(door_y - gap, door_y + gap))[:, None]
    )
    inner = share(layout.BORDER, 1 - layout.BORDER)
    cover = np.maximum(wall, 1 - inner[:, None] * inner[None])[None]
    floor, dark, red = (
        np.array(c, float)[:, None, None] for c in (raster.FLOOR, raster.DARK, raster.RED)
    )
    picture = np.floor(floor + cover * (dark - floor) + 0.5)
    centres = (np.arange(size) + 0.5) / size
    square = (centres[None] - x) ** 2 + (centres[:, None] - y) ** 2
    alpha = np.clip(2 * (1 - square / layout.DOT_REACH**2), 0, 1)[None]
    return np.floor(picture + alpha * (red - picture) + 0.5)


@pytest.mark.parametrize("size", [16, 37, 64, 128])
def test_patch_renderer_equals_a_brute_force_rasteriser(size):
    g = torch.Generator().manual_seed(size)
    position, _, wall_x, door_y = layout.draw_episode(
        torch.rand(30, layout.EPISODE_DRAWS, generator=g),
        wall=None,
        door=None,
        other_room=False,
        separation=0.1,
    )
    # half outside: clipped, not wrapped
    position[0], position[1] = (torch.tensor([0.0, 0.3]), torch.tensor([1.0, 1.0]))
    pictures = render(position, wall_x, door_y, size).numpy().astype(float)
    for i in range(len(pictures)):
        x, y, wall, door = (float(v) for v in (*position[i], wall_x[i], door_y[i]))
        difference = np.abs(pictures[i] - brute_force_picture(x, y, wall, door, size))
        assert difference.max() <= 1  # a rounding tie between float32 and float64
        assert difference.mean() < 0.01


def test_dot_centroid_is_the_position_within_a_twentieth_of_a_pixel():
    g = torch.Generator().manual_seed(0)
    # left room, off the walls
    position = torch.rand(200, 2, generator=g) * torch.tensor([0.3, 0.8]) + 0.1
    wall_x, door_y = torch.full((200,), 0.5), torch.full((200,), 0.5)
    red = render(position, wall_x, door_y, 64)[:, 1].double()
    # green falls from floor to dot
    mass = layout.background(wall_x, door_y, 64)[:, 1].double() - red
    centre = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    x = (mass.sum(1) * centre).sum(-1) / mass.sum((1, 2))
    y = (mass.sum(2) * centre).sum(-1) / mass.sum((1, 2))
    assert (torch.stack([x, y], -1) - position).abs().max() * 64 < 0.05


def test_the_goal_is_in_the_goal_image_and_not_in_the_observation():
    env = TwoRoomEnv(goal="other-room", render_mode="rgb_array")
    observation, info = env.reset(seed=3)
    assert np.allclose(info["goal"], env.goal)
    state = env.get_state()
    state[2:4] = 0.3
    env.set_state(state)
    assert np.array_equal(env.observe(), observation)
    env.set_state(np.r_[0.3, 0.3, state[2:]])
    assert np.array_equal(env.observe(), env.goal_image())
    assert env.render().shape == (64, 64, 3)


# -- the Gymnasium edge ----------------------------------------------------------------------------


@pytest.mark.parametrize("walls", ["fixed", "random"])
def test_vector_environment_i_is_the_single_environment_with_seed_plus_i(walls):
    """Through autoresets, with the same final observations as Gymnasium's own SAME_STEP vector
    environment.
    """
    kwargs = dict(obs="both", size=32, frame_stack=2, wall=walls, door=walls, max_episode_steps=9)
    n = 5
    sync = SyncVectorEnv([lambda: TwoRoomEnv(**kwargs)] * n, autoreset_mode=AutoresetMode.SAME_STEP)
    vector = TwoRoomVectorEnv(num_envs=n, **kwargs)
    expected, expected_info = sync.reset(seed=11)
    got, info = vector.reset(seed=11)
    assert np.array_equal(info["goal"], expected_info["goal"])
    for name in expected:
        assert np.array_equal(got[name], expected[name])
    ended = 0
    for t, action in enumerate(actions_of(1, 30, n)):
        if t == 4:  # bring one world to its goal, out of step with the others
            state = vector.get_state()
            state[2, :2] = state[2, 2:4]
            sync.envs[2].set_state(state[2])
            clock = vector._worlds.elapsed.clone()
            vector.set_state(state)
            for i in (0, 1, 3, 4):
                sync.envs[i].set_state(state[i])
            assert (vector._worlds.elapsed == 0).all() and (clock == 4).all()
        expected, reward, terminated, truncated, expected_info = sync.step(action)
        got, *rest, info = vector.step(action)
        for name in expected:
            assert np.array_equal(got[name], expected[name])
        assert all(np.array_equal(a, b) for a, b in zip(rest, (reward, terminated, truncated)))
        assert ("final_obs" in info) == ("final_obs" in expected_info)
        if "final_obs" in info:
            assert np.array_equal(info["_final_obs"], expected_info["_final_obs"])
            assert np.array_equal(
                info["final_info"]["success"], expected_info["final_info"]["success"]
            )
            for a, b in zip(info["final_obs"], expected_info["final_obs"]):
                assert (a is None) == (b is None)
                assert a is None or all(np.array_equal(a[name], b[name]) for name in a)
            ended += int(info["_final_obs"].sum())
    assert ended >= 2 * n


def test_time_limit_truncates_and_the_goal_terminates():
    env = TwoRoomEnv(obs="state", max_episode_steps=3)
    env.reset(seed=0)
    flags = [env.step(np.zeros(2, np.float32))[1:4] for _ in range(3)]
    assert flags == [(0.0, False, False), (0.0, False, False), (0.0, False, True)]
    env.set_state([0.2, 0.2, 0.24, 0.2, 0.5, 0.5])
    assert env.step(np.zeros(2, np.float32))[1:4] == (1.0, True, False)
    endless = TwoRoomEnv(obs="state", terminate_on_goal=False)
    endless.reset(seed=0, options={"state": [0.2, 0.2, 0.24, 0.2, 0.5, 0.5]})
    assert [endless.step(np.zeros(2, np.float32))[1:4] for _ in range(2)] == [
        (1.0, False, False)
    ] * 2


def test_state_round_trips_exactly_and_restarts_clock_and_stack():
    env = TwoRoomEnv(wall="random", door="random", frame_stack=3, size=32, max_episode_steps=4)
    env.reset(seed=0)
    for action in actions_of(0, 3):
        observation = env.step(action)[0]
    assert not np.array_equal(observation[:3], observation[6:])
    state = env.get_state()
    other = TwoRoomEnv(wall="random", door="random", frame_stack=3, size=32, max_episode_steps=4)
    repeated, _ = other.reset(seed=9, options={"state": state})
    assert state.dtype == np.float64 and np.array_equal(other.get_state(), state)
    assert all(np.array_equal(repeated[k : k + 3], observation[6:]) for k in (0, 3, 6))
    env.set_state(state)
    assert not any(env.step(np.zeros(2, np.float32))[3] for _ in range(3))
    assert np.array_equal(env.position, state[:2]) and set(env.true_state()) == {
        "position",
        "wall_x",
        "door_y",
    }
    assert set(TwoRoomEnv().true_state()) == {"position"}


def test_observations_are_never_overwritten_by_later_steps():
    env = TwoRoomVectorEnv(num_envs=4, size=32, frame_stack=2, obs="both", max_episode_steps=3)
    kept = [env.reset(seed=0)[0]]
    copies = [{name: value.copy() for name, value in kept[0].items()}]
    for action in actions_of(0, 8, 4):
        kept.append(env.step(action)[0])
        copies.append({name: value.copy() for name, value in kept[-1].items()})
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(kept, copies) for name in a)


# -- policies and rollouts -------------------------------------------------------------------------


@pytest.mark.parametrize("walls", ["fixed", "random"])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_expert_reaches_every_goal_in_the_other_room_within_60_steps(walls, noise):
    env = TwoRoomVectorEnv(
        num_envs=200, obs="state", wall=walls, door=walls, goal="other-room", max_episode_steps=60
    )
    env.reset(seed=0)
    reached, rng = np.zeros(200, bool), np.random.default_rng(0)
    for _ in range(60):
        action = (env.expert_action() + noise * rng.normal(size=(200, 2))).clip(-1, 1)
        assert np.abs(action).max() <= 1
        reached |= env.step(action)[4]["success"]
    assert reached.all()


def test_a_way_leads_through_the_door_of_its_own_world():
    envs = TwoRoomVectorEnv(num_envs=3, obs="state")
    states = np.array(
        [
            [0.2, 0.2, 0.8, 0.2, 0.5, 0.5],
            [0.2, 0.5, 0.8, 0.5, 0.4, 0.5],
            [0.2, 0.2, 0.3, 0.6, 0.5, 0.5],
        ]
    )
    ways = envs.way_length(states, states[:, None, :2], states[:, 2:4])[:, 0]
    through = 0.5 - layout.DOOR_CLEARANCE - 0.2  # down to the door's near post
    np.testing.assert_allclose(ways[0], 2 * np.hypot(0.3, through), atol=1e-6)
    np.testing.assert_allclose(ways[1:], [0.6, np.hypot(0.1, 0.4)], atol=1e-6)  # straight
    tensors = (torch.from_numpy(x) for x in (states, states[:, None, :2], states[:, 2:4]))
    np.testing.assert_allclose(envs.way_length(*tensors)[:, 0].numpy(), ways, atol=1e-6)
    with pytest.raises(ValueError, match="NaN or infinity"):
        envs.way_length(states, np.nan * states[:, None, :2], states[:, 2:4])
    bridge = TwoRoomVectorEnv(num_envs=1, obs="state", shortcut=0.2)
    state = np.array([[0.2, 0.2, 0.8, 0.2, 0.5, 0.75]])
    assert bridge.way_length(state, state[:, :2], state[:, 2:4])[0] == pytest.approx(0.6)


def test_random_policy_rarely_reaches_the_other_room():
    env = TwoRoomVectorEnv(num_envs=200, obs="state", goal="other-room")
    env.reset(seed=0)
    reached = np.zeros(200, bool)
    for action in actions_of(0, 100, 200):
        _, _, terminated, truncated, _ = env.step(action)
        reached |= terminated
        if truncated.any():
            break
    assert reached.mean() < 0.1


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs, said",
    [
        ({"obs": "rgb"}, "obs is 'rgb'"),
        ({"goal": "here"}, "goal is 'here'"),
        ({"wall": "no"}, "wall is 'no'"),
        ({"wall": 0.9}, "wall is 0.9"),
        ({"door": 0.01}, "door is 0.01"),
        ({"size": 8}, "size is 8"),
        ({"frame_stack": 0}, "frame_stack is 0"),
        ({"max_episode_steps": 0}, "max_episode_steps is 0"),
        ({"render_mode": "human"}, "render_mode is 'human'"),
    ],
)
def test_constructors_say_what_came_and_what_to_pass(kwargs, said):
    for make in (TwoRoomEnv, TwoRoomVectorEnv):
        with pytest.raises(ValueError, match=said) as error:
            make(**kwargs)
        assert "; pass " in str(error.value)


def test_steps_and_states_refuse_what_has_no_meaning():
    env, vector = TwoRoomEnv(obs="state"), TwoRoomVectorEnv(num_envs=2, obs="state")
    env.reset(seed=0), vector.reset(seed=0)
    with pytest.raises(ValueError, match="puts the agent into a wall"):
        env.set_state([0.5, 0.2, 0.3, 0.3, 0.5, 0.5])
    with pytest.raises(ValueError, match="puts the agent into a wall"):
        vector.simulate(np.full((1, 6), np.nan), np.zeros((1, 1, 1, 2)))
    with pytest.raises(ValueError, match="the only option"):
        vector.reset(options={"reset_mask": np.ones(2, bool)})


# -- the slippery shortcut -------------------------------------------------------------------------


ICY = dict(door=0.8, shortcut=0.35)


def test_the_bridge_is_crossed_and_the_water_holds():
    """Without slips: straight over the bridge to the other side; beside it nobody moves again."""
    env = TwoRoomEnv(obs="state", slip=0.0, terminate_on_goal=False, **ICY)
    east = np.array([1.0, 0.0], np.float32)
    env.reset(seed=0, options={"state": [0.4, 0.35, 0.9, 0.9, 0.5, 0.8]})
    for _ in range(8):
        env.step(east)
    assert env.position[0] > 0.6 and not env.sunk
    env.reset(seed=0, options={"state": [0.4, 0.42, 0.9, 0.9, 0.5, 0.8]})
    for _ in range(3):
        env.step(east)
    assert env.sunk
    stuck = env.position
    for action in actions_of(0, 10):
        env.step(action)
    assert np.array_equal(env.position, stuck)
    env.reset(seed=0, options={"state": [0.4, 0.55, 0.9, 0.9, 0.5, 0.8]})
    for _ in range(8):
        env.step(east)
    # the wall between the openings stands
    assert env.position[0] == pytest.approx(0.5 - layout.WALL_REACH)


def test_agents_of_the_slippery_world_stay_in_free_space():
    env = TwoRoomVectorEnv(
        num_envs=300, obs="state", terminate_on_goal=False, slip=0.05, max_episode_steps=1000, **ICY
    )
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(100):
        env.step(
            np.clip(env.expert_action() + 1.1 * rng.normal(size=(300, 2)), -1, 1).astype(np.float32)
        )
        position = torch.from_numpy(env.position).float()
        assert layout.is_free(
            position, torch.tensor(0.5), torch.tensor(0.8), np.float32(0.35).item()
        ).all()
        # every state is one that set_state accepts
        env.simulate(env.get_state(), np.zeros((300, 1, 1, 2)))
    assert env.sunk.any()


def test_slips_are_gaussian_and_only_on_the_ice():
    n = 4000
    env = TwoRoomVectorEnv(num_envs=n, obs="state", terminate_on_goal=False, **ICY)
    on_ice = np.tile([0.5, 0.35, 0.9, 0.9, 0.5, 0.8], (n, 1))
    env.reset(seed=0, options={"state": on_ice})
    env.step(np.zeros((n, 2), np.float32))
    moved = env.position - on_ice[:, :2]
    assert np.allclose(moved.mean(0), 0, atol=0.002) and np.allclose(
        moved.std(0), layout.SLIP, rtol=0.05
    )
    ashore = np.tile([0.3, 0.35, 0.9, 0.9, 0.5, 0.8], (n, 1))
    env.set_state(ashore)
    env.step(np.zeros((n, 2), np.float32))
    assert np.allclose(env.position, ashore[:, :2], atol=1e-7)


def test_simulated_outcomes_share_their_noise_between_plans_and_match_the_world():
    env = TwoRoomEnv(obs="state", terminate_on_goal=False, **ICY)
    env.reset(seed=0)
    states = np.tile([0.42, 0.35, 0.9, 0.9, 0.5, 0.8], (2, 1))
    actions = np.zeros((2, 3, 6, 2), np.float32)
    actions[..., 0] = 1.0
    actions[:, 2] = -1.0

    def outcomes(seed):
        return env.simulate(
            states, actions, particles=2000, generator=torch.Generator().manual_seed(seed)
        )

    positions = outcomes(0)
    assert positions.shape == (2, 3, 2000, 7, 2) and np.array_equal(positions, outcomes(0))
    assert np.array_equal(positions[:, 0], positions[:, 1]) and not np.array_equal(
        positions[0], positions[1]
    )
    assert env.simulate(states, actions).shape == (2, 3, 7, 2)  # nobody slips: the plan alone
    x, y = torch.from_numpy(positions[0, 0, :, -1]).unbind(-1)
    drowned = layout.is_sunk(x, y, torch.tensor(0.5), np.float32(0.35).item()).float().mean().item()
    vector = TwoRoomVectorEnv(num_envs=2000, obs="state", terminate_on_goal=False, **ICY)
    vector.reset(seed=0, options={"state": np.tile(states[0], (2000, 1))})
    for t in range(6):
        vector.step(np.tile(actions[0, 0, t], (2000, 1)))
    assert drowned == pytest.approx(vector.sunk.mean(), abs=0.05) and 0.3 < drowned < 0.7


def test_bridge_and_water_are_in_the_picture():
    icy, plain = TwoRoomEnv(**ICY), TwoRoomEnv(door=0.8)
    state = [0.2, 0.2, 0.9, 0.9, 0.5, 0.8]
    a, b = (env.reset(seed=0, options={"state": state})[0].astype(int) for env in (icy, plain))
    differs = np.abs(a - b).max(0) > 8
    rows, columns = np.nonzero(differs)
    assert (
        differs.any()
        and 12 <= rows.min()
        and rows.max() <= 33
        and 25 <= columns.min()
        and columns.max() <= 38
    )
    bridge, water = a[:, 22, 32], a[:, 17, 32]
    assert bridge.sum() > water.sum() > 0


@pytest.mark.parametrize(
    "kwargs", [{"shortcut": 0.45}, {"shortcut": 0.9}, {"shortcut": 0.3, "door": "random"}]
)
def test_a_shortcut_needs_wall_around_it(kwargs):
    with pytest.raises(ValueError, match="shortcut is"):
        TwoRoomEnv(**kwargs)
    with pytest.raises(ValueError, match="slip is"):
        TwoRoomEnv(slip=-0.1)


# -- the noisy corridor ----------------------------------------------------------------------------


def test_wind_blows_in_the_corridor_and_nowhere_else():
    n = 4000
    env = TwoRoomVectorEnv(num_envs=n, obs="state", terminate_on_goal=False, corridor=0.2)
    inside, outside = [0.35, 0.3, 0.9, 0.9, 0.5, 0.5], [0.2, 0.3, 0.9, 0.9, 0.5, 0.5]
    env.reset(seed=0, options={"state": np.tile(inside, (n, 1))})
    east = np.tile(np.float32([0.5, 0.0]), (n, 1))
    env.step(east)
    moved = env.position - inside[:2]
    assert np.allclose(moved.mean(0), [0.02, 0], atol=0.002) and np.allclose(
        moved.std(0), layout.WIND, rtol=0.05
    )
    env.set_state(np.tile(outside, (n, 1)))
    env.step(east)
    assert np.allclose(env.position, [0.22, 0.3], atol=1e-6)


def test_walls_hold_against_the_wind_and_the_corridor_shows():
    env = TwoRoomVectorEnv(
        num_envs=300, obs="state", terminate_on_goal=False, corridor=0.2, wind=0.1, wall="random"
    )
    env.reset(seed=0)
    for action in actions_of(0, 60, 300):
        env.step(action)
        state = torch.from_numpy(env.get_state()).float()
        assert layout.is_free(state[:, :2], state[:, 4], state[:, 5]).all()
    windy, still = (TwoRoomEnv(corridor=c).reset(seed=0)[0].astype(int) for c in (0.2, None))
    columns = np.nonzero((windy != still).any((0, 1)))[0]
    assert (columns.min(), columns.max()) == (19, 44)  # 0.3 to 0.7 of 64 pixels


def test_a_state_carries_its_noise_and_a_bare_one_leaves_it():
    env = TwoRoomEnv(obs="state", terminate_on_goal=False, corridor=0.3)
    env.reset(seed=0, options={"state": [0.4, 0.4, 0.9, 0.9, 0.5, 0.5]})
    state, still = env.get_state(), np.zeros(2, np.float32)
    assert state.shape == (7,)

    def outcome():
        return env.step(still)[0][:2]

    first = outcome()
    env.set_state(state)
    assert np.array_equal(outcome(), first)
    env.set_state(state[:6])
    assert not np.array_equal(outcome(), first)
