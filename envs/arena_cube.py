"""stable-worldmodel's cube in the terms of this package. Optional, as `gjwm.envs.arena`."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
from gymnasium import spaces

from gjwm.envs.arena import ArenaEnv, needed, stable_worldmodel
from gjwm.envs.common import (
    checked_action,
    checked_state,
    get_physics,
    put,
    set_physics,
    state_option,
)
from gjwm.envs.rendering import FastRenderer, prepare_backend

NOISE = 0.1  # the largest that its collector draws for an episode
SPREAD = np.array([1, 1, 1, 3, 10])  # of that noise over the actions


class ArenaCubeEnv(ArenaEnv):
    """stable-worldmodel's `swm/OGBCube-v0` with one cube, on ogbench's arm: a UR5e with a gripper.

    Units are metres, seconds and radians. A step is 0.05 s, 25 of MuJoCo's.

    - Action: `Box(-1, 1, (5,), float32)`, clipped: how far the gripper is to move along x, y, z
      (0.05), to turn (0.3) and to close (1).
    - Observation: `obs="pixels"` (default): RGB, uint8 (3·frame_stack, size, size), from its camera
      "front_pixels", without shadows and reflections, drawn at its size; its own are drawn at 224
      with both and scaled. The target is not shown, as there. `"state"`: its own vector, float32
      (28,): joints, gripper, cube. `"both"`: a Dict.
    - Reward: 1 where the cube is within 0.04 of its target, else 0.
    - Start: cube, its turn, its target and the hand's turn drawn over its ranges from the seed; its
      own draws do not follow from one. It never ends by itself; truncated after
      `max_episode_steps`, 200 where its data are collected.
    - Success: the cube (`position`, x, y, z) within 0.04 of the goal's at any step, as there.
    - State: MuJoCo's integration state, target included, and what a step leaves of the hand's pose
      and touch before its last integration. Not the episode's clock, nor what `expert_action` is
      about to do.
    - `expert_action`: ogbench's `CubeMarkovOracle` with the noise of its collector, drawn from this
      environment's generator: the behaviour `{"scripted": {"noise": 0}}`.
    - Arguments beside these: `size` (64), `frame_stack` (1), `render_mode` (None).

    Raises:
        ImportError: without the extra, naming it.
        ValueError: for an argument of another kind, an action of another shape or with NaN, and a
            state of another size.
        RuntimeError: when pixels are asked for and the machine has no headless OpenGL."""

    success_radius = 0.04  # m

    def __init__(
        self,
        *,
        obs: str = "pixels",
        size: int = 64,
        frame_stack: int = 1,
        max_episode_steps: int | None = 200,
        render_mode: str | None = None,
    ):
        self._arrange(
            obs=obs,
            size=size,
            frame_stack=frame_stack,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
            seen=spaces.Box(-np.inf, np.inf, (28,), np.float32),
            action_dim=5,
        )
        prepare_backend(obs != "state" or render_mode is not None)
        self._env = stable_worldmodel("envs.ogbench.cube_env").CubeEnv(
            env_type="single", visualize_info=False, terminate_at_goal=False, mode="data_collection"
        )
        with warnings.catch_warnings():  # its spaces warn of its own values
            warnings.simplefilter("ignore")
            self._env.reset(seed=0)
        # It builds its model anew at every reset; nothing here changes how it looks.
        self._env.modify_mjcf_model = lambda model: model
        self._env._dirty = False
        self._renderer = FastRenderer(size, self._env.model.camera("front_pixels").id)
        self._make_expert()
        self._simulator: ArenaCubeEnv | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode -> `(observation, {})`; `options={"state": s}` says where, as
        `set_state` does."""
        super().reset(seed=seed)
        state = state_option(options)
        ranges = self._env.variation_space["cube"]
        drawn = {
            f"cube.{name}": self.np_random.uniform(ranges[name].low, ranges[name].high)
            for name in ("start_position", "start_yaw", "goal_position", "goal_yaw")
        }
        self._env._np_random = self.np_random  # its reset loses the seed that it is given
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._env.reset(options={"variation": (), "variation_values": drawn})
        self._begin_expert()
        self._noise = self.np_random.uniform(0, NOISE)
        return self._begun(state)

    def step(self, action):
        """Move by `action (5,)` -> `(observation, reward, False, truncated, {})`."""
        action = checked_action(action, (5,), "arena-cube").astype(np.float32).clip(-1, 1)
        _, reward, _, _, _ = self._env.step(action)
        return self._stepped(reward, False)

    def picture(self) -> np.ndarray:
        """uint8 (3, size, size): what is observed and shown."""
        return self._renderer.picture(self._env.model, self._env.data)

    def state_vector(self) -> np.ndarray:
        return self._env.compute_observation().astype(np.float32)

    def get_state(self) -> np.ndarray:
        """(X,) float64: see the class."""
        physics = get_physics(self._env.model, self._env.data)
        return np.concatenate([physics, *(field.ravel() for field in self._left())])

    def _left(self) -> list[np.ndarray]:
        """What a step leaves as it was before its last integration, and the next one reads."""
        data, hand = self._env.data, self._env._pinch_site_id
        pad = data.body("ur5e/robotiq/right_pad").cfrc_ext
        return [data.site_xpos[hand], data.site_xmat[hand], pad]

    def set_state(self, state: np.ndarray) -> None:
        """Go to a state of `get_state`; the episode's clock restarts and the frame stack repeats
        the picture."""
        state = checked_state(state, self.get_state().size, "arena-cube")
        count = state.size - sum(field.size for field in self._left())
        set_physics(self._env.model, self._env.data, state[:count])
        put(self._left(), state[count:])
        self._begin_expert()
        self._restart()

    @property
    def position(self) -> np.ndarray:
        """(3,) float64: the cube's x, y, z."""
        return self._env.data.joint("object_joint_0").qpos[:3].copy()

    @property
    def goal(self) -> np.ndarray:
        """(3,) float64: where the expert brings the cube."""
        return self._env.data.mocap_pos[self._env._cube_target_mocap_ids[0]].copy()

    def true_state(self) -> dict[str, np.ndarray]:
        """Named variables that the picture shows, for probes: position (3,), hand (3,), gripper
        (1,): how far it is closed, 0 to 1."""
        data = self._env.data
        gripper = data.qpos[[self._env._gripper_opening_joint_id]] / 0.8
        hand = data.site_xpos[self._env._pinch_site_id].copy()
        return {"position": self.position, "hand": hand, "gripper": gripper}

    # -- its expert --------------------------------------------------------------------------------

    def _make_expert(self) -> None:
        oracle = needed("ogbench.manipspace.oracles.markov.cube_markov").CubeMarkovOracle
        self._oracle, self._noise = oracle(env=self._env), NOISE
        self._begin_expert()

    def _begin_expert(self) -> None:
        self._oracle.reset(None, None)
        # where it goes once the cube is there; its own draw follows from no seed
        self._oracle._final_pos = self.np_random.uniform(*self._env._arm_sampling_bounds)
        self._oracle._final_yaw = self.np_random.uniform(-np.pi, np.pi)

    def expert_action(self) -> np.ndarray:
        """(5,) float32: its oracle's with its collector's noise, drawn."""
        if self._oracle.done:
            self._begin_expert()
        action = self._oracle.select_action(None, self._env.compute_ob_info())
        noise = self.np_random.normal(0, self._noise * SPREAD)
        return (action + noise).clip(-1, 1).astype(np.float32)

    def simulate(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Positions under many action sequences, without changing this environment: one step at a
        time, a millisecond each.

        Args:
            states: (B, X) from `get_state`, any B.
            actions: (B, N, H, 5); clipped to [-1, 1].

        Returns:
            (B, N, H+1, 3) float32, index 0 the start."""
        if self._simulator is None:
            self._simulator = copy.deepcopy(self)
        world = self._simulator
        paths = []
        for state, plans in zip(states, np.asarray(actions, np.float32).clip(-1, 1)):
            for plan in plans:
                world.set_state(state)
                paths.append([world.position])
                for action in plan:
                    world._env.step(action)
                    paths[-1].append(world.position)
        return np.asarray(paths, np.float32).reshape(*actions.shape[:2], actions.shape[2] + 1, 3)

    def __deepcopy__(self, memo: dict[int, Any]) -> ArenaCubeEnv:
        """An independent environment in the same state, which shares the model, that nothing here
        changes, and the OpenGL context. Many times cheaper than making another one."""
        other = copy.copy(self)
        memo[id(self)] = other
        other._env = copy.copy(self._env)
        other._env._data = copy.copy(self._env.data)
        other._env.variation_space = copy.deepcopy(self._env.variation_space)
        other._np_random = other._env._np_random = copy.deepcopy(self.np_random)
        other._oracle = copy.copy(self._oracle)
        other._oracle._env = other._env
        other._frames = copy.copy(self._frames)
        other._simulator = None
        return other

    def close(self) -> None:
        """Let go of the OpenGL context, which is freed with the last copy that uses it."""
        self._renderer = FastRenderer(self.size, self._renderer.camera_id)
