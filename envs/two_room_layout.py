"""The two-room world's geometry: layout, exact collision, pictures, episode draws and a scripted
policy.

Every function is pure, works on any device and over any leading batch shape, and draws no random
numbers of its own; `two_room.py` makes a `torch_world.World` of them.

Units. The world is the unit square; lengths are in *world units*, 1 = the side of the square. x
grows to the right and y grows downwards, as image rows do: a dot at (x, y) has its centre at column
x * size and row y * size, measured from the picture's top left corner.

Layout. A border of `BORDER` runs around the square. A vertical wall of thickness `WALL_THICKNESS`
stands at x = wall_x; a door, a gap of half width `DOOR_HALF_WIDTH` around y = door_y, joins the two
rooms. The agent is a point at the centre of a dot, kept `AGENT_RADIUS` away from border, wall and
door posts, measured along x and along y (the walls grow by a square, not by a disc: corners stay
sharp and collision stays exact in closed form).

Shortcut. A world may have a second, wide opening around y = shortcut: a frozen bridge with water on
both sides. On the ice every step slips by Gaussian noise on top of the action; an agent whose
centre leaves the bridge inside the opening lies in the water and moves no more. Where it is says
all: nothing is hidden.

Corridor. A world may have a windy strip along its wall, on both sides and through the door: every
step that begins in it is displaced by Gaussian noise on top of the action. Outside of it steps are
exact."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import raster
from .torch_world import within

BORDER = 0.03  # thickness of the outer walls
WALL_THICKNESS = 0.04
DOOR_HALF_WIDTH = 0.08
AGENT_RADIUS = 0.035  # also the radius at which the drawn dot is half transparent

# What is left for the agent's centre.
LOW, HIGH = BORDER + AGENT_RADIUS, 1.0 - BORDER - AGENT_RADIUS
# half width of the slab around wall_x that only the doorway crosses
WALL_REACH = WALL_THICKNESS / 2 + AGENT_RADIUS
DOOR_CLEARANCE = DOOR_HALF_WIDTH - AGENT_RADIUS  # half width of the doorway

SPEED = 0.04  # world units per step at |action| = 1
BRIDGE_HALF_WIDTH = 0.04  # for the agent's centre, around y = shortcut
# of the whole opening, for the agent's centre: between bridge and posts is water
SHORTCUT_HALF_WIDTH = 0.12
SLIP = 0.04  # standard deviation per step and axis on the ice
WIND = 0.04  # the same in the corridor

WALL_RANGE = (0.35, 0.65)  # of wall_x when it is drawn per episode
DOOR_RANGE = (0.2, 0.8)  # of door_y when it is drawn per episode

PLACE_DEPTH, PLACE_MISS = 0.15, 0.15  # world units, see `random_place`

# what get_state, set_state and simulate mean by X
STATE = ("x", "y", "goal_x", "goal_y", "wall_x", "door_y")
SUCCESS_RADIUS = 0.05

WATER_COLOUR, ICE_COLOUR, WIND_COLOUR = (70, 120, 190), (190, 220, 240), (206, 198, 224)

GOAL_CANDIDATES = 8  # per episode; see draw_episode
EPISODE_DRAWS = 4 + 2 * GOAL_CANDIDATES  # uniform numbers that one episode consumes

# The dot is opaque near its centre and fades to nothing at this radius: alpha = 2 (1 - (d /
# DOT_REACH)^2), clipped to [0, 1], which is one half at AGENT_RADIUS. A fade of about a pixel at
# size 64 keeps the position visible below the pixel grid, and a compact one makes drawing a patch
# instead of a picture exact.
DOT_REACH = AGENT_RADIUS / math.sqrt(0.75)


def doorway(wall_x: Tensor, door_y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The box that joins the rooms, in agent centres: `(left, right, top, bottom)`, (...) each.

    The agent is in free space iff it is inside [LOW, HIGH]^2 and x <= left, or x >= right, or top
    <= y <= bottom."""
    left, right = wall_x - WALL_REACH, wall_x + WALL_REACH
    return left, right, door_y - DOOR_CLEARANCE, door_y + DOOR_CLEARANCE


def is_free(
    position: Tensor, wall_x: Tensor, door_y: Tensor, shortcut: float | None = None
) -> Tensor:
    """Whether the agent may stand at `position (..., 2)` in the layout (...) -> bool (...)."""
    x, y = position.unbind(-1)
    left, right, top, bottom = doorway(wall_x, door_y)
    inside = (x >= LOW) & (x <= HIGH) & (y >= LOW) & (y <= HIGH)
    opening = (y >= top) & (y <= bottom)
    if shortcut is not None:
        opening |= _at_shortcut(y, shortcut)
    return inside & ((x <= left) | (x >= right) | opening)


def _posts(shortcut: float) -> tuple[float, float]:
    """Where the shortcut's opening begins and ends along y: one pair of float32 for all checks."""
    low, high = np.float32([shortcut - SHORTCUT_HALF_WIDTH, shortcut + SHORTCUT_HALF_WIDTH])
    return float(low), float(high)


def _at_shortcut(y: Tensor, shortcut: float) -> Tensor:
    top, bottom = _posts(shortcut)
    return (y >= top) & (y <= bottom)


def _beside_wall(x: Tensor, wall_x: Tensor) -> Tensor:
    """Between the faces of the wall, by the very numbers of `doorway`."""
    return (x > wall_x - WALL_REACH) & (x < wall_x + WALL_REACH)


def is_sunk(x: Tensor, y: Tensor, wall_x: Tensor, shortcut: float) -> Tensor:
    """Whether an agent at x, y (...) lies in the water beside the bridge -> bool (...)."""
    off_bridge = (y - shortcut).abs() > BRIDGE_HALF_WIDTH
    return _beside_wall(x, wall_x) & off_bridge & _at_shortcut(y, shortcut)


def slide(
    x: Tensor,
    y: Tensor,
    dx: Tensor,
    dy: Tensor,
    wall_x: Tensor,
    shortcut: float,
    slip: Sequence[Tensor] | None,
):
    """The step (dx, dy) as the ice and the water change it. slip: displacement on ice, x and y;
    None for none."""
    if slip is not None:
        on_ice = _beside_wall(x, wall_x) & _at_shortcut(y, shortcut)
        dx, dy = dx + on_ice * slip[0], dy + on_ice * slip[1]
    moves = ~is_sunk(x, y, wall_x, shortcut)
    return moves * dx, moves * dy


def blow(
    x: Tensor, dx: Tensor, dy: Tensor, wall_x: Tensor, corridor: float, gust: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The step (dx, dy) with the gust's displacement, x and y, added for agents in the corridor |x
    - wall_x| < corridor."""
    windy = (x - wall_x).abs() < corridor
    return dx + windy * gust[0], dy + windy * gust[1]


def sweep(
    x: Tensor,
    y: Tensor,
    dx: Tensor,
    dy: Tensor,
    door: tuple[Tensor, Tensor, Tensor, Tensor],
    shortcut: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Move by (dx, dy) along the straight line and slide: in closed form, on split coordinates.
    door: the box of `doorway`.

    Mirrored so that the agent always travels towards larger x. Negation is exact in floating point,
    so an agent stopped at a face lands on precisely the number that later comparisons use, and can
    never leak through."""
    left, right, top, bottom = door
    sign = torch.where(dx >= 0, 1.0, -1.0)
    start, end = sign * x, sign * (x + dx).clamp(LOW, HIGH)
    near, far = torch.minimum(sign * left, sign * right), torch.maximum(sign * left, sign * right)
    # never zero, so that times below stay finite (and gradients too)
    run = dx.abs().clamp(min=1e-12)
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

    # Between the posts, up to the far face or the end of the step: a post met on the way blocks y,
    # and x goes on.
    between = (enters & fits) | ((start > near) & (start < far))
    y_far = y + ((far - start) / run).clamp(max=1.0) * dy
    y_post = torch.minimum(torch.maximum(y_far, top), bottom)
    y_end = torch.where(between & (y_post != y_far), y_post, y_end)

    # Rounding of y_far could leave an agent that ends between the posts a last digit inside one.
    y_kept = torch.minimum(torch.maximum(y_end, top), bottom)
    y_end = torch.where((end > near) & (end < far), y_kept, y_end)
    return sign * end, y_end


def expert_action(
    position: Tensor, goal: Tensor, wall_x: Tensor, door_y: Tensor, shortcut: float | None = None
) -> Tensor:
    """Scripted policy: to the near side of the door, through it, then straight to the goal.

    With a shortcut it takes whichever opening is the shorter way: it is in a hurry and not careful.
    position, goal (..., 2), wall_x, door_y (...) -> (..., 2) in [-1, 1]: full speed along the
    larger component, slower only on the last step to a target."""
    # world units past a face: a target on the face itself would only be reached in the limit
    ahead = 0.01
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
    # the waypoints before and after the door
    near = torch.where(goal_is_right, left - ahead, right + ahead)
    far = torch.where(goal_is_right, right + ahead, left - ahead)

    arrived = torch.where(goal_is_right, x >= right, x <= left)
    between = (x > left) & (x < right)
    aligned = between | ((y - door_y).abs() <= clearance / 2)
    waypoint = torch.stack([torch.where(aligned, far, near), door_y.expand_as(x)], dim=-1)
    target = torch.where(arrived[..., None], goal, waypoint)

    wanted = (target - position) / SPEED
    return wanted / wanted.abs().amax(-1, keepdim=True).clamp(min=1.0)


def way_length(
    position: Tensor, goal: Tensor, wall_x: Tensor, door_y: Tensor, shortcut: float | None = None
) -> Tensor:
    """The shortest way between places (..., 2), broadcast, world units -> (...): straight within a
    room, else through the door or over the bridge, as if the wall were thin."""
    straight = (goal - position).norm(dim=-1)
    (x, y), (goal_x, goal_y) = position.unbind(-1), goal.unbind(-1)
    other_room = (x > wall_x) != (goal_x > wall_x)
    run = torch.where(other_room, goal_x - x, 1.0)
    crossing = y + (wall_x - x) / run * (goal_y - y)  # of the straight line and the wall
    ways = []
    openings = [(door_y, DOOR_CLEARANCE)]
    if shortcut is not None:
        openings.append((torch.full_like(door_y, shortcut), BRIDGE_HALF_WIDTH))
    for at, half_width in openings:
        through = torch.minimum(torch.maximum(crossing, at - half_width), at + half_width)
        legs = ((x, y), (goal_x, goal_y))
        ways.append(sum(torch.hypot(wall_x - px, through - py) for px, py in legs))
    around = torch.stack(ways).amin(0)
    return torch.where(other_room, around, straight)


def random_place(position: Tensor, wall_x: Tensor, door_y: Tensor, u: Tensor) -> Tensor:
    """Where to walk next for a wanderer that is to learn what walls do: half of the time anywhere,
    else at the door.

    The second lie beyond the wall's middle, up to `PLACE_DEPTH` behind it and up to `PLACE_MISS`
    beside the door's: a straight line to them runs into the wall near the door, along a post, or
    through. position (..., 2), wall_x, door_y (...), u (..., 3) uniform on [0, 1) -> (..., 2)."""
    which, first, second = u.unbind(-1)
    anywhere = LOW + (HIGH - LOW) * torch.stack([first, second], -1)
    beyond = torch.where(position[..., 0] > wall_x, -1.0, 1.0)
    door = torch.stack(
        [wall_x + beyond * PLACE_DEPTH * first, door_y + PLACE_MISS * (2 * second - 1)], -1
    )
    return torch.where((which < 0.5)[..., None], anywhere, door)


def draw_episode(
    uniforms: Tensor, *, wall: float | None, door: float | None, other_room: bool, separation: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turn uniform numbers into episodes: start and goal uniform over the rooms (the doorway itself
    left out).

    A goal within `separation` of the start would end the episode before it began: the first of
    `GOAL_CANDIDATES` candidates that is farther away is taken (all fail with probability below
    1e-10 at the default separation).

    Args:
        uniforms: (n, EPISODE_DRAWS) in [0, 1).
        wall, door: the fixed wall_x and door_y, or None to draw them from their ranges.
        other_room: draw the goal in the room where the start is not; else in either.

    Returns:
        `position (n, 2), goal (n, 2), wall_x (n,), door_y (n,)`."""
    u_wall, u_door, u_start = uniforms[:, 0], uniforms[:, 1], uniforms[:, 2:4]
    u_goal = uniforms[:, 4:].unflatten(-1, (GOAL_CANDIDATES, 2))  # (n, K, 2)
    wall_x = within(*WALL_RANGE, u_wall) if wall is None else torch.full_like(u_wall, wall)
    door_y = within(*DOOR_RANGE, u_door) if door is None else torch.full_like(u_door, door)
    left, right, _, _ = doorway(wall_x, door_y)

    left_length, right_length = left - LOW, HIGH - right  # of the rooms along x

    def place(u: Tensor, in_left: Tensor) -> Tensor:
        """(n, k, 2) uniforms within the room named by `in_left (n, k)` -> (n, k, 2) positions."""
        x_left = LOW + u[..., 0] * left_length[:, None]
        x_right = right[:, None] + u[..., 0] * right_length[:, None]
        # against rounding
        x_left, x_right = torch.minimum(x_left, left[:, None]), x_right.clamp(max=HIGH)
        x, y = torch.where(in_left, x_left, x_right), LOW + u[..., 1] * (HIGH - LOW)
        return torch.stack([x, y], dim=-1)

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


def background(
    wall_x: Tensor,
    door_y: Tensor,
    size: int,
    shortcut: float | None = None,
    corridor: float | None = None,
) -> Tensor:
    """Everything but the agent: uint8 (..., 3, size, size) for layouts `wall_x, door_y (...)`.

    Each pixel is mixed by the share of its area that wall covers, so that layouts a fraction of a
    pixel apart differ."""
    wall_x, door_y = torch.broadcast_tensors(wall_x, door_y)

    def share(low: Tensor | float, high: Tensor | float) -> Tensor:
        """Share of each pixel's extent within [low, high], world units."""
        return raster.share(low * size, high * size, size, wall_x.device)

    # (..., size) over columns
    across = share(wall_x - WALL_THICKNESS / 2, wall_x + WALL_THICKNESS / 2)
    gap = share(door_y - DOOR_HALF_WIDTH, door_y + DOOR_HALF_WIDTH)  # (..., size) over rows
    inner = share(BORDER, 1.0 - BORDER)  # (size,)
    wall = across[..., None, :] * (1.0 - gap[..., :, None])
    cover = torch.maximum(wall, 1.0 - inner[:, None] * inner[None, :])  # (..., size, size)
    floor: Tensor | raster.Colour = raster.FLOOR
    if corridor is not None:
        windy = share(wall_x - corridor, wall_x + corridor)[..., None, :]
        floor = raster.layered(windy, WIND_COLOUR, floor)
    picture = raster.layered(cover, raster.DARK, floor)
    if shortcut is not None:
        half = SHORTCUT_HALF_WIDTH + AGENT_RADIUS
        water = share(shortcut - half, shortcut + half)[:, None] * across[..., None, :]
        bridge = share(shortcut - BRIDGE_HALF_WIDTH, shortcut + BRIDGE_HALF_WIDTH)[:, None]
        ice = bridge * share(wall_x - WALL_REACH, wall_x + WALL_REACH)[..., None, :]
        picture = raster.layered(water, WATER_COLOUR, picture)
        picture = raster.layered(ice, ICE_COLOUR, picture)
    return (picture + 0.5).to(torch.uint8)


def draw_dot(frames: Tensor, position: Tensor, colour: raster.Colour = raster.RED) -> Tensor:
    """Blend one dot into each picture, in place, touching only the pixels under it.

    Args:
        frames: (..., 3, size, size) uint8, contiguous; overwritten.
        position: (..., 2) the dot's centre.

    Returns:
        `frames`."""
    size = frames.shape[-1]
    reach = DOT_REACH * size  # px
    patch = min(size, int(2 * reach) + 1)  # pixel centres that fit under the dot along one axis
    pictures = frames.view(-1, 3, size * size)
    centre = position.reshape(-1, 2) * size - 0.5  # px, in units of pixel indices
    first = (centre - reach).ceil().clamp_(0, size - patch)
    index = first[:, :, None] + torch.arange(patch, device=centre.device)  # (n, 2, P) columns, rows
    square = (index - centre[:, :, None]).square_()
    alpha = square[:, 1, :, None] + square[:, 0, None, :]
    alpha = alpha.mul_(-2.0 / reach**2).add_(2.0).clamp_(0.0, 1.0)
    alpha = alpha.flatten(1)[:, None]  # (n, 1, P*P)

    index = index.to(torch.int64)
    pixels = index[:, 1, :, None] * size + index[:, 0, None, :]
    pixels = pixels.flatten(1)[:, None].expand(-1, 3, -1)  # (n, 3, P*P)
    under = pictures.gather(2, pixels).float()
    ink = raster.ink(colour, frames.device)[:, None]
    pictures.scatter_(2, pixels, (under + alpha * (ink - under)).add_(0.5).to(torch.uint8))
    return frames


def paint(backgrounds: Tensor, position: Tensor) -> Tensor:
    """Fresh pictures of the agent at `position (..., 2)` over `backgrounds`, which broadcast to
    (..., 3, size, size)."""
    frames = torch.empty(
        *position.shape[:-1], *backgrounds.shape[-3:], dtype=torch.uint8, device=backgrounds.device
    )
    return draw_dot(frames.copy_(backgrounds), position)


def fixed_or_random(name: str, value: str | float, interval: tuple[float, float]) -> float | None:
    """ "fixed" -> 0.5, "random" -> None, a number within `interval` -> that number, rounded to
    float32."""
    if value == "random":
        return None
    if value == "fixed":
        value = 0.5
    if isinstance(value, str) or not interval[0] <= value <= interval[1]:
        raise ValueError(
            f"{name} is {value!r}; pass 'fixed', 'random' or a number in {list(interval)}"
        )
    return float(np.float32(value))  # as the tensors hold it, so that comparing layouts is exact


def checked_shortcut(shortcut: float | None, door: float | None) -> float | None:
    """The bridge's y as the tensors hold it; ValueError unless its opening and the door's have a
    wall between them."""
    if shortcut is None:
        return None
    apart = SHORTCUT_HALF_WIDTH + DOOR_CLEARANCE + 2 * AGENT_RADIUS
    low, high = DOOR_RANGE
    if not low <= shortcut <= high or door is None or abs(shortcut - door) < apart:
        raise ValueError(
            f"shortcut is {shortcut!r}; pass None or a number in [{low}, {high}] at least "
            f"{apart:.3f} from a door that is not 'random'"
        )
    return float(np.float32(shortcut))
