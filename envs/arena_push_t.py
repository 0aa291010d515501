"""stable-worldmodel's Push-T in the terms of this package. Optional, as `gjwm.envs.arena`."""

from __future__ import annotations

import copy
import math
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium import spaces
from PIL import Image

from gjwm.envs.arena import ArenaEnv, needed, stable_worldmodel
from gjwm.envs.common import (
    checked_action,
    checked_state,
    state_option,
)

CANVAS, SHOWN = 512, 224  # pixels a side: what it draws on, and what it shows
NEAR, TURN = 20.0, math.pi / 9  # of a goal: pixels and radians
AWAY = (-9000.0, -9000.0)  # out of the picture


class ArenaPushTEnv(ArenaEnv):
    """stable-worldmodel's `swm/PushT-v1`: a disc pushes a T to a pose.

    Units are pixels of its canvas, 512 a side, y downwards, seconds and radians. A step is 0.1 s,
    ten of its physics; the disc is drawn to where it is plus 100 times the action, of which it
    goes about a quarter before the step ends.

    - Action: `Box(-1, 1, (2,), float32)`, clipped.
    - Observation: `obs="pixels"` (default): RGB, uint8 (3·frame_stack, size, size), what its
      `World(image_shape=(size, size))` shows, in every bit. The light green T in it is a mark in
      one place, not the goal. `"state"`: its own vector, float32 (7,): disc x, y; T x, y; its
      angle in [0, 2π); the disc's velocity. `"both"`: a Dict.
    - Reward: minus the distance of its state vector to the goal's, as there.
    - Start and goal: drawn by its own spaces from the seed. End: at the goal; truncated after
      `max_episode_steps`, 100 where its data are collected.
    - Success: disc and T together less than 20 from where they should be, and the T's angle less
      than π/9, at any step, as there. `position` is disc x, y; T x, y; and the cosine and sine of
      its angle times 180 / π, pixels all, so that 20 pixels weigh as π/9; `goal_distance` is the
      larger share of the two limits, `success_radius` 1.
    - State: float64 (17,): its own vector, the angle not wrapped; the T's velocity and turning;
      the goal, as its own vector. What contacts remember of the last 0.01 s is not in it and
      begins anew, nor is the episode's clock.
    - `expert_action`: its `WeakPolicy(dist_constraint=100)`, uniform around the T, drawn from this
      environment's generator: the behaviour `{"scripted": {"noise": 0}}`.
    - Arguments beside these: `size` (64), `frame_stack` (1), `render_mode` (None).

    Raises:
        ImportError: without the extra, naming it.
        ValueError: for an argument of another kind, an action of another shape or with NaN, and a
            state of another size."""

    success_radius = 1.0  # of `goal_distance`

    def __init__(
        self,
        *,
        obs: str = "pixels",
        size: int = 64,
        frame_stack: int = 1,
        max_episode_steps: int | None = 100,
        render_mode: str | None = None,
    ):
        self._arrange(
            obs=obs,
            size=size,
            frame_stack=frame_stack,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
            seen=spaces.Box(-np.inf, np.inf, (7,), np.float32),
            action_dim=2,
        )
        self._env = stable_worldmodel("envs.pusht.env").PushT()
        self._policy = stable_worldmodel("envs.pusht.expert_policy").WeakPolicy(dist_constraint=100)
        # It looks for the environments of a vector one.
        self._policy.set_env(
            SimpleNamespace(
                envs=[self._env],
                action_space=spaces.Box(-1.0, 1.0, (1, 2), np.float32),
                spec=SimpleNamespace(id="swm/PushT-v1"),
            )
        )
        self._draw(0)
        self._empty: Any = None  # its canvas without disc and T, drawn for the first picture
        self._simulator: ArenaPushTEnv | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode -> `(observation, {})`; `options={"state": s}` says where, as
        `set_state` does."""
        super().reset(seed=seed)
        state = state_option(options)
        # without a seed its spaces would draw one from the machine
        self._draw(int(self.np_random.integers(2**31)) if seed is None else seed)
        return self._begun(state)

    def _draw(self, seed: int) -> None:
        with warnings.catch_warnings():  # its spaces warn of its own values
            warnings.simplefilter("ignore")
            self._env.reset(seed=seed)

    def step(self, action):
        """Push by `action (2,)` -> `(observation, reward, terminated, truncated, {})`."""
        action = checked_action(action, (2,), "arena-push-t").astype(np.float32).clip(-1, 1)
        _, reward, terminated, _, _ = self._env.step(action)
        return self._stepped(reward, terminated)

    def picture(self) -> np.ndarray:
        """uint8 (3, size, size): what is observed and shown: drawn, scaled to 224 and then to
        `size`, as there, without copies of the canvas."""
        if self._empty is None:
            self._prepare_canvas()
        self._canvas.blit(self._empty, (0, 0))
        self._env.space.debug_draw(self._pen)
        # rows of numbers of four bytes: blue, green, red and nothing
        drawn = self._pixels(self._canvas).T.view(np.uint8).reshape(CANVAS, CANVAS, 4)
        shown = self._scale(drawn, (SHOWN, SHOWN))
        picture = Image.frombuffer("RGBX", (SHOWN, SHOWN), shown, "raw", "RGBX", 0, 1)
        picture = np.asarray(picture.resize((self.size, self.size), Image.Resampling.BILINEAR))
        return np.ascontiguousarray(np.moveaxis(picture, -1, 0)[2::-1])

    def _prepare_canvas(self) -> None:
        bodies = self._env.agent, self._env.block
        places = [body.position for body in bodies]
        self._move(bodies, [AWAY] * 2)
        self._env.render()
        self._empty = self._env.screen
        self._move(bodies, places)
        self._canvas = self._empty.copy()
        self._pen = stable_worldmodel("envs.utils").DrawOptions(self._canvas)
        self._pixels, self._scale = needed("pygame.surfarray").pixels2d, needed("cv2").resize

    def _move(self, bodies: Any, places: Any) -> None:
        for body, place in zip(bodies, places):
            body.position = place
            self._env.space.reindex_shapes_for_body(body)  # pictures show shapes, not bodies

    def state_vector(self) -> np.ndarray:
        return self._env._get_obs().astype(np.float32)

    def get_state(self) -> np.ndarray:
        """(17,) float64: see the class."""
        agent, block = self._env.agent, self._env.block
        here = [*agent.position, *block.position, block.angle, *agent.velocity]
        moving = [*block.velocity, block.angular_velocity]
        return np.array([*here, *moving, *self._env.goal_state], np.float64)

    def set_state(self, state: np.ndarray) -> None:
        """Go to `state (17,)`; contacts and the episode's clock begin anew, and the frame stack
        repeats the picture."""
        state = checked_state(state, 17, "arena-push-t").tolist()
        self._env._setup()  # a world in which nothing has touched yet
        agent, block = self._env.agent, self._env.block
        agent.velocity, block.angle = tuple(state[5:7]), state[4]
        block.velocity, block.angular_velocity = tuple(state[7:9]), state[9]
        self._move((agent, block), (tuple(state[:2]), tuple(state[2:4])))
        self._env._set_goal_state(np.array(state[10:]))
        self._restart()

    @property
    def position(self) -> np.ndarray:
        """(6,) float64: what success is measured on, see the class."""
        return _position(self.get_state()[:5])

    @property
    def goal(self) -> np.ndarray:
        """(6,) float64: where `position` should be."""
        return _position(np.asarray(self._env.goal_state, np.float64)[:5])

    def goal_state(self) -> np.ndarray:
        """(17,) float64: the state of having arrived at the goal, at rest."""
        goal = np.asarray(self._env.goal_state, np.float64)
        return np.concatenate([goal[:5], np.zeros(5), goal])

    def goal_distance(self, positions: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """How far positions (..., 6) are from goals (..., 6), in shares of what counts as there
        -> (...)."""
        apart = np.linalg.norm(positions[..., :4] - goals[..., :4], axis=-1)
        here, there = (np.arctan2(x[..., 5], x[..., 4]) for x in (positions, goals))
        turn = np.abs((here - there + np.pi) % (2 * np.pi) - np.pi)
        return np.maximum(apart / NEAR, turn / TURN)

    def true_state(self) -> dict[str, np.ndarray]:
        """Named variables that the picture shows, for probes: agent (2,), block (2,), angle as
        cosine and sine (2,), position (6,)."""
        position = self.position
        parts = {"agent": position[:2], "block": position[2:4], "angle": position[4:] * TURN / NEAR}
        return parts | {"position": position}

    def expert_action(self) -> np.ndarray:
        """(2,) float32: its weak policy's, drawn."""
        self._policy.rng = self.np_random
        return self._policy.get_action({})[0]

    def simulate(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Positions under many action sequences, without changing this environment: one step at a
        time, as contacts are.

        Args:
            states: (B, 17) from `get_state`, any B.
            actions: (B, N, H, 2); clipped to [-1, 1].

        Returns:
            (B, N, H+1, 6) float32, index 0 the start."""
        if self._simulator is None:
            self._simulator = ArenaPushTEnv(obs="state", max_episode_steps=None)
        world = self._simulator
        paths = []
        for state, plans in zip(states, np.asarray(actions, np.float32).clip(-1, 1)):
            for plan in plans:
                world.set_state(state)
                paths.append([world.get_state()[:5]])
                for action in plan:
                    world._env.step(action)
                    paths[-1].append(world.get_state()[:5])
        path = _position(np.asarray(paths)).astype(np.float32)
        return path.reshape(*actions.shape[:2], actions.shape[2] + 1, 6)

    def __deepcopy__(self, memo: dict[int, Any]) -> ArenaPushTEnv:
        """An independent environment in the same state."""
        other = ArenaPushTEnv(
            obs=self.obs,
            size=self.size,
            frame_stack=self.frame_stack,
            max_episode_steps=self.max_episode_steps,
            render_mode=self.render_mode,
        )
        memo[id(self)] = other
        other.spec = self.spec
        other._np_random = copy.deepcopy(self._np_random)
        other.set_state(self.get_state())
        other._frames, other._clock = copy.copy(self._frames), self._clock
        return other


def _position(pose: np.ndarray) -> np.ndarray:
    """Poses (..., 5), the last the T's angle -> (..., 6)."""
    angle = pose[..., 4:]
    weight = NEAR / TURN  # pixels per radian
    return np.concatenate([pose[..., :4], weight * np.cos(angle), weight * np.sin(angle)], -1)
