"""A disc that pushes a block to a pose, one at a time or in batches.

Positions and lengths are in world units (1 = the side of the square). x grows to the right and y
downwards, so that a positive angle, in rad, turns clockwise to the eye.

Physics. The disc goes where it is told; the block lies on a plane with friction and moves only
while it is pushed (quasi-static pushing). The friction that holds it is bounded by an ellipsoid of
forces and moments, the limit surface (Goyal, Ruina & Papadopoulos, 1991; Howe & Cutkosky, 1996),
whose normal is the direction of motion:

    v = f,   w = m / c^2   (up to a common factor),   c = largest moment / largest force,

with c the mean distance of the block's points from its centre, as for even pressure. A push f at
the point p makes that point move by M f, M = I + J' J / c^2 with J = (-p_y, p_x). The contact
sticks if the f that makes the point follow the disc lies in the friction cone |f_t| <= mu f_n;
otherwise f lies on the cone's edge and the disc slides (Lynch & Mason, 1996)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import raster
from .common import check_choices
from .torch_env import TorchEnv, TorchVectorEnv
from .torch_world import Planes, World, select, within

RADIUS = 0.04  # of the disc
HALF_LENGTH, HALF_WIDTH = 0.1, 0.06  # of the block
DIAGONAL = math.hypot(HALF_LENGTH, HALF_WIDTH)
FRICTION = 0.3  # between disc and block: mu
SPEED = 0.03  # world units per step at |action| = 1
SUBSTEPS = 4
LEVER = 0.1  # world units that a radian is worth in the distance of two poses
SUCCESS_RADIUS = 0.03
OVERLAP = 1e-5  # world units by which disc and block may overlap after a step: what float32 rounds
CLEAR = DIAGONAL + RADIUS + 0.01  # at this distance of the centres disc and block never touch
ROOM = (0.32, 0.68)  # of a block's centre when an episode draws it, and of a goal's

# Mean distance of a rectangle's points from its centre.
MOMENT_ARM = DIAGONAL / 3 + (
    HALF_LENGTH**3 * math.asinh(HALF_WIDTH / HALF_LENGTH)
    + HALF_WIDTH**3 * math.asinh(HALF_LENGTH / HALF_WIDTH)
) / (6 * HALF_LENGTH * HALF_WIDTH)

# the block, and the end that its angle points to
BLOCK_COLOUR, HEAD_COLOUR = ((58, 90, 150), (28, 40, 70))
GOAL_COLOUR, GOAL_HEAD_COLOUR = (150, 210, 170), raster.GREEN


def _across(px: Tensor, py: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
    return px * qy - py * qx


def nearest(
    x: Tensor, y: Tensor, bx: Tensor, by: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, ...]:
    """The block's point nearest to the disc's centre, seen from the block.

    Returns:
        point (2 planes), the unit normal from disc to block (2 planes), both in the block's frame,
        and the overlap, which is negative where they are apart."""
    dx, dy = x - bx, y - by
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    p, q = u.clamp(-HALF_LENGTH, HALF_LENGTH), v.clamp(-HALF_WIDTH, HALF_WIDTH)
    gap_u, gap_v = p - u, q - v
    # the disc's centre is never inside the block
    gap = torch.sqrt(gap_u * gap_u + gap_v * gap_v + 1e-20)
    return p, q, gap_u / gap, gap_v / gap, RADIUS - gap


def shove(
    p: Tensor, q: Tensor, nx: Tensor, ny: Tensor, depth: Tensor, along: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """How the block moves, in its own frame, when the disc advances at the contact (p, q) by
    `depth` > 0 along the unit normal (nx, ny) into the block and `along` the tangent (-ny, nx).

    Returns:
        displacement of the centre (2 planes) and rotation, rad."""
    inverse = 1.0 / MOMENT_ARM**2
    wx, wy = depth * nx - along * ny, depth * ny + along * nx  # where the point should go
    # f = M^-1 w, with M = I + J' J / c^2 and M^-1 = I - J' J / (c^2 + |p|^2).
    turn = _across(p, q, wx, wy) / (MOMENT_ARM**2 + p * p + q * q)
    fx, fy = wx + q * turn, wy - p * turn
    normal, tangent = fx * nx + fy * ny, fy * nx - fx * ny
    # The cone's edge on the side of the slip, scaled so that the block just gets out of the disc's
    # way.
    side = torch.copysign(torch.full_like(tangent, FRICTION), tangent)
    ex, ey = nx - side * ny, ny + side * nx
    scale = depth / (1.0 + _across(p, q, nx, ny) * _across(p, q, ex, ey) * inverse)
    sticks = tangent.abs() <= FRICTION * normal
    fx, fy = torch.where(sticks, fx, scale * ex), torch.where(sticks, fy, scale * ey)
    return fx, fy, _across(p, q, fx, fy) * inverse


def _inside(bx: Tensor, by: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The block's centre moved so that all of the block lies in the square."""
    reach_x = HALF_LENGTH * cos.abs() + HALF_WIDTH * sin.abs()
    reach_y = HALF_LENGTH * sin.abs() + HALF_WIDTH * cos.abs()
    return (
        torch.minimum(torch.maximum(bx, reach_x), 1 - reach_x),
        torch.minimum(torch.maximum(by, reach_y), 1 - reach_y),
    )


def push(pose: Planes, dx: Tensor, dy: Tensor) -> Planes:
    """The disc moves by (dx, dy), a small part of its radius; what it meets gives way.

    Args:
        pose: x, y of the disc; x, y, angle of the block: planes that do not overlap.

    Returns:
        the same five planes, which do not overlap by more than `OVERLAP`, all inside the square."""
    x0, y0, bx0, by0, angle0 = pose
    x, y = (x0 + dx).clamp(RADIUS, 1 - RADIUS), (y0 + dy).clamp(RADIUS, 1 - RADIUS)
    cos, sin = torch.cos(angle0), torch.sin(angle0)
    p, q, nx, ny, depth = nearest(x, y, bx0, by0, cos, sin)
    depth = depth.clamp(min=0.0)
    # The disc's own motion in the block's frame, and the share of it that came after they met.
    mx, my = (x - x0) * cos + (y - y0) * sin, (y - y0) * cos - (x - x0) * sin
    share = depth / torch.maximum(mx * nx + my * ny, depth).clamp(min=1e-12)
    vx, vy, turn = shove(p, q, nx, ny, depth, share * (my * nx - mx * ny))
    angle = angle0 + turn
    bx, by = bx0 + vx * cos - vy * sin, by0 + vx * sin + vy * cos
    cos, sin = torch.cos(angle), torch.sin(angle)
    bx, by = _inside(bx, by, cos, sin)
    # Turning leaves a little overlap: the block makes way along the normal, exactly, as far as the
    # border lets it.
    _, _, nx, ny, depth = nearest(x, y, bx, by, cos, sin)
    depth = depth.clamp(min=0.0)
    bx, by = bx + depth * (nx * cos - ny * sin), by + depth * (nx * sin + ny * cos)
    bx, by = _inside(bx, by, cos, sin)
    # A block at the border holds the disc back.
    _, _, nx, ny, depth = nearest(x, y, bx, by, cos, sin)
    depth = depth.clamp(min=0.0)
    x, y = x - depth * (nx * cos - ny * sin), y - depth * (nx * sin + ny * cos)
    x, y = x.clamp(RADIUS, 1 - RADIUS), y.clamp(RADIUS, 1 - RADIUS)
    *_, depth = nearest(x, y, bx, by, cos, sin)
    # Wedged between block and border: nobody moves.
    return select(depth <= OVERLAP, (x, y, bx, by, angle), pose)


class PushWorld(World):
    """Disc and block as a `World`. A state is `x, y, block_x, block_y, block_angle, goal_x, goal_y,
    goal_angle`."""

    state_names = ("x", "y", "block_x", "block_y", "block_angle", "goal_x", "goal_y", "goal_angle")
    vector_names = (
        *("x", "y", "block_x", "block_y", "block_cos", "block_sin"),
        *("goal_x", "goal_y", "goal_cos", "goal_sin"),
    )
    vector_bounds = (-1.0, 1.0)
    actions, limit, least_size = 2, 100, 24
    candidates = 8  # goals drawn per episode; the first that is not reached already is taken
    draws = 5 + 3 * candidates
    invalid = "has disc and block overlap, something of them outside the square, or NaN"

    def __init__(
        self,
        *,
        turn: float = math.pi / 2,
        reward: str = "sparse",
        success_radius: float = SUCCESS_RADIUS,
        terminate_on_goal: bool = True,
        **common,
    ):
        super().__init__(
            success_radius=success_radius, terminate_on_goal=terminate_on_goal, **common
        )
        if not 0.0 <= turn <= math.pi:
            raise ValueError(f"turn is {turn!r}; pass an angle in rad, from 0 to pi")
        check_choices(reward=(reward, ("sparse", "smooth")))
        self.turn, self.smooth = float(turn), reward == "smooth"
        self._pushes = _pushes(self.device)

    def draw(self, u: Planes) -> Planes:
        bx, by, angle = within(*ROOM, u[0]), within(*ROOM, u[1]), within(-math.pi, math.pi, u[2])
        around, away = within(-math.pi, math.pi, u[3]), CLEAR + 0.1 * u[4]
        x, y = bx + away * torch.cos(around), by + away * torch.sin(around)
        goals = [
            (within(*ROOM, a), within(*ROOM, b), angle + within(-self.turn, self.turn, c))
            for a, b, c in zip(*(u[5 + k :: 3] for k in range(3)))
        ]
        goal = goals[-1]
        for candidate in reversed(goals[:-1]):
            apart = _pose_distance((bx, by, angle), candidate) > 2 * self.success_radius
            goal = select(apart, candidate, goal)
        return x, y, bx, by, angle, *goal

    def advance(self, state: Planes, action: Planes, noise: Planes | None = None) -> Planes:
        pose, (dx, dy) = state[:5], (SPEED / SUBSTEPS * a for a in action)
        for _ in range(SUBSTEPS):
            pose = push(pose, dx, dy)
        return *pose, *state[5:]

    def reward(self, before: Planes, action: Planes, after: Planes) -> Tensor:
        if not self.smooth:
            return super().reward(before, action, after)
        return torch.exp(-0.5 * (_pose_distance(after[2:5], after[5:8]) / 0.1) ** 2)

    def position_of(self, state: Planes) -> Planes:
        return _pose(*state[2:5])

    def goal_of(self, state: Planes) -> Planes:
        return _pose(*state[5:8])

    def goal_state_of(self, state: Planes) -> Planes:
        """The block at its goal, and the disc beside it on the side where it is now."""
        x, y, goal_x, goal_y = state[0], state[1], state[5], state[6]
        dx, dy = x - goal_x, y - goal_y
        distance = torch.sqrt(dx * dx + dy * dy)
        far = distance > 1e-6
        dx, dy = torch.where(far, dx / distance, 1.0), torch.where(far, dy / distance, 0.0)
        x, y = goal_x + CLEAR * dx, goal_y + CLEAR * dy
        return x, y, *state[5:8], *state[5:8]

    def vectors_of(self, state: Planes) -> Planes:
        x, y, bx, by, angle, goal_x, goal_y, goal_angle = state
        block, goal = ((torch.cos(a), torch.sin(a)) for a in (angle, goal_angle))
        return x, y, bx, by, *block, goal_x, goal_y, *goal

    def shown_by(self, state: Planes) -> dict[str, Planes]:
        angle = torch.cos(state[4]), torch.sin(state[4])
        shown = {"disc": state[:2], "block": state[2:4], "angle": angle}
        return {"position": self.position_of(state), **shown}

    def valid(self, state: Planes) -> Tensor:
        x, y, bx, by, angle, *goal = state
        cos, sin = torch.cos(angle), torch.sin(angle)
        kept_x, kept_y = _inside(bx, by, cos, sin)
        fits = super().valid(state) & ((kept_x - bx).abs() < 1e-5) & ((kept_y - by).abs() < 1e-5)
        for at in (x, y):
            fits = fits & (at >= RADIUS - 1e-6) & (at <= 1 - RADIUS + 1e-6)
        for at in goal[:2]:
            fits = fits & (at >= 0) & (at <= 1)
        return fits & (nearest(x, y, bx, by, cos, sin)[-1] <= 2 * OVERLAP)

    # -- the scripted policy -----------------------------------------------------------------------

    def expert(self, state: Planes) -> Planes:
        """Of 24 places to push at, straight on, take the one that brings the pose nearest to the
        goal; go there, and push.

        The way to a place leads round the block. Places that border keeps the disc from are left
        out."""
        x, y, bx, by, angle, *goal = (plane[..., None] for plane in state)
        p, q, nx, ny, along_x, along_y, rate = self._pushes  # (K,) each, in the block's frame
        cos, sin = torch.cos(angle), torch.sin(angle)
        to_world = lambda u, v: (u * cos - v * sin, u * sin + v * cos)  # noqa: E731

        start_x, start_y = to_world(p - (RADIUS + 0.002) * nx, q - (RADIUS + 0.002) * ny)
        start_x, start_y = bx + start_x, by + start_y
        travel = torch.sqrt((start_x - x) ** 2 + (start_y - y) ** 2)
        possible = (start_x - 0.5).abs().maximum((start_y - 0.5).abs()) < 0.5 - RADIUS
        now = _pose_distance((bx, by, angle), goal)
        best_value, best_length = torch.full_like(travel, math.inf), torch.zeros_like(travel)
        for length in (0.01, 0.03, 0.06, 0.12):
            turned = length * rate
            middle_cos, middle_sin = torch.cos(angle + turned / 2), torch.sin(angle + turned / 2)
            ahead_x = bx + length * (along_x * middle_cos - along_y * middle_sin)
            ahead_y = by + length * (along_x * middle_sin + along_y * middle_cos)
            value = _pose_distance((ahead_x, ahead_y, angle + turned), goal)
            better = value < best_value
            best_value = torch.where(better, value, best_value)
            best_length = torch.where(better, length, best_length)
        # Worth: what the push gains, less a little for the way there, so that a good place is not
        # left for an equal one.
        worth = torch.where(possible, now - best_value - 0.1 * travel, -math.inf)
        k = worth.argmax(-1, keepdim=True)
        pick = lambda values: values.expand_as(worth).gather(-1, k)[..., 0]  # noqa: E731
        u, v, nx, ny, length = pick(p), pick(q), pick(nx), pick(ny), pick(best_length)

        x, y, bx, by, cos, sin = (plane[..., 0] for plane in (x, y, bx, by, cos, sin))
        # the disc, in the block's frame
        at_u, at_v = (x - bx) * cos + (y - by) * sin, (y - by) * cos - (x - bx) * sin
        # to where it touches the block
        off_u, off_v = u - RADIUS * nx - at_u, v - RADIUS * ny - at_v
        sideways, gap = off_v * nx - off_u * ny, off_u * nx + off_v * ny
        ready = (sideways.abs() < 0.012) & (gap < 0.02)
        push_u = nx * (gap + length) - ny * sideways * 0.5
        push_v = ny * (gap + length) + nx * sideways * 0.5

        # Round the block: straight for the place, or along the block's outline where that bars it.
        wx, wy = u - (RADIUS + 0.01) * nx - at_u, v - (RADIUS + 0.01) * ny - at_v
        steps = torch.sqrt(wx**2 + wy**2) / SPEED
        distance, out_u, out_v = _room(at_u, at_v)
        blocked = torch.zeros_like(ready)
        for share in (1.0 / steps.clamp(min=1.0), 0.25, 0.5, 0.75):
            there, _, _ = _room(at_u + share * wx, at_v + share * wy)
            blocked = blocked | (there < distance.clamp(max=RADIUS + 0.005) - 0.001)
        way = torch.where(_across(at_u, at_v, wx + at_u, wy + at_v) >= 0, 1.0, -1.0)
        keep = (RADIUS + 0.02 - distance).clamp(-0.02, 0.02)
        along_u, along_v = keep * out_u - way * SPEED * out_v, keep * out_v + way * SPEED * out_u
        go_u, go_v = torch.where(blocked, along_u, wx), torch.where(blocked, along_v, wy)

        want_u, want_v = torch.where(ready, push_u, go_u), torch.where(ready, push_v, go_v)
        want_x, want_y = want_u * cos - want_v * sin, want_u * sin + want_v * cos
        longest = torch.maximum(want_x.abs(), want_y.abs()).clamp(min=SPEED)
        return want_x / longest, want_y / longest

    # -- pictures ----------------------------------------------------------------------------------

    def _block(
        self, frames: Tensor, pose: Planes, colours: tuple[raster.Colour, raster.Colour]
    ) -> None:
        size = frames.shape[-1]
        length, width = HALF_LENGTH * size, HALF_WIDTH * size
        body, head = (raster.ink(colour, self.device) for colour in colours)

        def block(dx: Tensor, dy: Tensor, cos: Tensor, sin: Tensor) -> list[tuple[Tensor, Tensor]]:
            along, across = raster.turned(dx, dy, cos, sin)
            end = raster.box(along - 0.65 * length, across, 0.35 * length, width)
            return [(raster.box(along, across, length, width), body), (end, head)]

        bx, by, angle = (plane.flatten() for plane in pose)
        turn = torch.cos(angle), torch.sin(angle)
        raster.stamp(frames, bx * size, by * size, DIAGONAL * size, block, *turn)

    def _disc(self, frames: Tensor, x: Tensor, y: Tensor) -> None:
        size = frames.shape[-1]
        x, y = x.flatten() * size, y.flatten() * size
        raster.draw_disc(frames, x, y, RADIUS * size, raster.RED)

    def pictures(self, state: Planes, rows: Tensor | None = None) -> Tensor:
        frames = self.canvas(*state[0].shape)
        self._block(frames.flatten(0, 1), state[2:5], (BLOCK_COLOUR, HEAD_COLOUR))
        self._disc(frames.flatten(0, 1), *state[:2])
        return frames

    def scenes(self, state: Planes) -> Tensor:
        frames = self.canvas(len(state[0]))
        self._block(frames, state[5:8], (GOAL_COLOUR, GOAL_HEAD_COLOUR))
        self._block(frames, state[2:5], (BLOCK_COLOUR, HEAD_COLOUR))
        self._disc(frames, *state[:2])
        return frames


def _pose(x: Tensor, y: Tensor, angle: Tensor) -> Planes:
    return x, y, LEVER * torch.cos(angle), LEVER * torch.sin(angle)


def _pose_distance(pose: Planes, goal: Planes) -> Tensor:
    """Root of squared distance of the centres plus (2 LEVER sin(angle / 2))^2: the distance of
    `_pose`'s planes."""
    half = torch.sin((pose[2] - goal[2]) / 2)
    return torch.sqrt(
        (pose[0] - goal[0]) ** 2 + (pose[1] - goal[1]) ** 2 + (2 * LEVER * half) ** 2 + 1e-12
    )


def _room(u: Tensor, v: Tensor) -> Planes:
    """A point in the block's frame -> its distance from the block, and the unit vector away from
    it."""
    gap_u, gap_v = u - u.clamp(-HALF_LENGTH, HALF_LENGTH), v - v.clamp(-HALF_WIDTH, HALF_WIDTH)
    distance = torch.sqrt(gap_u**2 + gap_v**2).clamp(min=1e-6)
    return distance, gap_u / distance, gap_v / distance


def _pushes(device: torch.device) -> Planes:
    """Places on the block's outline to push at: point, inward normal, and how the block moves per
    advance, (K,) each."""
    places = []
    for share in (-0.85, -0.5, -0.2, 0.2, 0.5, 0.85):
        for end in (-1.0, 1.0):
            places.append((end * HALF_LENGTH, share * HALF_WIDTH, -end, 0.0))
            places.append((share * HALF_LENGTH, end * HALF_WIDTH, 0.0, -end))
    p, q, nx, ny = torch.tensor(places, device=device).T.contiguous()
    return p, q, nx, ny, *shove(p, q, nx, ny, torch.ones_like(p), torch.zeros_like(p))


class PushEnv(TorchEnv):
    """A disc pushes a block to a pose: contact, friction and two kinds of motion in the plane.

    A disc (radius 0.04) moves freely in a square; a block (0.2 x 0.12) moves only when it is
    pushed, quasi-statically: friction holds it within an ellipsoidal limit surface, the contact has
    a friction coefficient of 0.3 and sticks or slides (see the module for the equations). Both stay
    inside the square; the border is smooth. After a step they overlap by no more than 1e-5. The
    dark end of the block says where its angle points. The picture shows disc and block and **not**
    the goal, which is a picture of its own (`goal_image()`).

    | action           | unit             | range   |
    |------------------|------------------|---------|
    | displacement x y | 0.03 world units | [-1, 1] |

    - State vector (10,): disc x, y; block x, y, cos, sin; goal x, y, cos, sin. `size` is 24 or
      more.
    - Reward: `reward="sparse"` (default): 1 on a step that ends less than `success_radius` (0.03)
      from the goal pose, else 0; `"smooth"`: exp(-(distance / 0.1)^2 / 2). The distance of two
      poses is the root of the squared distance of the centres plus (0.2 sin(angle between / 2))^2,
      in world units: a radian counts as about 0.1.
    - Start: block anywhere with its centre in [0.32, 0.68]^2; goal likewise, turned by at most
      `turn` (default pi / 2) from the block's angle and at least 2 * `success_radius` away; disc
      beside the block, 0.17 to 0.27 from its centre. End: at the goal (unless
      `terminate_on_goal=False`); truncated after 100 steps.
    - `get_state`: `x, y, block_x, block_y, block_angle, goal_x, goal_y, goal_angle`, angles in rad,
      not wrapped. `position` is the block's `x, y, 0.1 cos, 0.1 sin` (4,), whose distance to `goal`
      is the distance above. The expert pushes straight on at whichever of 24 places brings the
      block nearest to its goal."""

    world = PushWorld


class PushVectorEnv(TorchVectorEnv):
    """`num_envs` worlds of `PushEnv` as one batch; see `TorchVectorEnv`."""

    world = PushWorld
