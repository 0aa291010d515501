"""A ball with momentum in a maze: the world, its Gymnasium environment and its natively batched
vector environment.

Units. The world is the unit square; positions and lengths are in world units (1 = the side of the
square, `size` pixels in a picture), velocities in world units per step. x grows to the right and y
downwards. Time is in steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import raster
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

FLOOR_COLOUR = (236, 236, 228)
WALL_COLOUR = (44, 52, 70)
AGENT_COLOUR = (222, 44, 40)
GOAL_COLOUR = (38, 150, 84)


def parse(maze: str | Sequence[str]) -> np.ndarray:
    """A maze's name, or its rows of "#" and "." -> bool (M, M), True where there is wall.

    Raises:
        ValueError: unless the rows are a square of at most 12 cells a side, walled all around, with
            at least two free cells, all joined."""
    rows = MAZES.get(maze) if isinstance(maze, str) else tuple(maze)
    if rows is None:
        raise ValueError(f"maze is {maze!r}; pass rows of '#' and '.' or one of {', '.join(MAZES)}")
    side = len(rows)
    if not 4 <= side <= 12 or any(len(row) != side or set(row) - set("#.") for row in rows):
        raise ValueError(f"maze is {rows!r}; pass a square of '#' and '.', 4 to 12 cells a side")
    wall = np.array([[cell == "#" for cell in row] for row in rows])
    if not (wall[0].all() and wall[-1].all() and wall[:, 0].all() and wall[:, -1].all()):
        raise ValueError(f"maze is {rows!r}; pass one with wall ('#') all around")
    if (~wall).sum() < 2 or (distances(wall)[~wall.ravel()][:, ~wall.ravel()] < 0).any():
        raise ValueError(
            f"maze is {rows!r}; pass one whose free cells ('.') are two at least and all joined"
        )
    return wall


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
    candidates = (
        4  # goal cells drawn per episode, of which the first that is not the start's is taken
    )
    draws = 4 + 3 * candidates
    invalid = (
        f"puts the ball or the goal into a wall, has a velocity above {TOP_SPEED}, or holds NaN"
    )

    def __init__(
        self,
        *,
        maze: str | Sequence[str] = "medium",
        success_radius: float = SUCCESS_RADIUS,
        terminate_on_goal: bool = True,
        **common,
    ):
        super().__init__(
            success_radius=success_radius, terminate_on_goal=terminate_on_goal, **common
        )
        self.wall = parse(maze)
        side = len(self.wall)
        self.cell = 1.0 / side
        if self.cell < 2 * RADIUS + 0.02:
            raise ValueError(
                f"maze has {side} cells a side, too narrow for the ball; pass at most "
                f"{int(1 / 0.08)}"
            )
        self._wall = torch.from_numpy(self.wall.ravel()).to(self.device)
        self._free = torch.from_numpy(np.flatnonzero(~self.wall.ravel())).to(self.device)
        self._next = torch.from_numpy(self._next_cells()).to(self.device)

    def _next_cells(self) -> np.ndarray:
        """The neighbour to go to from each cell on the way to each other: (M*M * M*M,), the cell
        itself at the goal."""
        steps, side = distances(self.wall), len(self.wall)
        table = np.tile(np.arange(side * side)[:, None], side * side)
        for cell in np.flatnonzero(~self.wall.ravel()):
            for way in (-1, 1, -side, side):
                nearer = (steps[cell + way] >= 0) & (steps[cell + way] < steps[cell])
                table[cell, nearer] = cell + way
        return table.ravel()

    # -- rules -------------------------------------------------------------------------------------

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
        return (
            {"position": state[0:2], "velocity": state[2:4]}
            if self.frame_stack > 1
            else {"position": state[0:2]}
        )

    def valid(self, state: Planes) -> Tensor:
        x, y, vx, vy, goal_x, goal_y = state
        fits = super().valid(state) & (vx.abs() <= TOP_SPEED) & (vy.abs() <= TOP_SPEED)
        for px, py, reach in ((x, y, RADIUS), (goal_x, goal_y, 0.0)):
            fits = fits & (px > 0) & (px < 1) & (py > 0) & (py < 1)
            for sx in (-reach, reach):
                for sy in (-reach, reach):
                    fits = (
                        fits & ~self._wall[self._index(px.nan_to_num() + sx, py.nan_to_num() + sy)]
                    )
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
        return tuple(
            ((((target - at) * 0.35).clamp(-top, top) - (1 - DRAG) * v) / ACCELERATION).clamp(
                -1.0, 1.0
            )
            for at, v, target in ((x, vx, target_x), (y, vy, target_y))
        )

    # -- pictures ----------------------------------------------------------------------------------

    def backdrop(self, size: int) -> Tensor:
        """Floor and walls, each pixel mixed by the share of it that wall covers."""
        side = len(self.wall)
        edges = torch.arange(side, device=self.device) / side * size
        extent = raster.share(edges, edges + size / side, size, self.device)  # (M, size)
        cover = extent.T @ self._wall.view(side, side).float() @ extent  # rows, then columns
        floor, dark = (
            raster.ink(c, self.device)[:, None, None] for c in (FLOOR_COLOUR, WALL_COLOUR)
        )
        return (floor + cover * (dark - floor) + 0.5).to(torch.uint8)

    def _ball(self, frames: Tensor, x: Tensor, y: Tensor, colour: raster.Colour) -> Tensor:
        size = frames.shape[-1]
        radius, ink = RADIUS * size, raster.ink(colour, frames.device)
        shapes = lambda dx, dy: [(raster.disc(dx, dy, radius), ink)]  # noqa: E731
        return raster.stamp(frames, x * size, y * size, radius, shapes)

    def pictures(self, state: Planes, size: int, rows: Tensor | None = None) -> Tensor:
        x, y = state[0], state[1]
        frames = self.canvas(size, *x.shape)
        self._ball(frames.flatten(0, 1), x.flatten(), y.flatten(), AGENT_COLOUR)
        return frames

    def scenes(self, state: Planes, size: int) -> Tensor:
        frames = self.canvas(size, len(state[0]))
        self._ball(frames, state[4], state[5], GOAL_COLOUR)
        return self._ball(frames, state[0], state[1], AGENT_COLOUR)


class PointMazeEnv(TorchEnv):
    """A ball that is pushed through a maze, and rolls on.

    ## Description

    A ball with momentum and drag in a square maze. It is asked to roll to a goal position. The
    picture shows walls and ball and **not** the goal, which is a picture of its own
    (`goal_image()`); velocity shows only with `frame_stack` 2 or more.

    Units: 1 is the side of the square (`size` pixels); x grows to the right, y downwards; time is
    in steps.

    ## Action space

    `Box(-1, 1, (2,), float32)`; clipped to these bounds.

    | index | action         | unit                       | range   |
    |-------|----------------|----------------------------|---------|
    | 0     | acceleration x | 0.01 world units per step² | [-1, 1] |
    | 1     | acceleration y | 0.01 world units per step² | [-1, 1] |

    Each step the velocity loses a quarter of itself and gains the acceleration, so that at full
    action it settles at 0.04 world units per step; then the ball moves by it, first along x, then
    along y, and a wall on the way stops that component and sets it to 0. The ball (radius 0.03)
    collides as a square of its width, exactly: its centre never comes nearer to a wall than 0.03
    along x or y.

    ## Mazes

    `maze` is `"open"` (7x7 cells), `"u"` (5x5), `"cross"` (7x7), `"rooms"` (7x7), `"medium"` (8x8),
    `"spiral"` (9x9), or rows of `"#"` and `"."`, square, walled all around, all free cells joined,
    at most 12 a side.

    ## Observation space

    - `"pixels"` (`Box(0, 255, (3 * frame_stack, size, size), uint8)`): RGB frames, oldest first,
      newest last
    - `"state"` (`Box([0, 1] and [-0.041, 0.041], (6,), float32)`): `x, y, vx, vy, goal_x, goal_y`
    - `"both"` (`Dict`): `"pixels"` and `"state"`

    ## Reward

    1 on a step that ends less than `success_radius` from the goal, else 0.

    ## Starting state

    At rest, in a free cell drawn uniformly; the goal in another one; both uniform within their
    cells.

    ## Episode end

    Terminated at the goal (unless `terminate_on_goal=False`); truncated after `max_episode_steps`.

    ## State, goal and expert

    `get_state`: as the state observation, float64. `position` and `goal` are `x, y` (2,). The
    expert takes the shortest way from cell to cell, knows the whole maze, and brakes.

    ## Arguments

    | argument            | default    | meaning                                   |
    |---------------------|------------|-------------------------------------------|
    | `maze`              | `"medium"` | see above                                 |
    | `obs`               | `"pixels"` | `"pixels"`, `"state"` or `"both"`         |
    | `size`              | 64         | side of the picture, pixels, 16 or more   |
    | `frame_stack`       | 1          | pictures per observation                  |
    | `action_repeat`     | 1          | steps per action                          |
    | `success_radius`    | 0.05       | world units                               |
    | `max_episode_steps` | None       | actions until truncation; None: 200 steps |
    | `terminate_on_goal` | True       | end the episode at the goal               |

    and those of `TorchEnv`.

    Version: v0, the first.

    Raises:
        ValueError: for an argument outside this table, an action of another shape or with NaN, and
            a state that is none of this world."""

    world = PointMazeWorld

    def image_position(self, position: np.ndarray) -> np.ndarray:
        """Where positions (..., 2) are seen in a picture: shares of its width and height from the
        top left corner."""
        return np.asarray(position, np.float64)  # the unit square is the picture


class PointMazeVectorEnv(TorchVectorEnv):
    """`num_envs` worlds of `PointMazeEnv` as one batch; see `TorchVectorEnv`."""

    world = PointMazeWorld
