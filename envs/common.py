"""What the environments of this package share: checks of arguments, spaces, observations that are
arrays or dicts of them, a stack of frames, and random generators as numbers."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

# -- arguments -------------------------------------------------------------------------------------


def keywords(creator: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What a function or a class takes by name; of a class that takes **kwargs also what its bases
    take."""
    found: dict[str, inspect.Parameter] = {}
    for part in getattr(creator, "__mro__", (creator,)):
        parameters = inspect.signature(part).parameters.values()
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                found.setdefault(p.name, p)
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return found


def check_choices(**arguments: tuple[Any, Iterable[Any]]) -> None:
    """ValueError for an argument, name=(value, known), whose value is not among the known."""
    for name, (value, known) in arguments.items():
        if value not in known:
            *others, last = map(repr, known)
            raise ValueError(f"{name} is {value!r}; pass {', '.join(others)} or {last}")


def check_counts(**arguments: tuple[Any, int]) -> None:
    """ValueError for an argument, name=(value, least), that is no whole number or below `least`."""
    for name, (value, least) in arguments.items():
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} is {value!r}; pass a whole number, {least} or more")


def check_observed(
    obs: str, size: int, frame_stack: int, action_repeat: int, render_mode: str | None
) -> None:
    """ValueError for wrong arguments that every environment with pictures takes."""
    check_choices(
        obs=(obs, ("pixels", "state", "both")), render_mode=(render_mode, (None, "rgb_array"))
    )
    check_counts(size=(size, 1), frame_stack=(frame_stack, 1), action_repeat=(action_repeat, 1))


def state_option(options: Mapping[str, Any] | None) -> Any:
    """The "state" of reset's options, or None; ValueError for any other option."""
    unknown = sorted(set(options or {}) - {"state"})
    if unknown:
        raise ValueError(f"options holds {unknown}; the only option of this environment is 'state'")
    return (options or {}).get("state")


def checked_action(action: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """An action as an array of `shape`; ValueError for another shape, NaN or infinity."""
    action = np.asarray(action)
    if action.shape != shape:
        raise ValueError(f"{name} expects actions of shape {shape}, got {action.shape}.")
    if not np.isfinite(action).all():
        raise ValueError(f"an action holds NaN or infinity: {action.reshape(-1)[:8]}.")
    return action


def checked_state(state: Any, size: int, name: str) -> np.ndarray:
    """A state of `get_state` as float64 (size,); ValueError for another size, NaN or infinity."""
    state = np.asarray(state, np.float64)
    if state.shape != (size,) or not np.isfinite(state).all():
        raise ValueError(
            f"{name} expects a finite state ({size},) from get_state, got {state.shape}."
        )
    return state


# -- goals -----------------------------------------------------------------------------------------


def goal_distance(world: Any, positions: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """How far positions (..., P) are from goals (..., P), which `success_radius` is compared with
    -> (...): by the environment's own `goal_distance` where it has one, else Euclidean."""
    if hasattr(world, "goal_distance"):
        return world.goal_distance(positions, goals)
    return np.linalg.norm(positions - goals, axis=-1)


# -- observations: arrays or tensors, or (nested) dicts of them ------------------------------------


def observation_space(
    obs: str, size: int, frame_stack: int, state: spaces.Space | None
) -> spaces.Space:
    """The space of "pixels", "state" or "both". state: the space of the state vector."""
    pixels = spaces.Box(0, 255, (3 * frame_stack, size, size), np.uint8)
    if obs == "pixels":
        return pixels
    return state if obs == "state" else spaces.Dict({"pixels": pixels, "state": state})


def each(value: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of an array, or of every array of a (nested) dict."""
    if isinstance(value, Mapping):
        return {name: each(part, function) for name, part in value.items()}
    return function(value)


def write(observations: Any, rows: Any, values: Any) -> None:
    """observations[rows] = values, in place, for arrays or (nested) dicts of them."""
    if isinstance(observations, Mapping):
        for name, value in observations.items():
            write(value, rows, values[name])
    else:
        observations[rows] = values


def by_lane(final: Any, ended: np.ndarray) -> np.ndarray:
    """Gymnasium's `final_obs`: an object array (N,) with copies of the observations where `ended`
    (N,), else None."""
    lanes = np.full(len(ended), None, object)
    for i in ended.nonzero()[0]:
        lanes[i] = each(final, lambda x, i=i: x[i].copy())
    return lanes


def cannot_render(env: Any) -> bool:
    """Whether `render` was not asked for when the environment was made; a warning says so."""
    if env.render_mode is None:
        gym.logger.warn(
            "render() shows nothing with render_mode=None; make the environment with 'rgb_array'"
        )
    return env.render_mode is None


class StackedFrames(gym.Env):
    """A single environment whose observation is a stack of pictures, a state vector or both.

    A subclass sets `obs` and `render_mode`, offers `state_vector()` and `picture()`, uint8 (3,
    size, size), and clears `_frames` where a stack begins anew."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012

    obs: str
    frame_stack: int

    def _start_frames(self, frame_stack: int) -> None:
        self.frame_stack = frame_stack
        self._frames: deque[np.ndarray] = deque(maxlen=frame_stack)

    def observe(self):
        """The observation of the current state, shaped as `observation_space`."""
        if self.obs == "state":
            return self.state_vector()
        if not self._frames:
            self._frames.extend([self.picture()] * self.frame_stack)
        pixels = np.concatenate(self._frames)
        return pixels if self.obs == "pixels" else {"pixels": pixels, "state": self.state_vector()}

    def render(self) -> np.ndarray | None:
        """uint8 (size, size, 3)."""
        if cannot_render(self):
            return None
        return np.ascontiguousarray(np.moveaxis(self.picture(), 0, -1))


# -- a random generator's state as numbers of an environment's state vector ------------------------

WORDS = 10  # entries that one generator takes


def to_words(generator: np.random.Generator) -> np.ndarray:
    """The state of a PCG64 generator, 32 bits to an entry, which float64 holds exactly -> (10,)."""
    state = generator.bit_generator.state
    long = [state["state"]["state"], state["state"]["inc"]]
    words = [number >> 32 * i & 0xFFFFFFFF for number in long for i in range(4)]
    return np.array([*words, state["has_uint32"], state["uinteger"]], np.float64)


def from_words(generator: np.random.Generator, words: np.ndarray) -> None:
    """Put `to_words`' state into a PCG64 generator."""
    *low, has_uint32, uinteger = (int(word) for word in words)
    state, inc = (sum(word << 32 * i for i, word in enumerate(low[at : at + 4])) for at in (0, 4))
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": state, "inc": inc},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }


# -- MuJoCo's state as numbers of an environment's state vector ------------------------------------


def get_physics(model: Any, data: Any) -> np.ndarray:
    """MuJoCo's integration state, float64."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    physics = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, physics, kind)
    return physics


def set_physics(model: Any, data: Any, physics: np.ndarray) -> None:
    """Go to a state of `get_physics`, and compute what follows from it."""
    import mujoco

    kind, physics = mujoco.mjtState.mjSTATE_INTEGRATION, np.ascontiguousarray(physics)
    mujoco.mj_setState(model, data, physics, kind)
    mujoco.mj_forward(model, data)
    # mj_forward leaves traces in the solver's warm start; the future must be the one it had.
    mujoco.mj_setState(model, data, physics, kind)


def put(fields: Iterable[np.ndarray], values: np.ndarray) -> None:
    """Write numbers (n,) into arrays, one array after the other."""
    at = 0
    for field in fields:
        field[...] = values[at : at + field.size].reshape(field.shape)
        at += field.size
