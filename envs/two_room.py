"""Two rooms, one door: one at a time or in batches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import raster
from . import two_room_layout as layout
from .common import check_choices
from .torch_env import TorchEnv, TorchVectorEnv
from .torch_world import Planes, World


class TwoRoomWorld(World):
    """Two rooms as a `World`: rules and pictures of `two_room_layout`, and the backgrounds of the
    running episodes."""

    state_names = layout.STATE
    vector_bounds = (0.0, 1.0)
    actions, draws, limit = 2, layout.EPISODE_DRAWS, 100
    invalid = (
        "puts the agent into a wall, the goal outside the unit square, wall_x outside "
        f"{layout.WALL_RANGE} or door_y outside {layout.DOOR_RANGE}"
    )

    def __init__(
        self,
        *,
        wall: str | float = "fixed",
        door: str | float = "fixed",
        goal: str = "any",
        shortcut: float | None = None,
        slip: float = layout.SLIP,
        corridor: float | None = None,
        wind: float = layout.WIND,
        success_radius: float = layout.SUCCESS_RADIUS,
        terminate_on_goal: bool = True,
        **common,
    ):
        super().__init__(
            success_radius=success_radius, terminate_on_goal=terminate_on_goal, **common
        )
        check_choices(goal=(goal, ("any", "other-room")))
        self.wall = layout.fixed_or_random("wall", wall, layout.WALL_RANGE)
        self.door = layout.fixed_or_random("door", door, layout.DOOR_RANGE)
        self.other_room = goal == "other-room"
        self.shortcut = layout.checked_shortcut(shortcut, self.door)
        for name, value in (("slip", slip), ("wind", wind)):
            if not 0.0 <= value <= 0.1:
                raise ValueError(f"{name} is {value!r}; pass a length, from 0 to 0.1 world units")
        if corridor is not None and (shortcut is not None or not 0.0 < corridor <= 0.5):
            raise ValueError(
                f"corridor is {corridor!r} and shortcut {shortcut!r}; pass a half width above 0 "
                "and at most 0.5, or None, and one of the two at most"
            )
        self.slip, self.corridor, self.wind = float(slip), corridor, float(wind)
        self.noises = 2 if (shortcut is not None and slip) or (corridor is not None and wind) else 0
        self._backgrounds: Tensor | None = None  # (1 or B, 3, size, size), see `begun`
        self._usual = False  # whether they show the layout that all episodes have

    def draw(self, u: Planes) -> Planes:
        episode = layout.draw_episode(
            torch.stack(u, -1),
            wall=self.wall,
            door=self.door,
            other_room=self.other_room,
            separation=2 * self.success_radius,
        )
        (x, y), (goal_x, goal_y) = episode[0].unbind(-1), episode[1].unbind(-1)
        return x, y, goal_x, goal_y, *episode[2:]

    def advance(self, state: Planes, action: Planes, noise: Planes | None = None) -> Planes:
        x, y, goal_x, goal_y, wall_x, door_y = state
        dx, dy = layout.SPEED * action[0], layout.SPEED * action[1]
        if self.corridor is not None and noise is not None:
            dx, dy = layout.blow(x, dx, dy, wall_x, self.corridor, [self.wind * n for n in noise])
        if self.shortcut is not None:
            slip = None if noise is None else [self.slip * n for n in noise]
            dx, dy = layout.slide(x, y, dx, dy, wall_x, self.shortcut, slip)
        x, y = layout.sweep(x, y, dx, dy, layout.doorway(wall_x, door_y), self.shortcut)
        return x, y, goal_x, goal_y, wall_x, door_y

    def position_of(self, state: Planes) -> Planes:
        return state[0:2]

    def goal_of(self, state: Planes) -> Planes:
        return state[2:4]

    def goal_state_of(self, state: Planes) -> Planes:
        return state[2:4] + state[2:]

    def shown_by(self, state: Planes) -> dict[str, Planes]:
        # The goal is not in the picture and a constant has no variance to explain: neither is a
        # target for a probe.
        shown = {"position": state[0:2]}
        if self.wall is None:
            shown["wall_x"] = state[4:5]
        if self.door is None:
            shown["door_y"] = state[5:6]
        return shown

    def valid(self, state: Planes) -> Tensor:
        x, y, goal_x, goal_y, wall_x, door_y = state
        fits = torch.ones_like(x, dtype=torch.bool)
        for at, (low, high) in ((wall_x, layout.WALL_RANGE), (door_y, layout.DOOR_RANGE)):
            fits &= (at >= low - 1e-6) & (at <= high + 1e-6)
        fits &= layout.is_free(torch.stack([x, y], -1), wall_x, door_y, self.shortcut)
        return fits & (goal_x >= 0.0) & (goal_x <= 1.0) & (goal_y >= 0.0) & (goal_y <= 1.0)

    def sunk(self) -> Tensor:
        """(B,) bool: who lies in the water; nobody where there is none."""
        x, y, _, _, wall_x, _ = self.planes
        if self.shortcut is None:
            return torch.zeros_like(x, dtype=torch.bool)
        return layout.is_sunk(x, y, wall_x, self.shortcut)

    def expert(self, state: Planes) -> Planes:
        position, goal = torch.stack(state[0:2], -1), torch.stack(state[2:4], -1)
        action = layout.expert_action(position, goal, *state[4:], self.shortcut)
        return action.unbind(-1)

    def way_length(self, state: Planes, position: Planes, goal: Planes) -> Tensor:
        places = (torch.stack(torch.broadcast_tensors(*p), -1) for p in (position, goal))
        return layout.way_length(*places, *state[4:6], self.shortcut)

    def random_place(self, state: Planes, u: Planes) -> Planes:
        position = torch.stack(state[0:2], -1)
        return layout.random_place(position, *state[4:], torch.stack(u, -1)).unbind(-1)

    # -- pictures ----------------------------------------------------------------------------------

    def background(self, wall_x: Tensor, door_y: Tensor) -> Tensor:
        """Layouts (...) without the agent -> uint8 (..., 3, size, size)."""
        return layout.background(wall_x, door_y, self.size, self.shortcut, self.corridor)

    def begun(self, mask: Tensor | None, drawn: bool) -> None:
        """Redraw walls where layouts changed. Worlds of one layout share one background, kept as
        long as it holds."""
        if self.obs == "state":
            return  # drawn when a picture is asked for
        wall_x, door_y = self.planes[4:6]
        constant = self.wall is not None and self.door is not None
        if mask is None:
            one = constant if drawn else bool(((wall_x == wall_x[0]) & (door_y == door_y[0])).all())
            rows = slice(0, 1) if one else slice(None)
            if not (drawn and constant and self._usual):
                self._backgrounds = self.background(wall_x[rows], door_y[rows])
            self._usual = drawn and constant
        elif self._usual:
            return
        elif self.device.type == "cpu":
            rows = mask.nonzero()[:, 0]
            copies = self.worlds // len(self._backgrounds)
            self._backgrounds = self._backgrounds.repeat(copies, 1, 1, 1)
            self._backgrounds[rows] = self.background(wall_x[rows], door_y[rows])
        else:
            fresh = self.background(wall_x, door_y)
            self._backgrounds = torch.where(mask[:, None, None, None], fresh, self._backgrounds)

    def pictures(self, state: Planes, rows: Tensor | None = None) -> Tensor:
        backgrounds = self._backgrounds
        if backgrounds is None:
            backgrounds = self.background(state[4][:, 0], state[5][:, 0])
        elif rows is not None and len(backgrounds) > 1:
            backgrounds = backgrounds[rows]
        # Walls stand still during an episode, so the stack is K dots over one background.
        return layout.paint(backgrounds[:, None], torch.stack(state[0:2], -1))

    def scenes(self, state: Planes) -> Tensor:
        x, y, goal_x, goal_y, wall_x, door_y = state
        pictures = self.background(wall_x, door_y)
        layout.draw_dot(pictures, torch.stack([goal_x, goal_y], -1), raster.GREEN)
        return layout.draw_dot(pictures, torch.stack([x, y], -1))


class TwoRoomEnv(TorchEnv):
    """A dot in two rooms joined by a door: the smallest world that needs a detour to be planned.

    The agent is a dot in the unit square, which a vertical wall with one door cuts into two rooms.
    It is asked to move to a goal position. The picture shows walls, door and agent and **not** the
    goal, which is a picture of its own (`goal_image()`). World units: 1 is the side of the square;
    x grows to the right, y downwards.

    | action           | unit             | range   |
    |------------------|------------------|---------|
    | displacement x y | 0.04 world units | [-1, 1] |

    The straight line of the step is swept exactly: whatever the agent meets (wall, door post,
    border) drops the blocked component for the rest of the step, and the other component goes on.
    The agent's centre keeps 0.035 away from anything solid. Wall thickness 0.04, door 0.16 wide
    (0.09 for the centre), border 0.03.

    - `wall`, `door` (default `"fixed"`): wall_x and door_y: `"fixed"` (0.5), `"random"` per episode
      (uniform on [0.35, 0.65] and [0.2, 0.8]), or a number.
    - `goal` (default `"any"`): uniform over both rooms, or over the `"other-room"` than the
      agent's; at least `2 * success_radius` from the start, which is uniform over both rooms.
    - `shortcut=y` (default None) adds a second opening around y, 0.24 wide for the centre: a frozen
      bridge, 0.08 wide, with water on both sides. Each step from the bridge is displaced by
      Gaussian noise of standard deviation `slip` (0.04) per axis. An agent whose centre leaves the
      bridge inside the opening is in the water and moves no more. `gjwm/two-room-slippery-v0` has
      the bridge at 0.35 and the safe door far off at 0.8.
    - `corridor=w` (default None): wind blows in the strip less than w from the middle of the wall,
      in the door too: each step that begins there is displaced by Gaussian noise of standard
      deviation `wind` (0.04) per axis, and the strip is tinted. Outside it steps are exact.
      `gjwm/two-room-noisy-v0` has a strip of half width 0.2 and goals on the other side.
    - State vector (6,): `x, y, goal_x, goal_y, wall_x, door_y`, as `get_state`.
    - Reward: 1 on a step that ends less than `success_radius` (0.05) from the goal, else 0.
    - End: at the goal (unless `terminate_on_goal=False`); truncated after 100 steps.
    - `position` and `goal` are `x, y` (2,). The expert goes to the near side of the door, through
      it, then straight to the goal; with a bridge it takes the shorter way."""

    world = TwoRoomWorld

    def image_position(self, position: np.ndarray) -> np.ndarray:
        """Where positions (..., 2) are seen in a picture: shares of its width and height from the
        top left corner."""
        return np.asarray(position, np.float64)  # the unit square is the picture

    @property
    def sunk(self) -> bool:
        """Whether the agent lies in the water beside the shortcut."""
        return bool(self._worlds.sunk()[0])


class TwoRoomVectorEnv(TorchVectorEnv):
    """`num_envs` worlds of `TwoRoomEnv` as one batch; see `TorchVectorEnv`."""

    world = TwoRoomWorld

    @property
    def sunk(self):
        """(B,) bool: which agents lie in the water beside the shortcut."""
        return self._out(self._worlds.sunk())
