"""A road that forks by chance: the smallest world where one step has two futures."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from gjwm.envs.common import cannot_render, check_choices, check_counts, state_option

JUNCTION = 0.4  # progress at which the road forks, world units
LENGTH = 1.0  # progress at the end of either branch
START_X = 0.1  # x of progress 0
GAP = 0.1  # how far a branch begins from the middle line, world units
SPREAD = 0.3  # how far it ends from the middle line, world units
BEND = 0.3  # progress over which it gets there
ROAD = 0.06  # half width of the road, world units
RADIUS = 0.04  # of the dot

ROAD_COLOUR, WALL_COLOUR, AGENT_COLOUR = (236, 236, 228), (44, 52, 70), (222, 44, 40)


def place(
    progress: np.ndarray | float, branch: np.ndarray | float, sway: np.ndarray | float = 0.0
) -> np.ndarray:
    """Progress along the road (...), branch (...) in {-1, 0, 1} and sway across the road (...) ->
    the dot's centre x, y (..., 2), world units."""
    progress, branch, sway = np.broadcast_arrays(
        *(np.asarray(v, float) for v in (progress, branch, sway))
    )
    away = GAP + (SPREAD - GAP) * np.clip((progress - JUNCTION) / BEND, 0.0, 1.0)
    return np.stack([START_X + 0.8 * progress, 0.5 + branch * away + sway], -1)


class ForkEnv(gym.Env):
    """A dot on a road that forks: forwards is forwards, but which branch it takes is drawn, not
    chosen.

    The dot moves along a road from left to right and back. Whenever it passes the junction
    forwards, its branch is drawn: up with `up_probability`. Going back before the junction undoes
    the choice. A model that predicts one future predicts the wall between the branches.

    The world is made such that a fork, and nothing else, is what a law of the future has to get
    right. The branches are apart from the first step on, by five times the noise, so that one
    observation tells the branch. And every step is noisy along and across the road, also at its
    ends: where a next state is certain, a likelihood is unbounded, and models that are fitted to it
    attend to little else.

    World units: 1 is the side of the square; y grows downwards. Progress is the distance along the
    road: 0 at its start, 0.4 at the junction, 1 at the end of either branch. A branch begins 0.1
    above or below the middle line and is 0.3 away from it from progress 0.7 on.

    | action            | unit                       | range   |
    |-------------------|----------------------------|---------|
    | progress per step | `speed` (0.08) world units | [-1, 1] |

    The action takes progress no further than the ends of the road. A normal deviate times `noise`
    is then added, and what is beyond an end is reflected. The dot's sway, how far it is off the
    line of its road, is a normal deviate times `sway`, drawn anew at each step.

    - Observation: `obs="pixels"` (default): RGB, uint8 (3, size, size), the road and the dot;
      `"state"`: `x, y` of the dot, float32 (2,).
    - Reward: 1 on a step that ends within 0.05 of the end of a branch, else 0.
    - Start: progress uniform on [0, 0.35]. End: truncated after `max_episode_steps` (40).
    - Info of `step`: `"forked"` bool, whether a branch was drawn on this step.
    - Arguments beside these: `size` (64, 16 or more), `up_probability` (0.5), `noise` (0.03),
      `sway` (0.02), `render_mode` (None).

    Raises:
        ValueError: for an argument of another kind, an action of another shape or with NaN, and a
            state that is none of this world."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    success_radius = 0.05  # world units, for goals that are states of this world

    def __init__(
        self,
        *,
        obs: str = "pixels",
        size: int = 64,
        up_probability: float = 0.5,
        noise: float = 0.03,
        sway: float = 0.02,
        speed: float = 0.08,
        max_episode_steps: int = 40,
        render_mode: str | None = None,
    ):
        check_choices(
            obs=(obs, ("pixels", "state")), render_mode=(render_mode, (None, "rgb_array"))
        )
        check_counts(size=(size, 16), max_episode_steps=(max_episode_steps, 1))
        if not 0 <= up_probability <= 1 or noise < 0 or sway < 0 or speed <= 0:
            raise ValueError(
                f"up_probability is {up_probability}, noise {noise}, sway {sway} and speed "
                f"{speed}; pass a probability, two numbers >= 0 and one > 0"
            )
        self.obs, self.size, self.render_mode = obs, size, render_mode
        self.up_probability, self.noise, self.sway, self.speed = up_probability, noise, sway, speed
        self.max_episode_steps = max_episode_steps
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = (
            spaces.Box(0, 255, (3, size, size), np.uint8)
            if obs == "pixels"
            else spaces.Box(0.0, 1.0, (2,), np.float32)
        )
        self._pixels = (np.arange(size) + 0.5) / size
        self._road = self._draw_road()
        self._progress, self._branch, self._aside, self._clock = 0.0, 0, 0.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode -> `(observation, {})`; `options={"state": s}` says where, as
        `set_state` does."""
        super().reset(seed=seed)
        state = state_option(options)
        if state is None:
            state = np.array(
                [self.np_random.uniform(0, 0.35), 0.0, self.sway * self.np_random.standard_normal()]
            )
        self.set_state(state)
        return self.observe(), {}

    def step(self, action):
        """Move by `action (1,)` -> `(observation, reward, terminated, truncated, info)`."""
        action = np.asarray(action, np.float32)
        if action.shape != (1,) or np.isnan(action).any():
            raise ValueError(f"action is {action!r}; expected one number in [-1, 1], shape (1,)")
        aimed = np.clip(self._progress + self.speed * float(np.clip(action[0], -1, 1)), 0.0, LENGTH)
        along, across = self.np_random.standard_normal(2)
        # Reflected, not clipped: states that are reached exactly have no density.
        self._progress = float(
            np.clip(LENGTH - abs(LENGTH - abs(aimed + self.noise * along)), 0.0, LENGTH)
        )
        self._aside = self.sway * float(across)
        forked = self._branch == 0 and self._progress > JUNCTION
        if forked:
            # y grows downwards: up is -1.
            self._branch = -1 if self.np_random.random() < self.up_probability else 1
        elif self._progress <= JUNCTION:
            self._branch = 0
        self._clock += 1
        arrived, late = self._progress >= LENGTH - 0.05, self._clock >= self.max_episode_steps
        return self.observe(), float(arrived), False, late, {"forked": forked}

    def observe(self) -> np.ndarray:
        """The observation of the current state, shaped as `observation_space`."""
        if self.obs == "state":
            return self.position.astype(np.float32)
        return self._picture()

    def render(self) -> np.ndarray | None:
        """uint8 (size, size, 3), what pixels observe."""
        if cannot_render(self):
            return None
        return np.moveaxis(self._picture(), 0, -1)

    def get_state(self) -> np.ndarray:
        """(3,) float64: progress in world units; the branch: -1 up, 1 down, 0 before the junction;
        sway in world units."""
        return np.array([self._progress, self._branch, self._aside], np.float64)

    def set_state(self, state: np.ndarray) -> None:
        """Go to `state (3,)`; the episode's clock restarts."""
        state = np.asarray(state, np.float64)
        fits = state.shape == (3,) and np.isfinite(state).all() and 0 <= state[0] <= LENGTH
        if not fits or state[1] not in ((-1, 1) if state[0] > JUNCTION else (0,)):
            raise ValueError(
                f"state is {state.tolist()}; expected progress in [0, 1], a branch: 0 up to "
                f"{JUNCTION}, else -1 or 1, and the sway across the road"
            )
        self._progress, self._branch, self._aside = float(state[0]), int(state[1]), float(state[2])
        self._clock = 0

    @property
    def position(self) -> np.ndarray:
        """(2,) float64: the dot's centre x, y, world units."""
        return place(self._progress, self._branch, self._aside)

    def true_state(self) -> dict[str, np.ndarray]:
        """Named variables that the picture shows, for probes: position (2,)."""
        return {"position": self.position}

    def _draw_road(self) -> np.ndarray:
        """(3, size, size) float: the road, softened over a pixel at its edges."""
        before, after = np.linspace(0, JUNCTION, 100), np.linspace(JUNCTION, LENGTH, 150)
        across = place(JUNCTION, 0, np.linspace(-GAP, GAP, 50))  # the place where the road divides
        line = np.concatenate([place(before, 0), across, place(after, -1), place(after, 1)])
        x, y = np.meshgrid(self._pixels, self._pixels)
        distance = np.hypot(x[..., None] - line[:, 0], y[..., None] - line[:, 1]).min(-1)
        wall = np.clip((distance - ROAD) * self.size + 0.5, 0, 1)
        road, dark = (np.array(c, float)[:, None, None] for c in (ROAD_COLOUR, WALL_COLOUR))
        return road + wall * (dark - road)

    def _picture(self) -> np.ndarray:
        x, y = self.position
        distance = np.hypot(self._pixels[None] - x, self._pixels[:, None] - y)
        # fades over two pixels: seen below the grid
        dot = np.clip((RADIUS - distance) * self.size / 2 + 0.5, 0, 1)
        colour = np.array(AGENT_COLOUR, float)[:, None, None]
        return (self._road + dot * (colour - self._road) + 0.5).astype(np.uint8)
