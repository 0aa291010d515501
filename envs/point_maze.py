"""A ball with momentum in a maze, one at a time or in batches.

Positions and lengths are in world units (1 = the side of the square), velocities in world units per
step. x grows to the right and y downwards."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from . import raster
from .common import check_choices
from .task_names import MAZES
from .torch_env import TorchEnv, TorchVectorEnv
from .torch_world import Planes, World

RADIUS = 0.03  # of the ball, world units
ACCELERATION = 0.01  # world units per step^2 at |action| = 1
# share of the velocity lost per step: at full action the ball settles at 0.04 world units per step
DRAG = 0.25
TOP_SPEED = 0.041  # world units per step, more than the ball ever reaches
# world units between a ball at rest against a wall and the wall: more than float32 rounds off
GAP = 1e-5
SUCCESS_RADIUS = 0.05


def parse(maze: str) -> np.ndarray:
    """A maze's name -> bool (M, M), True where there is wall."""
    check_choices(maze=(maze, tuple(MAZES)))
    return np.array([[cell == "#" for cell in row] for row in MAZES[maze]])


def distances(wall: np.ndarray) -> np.ndarray:
    """Steps between cells by free neighbours: int (M*M, M*M), -1 where there is no way."""
    side = len(wall)
    table = np.full((side * side, side * side), -1)
    for goal in np.flatnonzero(~wall.ravel()):
        table[goal, goal], frontier, steps = 0, [goal], 0
        while frontier:
            steps += 1
            neighbours = {c + d for c in frontier for d in (-1, 1, -side, side)}
            frontier = [c for c in sorted(neighbours) if not wall.ravel()[c] and table[c, goal] < 0]
            table[frontier, goal] = steps
    return table


class PointMazeWorld(World):
    """The maze as a `World`. A state is `x, y, vx, vy, goal_x, goal_y`."""

    state_names = ("x", "y", "vx", "vy", "goal_x", "goal_y")
    vector_bounds = (
        (0.0, 0.0, -TOP_SPEED, -TOP_SPEED, 0.0, 0.0),
        (1.0, 1.0, TOP_SPEED, TOP_SPEED, 1.0, 1.0),
    )
    actions, limit = 2, 200
    candidates = 4  # goal cells drawn per episode; the first that is not the start's is taken
    draws = 4 + 3 * candidates
    invalid = (
        f"puts the ball or the goal into a wall, has a velocity above {TOP_SPEED}, or holds NaN"
    )

    def __init__(
        self,
        *,
        maze: str = "medium",
        success_radius: float = SUCCESS_RADIUS,
        terminate_on_goal: bool = True,
        **common,
    ):
        super().__init__(
            success_radius=success_radius, terminate_on_goal=terminate_on_goal, **common
        )
        self.wall = parse(maze)
        self.cell = 1.0 / len(self.wall)
        self._wall = torch.from_numpy(self.wall.ravel()).to(self.device)
        self._free = torch.from_numpy(np.flatnonzero(~self.wall.ravel())).to(self.device)
        steps = distances(self.wall)
        self._next = torch.from_numpy(self._next_cells(steps)).to(self.device)
        self._steps = torch.from_numpy(steps.ravel()).to(self.device)

    def _next_cells(self, steps: np.ndarray) -> np.ndarray:
        """The neighbour to go to from each cell on the way to each other: (M*M * M*M,), the cell
        itself at the goal."""
        side = len(self.wall)
        table = np.tile(np.arange(side * side)[:, None], side * side)
        for cell in np.flatnonzero(~self.wall.ravel()):
            for way in (-1, 1, -side, side):
                nearer = (steps[cell + way] >= 0) & (steps[cell + way] < steps[cell])
                table[cell, nearer] = cell + way
        return table.ravel()

    def _index(self, x: Tensor, y: Tensor) -> Tensor:
        """The cell at (x, y), int64."""
        side = len(self.wall)
        column, row = (((v * side).floor().clamp(0, side - 1)).long() for v in (x, y))
        return row * side + column

    def _place(self, u_cell: Tensor, u_x: Tensor, u_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A free cell, and a point of it that keeps clear of its sides."""
        side, count = len(self.wall), len(self._free)
        cell = self._free[(u_cell * count).long().clamp(max=count - 1)]
        clear = RADIUS + 0.005
        x = ((cell % side) * self.cell + clear) + u_x * (self.cell - 2 * clear)
        y = ((cell // side) * self.cell + clear) + u_y * (self.cell - 2 * clear)
        return cell, x, y

    def draw(self, u: Planes) -> Planes:
        start, x, y = self._place(*u[:3])
        goal, goal_x, goal_y = self._place(*u[4:7])
        for k in range(1, self.candidates):
            cell, cell_x, cell_y = self._place(*u[4 + 3 * k : 7 + 3 * k])
            same = goal == start
            goal = torch.where(same, cell, goal)
            goal_x, goal_y = torch.where(same, cell_x, goal_x), torch.where(same, cell_y, goal_y)
        # If all were the start's cell, the next free cell it is: no goal is where the ball begins.
        other = self._free[(torch.searchsorted(self._free, start) + 1) % len(self._free)]
        same, side = goal == start, len(self.wall)
        goal_x = torch.where(same, (other % side + 0.5) * self.cell, goal_x)
        goal_y = torch.where(same, (other // side + 0.5) * self.cell, goal_y)
        return x, y, torch.zeros_like(x), torch.zeros_like(x), goal_x, goal_y

    def _push(
        self, along: Tensor, step: Tensor, low: Tensor, high: Tensor, flip: bool
    ) -> tuple[Tensor, Tensor]:
        """Move along one axis by `step`, up to a wall that either end of the ball's other extent
        would touch.

        Returns:
            the new coordinate, and whether a wall stopped it."""
        sign = torch.where(step >= 0, 1.0, -1.0)
        edge = along + step + sign * (RADIUS + GAP)
        hit = torch.zeros_like(edge, dtype=torch.bool)
        for side in (low, high):
            cells = self._index(side, edge) if flip else self._index(edge, side)
            hit = hit | self._wall[cells]
        # The wall's near face: the side of the cell that the leading edge is in.
        cell = (edge / self.cell).floor() + (sign < 0)
        stop = cell * self.cell - sign * (RADIUS + GAP)
        # never backwards, by rounding
        ahead = torch.maximum(sign * (stop - along), torch.zeros_like(stop))
        return torch.where(hit, along + sign * ahead, along + step), hit

    def advance(self, state: Planes, action: Planes, noise: Planes | None = None) -> Planes:
        x, y, vx, vy, goal_x, goal_y = state
        vx = (1 - DRAG) * vx + ACCELERATION * action[0]
        vy = (1 - DRAG) * vy + ACCELERATION * action[1]
        x, hit = self._push(x, vx, y - RADIUS, y + RADIUS, flip=False)
        vx = torch.where(hit, 0.0, vx)
        y, hit = self._push(y, vy, x - RADIUS, x + RADIUS, flip=True)
        vy = torch.where(hit, 0.0, vy)
        return x, y, vx, vy, goal_x, goal_y

    def position_of(self, state: Planes) -> Planes:
        return state[0:2]

    def goal_of(self, state: Planes) -> Planes:
        return state[4:6]

    def goal_state_of(self, state: Planes) -> Planes:
        rest = torch.zeros_like(state[0])
        return *state[4:6], rest, rest, *state[4:6]

    def shown_by(self, state: Planes) -> dict[str, Planes]:
        shown = {"position": state[0:2]}
        return shown | {"velocity": state[2:4]} if self.frame_stack > 1 else shown

    def valid(self, state: Planes) -> Tensor:
        x, y, vx, vy, goal_x, goal_y = state
        fits = super().valid(state) & (vx.abs() <= TOP_SPEED) & (vy.abs() <= TOP_SPEED)
        for px, py, reach in ((x, y, RADIUS), (goal_x, goal_y, 0.0)):
            fits = fits & (px > 0) & (px < 1) & (py > 0) & (py < 1)
            px, py = px.nan_to_num(), py.nan_to_num()
            for sx, sy in itertools.product((-reach, reach), repeat=2):
                fits = fits & ~self._wall[self._index(px + sx, py + sy)]
        return fits

    def expert(self, state: Planes) -> Planes:
        """To the next cell of the shortest way, or to the goal when it is in this cell: velocity
        control, which brakes."""
        x, y, vx, vy, goal_x, goal_y = state
        side = len(self.wall)
        here, there = self._index(x, y), self._index(goal_x, goal_y)
        following = self._next[here * side**2 + there]
        arrived = following == there  # the goal's cell is this or the next one
        target_x = torch.where(arrived, goal_x, ((following % side) + 0.5) * self.cell)
        target_y = torch.where(arrived, goal_y, ((following // side) + 0.5) * self.cell)
        top = ACCELERATION / DRAG
        actions = []
        for at, v, target in ((x, vx, target_x), (y, vy, target_y)):
            wanted = ((target - at) * 0.35).clamp(-top, top)
            actions.append(((wanted - (1 - DRAG) * v) / ACCELERATION).clamp(-1.0, 1.0))
        return tuple(actions)

    def way_length(self, state: Planes, position: Planes, goal: Planes) -> Tensor:
        """From cell to cell: straight to the middle of the next one, and straight on from the last
        but one; straight all along where the goal's cell is this or the next one."""
        side = len(self.wall)
        here, there = (self._index(*place) for place in (position, goal))
        following = self._next[here * side**2 + there]
        last = self._next[there * side**2 + following]
        near = following == there
        between = (self._steps[following * side**2 + last] * self.cell).to(position[0])

        def leg(place: Planes, cell: Tensor) -> Tensor:
            x, y = ((cell % side + 0.5) * self.cell, (cell // side + 0.5) * self.cell)
            return torch.hypot(place[0] - x, place[1] - y)

        straight = torch.hypot(position[0] - goal[0], position[1] - goal[1])
        around = leg(position, following) + between + leg(goal, last)
        none = self._steps[here * side**2 + there] < 0  # one of them in a wall
        return torch.where(near, straight, around).masked_fill(none, torch.inf)

    def backdrop(self) -> Tensor:
        """Floor and walls, each pixel mixed by the share of it that wall covers."""
        side, size = len(self.wall), self.size
        edges = torch.arange(side, device=self.device) / side * size
        extent = raster.share(edges, edges + size / side, size, self.device)  # (M, size)
        cover = extent.T @ self._wall.view(side, side).float() @ extent  # rows, then columns
        return (raster.layered(cover, raster.DARK, raster.FLOOR) + 0.5).to(torch.uint8)

    def pictures(self, state: Planes, rows: Tensor | None = None) -> Tensor:
        frames, size = self.canvas(*state[0].shape), self.size
        x, y = (plane.flatten() * size for plane in state[:2])
        raster.draw_disc(frames.flatten(0, 1), x, y, RADIUS * size, raster.RED)
        return frames

    def scenes(self, state: Planes) -> Tensor:
        frames, size = self.canvas(len(state[0])), self.size
        x, y, _, _, goal_x, goal_y = (plane * size for plane in state)
        raster.draw_disc(frames, goal_x, goal_y, RADIUS * size, raster.GREEN)
        return raster.draw_disc(frames, x, y, RADIUS * size, raster.RED)


class PointMazeEnv(TorchEnv):
    """A ball that is pushed through a maze, and rolls on.

    A ball with momentum and drag in a square maze is asked to roll to a goal position. The picture
    shows walls and ball and **not** the goal, which is a picture of its own (`goal_image()`);
    velocity shows only with `frame_stack` 2 or more.

    | action           | unit                       | range   |
    |------------------|----------------------------|---------|
    | acceleration x y | 0.01 world units per step² | [-1, 1] |

    Each step the velocity loses a quarter of itself and gains the acceleration, so that at full
    action it settles at 0.04 world units per step; then the ball moves by it, first along x, then
    along y, and a wall on the way stops that component and sets it to 0. The ball (radius 0.03)
    collides as a square of its width, exactly.

    - `maze` (default `"medium"`): `"open"` (7x7 cells), `"u"` (5x5), `"cross"` (7x7), `"rooms"`
      (7x7), `"medium"` (8x8), `"spiral"` (9x9).
    - State vector (6,): `x, y, vx, vy, goal_x, goal_y`, as `get_state`; velocities within 0.041.
    - Reward: 1 on a step that ends less than `success_radius` (0.05) from the goal, else 0.
    - Start: at rest in a free cell drawn uniformly, the goal in another one. End: at the goal
      (unless `terminate_on_goal=False`); truncated after 200 steps.
    - `position` and `goal` are `x, y` (2,). The expert takes the shortest way from cell to cell,
      knows the whole maze, and brakes."""

    world = PointMazeWorld

    def image_position(self, position: np.ndarray) -> np.ndarray:
        """Where positions (..., 2) are seen in a picture: shares of its width and height from the
        top left corner."""
        return np.asarray(position, np.float64)  # the unit square is the picture


class PointMazeVectorEnv(TorchVectorEnv):
    """`num_envs` worlds of `PointMazeEnv` as one batch; see `TorchVectorEnv`."""

    world = PointMazeWorld
