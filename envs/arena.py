"""The field's own tasks, in the packages that publish them, in the terms of this package.

Optional: `pip install 'gjwm[arena]'`. What a task is, its physics, expert and success are the
published code's; here are the parts of this package's protocol that it lacks, and a faster way to
the same pictures."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from PIL import Image
from torch import Tensor, library

from gjwm.envs.common import (
    StackedFrames,
    check_counts,
    check_observed,
    checked_action,
    checked_state,
    observation_space,
    state_option,
)

LOW, HIGH = 21.0, 203.0  # of the agent's centre, pixels
WALL_X, REACH = 112.0, 12.0  # the wall's middle, and how far from it an agent is stopped
DOOR_Y, CLEARANCE = 49.0, 15.75  # the door's middle, and how far from it a centre may pass
# Beyond it the agent's spot, exp(-r²/98), is below half a unit in the last place of float32's 1.
REACH_OF_SPOT = 44


def stable_worldmodel(module: str) -> Any:
    """A module of stable-worldmodel, such as "envs.two_room".

    Raises:
        ImportError: without the extra, naming it."""
    # lancedb, which keeps its data and is not used here, warns of every process that is started
    warnings.filterwarnings("ignore", "lancedb fork support", RuntimeWarning)
    with warnings.catch_warnings():  # it warns of each optional package that it does not find
        warnings.simplefilter("ignore")
        return needed(f"stable_worldmodel.{module}")


def needed(module: str) -> Any:
    """A module of the extra; ImportError without it, naming the extra."""
    # pygame, which it imports, greets on stdout
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        _load_torchvision()
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise ImportError(
            f"gjwm/arena-... needs {package}: pip install 'gjwm[arena]' ({error})."
        ) from error


def _load_torchvision() -> None:
    """Its compiled operators do not load beside a torch for CPUs, and without them neither does the
    rest: it then finds declarations of the two that it asks for."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        for name in ("nms", "qnms"):
            library.define(f"torchvision::{name}", schema)
        importlib.import_module("torchvision")


class ArenaEnv(StackedFrames):
    """What environments around published code share: their arguments and spaces, the end of a reset
    and of a step, and a clock of their own."""

    def _arrange(
        self,
        *,
        obs: str,
        size: int,
        frame_stack: int,
        max_episode_steps: int | None,
        render_mode: str | None,
        seen: spaces.Box,
        action_dim: int,
    ) -> None:
        """Check and keep the arguments; `seen` is the space of the state vector."""
        check_observed(obs, size, frame_stack, 1, render_mode)
        if max_episode_steps is not None:
            check_counts(max_episode_steps=(max_episode_steps, 1))
        self.obs, self.size, self.render_mode = obs, size, render_mode
        self.max_episode_steps = max_episode_steps
        self._start_frames(frame_stack)
        self.observation_space = observation_space(obs, size, frame_stack, seen)
        self.action_space = spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
        self._restart()

    def _restart(self) -> None:
        """The clock begins anew, and the frame stack repeats the picture."""
        self._frames.clear()
        self._clock = 0

    def _begun(self, state: np.ndarray | None) -> tuple[Any, dict[str, Any]]:
        """What `reset` returns, of an episode that has been drawn and is to start in `state`."""
        self._restart()
        if state is not None:
            self.set_state(state)
        return self.observe(), {}

    def _stepped(self, reward: float, terminated: bool):
        """What `step` returns."""
        self._clock += 1
        truncated = self.max_episode_steps is not None and self._clock >= self.max_episode_steps
        if self.obs != "state":
            self._frames.append(self.picture())
        return self.observe(), float(reward), bool(terminated), truncated, {}


class ArenaTwoRoomEnv(ArenaEnv):
    """stable-worldmodel's `swm/TwoRoom-v1`: a spot, a wall and a door.

    Units are pixels of its own picture, 224 a side; y grows downwards. The wall stands in the
    middle, x = 112, its door at y = 49, 28 high. Per step the agent moves by up to 5 along each
    axis.

    - Action: `Box(-1, 1, (2,), float32)`, clipped.
    - Observation: `obs="pixels"` (default): RGB, uint8 (3, size, size), what its
      `World(image_shape=(size, size))` shows, at 64 in every bit, at other sizes to one level of
      256; the goal is not in it. `"state"`: its own vector,
      float32 (10,): agent, goal, door and two that are not there. `"both"`: a Dict.
    - Reward: 0, as there. Start and goal: drawn by its own spaces from the seed, over both rooms.
      End: within 16 of the goal; truncated after `max_episode_steps`, 100 where its data are
      collected.
    - Success: within 16 of the goal at any step, as there.
    - State: agent and goal, float64 (4,); the episode's clock is not in it and restarts.
    - Its expert, without the noise: `expert_action`. Its collector adds noise of 2.0, which is the
      behaviour `{"scripted": {"noise": 2.0}}`; the repeats of actions that it also asks for (.05)
      never happen in 0.1.1, as its policy forgets to keep the last action.
    - Arguments beside these: `size` (64), `render_mode` (None).

    Raises:
        ImportError: without the extra, naming it.
        ValueError: for an argument of another kind, an action of another shape or with NaN, and a
            state that is none of this world."""

    success_radius = 16.0  # pixels of its picture

    def __init__(
        self,
        *,
        obs: str = "pixels",
        size: int = 64,
        max_episode_steps: int | None = 100,
        render_mode: str | None = None,
    ):
        self._arrange(
            obs=obs,
            size=size,
            frame_stack=1,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
            seen=spaces.Box(0.0, 224.0, (10,), np.float32),
            action_dim=2,
        )
        package = stable_worldmodel("envs.two_room")
        self._env, self._expert = package.TwoRoomEnv(), package.ExpertPolicy()
        self._expert.set_env(self._env)
        self._env.reset(seed=0)
        # the rooms without an agent (224, 224, 3), as they are observed, and the agent's colour
        self._rooms = self._env._render_frame(torch.full((2,), 1e6)).movedim(0, -1).contiguous()
        self._small = self._scaled(self._rooms, slice(0, size), slice(0, size))
        colour = self._env.variation_space["agent"]["color"].value
        self._colour = torch.as_tensor(colour, dtype=torch.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode -> `(observation, {})`; `options={"state": s}` says where, as
        `set_state` does."""
        super().reset(seed=seed)
        state = state_option(options)
        # without a seed its spaces would draw one from the machine
        self._env.reset(seed=int(self.np_random.integers(2**31)) if seed is None else seed)
        return self._begun(state)

    def step(self, action):
        """Move by `action (2,)` -> `(observation, 0.0, terminated, truncated, {})`."""
        action = checked_action(action, (2,), "arena-two-room")
        _, reward, terminated, _, _ = self._env.step(action.astype(np.float32))
        return self._stepped(reward, terminated)

    def picture(self) -> np.ndarray:
        """uint8 (3, size, size): what is observed and shown. Only what the agent's spot reaches is
        drawn and scaled anew."""
        x, y = self._env.agent_position.tolist()
        rows, columns = (
            slice(max(0, int(at) - REACH_OF_SPOT), int(at) + REACH_OF_SPOT) for at in (y, x)
        )
        # step by step as there, or float32 rounds elsewhere
        dx, dy = self._env.grid_x[rows, columns] - x, self._env.grid_y[rows, columns] - y
        spot = torch.exp(-(dx * dx + dy * dy) / (2.0 * 7.0 * 7.0))
        spot = (spot / spot.max()).clamp(0, 1)[..., None]
        whole = self._rooms.clone()
        under = whole[rows, columns].float()
        whole[rows, columns] = (under * (1.0 - spot) + self._colour * spot).to(torch.uint8)
        scale = self.size / len(whole)
        rows, columns = (
            slice(max(0, int(part.start * scale) - 1), min(self.size, int(part.stop * scale) + 2))
            for part in (rows, columns)
        )
        picture = self._small.copy()
        picture[rows, columns] = self._scaled(whole, rows, columns)
        return np.ascontiguousarray(np.moveaxis(picture, -1, 0))

    def _scaled(self, picture: Tensor, rows: slice, columns: slice) -> np.ndarray:
        """uint8 (rows, columns, 3): that part of a picture of (size, size), scaled from (224, 224,
        3) as its `World` does."""
        scale = len(picture) / self.size
        return np.asarray(
            Image.fromarray(picture.numpy()).resize(
                (columns.stop - columns.start, rows.stop - rows.start),
                Image.Resampling.BILINEAR,
                box=(
                    columns.start * scale,
                    rows.start * scale,
                    columns.stop * scale,
                    rows.stop * scale,
                ),
            )
        )

    def state_vector(self) -> np.ndarray:
        return self._env._get_obs().numpy()

    def get_state(self) -> np.ndarray:
        """(4,) float64: x, y of agent and goal."""
        return torch.cat([self._env.agent_position, self._env.target_position]).double().numpy()

    def set_state(self, state: np.ndarray) -> None:
        """Go to `state (4,)`; the episode's clock restarts."""
        state = checked_state(state, 4, "arena-two-room")
        if not ((state >= 0) & (state <= 224)).all():
            raise ValueError(f"state is {state.tolist()}; expected places in [0, 224], pixels")
        both = torch.from_numpy(state).float()
        self._env.agent_position, self._env.target_position = both[:2].clone(), both[2:].clone()
        self._restart()

    @property
    def position(self) -> np.ndarray:
        """(2,) float64: the agent's centre x, y."""
        return self._env.agent_position.double().numpy()

    @property
    def goal(self) -> np.ndarray:
        """(2,) float64: where `position` should be."""
        return self._env.target_position.double().numpy()

    def goal_state(self) -> np.ndarray:
        """(4,) float64: the state of having arrived at the goal."""
        return np.tile(self.goal, 2)

    def true_state(self) -> dict[str, np.ndarray]:
        """Named variables that the picture shows, for probes: position (2,)."""
        return {"position": self.position}

    def expert_action(self) -> np.ndarray:
        """(2,) float32: the published expert's, by the door to the goal, without noise."""
        agent, goal = self._env.agent_position.numpy(), self._env.target_position.numpy()
        return self._expert.get_action({"state": agent, "goal_state": goal})

    def simulate(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """True positions under many action sequences, without changing this environment.

        Args:
            states: (B, 4) from `get_state`, any B.
            actions: (B, N, H, 2); clipped to [-1, 1].

        Returns:
            (B, N, H+1, 2) float32, index 0 the start."""
        actions = np.asarray(actions, np.float32)
        states = np.asarray(states, np.float32)[:, None, :2]
        path = [np.broadcast_to(states, (*actions.shape[:2], 2))]
        for action in np.moveaxis(actions, 2, 0):
            path.append(_moved(path[-1], action))
        return np.stack(path, 2)

    def way_length(self, states: np.ndarray, positions: np.ndarray, goals: np.ndarray):
        """The length of the shortest way from positions (B, ..., 2) to goals (B, 2), pixels ->
        (B, ...): straight within a room, else through the door, as if the wall were thin."""
        goals = np.asarray(goals).reshape(len(goals), *[1] * (positions.ndim - 2), 2)
        (x, y), (goal_x, goal_y) = np.moveaxis(positions, -1, 0), np.moveaxis(goals, -1, 0)
        apart = (x < WALL_X) != (goal_x < WALL_X)
        crossing = y + (WALL_X - x) / np.where(apart, goal_x - x, 1.0) * (goal_y - y)
        door = np.clip(crossing, DOOR_Y - CLEARANCE, DOOR_Y + CLEARANCE)
        around = np.hypot(WALL_X - x, door - y) + np.hypot(goal_x - WALL_X, goal_y - door)
        straight = np.hypot(goal_x - x, goal_y - y)
        return np.where(apart, around, straight).astype(np.float32)


def _moved(position: np.ndarray, action: np.ndarray) -> np.ndarray:
    """One step of many agents by the published rules, which a test compares: (..., 2) each."""
    x, y = np.moveaxis((position + 5 * action.clip(-1, 1)).clip(LOW, HIGH), -1, 0)
    wall = np.abs(y - DOOR_Y) > CLEARANCE
    left = position[..., 0] < WALL_X
    x = np.where(wall & left & (x > WALL_X - REACH), WALL_X - REACH - 0.5, x)
    x = np.where(wall & ~left & (x < WALL_X + REACH), WALL_X + REACH + 0.5, x)
    return np.stack([x, y], -1).astype(np.float32)
