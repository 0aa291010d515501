"""The two-room world in torch: layout, exact collision, pictures, episode draws and a scripted policy.

Every function is pure, float32, works on any device and over any leading batch shape, and draws no random numbers of
its own. `Worlds` keeps the tensors that the functions map to new ones, for a batch of episodes; `two_room.py` dresses
it as Gymnasium environments.

Units. The world is the unit square; positions and lengths are in *world units* (1 = the side of the square, `size`
pixels in a picture). x grows to the right and y grows downwards, as image rows do: a dot at (x, y) has its centre at
column x * size and row y * size, measured from the picture's top left corner. Time is in steps.

Layout. A border of `BORDER` runs around the square. A vertical wall of thickness `WALL_THICKNESS` stands at
x = wall_x; a door, a gap of half width `DOOR_HALF_WIDTH` around y = door_y, joins the two rooms. The agent is a point
at the centre of a dot, kept `AGENT_RADIUS` away from border, wall and door posts, measured along x and along y (the
walls grow by a square, not by a disc: corners stay sharp and collision stays exact in closed form).

Shortcut. A world may have a second, wide opening around y = shortcut: a frozen bridge with water on both sides. On the
ice every step slips by Gaussian noise on top of the action; an agent whose centre leaves the bridge inside the opening
lies in the water and moves no more. Where it is says all: nothing is hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

BORDER = 0.03  # thickness of the outer walls
WALL_THICKNESS = 0.04
DOOR_HALF_WIDTH = 0.08
AGENT_RADIUS = 0.035  # also the radius at which the drawn dot is half transparent

# What is left for the agent's centre.
LOW, HIGH = BORDER + AGENT_RADIUS, 1.0 - BORDER - AGENT_RADIUS
WALL_REACH = WALL_THICKNESS / 2 + AGENT_RADIUS  # half width of the slab around wall_x that only the doorway crosses
DOOR_CLEARANCE = DOOR_HALF_WIDTH - AGENT_RADIUS  # half width of the doorway

BRIDGE_HALF_WIDTH = 0.04  # for the agent's centre, around y = shortcut
SHORTCUT_HALF_WIDTH = 0.12  # of the whole opening, for the agent's centre: between bridge and posts is water
SLIP = 0.04  # world units, standard deviation per step and axis on the ice

WALL_RANGE = (0.35, 0.65)  # of wall_x when it is drawn per episode
DOOR_RANGE = (0.2, 0.8)  # of door_y when it is drawn per episode

STATE = ("x", "y", "goal_x", "goal_y", "wall_x", "door_y")  # what get_state, set_state and simulate mean by X
SUCCESS_RADIUS = 0.05

# RGB, 0..255: a red dot and dark walls on a light floor; goals, where people look at them, are green.
FLOOR_COLOUR = (236, 236, 228)
WALL_COLOUR = (44, 52, 70)
AGENT_COLOUR = (222, 44, 40)
GOAL_COLOUR = (38, 150, 84)
WATER_COLOUR = (70, 120, 190)
ICE_COLOUR = (190, 220, 240)

GOAL_CANDIDATES = 8  # per episode; see draw_episode
EPISODE_DRAWS = 4 + 2 * GOAL_CANDIDATES  # uniform numbers that one episode consumes

# The dot is opaque near its centre and fades to nothing at this radius: alpha = 2 (1 - (d / DOT_REACH)^2), clipped to
# [0, 1], which is one half at AGENT_RADIUS. A fade of about a pixel at size 64 keeps the position visible below the
# pixel grid, and a compact one makes drawing a patch instead of a picture exact.
DOT_REACH = AGENT_RADIUS / math.sqrt(0.75)


def doorway(wall_x: Tensor, door_y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The box that joins the rooms, in agent centres: `(left, right, top, bottom)`, each shaped as its argument.

    The agent is in free space iff it is inside [LOW, HIGH]^2 and x <= left, or x >= right, or top <= y <= bottom.
    """
    return wall_x - WALL_REACH, wall_x + WALL_REACH, door_y - DOOR_CLEARANCE, door_y + DOOR_CLEARANCE


def is_free(position: Tensor, wall_x: Tensor, door_y: Tensor, shortcut: float | None = None) -> Tensor:
    """Whether the agent may stand at `position (..., 2)` in the layout `wall_x (...)`, `door_y (...)` -> bool (...)."""
    x, y = position.unbind(-1)
    left, right, top, bottom = doorway(wall_x, door_y)
    inside = (x >= LOW) & (x <= HIGH) & (y >= LOW) & (y <= HIGH)
    opening = (y >= top) & (y <= bottom)
    if shortcut is not None:
        opening |= _at_shortcut(y, shortcut)
    return inside & ((x <= left) | (x >= right) | opening)


def _posts(shortcut: float) -> tuple[float, float]:
    """Where the shortcut's opening begins and ends along y, for the agent's centre: one pair of numbers for all checks."""
    return float(np.float32(shortcut - SHORTCUT_HALF_WIDTH)), float(np.float32(shortcut + SHORTCUT_HALF_WIDTH))


def _at_shortcut(y: Tensor, shortcut: float) -> Tensor:
    top, bottom = _posts(shortcut)
    return (y >= top) & (y <= bottom)


def is_sunk(x: Tensor, y: Tensor, wall_x: Tensor, shortcut: float) -> Tensor:
    """Whether an agent at x, y (...) lies in the water beside the bridge -> bool (...)."""
    off_bridge = (y - shortcut).abs() > BRIDGE_HALF_WIDTH
    inside = (x > wall_x - WALL_REACH) & (x < wall_x + WALL_REACH)  # the very numbers of `doorway`
    return inside & off_bridge & _at_shortcut(y, shortcut)


def _slide(x: Tensor, y: Tensor, dx: Tensor, dy: Tensor, wall_x: Tensor, shortcut: float, slip: Tensor | None):
    """The step (dx, dy) as the ice and the water change it. slip: displacement on ice (2, ...), None for none."""
    if slip is not None:
        on_ice = (x > wall_x - WALL_REACH) & (x < wall_x + WALL_REACH) & _at_shortcut(y, shortcut)
        dx, dy = dx + on_ice * slip[0], dy + on_ice * slip[1]
    moves = ~is_sunk(x, y, wall_x, shortcut)
    return moves * dx, moves * dy


def _advance(
    x: Tensor,
    y: Tensor,
    dx: Tensor,
    dy: Tensor,
    left: Tensor,
    right: Tensor,
    top: Tensor,
    bottom: Tensor,
    shortcut: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Move by (dx, dy) along the straight line and slide: the closed form behind `move`, on split coordinates.

    Mirrored so that the agent always travels towards larger x. Negation is exact in floating point, so an agent
    stopped at a face lands on precisely the number that later comparisons use, and can never leak through.
    """
    sign = torch.where(dx >= 0, 1.0, -1.0)
    start, end = sign * x, sign * (x + dx).clamp(LOW, HIGH)
    near, far = torch.minimum(sign * left, sign * right), torch.maximum(sign * left, sign * right)
    run = dx.abs().clamp(min=1e-12)  # never zero, so that times below stay finite (and gradients too)
    y_end = (y + dy).clamp(LOW, HIGH)

    # At the wall's near face: through the door, or x is blocked and y goes on.
    enters = (start <= near) & (end > near)
    y_near = y + (near - start) / run * dy
    if shortcut is not None:  # the opening that this step is at
        at = torch.where(enters, y_near, y)
        other, (first, last) = _at_shortcut(at, shortcut), _posts(shortcut)
        top, bottom = torch.where(other, first, top), torch.where(other, last, bottom)
    fits = (y_near >= top) & (y_near <= bottom)
    end = torch.where(enters & ~fits, near, end)

    # Between the posts, up to the far face or the end of the step: a post met on the way blocks y, and x goes on.
    between = (enters & fits) | ((start > near) & (start < far))
    y_far = y + ((far - start) / run).clamp(max=1.0) * dy
    y_post = torch.minimum(torch.maximum(y_far, top), bottom)
    y_end = torch.where(between & (y_post != y_far), y_post, y_end)

    # Rounding of y_far could leave an agent that ends between the posts a last digit inside one.
    y_kept = torch.minimum(torch.maximum(y_end, top), bottom)
    y_end = torch.where((end > near) & (end < far), y_kept, y_end)
    return sign * end, y_end


def move(
    position: Tensor,
    action: Tensor,
    wall_x: Tensor,
    door_y: Tensor,
    speed: float = 0.04,
    shortcut: float | None = None,
    slip: Tensor | None = None,
) -> Tensor:
    """One step of the agent: displacement `speed * action`, swept exactly against walls, door posts and border.

    The agent travels along the straight line. What meets it first blocks one component, which is dropped for the rest
    of the step, and the other component goes on: it slides along the wall. No step, however long, passes a wall.

    Args:
        position: (..., 2) agent centre (x, y), world units; must be free (`is_free`).
        action: (..., 2); clipped to [-1, 1].
        wall_x, door_y: (...) or anything that broadcasts against `position[..., 0]`, world units.
        speed: world units per step at |action| = 1.
        shortcut: y of the frozen bridge, None for none.
        slip: (..., 2) displacement that ice adds, world units; None: it adds nothing.

    Returns:
        (..., 2) the new agent centre, which is free again.
    """
    dx, dy = (speed * action.clamp(-1.0, 1.0)).unbind(-1)
    x, y = position.unbind(-1)
    if shortcut is not None:
        dx, dy = _slide(x, y, dx, dy, wall_x, shortcut, None if slip is None else slip.movedim(-1, 0))
    return torch.stack(_advance(x, y, dx, dy, *doorway(wall_x, door_y), shortcut), dim=-1)


def rollout(
    position: Tensor,
    actions: Tensor,
    wall_x: Tensor,
    door_y: Tensor,
    speed: float = 0.04,
    shortcut: float | None = None,
    slip: Tensor | None = None,
) -> Tensor:
    """`move` applied over a horizon for many candidates: what the simulator would do under each action sequence.

    Args:
        position: (B, 2) start of each world, world units.
        actions: (B, N, H, 2); clipped to [-1, 1].
        wall_x, door_y: (B,).
        speed: world units per step at |action| = 1.
        shortcut: y of the frozen bridge, None for none.
        slip: (H, 2, B, N) displacement that ice adds, world units; None: it adds nothing.

    Returns:
        (B, N, H+1, 2) positions, index 0 the start.
    """
    worlds, candidates, horizon, _ = actions.shape
    # Time first and coordinates apart: each step then reads and writes contiguous (B, N) planes.
    steps = actions.permute(2, 3, 0, 1).contiguous().clamp_(-1.0, 1.0).mul_(speed)  # (H, 2, B, N)
    box = [edge[:, None] for edge in doorway(wall_x, door_y)]  # 4 x (B, 1)
    path = position.new_empty(horizon + 1, 2, worlds, candidates)
    path[0] = position.t()[:, :, None]
    for t in range(horizon):
        (x, y), (dx, dy) = path[t], steps[t]
        if shortcut is not None:
            dx, dy = _slide(x, y, dx, dy, wall_x[:, None], shortcut, None if slip is None else slip[t])
        path[t + 1, 0], path[t + 1, 1] = _advance(x, y, dx, dy, *box, shortcut)
    return path.permute(2, 3, 0, 1).contiguous()


def expert_action(
    position: Tensor,
    goal: Tensor,
    wall_x: Tensor,
    door_y: Tensor,
    speed: float = 0.04,
    shortcut: float | None = None,
) -> Tensor:
    """Scripted policy: to the near side of the door, through it, then straight to the goal.

    With a shortcut it takes whichever opening is the shorter way: it is in a hurry and not careful.

    Args:
        position, goal: (..., 2), world units.
        wall_x, door_y: (...), world units.
        speed: world units per step at |action| = 1.

    Returns:
        (..., 2) action in [-1, 1]: full speed along the larger component, slower only on the last step to a target.
    """
    ahead = 0.01  # world units past a face: a target on the face itself would only be reached in the limit
    x, y = position.unbind(-1)
    left, right, _, _ = doorway(wall_x, door_y)
    clearance = torch.full_like(x, DOOR_CLEARANCE)
    if shortcut is not None:
        ways = [(y - at).abs() + (goal[..., 1] - at).abs() for at in (door_y, shortcut)]
        between = (x > left) & (x < right)
        over = torch.where(between, _at_shortcut(y, shortcut), ways[1] < ways[0])
        door_y = torch.where(over, shortcut, door_y)
        clearance = torch.where(over, BRIDGE_HALF_WIDTH, clearance)
    goal_is_right = goal[..., 0] > wall_x
    near = torch.where(goal_is_right, left - ahead, right + ahead)  # the waypoints before and after the door
    far = torch.where(goal_is_right, right + ahead, left - ahead)

    arrived = torch.where(goal_is_right, x >= right, x <= left)
    between = (x > left) & (x < right)
    aligned = between | ((y - door_y).abs() <= clearance / 2)
    waypoint = torch.stack([torch.where(aligned, far, near), door_y.expand_as(x)], dim=-1)
    target = torch.where(arrived[..., None], goal, waypoint)

    wanted = (target - position) / speed
    return wanted / wanted.abs().amax(-1, keepdim=True).clamp(min=1.0)


def draw_episode(
    uniforms: Tensor, *, wall: float | None, door: float | None, other_room: bool, separation: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turn uniform numbers into episodes: start and goal uniform over the rooms (the doorway itself left out).

    A goal within `separation` of the start would end the episode before it began: the first of `GOAL_CANDIDATES`
    candidates that is farther away is taken (all fail with probability below 1e-10 at the default separation).

    Args:
        uniforms: (n, EPISODE_DRAWS) in [0, 1).
        wall, door: the fixed wall_x and door_y, or None to draw them from `WALL_RANGE` and `DOOR_RANGE`.
        other_room: draw the goal in the room where the start is not; else in either.
        separation: least distance of start and goal, world units.

    Returns:
        `position (n, 2), goal (n, 2), wall_x (n,), door_y (n,)`, world units.
    """
    u_wall, u_door, u_start = uniforms[:, 0], uniforms[:, 1], uniforms[:, 2:4]
    u_goal = uniforms[:, 4:].unflatten(-1, (GOAL_CANDIDATES, 2))  # (n, K, 2)
    wall_x = _within(WALL_RANGE, u_wall) if wall is None else torch.full_like(u_wall, wall)
    door_y = _within(DOOR_RANGE, u_door) if door is None else torch.full_like(u_door, door)
    left, right, _, _ = doorway(wall_x, door_y)

    left_length, right_length = left - LOW, HIGH - right  # of the rooms along x

    def place(u: Tensor, in_left: Tensor) -> Tensor:
        """(n, k, 2) uniforms within the room named by `in_left (n, k)` -> (n, k, 2) positions."""
        x_left = LOW + u[..., 0] * left_length[:, None]
        x_right = right[:, None] + u[..., 0] * right_length[:, None]
        x_left, x_right = torch.minimum(x_left, left[:, None]), x_right.clamp(max=HIGH)  # against rounding
        return torch.stack([torch.where(in_left, x_left, x_right), LOW + u[..., 1] * (HIGH - LOW)], dim=-1)

    def place_anywhere(u: Tensor) -> Tensor:
        """As `place`, with the room chosen by the same number that then says where in it."""
        share = (left_length / (left_length + right_length))[:, None]
        in_left = u[..., 0] < share
        along = torch.where(in_left, u[..., 0] / share, (u[..., 0] - share) / (1.0 - share))
        return place(torch.stack([along, u[..., 1]], dim=-1), in_left)

    start = place_anywhere(u_start[:, None])[:, 0]
    if other_room:
        start_is_left = start[:, :1] <= left[:, None]  # (n, 1)
        goals = place(u_goal, (~start_is_left).expand(-1, GOAL_CANDIDATES))
    else:
        goals = place_anywhere(u_goal)
    far_enough = (goals - start[:, None]).norm(dim=-1) > separation  # (n, K)
    first = far_enough.int().argmax(dim=1)
    goal = goals[torch.arange(len(goals), device=goals.device), first]
    return start, goal, wall_x, door_y


def _within(interval: tuple[float, float], u: Tensor) -> Tensor:
    low, high = interval
    return low + u * (high - low)


def background(wall_x: Tensor, door_y: Tensor, size: int, shortcut: float | None = None) -> Tensor:
    """Floor, border, wall, door and bridge without the agent: uint8 (..., 3, size, size) for layouts `wall_x, door_y (...)`.

    Each pixel is mixed by the share of its area that wall covers, so that layouts a fraction of a pixel apart differ.
    """
    wall_x, door_y = torch.broadcast_tensors(wall_x, door_y)
    pixel = torch.arange(size, device=wall_x.device, dtype=torch.float32)  # left or upper edge of each pixel

    def share(low: Tensor | float, high: Tensor | float) -> Tensor:
        """Share of each pixel's extent within [low, high], world units."""
        low, high = (torch.as_tensor(edge, device=pixel.device)[..., None] * size for edge in (low, high))
        return (torch.minimum(pixel + 1, high) - torch.maximum(pixel, low)).clamp(min=0.0)

    across = share(wall_x - WALL_THICKNESS / 2, wall_x + WALL_THICKNESS / 2)  # (..., size) over columns
    gap = share(door_y - DOOR_HALF_WIDTH, door_y + DOOR_HALF_WIDTH)  # (..., size) over rows
    inner = share(BORDER, 1.0 - BORDER)  # (size,)
    wall = across[..., None, :] * (1.0 - gap[..., :, None])
    border = 1.0 - inner[:, None] * inner[None, :]
    cover = torch.maximum(wall, border)[..., None, :, :]  # (..., 1, size, size)
    floor, dark = (_colour(c, pixel.device)[:, None, None] for c in (FLOOR_COLOUR, WALL_COLOUR))
    picture = floor + cover * (dark - floor)
    if shortcut is not None:
        half = SHORTCUT_HALF_WIDTH + AGENT_RADIUS
        water = share(shortcut - half, shortcut + half)[:, None] * across[..., None, :]
        bridge = share(shortcut - BRIDGE_HALF_WIDTH, shortcut + BRIDGE_HALF_WIDTH)[:, None]
        ice = bridge * share(wall_x - WALL_REACH, wall_x + WALL_REACH)[..., None, :]
        for layer, colour in ((water, WATER_COLOUR), (ice, ICE_COLOUR)):
            ink = _colour(colour, pixel.device)[:, None, None]
            picture = picture + layer[..., None, :, :] * (ink - picture)
    return (picture + 0.5).to(torch.uint8)


def _colour(rgb: tuple[int, int, int], device: torch.device) -> Tensor:
    return torch.tensor(rgb, dtype=torch.float32, device=device)


def draw_dot(frames: Tensor, position: Tensor, colour: tuple[int, int, int] = AGENT_COLOUR) -> Tensor:
    """Blend one dot into each picture, in place, touching only the pixels under it.

    Args:
        frames: (..., 3, size, size) uint8, contiguous; overwritten.
        position: (..., 2) the dot's centre, world units.
        colour: RGB, 0..255.

    Returns:
        `frames`.
    """
    size = frames.shape[-1]
    reach = DOT_REACH * size  # px
    patch = min(size, int(2 * reach) + 1)  # pixel centres that fit under the dot along one axis
    pictures = frames.view(-1, 3, size * size)
    centre = position.reshape(-1, 2) * size - 0.5  # px, in units of pixel indices
    first = (centre - reach).ceil().clamp_(0, size - patch)
    index = first[:, :, None] + torch.arange(patch, device=centre.device)  # (n, 2, P) columns, rows
    square = (index - centre[:, :, None]).square_()
    alpha = (square[:, 1, :, None] + square[:, 0, None, :]).mul_(-2.0 / reach**2).add_(2.0).clamp_(0.0, 1.0)
    alpha = alpha.flatten(1)[:, None]  # (n, 1, P*P)

    index = index.to(torch.int64)
    pixels = (index[:, 1, :, None] * size + index[:, 0, None, :]).flatten(1)[:, None].expand(-1, 3, -1)  # (n, 3, P*P)
    under = pictures.gather(2, pixels).float()
    ink = _colour(colour, frames.device)[:, None]
    pictures.scatter_(2, pixels, (under + alpha * (ink - under)).add_(0.5).to(torch.uint8))
    return frames


def paint(backgrounds: Tensor, position: Tensor) -> Tensor:
    """Fresh pictures of the agent at `position (..., 2)` over `backgrounds`, which broadcast to (..., 3, size, size).

    This is the fast path: one copy of the background and one small patch per picture.
    """
    frames = torch.empty(*position.shape[:-1], *backgrounds.shape[-3:], dtype=torch.uint8, device=backgrounds.device)
    return draw_dot(frames.copy_(backgrounds), position)


def render(
    position: Tensor, wall_x: Tensor | float, door_y: Tensor | float, size: int = 64, shortcut: float | None = None
) -> Tensor:
    """The picture an agent sees: walls, door and itself, not the goal.

    Args:
        position: (..., 2) agent centre, world units.
        wall_x, door_y: numbers, or tensors that broadcast to `position`'s leading shape, world units.
        size: side of the picture, pixels.

    Returns:
        uint8 (..., 3, size, size) on `position`'s device.
    """
    wall_x, door_y = (torch.as_tensor(edge, dtype=torch.float32, device=position.device) for edge in (wall_x, door_y))
    return paint(background(wall_x, door_y, size, shortcut), position)


Seed = int | Sequence[int | None] | None


class Worlds:
    """A batch of two-room worlds: the episode each of them is in, as tensors. It knows physics and no Gymnasium.

    Everything random comes from one CPU generator per world, so that episodes depend neither on the device nor on
    the other worlds of the batch.

    Args:
        worlds: B, how many.
        obs: "pixels", "state" or "both".
        size: side of the pictures, pixels.
        frame_stack: pictures per observation, oldest first.
        wall, door: "fixed" (0.5), "random" (drawn per episode) or a number: wall_x and door_y, world units.
        goal: "any" or "other-room".
        shortcut: y of the frozen bridge, world units; None for none.
        slip: standard deviation of a step's slip on the ice, world units.
        speed: world units per step at |action| = 1.
        success_radius: world units.
        max_episode_steps: steps until truncation.
        terminate_on_goal: end the episode at the goal.
        device: where the tensors live.

    Raises:
        ValueError: if an argument is not one of the above.
    """

    def __init__(
        self,
        *,
        worlds: int,
        obs: str = "pixels",
        size: int = 64,
        frame_stack: int = 1,
        wall: str | float = "fixed",
        door: str | float = "fixed",
        goal: str = "any",
        shortcut: float | None = None,
        slip: float = SLIP,
        speed: float = 0.04,
        success_radius: float = SUCCESS_RADIUS,
        max_episode_steps: int = 100,
        terminate_on_goal: bool = True,
        device: str | torch.device = "cpu",
    ):
        if obs not in ("pixels", "state", "both"):
            raise ValueError(f"obs is {obs!r}; pass 'pixels', 'state' or 'both'")
        if goal not in ("any", "other-room"):
            raise ValueError(f"goal is {goal!r}; pass 'any' or 'other-room'")
        for name, value, least in (
            ("num_envs", worlds, 1),
            ("size", size, 16),  # below that the door is less than three pixels
            ("frame_stack", frame_stack, 1),
            ("max_episode_steps", max_episode_steps, 1),
        ):
            if not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{name} is {value!r}; pass a whole number, {least} or more")
        for name, value in (("speed", speed), ("success_radius", success_radius)):
            if not 0.0 < value <= 1.0:
                raise ValueError(f"{name} is {value!r}; pass a length in world units, above 0 and at most 1")
        self.worlds, self.obs, self.size, self.frame_stack = int(worlds), obs, int(size), int(frame_stack)
        self.wall = _fixed_or_random("wall", wall, WALL_RANGE)
        self.door = _fixed_or_random("door", door, DOOR_RANGE)
        self.other_room = goal == "other-room"
        self.shortcut, self.slip = _shortcut(shortcut, self.door), float(slip)
        if not 0.0 <= self.slip <= 0.1:
            raise ValueError(f"slip is {slip!r}; pass a length in world units, from 0 to 0.1")
        self.speed, self.success_radius = float(speed), float(success_radius)
        self.max_episode_steps, self.terminate_on_goal = int(max_episode_steps), bool(terminate_on_goal)
        self.device = torch.device(device)

        self.generators: list[torch.Generator] = []  # one per world, made by the first `seed`
        self.noise_generator: torch.Generator | None = None  # of the scripted policy, apart from the episodes' own
        self.position = torch.full((self.worlds, 2), 0.25, device=self.device)
        self.goal = self.position.clone()
        self.wall_x = torch.full((self.worlds,), 0.5, device=self.device)
        self.door_y = self.wall_x.clone()
        self.elapsed = torch.zeros(self.worlds, dtype=torch.int32, device=self.device)  # steps in this episode
        self._path = self.position[:, None].repeat(1, self.frame_stack, 1)  # (B, K, 2) positions of the stacked frames
        self._backgrounds: Tensor | None = None  # (1 or B, 3, size, size), see _refresh_backgrounds
        self._shared_layout: tuple[float, float] | None = None  # of all worlds, if it is one

    # -- episodes ------------------------------------------------------------------------------------------------

    def seed(self, seed: Seed) -> None:
        """Seed world i with `seed + i`, or with `seed[i]`; None goes on, and the first time seeds from entropy."""
        if seed is None:
            if self.generators:
                return
            seeds: Sequence[int | None] = [None] * self.worlds
        elif isinstance(seed, int | np.integer):
            seeds = [int(seed) + i for i in range(self.worlds)]
        else:
            seeds = list(seed)
        if len(seeds) != self.worlds:
            raise ValueError(f"seed holds {len(seeds)} numbers for {self.worlds} environments; pass one for each")
        for s in seeds:
            if s is not None and (not isinstance(s, int | np.integer) or s < 0):
                raise ValueError(f"seed is {s!r}; pass whole numbers, 0 or more")
        if not self.generators:
            self.generators = [torch.Generator() for _ in seeds]
            self.noise_generator = torch.Generator()
            for generator in self.generators:
                generator.seed()  # from entropy; a new torch.Generator always holds the same seed
        for generator, s in zip(self.generators, seeds):
            if s is not None:
                generator.manual_seed(int(s))
        self.noise_generator.manual_seed(self.generators[0].initial_seed())

    def begin(self, rows: Tensor | None = None) -> None:
        """Start new episodes in all worlds, or in the worlds `rows (n,)` (int64, CPU)."""
        chosen = range(self.worlds) if rows is None else rows.tolist()
        uniforms = torch.stack([torch.rand(EPISODE_DRAWS, generator=self.generators[i]) for i in chosen])
        episode = draw_episode(
            uniforms,
            wall=self.wall,
            door=self.door,
            other_room=self.other_room,
            separation=2 * self.success_radius,
        )
        self._set(rows, *(part.to(self.device) for part in episode))

    def set_state(self, state: Tensor) -> None:
        """Put the worlds into `state (B, 6)`, at rest and with a new clock."""
        state = self.check_states(state)
        self._set(None, state[:, 0:2].clone(), state[:, 2:4].clone(), state[:, 4].clone(), state[:, 5].clone())

    def _set(self, rows: Tensor | None, position: Tensor, goal: Tensor, wall_x: Tensor, door_y: Tensor) -> None:
        if rows is None:
            self.position, self.goal, self.wall_x, self.door_y = position, goal, wall_x, door_y
            self.elapsed = torch.zeros_like(self.elapsed)
            self._path = position[:, None].repeat(1, self.frame_stack, 1)
        else:
            rows = rows.to(self.device)
            self.position[rows], self.goal[rows] = position, goal
            self.wall_x[rows], self.door_y[rows] = wall_x, door_y
            self.elapsed[rows] = 0
            self._path[rows] = position[:, None]
        self._refresh_backgrounds(rows)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Move every world by `actions (B, 2)` -> `reached, terminated, truncated`, bool (B,) each."""
        slip = None
        if self.shortcut is not None and self.slip:
            if not self.generators:
                self.seed(None)
            slip = torch.stack([torch.randn(2, generator=g) for g in self.generators]).to(self.device) * self.slip
        self.position = move(
            self.position, actions, self.wall_x, self.door_y, self.speed, shortcut=self.shortcut, slip=slip
        )
        self._path = torch.cat([self._path[:, 1:], self.position[:, None]], dim=1)
        self.elapsed = self.elapsed + 1
        reached = (self.position - self.goal).square().sum(-1) < self.success_radius**2
        terminated = reached if self.terminate_on_goal else torch.zeros_like(reached)
        truncated = (self.elapsed >= self.max_episode_steps) & ~terminated
        return reached, terminated, truncated

    # -- what can be seen ----------------------------------------------------------------------------------------

    def _refresh_backgrounds(self, rows: Tensor | None) -> None:
        """Redraw walls where layouts changed. Worlds of one layout share one background, kept as long as it holds."""
        if self.obs == "state":
            self._backgrounds, self._shared_layout = None, None  # drawn when a picture is asked for
            return
        constant = self.wall is not None and self.door is not None
        if rows is not None and constant and self._shared_layout == (self.wall, self.door):
            return
        if rows is not None and self._shared_layout is None and self._backgrounds is not None:
            self._backgrounds[rows] = background(self.wall_x[rows], self.door_y[rows], self.size, self.shortcut)
            return
        one = bool(((self.wall_x == self.wall_x[0]) & (self.door_y == self.door_y[0])).all())
        self._shared_layout = (float(self.wall_x[0]), float(self.door_y[0])) if one else None
        drawn = slice(0, 1) if one else slice(None)
        self._backgrounds = background(self.wall_x[drawn], self.door_y[drawn], self.size, self.shortcut)

    def observe(self, rows: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Fresh observations of all worlds, or of the worlds `rows (n,)`: never a view of anything kept."""
        if self.obs == "pixels":
            return self._pixels(rows)
        if self.obs == "state":
            return self._vectors(rows)
        return {"pixels": self._pixels(rows), "state": self._vectors(rows)}

    def _pixels(self, rows: Tensor | None) -> Tensor:
        path = self._path if rows is None else self._path[rows]  # (n, K, 2)
        backgrounds = self._backgrounds
        if rows is not None and len(backgrounds) > 1:
            backgrounds = backgrounds[rows]
        # Walls stand still during an episode, so the stack is K dots over one background: no frames need keeping.
        return paint(backgrounds[:, None], path).flatten(1, 2)  # (n, 3 K, size, size)

    def _vectors(self, rows: Tensor | None) -> Tensor:
        state = torch.cat([self.position, self.goal, self.wall_x[:, None], self.door_y[:, None]], dim=1)
        return state if rows is None else state[rows]

    def state(self) -> Tensor:
        """(B, 6) float64, in the order of `STATE`; exactly invertible by `set_state`."""
        return self._vectors(None).double()

    def goal_images(self) -> Tensor:
        """uint8 (B, 3, size, size): each world as it looks with the agent at the goal."""
        if self._backgrounds is None:
            return render(self.goal, self.wall_x, self.door_y, self.size, self.shortcut)
        return paint(self._backgrounds, self.goal)

    def frames(self, size: int) -> np.ndarray:
        """uint8 (B, size, size, 3), for people: the agent and the goal, as a green dot."""
        pictures = background(self.wall_x, self.door_y, size, self.shortcut)
        draw_dot(pictures, self.goal, GOAL_COLOUR)
        draw_dot(pictures, self.position)
        return pictures.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def sunk(self) -> Tensor:
        """(B,) bool: who lies in the water; nobody where there is none."""
        if self.shortcut is None:
            return torch.zeros_like(self.elapsed, dtype=torch.bool)
        return is_sunk(*self.position.unbind(-1), self.wall_x, self.shortcut)

    def true_state(self) -> dict[str, Tensor]:
        """What a picture shows, float64 (B, n) each: `position`, and `wall_x`, `door_y` where episodes draw them.

        The goal is not in the picture and a constant has no variance to explain: neither is a target for a probe.
        """
        shown = {"position": self.position}
        if self.wall is None:
            shown["wall_x"] = self.wall_x[:, None]
        if self.door is None:
            shown["door_y"] = self.door_y[:, None]
        return {name: value.double() for name, value in shown.items()}

    # -- policies and rollouts -----------------------------------------------------------------------------------

    def expert_action(self, noise: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """(B, 2) scripted actions plus `noise` times a standard normal (CPU draw), clipped to [-1, 1]."""
        actions = expert_action(self.position, self.goal, self.wall_x, self.door_y, self.speed, self.shortcut)
        if noise:
            drawn = torch.randn(actions.shape, generator=generator or self.noise_generator)
            actions = (actions + noise * drawn.to(self.device)).clamp(-1.0, 1.0)
        return actions

    def simulate(
        self,
        states: Tensor,
        actions: Tensor,
        particles: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """states (B', 6), actions (B', N, H, 2) -> positions (B', N, [P,] H+1, 2) float32; B' is free.

        None: without slipping. With particles P outcomes of each plan, the same slips for all plans of a world.
        """
        states = self.check_states(states)
        if actions.ndim != 4 or actions.shape[0] != states.shape[0] or actions.shape[-1] != 2:
            raise ValueError(
                f"actions have shape {tuple(actions.shape)} for {len(states)} states; expected ({len(states)}, N, H, 2)"
            )
        start, layout = states[:, :2], (states[:, 4], states[:, 5])
        if particles is None:
            return rollout(start, actions, *layout, self.speed, self.shortcut)
        if particles < 1:
            raise ValueError(f"particles is {particles!r}; pass a whole number, 1 or more, or None")
        (worlds, candidates, horizon, _), source = actions.shape, generator.device if generator else self.device
        slip = self.slip * torch.randn(horizon, 2, worlds, 1, particles, generator=generator, device=source)
        slip = slip.to(self.device).expand(-1, -1, -1, candidates, -1).flatten(3)
        actions = actions[:, :, None].expand(-1, -1, particles, -1, -1).flatten(1, 2)
        return rollout(start, actions, *layout, self.speed, self.shortcut, slip).unflatten(1, (-1, particles))

    # -- checks --------------------------------------------------------------------------------------------------

    def check_actions(self, actions: Any, shape: tuple[int, ...]) -> Tensor:
        """`actions` as a float32 tensor of `shape` on the device; ValueError if its shape or a NaN forbids it."""
        actions = self.tensor(actions)
        if tuple(actions.shape) != shape:
            raise ValueError(f"action has shape {tuple(actions.shape)}; expected {shape}")
        if bool(actions.isnan().any()):
            raise ValueError("action contains NaN; expected numbers in [-1, 1]")
        return actions

    def check_states(self, states: Any) -> Tensor:
        """`states` as float32 (n, 6) on the device; ValueError if one of them is no state of this world."""
        states = self.tensor(states)
        if states.ndim != 2 or states.shape[1] != len(STATE):
            raise ValueError(f"state has shape {tuple(states.shape)}; expected (..., {len(STATE)}): {', '.join(STATE)}")
        position, goal, wall_x, door_y = states[:, :2], states[:, 2:4], states[:, 4], states[:, 5]
        low, high = WALL_RANGE
        fits = (wall_x >= low - 1e-6) & (wall_x <= high + 1e-6)
        low, high = DOOR_RANGE
        fits &= (door_y >= low - 1e-6) & (door_y <= high + 1e-6)
        fits &= is_free(position, wall_x, door_y, self.shortcut) & ((goal >= 0.0) & (goal <= 1.0)).all(-1)
        if not bool(fits.all()):
            bad = states[int((~fits).nonzero()[0, 0])].tolist()
            raise ValueError(
                f"state {[round(v, 4) for v in bad]} puts the agent into a wall, the goal outside the unit square, "
                f"wall_x outside {WALL_RANGE} or door_y outside {DOOR_RANGE}; "
                "pass one that get_state could return"
            )
        return states

    def tensor(self, values: Any) -> Tensor:
        """`values` (array, tensor or nested list) as a float32 tensor on the device, sharing no gradient."""
        if not isinstance(values, Tensor):
            values = torch.from_numpy(np.array(values, dtype=np.float32))
        return values.detach().to(self.device, torch.float32)


def _fixed_or_random(name: str, value: str | float, interval: tuple[float, float]) -> float | None:
    """ "fixed" -> 0.5, "random" -> None, a number within `interval` -> that number, rounded to float32."""
    if value == "random":
        return None
    if value == "fixed":
        value = 0.5
    if isinstance(value, str) or not interval[0] <= value <= interval[1]:
        raise ValueError(f"{name} is {value!r}; pass 'fixed', 'random' or a number in {list(interval)}")
    return float(np.float32(value))  # as the tensors hold it, so that comparing layouts is exact


def _shortcut(shortcut: float | None, door: float | None) -> float | None:
    """The bridge's y as the tensors hold it; ValueError unless its opening and the door's have a wall between them."""
    if shortcut is None:
        return None
    apart = SHORTCUT_HALF_WIDTH + DOOR_CLEARANCE + 2 * AGENT_RADIUS
    low, high = DOOR_RANGE
    if not low <= shortcut <= high or door is None or abs(shortcut - door) < apart:
        raise ValueError(
            f"shortcut is {shortcut!r}; pass None or a number in [{low}, {high}] at least {apart:.3f} from a door that is not "
            "'random'"
        )
    return float(np.float32(shortcut))
