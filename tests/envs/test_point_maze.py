"""Claims about the maze: walls hold at any action, momentum is what it says, and the scripted
policy finds every goal.
"""

import numpy as np
import pytest
import torch

from gjwm.envs.point_maze import (
    ACCELERATION,
    DRAG,
    RADIUS,
    PointMazeEnv,
    PointMazeVectorEnv,
    distances,
    parse,
)
from gjwm.envs.task_names import MAZES


def overlaps(wall: np.ndarray, x: np.ndarray, y: np.ndarray, reach: float) -> np.ndarray:
    """Whether a square of half width `reach` touches a wall cell's inside, from the definition: all
    cells are asked.
    """
    side = len(wall)
    found = np.zeros(len(x), bool)
    for row, column in zip(*np.nonzero(wall)):
        apart_x = np.maximum(column / side - (x + reach), (x - reach) - (column + 1) / side)
        apart_y = np.maximum(row / side - (y + reach), (y - reach) - (row + 1) / side)
        found |= (apart_x < 0) & (apart_y < 0)
    return found


@pytest.mark.parametrize("maze", MAZES)
def test_the_ball_never_enters_a_wall(maze):
    env = PointMazeVectorEnv(
        num_envs=300, maze=maze, obs="state", terminate_on_goal=False, max_episode_steps=10_000
    )
    env.reset(seed=0)
    rng, wall, stopped = np.random.default_rng(0), parse(maze), 0
    for t in range(150):
        if t % 6 == 0:
            action = 1.5 * rng.choice([-1, 0.3, 1], (300, 2)).astype(np.float32)
        env.step(action)
        x, y, vx, vy, *_ = env.get_state().T
        assert not overlaps(wall, x, y, RADIUS - 1e-6).any()
        assert max(np.abs(vx).max(), np.abs(vy).max()) < ACCELERATION / DRAG + 1e-6
        stopped += (vx == 0).sum()
    assert stopped > 1000  # walls were met
    # every state is one that set_state accepts
    env.simulate(env.get_state(), np.zeros((300, 1, 1, 2)))


def test_a_free_ball_obeys_its_equation_and_coasts():
    env = PointMazeEnv(maze="open", obs="state", terminate_on_goal=False)
    env.reset(seed=0, options={"state": [0.3, 0.5, 0.0, 0.0, 0.8, 0.8]})
    x, v = 0.3, 0.0
    for t in range(12):
        action = 1.0 if t < 6 else 0.0
        env.step(np.array([action, 0], np.float32))
        v = (1 - DRAG) * v + ACCELERATION * action
        x += v
        assert env.get_state()[:3] == pytest.approx([x, 0.5, v], abs=1e-6)
    assert v > 0.005


def test_a_wall_stops_one_component_and_the_ball_slides():
    env = PointMazeEnv(maze="open", obs="state", terminate_on_goal=False)
    env.reset(seed=0, options={"state": [6 / 7 - RADIUS - 0.005, 0.4, 0.04, 0.02, 0.2, 0.2]})
    env.step(np.array([1, 0], np.float32))
    x, y, vx, vy, *_ = env.get_state()
    assert x == pytest.approx(6 / 7 - RADIUS, abs=2e-5) and vx == 0
    assert y == pytest.approx(0.4 + 0.75 * 0.02) and vy == pytest.approx(0.75 * 0.02)


@pytest.mark.parametrize("maze", MAZES)
def test_starts_and_goals_lie_free_in_different_cells_all_over_the_maze(maze):
    env = PointMazeVectorEnv(num_envs=2000, maze=maze, obs="state")
    env.reset(seed=0)
    x, y, _, _, goal_x, goal_y = env.get_state().T
    wall = parse(maze)
    side = len(wall)
    assert (
        not overlaps(wall, x, y, RADIUS).any() and not overlaps(wall, goal_x, goal_y, RADIUS).any()
    )
    start = (y * side).astype(int) * side + (x * side).astype(int)
    goal = (goal_y * side).astype(int) * side + (goal_x * side).astype(int)
    assert (start != goal).all()
    assert set(start) == set(goal) == set(np.flatnonzero(~wall.ravel()))


def test_ways_between_cells_are_shortest():
    steps = distances(parse("u"))
    assert steps[6, 16] == 6 and steps[16, 6] == 6 and steps[6, 6] == 0 and steps[6, 11] == -1


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("maze", MAZES)
def test_the_scripted_policy_reaches_every_goal(maze, noise):
    env = PointMazeVectorEnv(num_envs=200, maze=maze, obs="state", max_episode_steps=201)
    env.reset(seed=0)
    reached, rng = np.zeros(200, bool), np.random.default_rng(0)
    for _ in range(200):
        action = (env.expert_action() + noise * rng.normal(size=(200, 2))).clip(-1, 1)
        reached |= env.step(action.astype(np.float32))[4]["success"]
    assert reached.all()


@pytest.mark.parametrize("maze", ["open", "medium", "spiral"])
def test_a_way_is_no_shorter_than_straight_and_falls_as_the_scripted_policy_goes_it(maze):
    envs = PointMazeVectorEnv(num_envs=64, maze=maze, obs="state", terminate_on_goal=False)
    envs.reset(seed=0)
    start, path = envs.get_state(), []
    goal = envs.goal
    for _ in range(20):
        path.append(np.array(envs.position))
        envs.step(envs.expert_action())
    path = np.stack(path, 1)
    ways = envs.way_length(start, path, goal)
    straight = np.linalg.norm(path - goal[:, None], axis=-1)
    assert (ways > straight - 1e-5).all()
    assert (np.diff(ways) < 0.03).all()  # up to a few steps' worth where ways of one length part
    begun = ways[:, 0] > 0.9
    assert (ways[begun, -1] < ways[begun, 0] - 0.4).all() and begun.any()
    if maze == "open":  # by cells, so longer than straight, and at most twice where that is long
        far = straight > 2 * envs._worlds.cell
        assert (ways[far] < 2 * straight[far]).all()
    wall = np.full_like(goal, 0.01)[:, None]
    assert np.isinf(envs.way_length(start, wall, goal)).all()
    with pytest.raises(ValueError, match=r"positions \(64, \.\.\., 2\) to goals \(64, 2\)"):
        envs.way_length(start, path[:, :, :1], goal)


def test_random_actions_rarely_reach_goals_of_the_spiral():
    env = PointMazeVectorEnv(num_envs=200, maze="spiral", obs="state", max_episode_steps=201)
    env.reset(seed=0)
    reached, rng = np.zeros(200, bool), np.random.default_rng(0)
    for _ in range(200):
        reached |= env.step(rng.uniform(-1, 1, (200, 2)).astype(np.float32))[4]["success"]
    assert reached.mean() < 0.3


def test_the_picture_shows_ball_and_walls_and_not_the_goal():
    env = PointMazeEnv(maze="medium", render_mode="rgb_array")
    env.reset(seed=3)
    state = env.get_state()
    empty = env._worlds.canvas(1)[0].double()
    mass = (empty - torch.from_numpy(env.observe())).abs().sum(0)
    grid = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    seen = [(mass.sum(0) * grid).sum() / mass.sum(), (mass.sum(1) * grid).sum() / mass.sum()]
    assert np.allclose(seen, state[:2], atol=0.1 / 64)
    wall = parse("medium")
    assert np.array_equal(empty[0].reshape(8, 8, 8, 8).mean((1, 3)) < 100, wall)
    env.set_state([*state[:4], 0.2, 0.2])
    assert torch.equal(mass, (empty - torch.from_numpy(env.observe())).abs().sum(0))
    env.set_state(env.goal_state())
    assert np.array_equal(env.observe(), env.goal_image()) and env.render().shape == (64, 64, 3)
