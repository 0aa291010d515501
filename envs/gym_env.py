"""Any other Gymnasium environment, by its id, in the terms of this package."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from PIL import Image

from gjwm.envs.common import (
    WORDS,
    StackedFrames,
    check_observed,
    checked_action,
    checked_state,
    from_words,
    observation_space,
    to_words,
)
from gjwm.envs.rendering import choose_backend, prepare_backend

# What classic control keeps beside `state`: the torque that Pendulum draws, and how long CartPole
# has been over.
_BESIDE = ("last_u", "steps_beyond_terminated")

# What Gymnasium's MuJoCo environments observe, reward and draw beside the integration state. MuJoCo
# derives it from that state, but a step leaves it as it was before its last integration, and forces
# on bodies only where a step asks for them.
_DERIVED = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "subtree_com", "sensordata"),
    *(
        "geom_xpos",
        "geom_xmat",
        "site_xpos",
        "site_xmat",
        "cam_xpos",
        "cam_xmat",
        "light_xpos",
        "light_xdir",
    ),
    *("cinert", "cvel", "cfrc_ext", "qfrc_actuator", "qfrc_constraint"),
)


class GymEnv(StackedFrames):
    """A Gymnasium environment with actions in [-1, 1] or one-hot, pixels from its `render()`,
    action repeat and frame stack.

    ## Action space

    - bounded `Box`: `Box(-1, 1, (A,), float32)`, clipped, then rescaled to its bounds
    - `Discrete`, `MultiDiscrete`, `MultiBinary`: `Box(0, 1, (A,), float32)`: one-hot vectors, one
      for each number

    The largest entry of a one-hot vector counts, and `action_groups` holds their sizes.

    ## Observation space

    - `"state"` (`Box(-inf, inf, (S,), float32)`): its observation, flattened
    - `"pixels"` (`Box(0, 255, (3 * frame_stack, size, size), uint8)`): RGB frames, oldest first,
      newest last
    - `"both"` (`Dict`): `"pixels"` and `"state"`

    A frame is its observation where that is a picture, else what `render()` shows, scaled to a
    square.

    ## Reward and episode end

    Its own; rewards are summed over `action_repeat`.

    ## State

    `get_state` and `set_state` work for environments whose `state` attribute is the state (classic
    control) and for those on MuJoCo, with what Gymnasium's own observations and rewards read of a
    step (contact forces, inertias), and carry the random generator. The elapsed time of a time
    limit is not in the state and goes on.

    ## Reaching goals

    `position` is the flattened observation, or the entries of it that the argument `position`
    names.

    ## Arguments

    - `name`: the environment's id, such as `"Pendulum-v1"` or `"module:id"`
    - `obs` (default `"state"`): `"state"`, `"pixels"` or `"both"`
    - `size` (default 64): side of the picture, pixels
    - `action_repeat` (default 1): steps of the environment per action
    - `frame_stack` (default 1): pictures per observation
    - `max_episode_steps` (default None): actions per episode; None: the environment's own limit
    - `terminate` (default True): False: go on past `terminated`, where the world does; for episodes
      of one length
    - `position` (default None): entries of the observation that success is measured on; None: all
    - `success_radius` (default 0.1): how near counts as reached, Euclidean, in their units
    - `render_mode` (default None): `"rgb_array"` for `render()`
    - `render_size` (default `size`): side of `render()`'s picture, pixels
    - any other: handed to the environment

    Version: v0, the first.

    Raises:
        ValueError: for spaces that do not fit, actions of another shape or with NaN, or states it
            cannot read.
        RuntimeError: when MuJoCo is to draw and the machine has no headless OpenGL."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012

    def __init__(
        self,
        *,
        name: str,
        obs: str = "state",
        size: int = 64,
        action_repeat: int = 1,
        frame_stack: int = 1,
        max_episode_steps: int | None = None,
        terminate: bool = True,
        position: Sequence[int] | None = None,
        success_radius: float = 0.1,
        render_mode: str | None = None,
        render_size: int | None = None,
        **kwargs: Any,
    ):
        self._arguments = {
            k: v for k, v in locals().items() if k not in ("self", "kwargs", "__class__")
        } | kwargs
        check_observed(obs, size, frame_stack, action_repeat, render_mode)
        self.name, self.obs, self.size, self.render_mode = name, obs, size, render_mode
        self.render_size = size if render_size is None else render_size
        self.action_repeat, self.terminate = action_repeat, terminate
        self._start_frames(frame_stack)
        draws = obs != "state" or render_mode is not None
        prepare_backend(False)  # those on MuJoCo look for it on import; others draw without OpenGL
        if max_episode_steps is not None:
            kwargs = {**kwargs, "max_episode_steps": action_repeat * max_episode_steps}
        self._env = gym.make(
            name,
            **({"render_mode": "rgb_array"} if draws else {}),
            disable_env_checker=True,
            **kwargs,
        )
        if draws and _on_mujoco(self._env.unwrapped):
            choose_backend()
        if draws:
            # some take their window down only after its library has gone
            weakref.finalize(self, self._env.close)
        self.action_space, self.action_groups = self._actions(self._env.action_space)
        self._sees_pictures = _is_picture(self._env.observation_space)
        if self._sees_pictures and obs != "pixels":
            raise ValueError(
                f"{name} observes pictures, not a state vector: use obs='pixels', got obs={obs!r}."
            )
        self.observation_space = self._observations()
        self._chosen = slice(None) if position is None else np.asarray(position, int)
        self.success_radius = float(success_radius)
        self._observation: Any = None  # the environment's latest own
        self._ended = False
        self._simulator: GymEnv | None = None

    def _actions(self, space: spaces.Space) -> tuple[spaces.Box, tuple[int, ...]]:
        groups: tuple[int, ...] = ()
        if isinstance(space, spaces.Box):
            if not space.is_bounded():
                raise ValueError(
                    f"{self.name} has unbounded actions, [{space.low}, {space.high}]; bound them "
                    f"where it is registered."
                )
            count = int(np.prod(space.shape))
            return spaces.Box(-1.0, 1.0, (count,), np.float32), groups
        if isinstance(space, spaces.Discrete):
            groups = (int(space.n),)
        elif isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
            groups = tuple(int(n) for n in space.nvec)
        elif isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
            groups = (2,) * space.shape[0]
        else:
            raise ValueError(
                f"{self.name} has the action space {space}; expected a bounded Box, Discrete, "
                f"MultiDiscrete or MultiBinary."
            )
        return spaces.Box(0.0, 1.0, (sum(groups),), np.float32), groups

    def _observations(self) -> spaces.Space:
        flat = spaces.flatten_space(self._env.observation_space)
        # Unbounded: some environments leave the bounds they state, and nothing here needs them.
        state = spaces.Box(-np.inf, np.inf, flat.shape, np.float32)
        return observation_space(self.obs, self.size, self.frame_stack, state)

    def executed(self, action: np.ndarray) -> np.ndarray:
        """The action (A,) as it is carried out: clipped, or the one-hot vectors of the largest
        entries."""
        if not self.action_groups:
            return np.clip(action, -1, 1).astype(np.float32)
        one_hot, at = np.zeros(len(action), np.float32), 0
        for size in self.action_groups:
            one_hot[at + int(np.argmax(action[at : at + size]))] = 1
            at += size
        return one_hot

    def _native(self, action: np.ndarray) -> Any:
        """An action (A,) in the environment's own terms."""
        space = self._env.action_space
        if not self.action_groups:
            low, high = space.low.astype(np.float64), space.high.astype(np.float64)
            unit = np.clip(action, -1, 1).astype(np.float64).reshape(space.shape)
            return ((low + high) / 2 + (high - low) / 2 * unit).astype(space.dtype)
        numbers, at = [], 0
        for size in self.action_groups:
            numbers.append(int(np.argmax(action[at : at + size])))
            at += size
        if isinstance(space, spaces.Discrete):
            return int(space.start) + numbers[0]
        return np.asarray(numbers, space.dtype) + (
            space.start if isinstance(space, spaces.MultiDiscrete) else 0
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode -> (observation, info). `options={"state": s}` starts from a state of
        `get_state`."""
        super().reset(seed=seed)
        options = dict(options or {})
        state = options.pop("state", None)
        self._observation, info = self._env.reset(seed=seed, options=options or None)
        self._frames.clear()
        self._ended = False
        if state is not None:
            self.set_state(state)
        return self.observe(), info

    def step(self, action):
        """Apply action (A,) -> (observation, reward, terminated, truncated, info)."""
        action = checked_action(action, self.action_space.shape, self.name)
        native, total = self._native(action), 0.0
        for _ in range(self.action_repeat):
            with warnings.catch_warnings():
                if self._ended:  # some warn of steps past the end, which terminate=False asks for
                    warnings.simplefilter("ignore")
                self._observation, reward, terminated, truncated, info = self._env.step(native)
            total += float(reward)
            self._ended = self._ended or terminated
            if (terminated and self.terminate) or truncated:
                break
        if self.obs != "state":
            self._frames.append(self.picture())
        return self.observe(), total, bool(terminated and self.terminate), bool(truncated), info

    def _picture(self, size: int) -> np.ndarray:
        """uint8 (3, size, size)."""
        rgb = self._observation if self._sees_pictures else self._env.render()
        rgb = np.asarray(rgb)
        if rgb.ndim == 2 or rgb.shape[-1] == 1:
            rgb = np.repeat(rgb.reshape(*rgb.shape[:2], 1), 3, -1)
        if rgb.shape[:2] != (size, size):
            rgb = np.asarray(Image.fromarray(rgb).resize((size, size), Image.Resampling.BOX))
        return np.ascontiguousarray(np.moveaxis(rgb, -1, 0))

    def state_vector(self) -> np.ndarray:
        return np.asarray(
            spaces.flatten(self._env.observation_space, self._observation), np.float32
        )

    def picture(self) -> np.ndarray:
        """uint8 (3, size, size): what is observed."""
        return self._picture(self.size)

    def view(self) -> np.ndarray:
        """uint8 (3, render_size, render_size): what people see."""
        return self._picture(self.render_size)

    # -- states ------------------------------------------------------------------------------------

    def get_state(self) -> np.ndarray:
        """(X,) float64, everything the future depends on but the time limit; see the class for
        which environments.

        Raises:
            ValueError: when the environment does not say its state."""
        world = self._env.unwrapped
        return np.concatenate(
            [_read(world, self.name), [float(self._ended)], to_words(world.np_random)]
        )

    def set_state(self, state: np.ndarray) -> None:
        """Go to a state of `get_state`; the frame stack then repeats its picture."""
        if self._observation is None:
            self.reset(seed=0)
        world = self._env.unwrapped
        state = checked_state(state, self.get_state().size, self.name)
        self._ended = bool(state[-WORDS - 1])
        _write(world, state[: -WORDS - 1])
        from_words(world.np_random, state[-WORDS:])
        self._observation = _observed(world, self.name)
        self._frames.clear()

    @property
    def position(self) -> np.ndarray:
        """(P,) float64: what success is measured on."""
        return self.state_vector()[self._chosen].astype(np.float64)

    def true_state(self) -> dict[str, np.ndarray]:
        """Named variables for probes: position (P,) and the flattened observation."""
        return {"position": self.position, "observation": self.state_vector().astype(np.float64)}

    def simulate(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """True positions under many action sequences, without changing this environment; one step
        at a time, so slow.

        Args:
            states: (B, X) from `get_state`.
            actions: (B, N, H, A).

        Returns:
            (B, N, H+1, P) float32, index 0 the start."""
        if self._simulator is None:
            quiet = {
                **self._arguments,
                "obs": "state",
                "frame_stack": 1,
                "render_mode": None,
                "terminate": False,
            }
            self._simulator = GymEnv(**quiet)
        world = self._simulator
        paths = []
        for state, plans in zip(states, actions):
            for plan in plans:
                world.reset(seed=0)
                world.set_state(state)
                paths.append([world.position])
                for action in plan:
                    world.step(action)
                    paths[-1].append(world.position)
        return np.asarray(paths, np.float32).reshape(*actions.shape[:2], actions.shape[2] + 1, -1)

    def __deepcopy__(self, memo: dict[int, Any]) -> GymEnv:
        """An independent environment in the same state. Windows of the old one are not copied."""
        other = GymEnv(**self._arguments)
        memo[id(self)] = other
        other._np_random = copy.deepcopy(self._np_random)
        other.spec = self.spec
        if self._observation is not None:
            other.reset(seed=0)
            other.set_state(self.get_state())
            other._frames = copy.copy(self._frames)
        return other

    def close(self) -> None:
        """Close the environment."""
        self._env.close()
        if self._simulator is not None:
            self._simulator.close()


def _is_picture(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def _read(world: gym.Env, name: str) -> np.ndarray:
    if _on_mujoco(world):
        import mujoco

        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(world.model, kind))
        mujoco.mj_getState(world.model, world.data, state, kind)
        return np.concatenate([state, *(np.ravel(getattr(world.data, name)) for name in _DERIVED)])
    state = getattr(world, "state", None)
    if state is None or np.asarray(state).dtype.kind not in "fiu":
        raise ValueError(
            f"{name} does not say its state, which planning towards goals needs: only classic "
            "control and MuJoCo environments do so of themselves. Give it get_state, set_state, "
            "position, success_radius, observe and true_state, as docs/environments.md tells."
        )
    return np.concatenate(
        [np.asarray(state, np.float64).ravel(), *(_optional(world, name) for name in _BESIDE)]
    )


def _optional(world: gym.Env, name: str) -> list[float]:
    """A number that may be None, or missing -> (whether it is there, its value or 0)."""
    value = getattr(world, name, None)
    return [0.0, 0.0] if value is None else [1.0, float(value)]


def _write(world: gym.Env, state: np.ndarray) -> None:
    if _on_mujoco(world):
        import mujoco

        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        count = mujoco.mj_stateSize(world.model, kind)
        physics = np.ascontiguousarray(state[:count])
        mujoco.mj_setState(world.model, world.data, physics, kind)
        mujoco.mj_forward(world.model, world.data)
        # mj_forward leaves traces in the solver's warm start
        mujoco.mj_setState(world.model, world.data, physics, kind)
        for name in _DERIVED:
            field = getattr(world.data, name)
            field[...] = state[count : count + field.size].reshape(field.shape)
            count += field.size
    else:
        old, size = world.state, np.size(world.state)
        for i, name in enumerate(_BESIDE):
            if hasattr(world, name):
                there, value = state[size + 2 * i : size + 2 * i + 2]
                setattr(world, name, value if there else None)
        state = state[:size]
        # Floats stay in double precision: some worlds begin an episode in single and go on in
        # double.
        new = state.reshape(np.shape(old))
        new = new if np.asarray(old).dtype.kind == "f" else new.astype(np.asarray(old).dtype)
        world.state = tuple(new) if isinstance(old, tuple) else new


def _observed(world: gym.Env, name: str) -> Any:
    """The environment's observation of its state, for which Gymnasium has no public name."""
    for method in ("_get_obs", "_get_ob"):
        if hasattr(world, method):
            return getattr(world, method)()
    state = np.asarray(world.state, np.float32)
    if state.shape != world.observation_space.shape:
        raise ValueError(
            f"{name} does not say how it observes a state: it has neither _get_obs nor its state "
            f"as observation."
        )
    return state


def _on_mujoco(world: gym.Env) -> bool:
    return all(
        type(getattr(world, name, None)).__module__.startswith("mujoco")
        for name in ("model", "data")
    )
