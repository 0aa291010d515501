"""Any other Gymnasium environment, by its id, in the terms of this package."""

from __future__ import annotations

import copy
import itertools
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
    get_physics,
    observation_space,
    put,
    set_physics,
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
    *("geom_xpos", "geom_xmat", "site_xpos", "site_xmat"),
    *("cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
    *("cinert", "cvel", "cfrc_ext", "qfrc_actuator", "qfrc_constraint"),
)


class GymEnv(StackedFrames):
    """A Gymnasium environment with actions in [-1, 1] or one-hot, pixels from its `render()`,
    action repeat and frame stack.

    Action space: `Box(-1, 1, (A,), float32)` for a bounded `Box`, clipped, then rescaled to its
    bounds; `Box(0, 1, (A,), float32)` for `Discrete`, `MultiDiscrete` and `MultiBinary`: one-hot
    vectors, one for each number, of which the largest entry counts; `action_groups` holds their
    sizes.

    Observation space: `"state"` (`Box(-inf, inf, (S,), float32)`): its observation, flattened;
    `"pixels"` (`Box(0, 255, (3 * frame_stack, size, size), uint8)`): RGB frames, oldest first,
    newest last; `"both"` (`Dict`): `"pixels"` and `"state"`. A frame is its observation where that
    is a picture, else what `render()` shows, scaled to a square.

    Reward and end: its own; rewards are summed over `action_repeat`.

    State: `get_state` and `set_state` work for environments whose `state` attribute is the
    state (classic control) and for those on MuJoCo, with what Gymnasium's own observations and
    rewards read of a step (contact forces, inertias), and carry the random generator. The elapsed
    time of a time limit is not in the state and goes on.

    Args:
        name: the environment's id, such as "Pendulum-v1" or "module:id".
        obs: "state", "pixels" or "both".
        size: side of the picture, pixels.
        action_repeat: steps of the environment per action.
        frame_stack: pictures per observation.
        max_episode_steps: actions per episode; None: the environment's own limit.
        terminate: False: go on past `terminated`, where the world does; for episodes of one length.
        position: entries of the observation that success is measured on; None: all.
        success_radius: how near counts as reached, Euclidean, in their units.
        render_mode: "rgb_array" for `render()`.
        kwargs: handed to the environment.

    Raises:
        ValueError: for spaces that do not fit, actions of another shape or with NaN, or states it
            cannot read.
        RuntimeError: when MuJoCo is to draw and the machine has no headless OpenGL."""

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
        **kwargs: Any,
    ):
        self._arguments = {
            k: v for k, v in locals().items() if k not in ("self", "kwargs", "__class__")
        } | kwargs
        check_observed(obs, size, frame_stack, action_repeat, render_mode)
        self.name, self.obs, self.size, self.render_mode = name, obs, size, render_mode
        self.action_repeat, self.terminate = action_repeat, terminate
        self._start_frames(frame_stack)
        draws = obs != "state" or render_mode is not None
        prepare_backend(False)  # those on MuJoCo look for it on import; others draw without OpenGL
        if max_episode_steps is not None:
            kwargs = {**kwargs, "max_episode_steps": action_repeat * max_episode_steps}
        draw = {"render_mode": "rgb_array"} if draws else {}
        self._env = gym.make(name, **draw, disable_env_checker=True, **kwargs)
        if draws and _on_mujoco(self._env.unwrapped):
            choose_backend()
        if draws:  # some take their window down only after its library has gone
            weakref.finalize(self, self._env.close)
        self.action_space, self.action_groups = self._actions(self._env.action_space)
        ends = list(itertools.accumulate(self.action_groups, initial=0))
        self._one_hot = [slice(*pair) for pair in itertools.pairwise(ends)]
        self._sees_pictures = _is_picture(self._env.observation_space)
        if self._sees_pictures and obs != "pixels":
            raise ValueError(
                f"{name} observes pictures, not a state vector: use obs='pixels', got obs={obs!r}."
            )
        # Unbounded: some environments leave the bounds they state, and nothing here needs them.
        shape = spaces.flatten_space(self._env.observation_space).shape
        state = spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.observation_space = observation_space(obs, size, frame_stack, state)
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

    def _numbers(self, action: np.ndarray) -> list[int]:
        """The largest entry of each one-hot vector in an action (A,)."""
        return [int(np.argmax(action[part])) for part in self._one_hot]

    def executed(self, action: np.ndarray) -> np.ndarray:
        """The action (A,) as it is carried out: clipped, or the one-hot vectors of the largest
        entries."""
        if not self.action_groups:
            return np.clip(action, -1, 1).astype(np.float32)
        chosen = zip(self.action_groups, self._numbers(action))
        return np.concatenate([np.eye(size, dtype=np.float32)[number] for size, number in chosen])

    def _native(self, action: np.ndarray) -> Any:
        """An action (A,) in the environment's own terms."""
        space = self._env.action_space
        if not self.action_groups:
            low, high = space.low.astype(np.float64), space.high.astype(np.float64)
            unit = np.clip(action, -1, 1).astype(np.float64).reshape(space.shape)
            return ((low + high) / 2 + (high - low) / 2 * unit).astype(space.dtype)
        numbers = self._numbers(action)
        if isinstance(space, spaces.Discrete):
            return int(space.start) + numbers[0]
        return np.asarray(numbers, space.dtype) + getattr(space, "start", 0)

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

    def picture(self) -> np.ndarray:
        """uint8 (3, size, size): what is observed and shown."""
        size = self.size
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

    # -- states ------------------------------------------------------------------------------------

    def get_state(self) -> np.ndarray:
        """(X,) float64, everything the future depends on but the time limit.

        Raises:
            ValueError: when the environment does not say its state."""
        world = self._env.unwrapped
        state = _read(world, self.name)
        return np.concatenate([state, [float(self._ended)], to_words(world.np_random)])

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
        """As `ControlSuiteEnv.simulate`; one step at a time, so slow."""
        if self._simulator is None:
            quiet = {"obs": "state", "frame_stack": 1, "render_mode": None, "terminate": False}
            self._simulator = GymEnv(**{**self._arguments, **quiet})
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
        derived = (np.ravel(getattr(world.data, name)) for name in _DERIVED)
        return np.concatenate([get_physics(world.model, world.data), *derived])
    state = getattr(world, "state", None)
    if state is None or np.asarray(state).dtype.kind not in "fiu":
        raise ValueError(
            f"{name} does not say its state, which planning towards goals needs: only classic "
            "control and MuJoCo environments do so of themselves. Give it get_state, set_state, "
            "position, success_radius, observe and true_state, as docs/environments.md tells."
        )
    beside = (_optional(world, name) for name in _BESIDE)
    return np.concatenate([np.asarray(state, np.float64).ravel(), *beside])


def _optional(world: gym.Env, name: str) -> list[float]:
    """A number that may be None, or missing -> (whether it is there, its value or 0)."""
    value = getattr(world, name, None)
    return [0.0, 0.0] if value is None else [1.0, float(value)]


def _write(world: gym.Env, state: np.ndarray) -> None:
    if _on_mujoco(world):
        count = get_physics(world.model, world.data).size
        set_physics(world.model, world.data, state[:count])
        put((getattr(world.data, name) for name in _DERIVED), state[count:])
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
    parts = (getattr(world, name, None) for name in ("model", "data"))
    return all(type(part).__module__.startswith("mujoco") for part in parts)
