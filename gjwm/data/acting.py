"""Who acts, and the one loop that steps environments.

Planner, policy, expert, noise and oracle are one protocol, `Actor`. `play` steps a batch of
environments with an actor and hands out each step; collecting, judging, measuring returns and
filming differ in what they do with the steps. A single environment is a batch of one, `OneLane`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from torch import Tensor

from gjwm._core.nested import nested
from gjwm.envs.common import goal_distance as goal_distance
from gjwm.envs.making import draws as draws
from gjwm.envs.making import make_env as make_env
from gjwm.envs.vector import make_vec as make_vec
from gjwm.envs.vector import shows_pictures as shows_pictures


class Moment(NamedTuple):
    """What an actor may look at besides observations."""

    envs: Any  # the vector environment, for actors that know more than they see: expert, oracle
    step: int  # steps that were taken since the loop began


class Actor(Protocol):
    """Whoever acts in B environments."""

    def act(self, o: Any, info: Moment) -> Any:
        """Observations (B, *O) -> actions (B, A), array or tensor."""
        ...

    def reset(self, mask: Any = None) -> None:
        """New episodes begin in all environments, or where mask (B,) is true."""
        ...


class Memoryless:
    """Base of actors with nothing to forget."""

    def reset(self, mask: Any = None) -> None:
        """Nothing to do."""


class RandomActor(Memoryless):
    """Uniform actions (B, A), drawn by `rng`."""

    def __init__(self, action_dim: int, rng: np.random.Generator):
        self.action_dim, self.rng = action_dim, rng

    def act(self, o: Any, info: Moment) -> np.ndarray:
        return self.rng.uniform(-1, 1, (info.envs.num_envs, self.action_dim)).astype(np.float32)


class RecordedActor(Memoryless):
    """Plays back actions (B, T, A), whatever it sees."""

    def __init__(self, actions: np.ndarray):
        self.actions = actions

    def act(self, o: Any, info: Moment) -> np.ndarray:
        return self.actions[:, info.step]


class Recorder:
    """An actor whose actions are kept: `actions` (E, T, A) is what `RecordedActor` plays back."""

    def __init__(self, actor: Actor):
        self.actor = actor
        self._actions: list[np.ndarray] = []

    def act(self, o: Any, info: Moment) -> np.ndarray:
        a = as_array(self.actor.act(o, info))
        self._actions.append(a.copy())
        return a

    def reset(self, mask: Any = None) -> None:
        """The actor's."""
        self.actor.reset(mask)

    @property
    def actions(self) -> np.ndarray:
        return np.stack(self._actions, 1)


class HoldActor(Memoryless):
    """Stands still: the zero action; where actions are discrete, the first one all the time."""

    def __init__(self, action_dim: int):
        self.action_dim = action_dim

    def act(self, o: Any, info: Moment) -> np.ndarray:
        return np.zeros((info.envs.num_envs, self.action_dim), np.float32)


class FunctionActor(Memoryless):
    """An actor made of a function of observations and moment."""

    def __init__(self, act: Callable[[Any, Moment], Any]):
        self.act = act


class Transition(NamedTuple):
    """One step of B lanes."""

    o: Any  # (B, *O)
    a: np.ndarray  # (B, A) as they were carried out
    r: np.ndarray  # (B,)
    terminated: np.ndarray  # (B,)
    truncated: np.ndarray  # (B,)
    o_next: Any  # (B, *O), the true last one where an episode ended
    following: Any  # (B, *O) what to act on next: the first one of a new episode where one ended
    valid: np.ndarray  # (B,) false where a worker process died on this step
    seconds: float = 0.0  # that the actor took

    @property
    def ended(self) -> np.ndarray:
        """(B,) bool."""
        return self.terminated | self.truncated


def advance(envs: Any, o: Any, a: Any, seconds: float = 0.0) -> Transition:
    """Step environments that showed `o` with actions (B, A) in [-1, 1]."""
    a = as_array(a)
    if hasattr(envs, "executed"):
        a = envs.executed(a)
    # The envs get a copy: they may clip or rescale in place.
    following, r, terminated, truncated, infos = envs.step(a.copy())
    r, terminated, truncated = as_array(r), as_array(terminated), as_array(truncated)
    o_next, ended = following, terminated | truncated
    if ended.any() and "final_obs" in infos:
        o_next = _replaced(following, ended, infos["final_obs"])
    valid = ~np.asarray(infos.get("worker_died", np.zeros(len(r))), bool)
    return Transition(o, a, r, terminated, truncated, o_next, following, valid, seconds)


def play(envs: Any, actor: Actor, o: Any, steps: int | None = None) -> Iterator[Transition]:
    """Step `envs`, which show `o` (B, *O), with an actor; whoever iterates decides what becomes of
    the steps, and when it is enough.

    Args:
        envs: a vector environment on numpy arrays, or `OneLane`.
        steps: after which it ends; None: never.
    """
    step = 0
    while steps is None or step < steps:
        since = time.perf_counter()
        a = as_array(actor.act(o, Moment(envs, step)))
        seen = advance(envs, o, a, time.perf_counter() - since)
        yield seen
        # Where episodes go on past their end, nothing new begins.
        if seen.ended.any() and getattr(envs, "autoreset", True):
            actor.reset(seen.ended)
        o, step = seen.following, step + 1


class OneLane:
    """One environment as a batch of one, without autoreset: leave the loop at an episode's end."""

    num_envs = 1

    def __init__(self, env: gym.Env):
        self.env = env
        if hasattr(env.unwrapped, "executed"):
            self.executed = lambda a: env.unwrapped.executed(a[0])[None]

    @property
    def unwrapped(self) -> gym.Env:
        return self.env.unwrapped

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """As the environment's, observations (1, *O)."""
        observation, info = self.env.reset(**options)
        return with_lanes(observation), info

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        """Actions (1, A) -> observations (1, *O), rewards, terminations, truncations (1,), info."""
        observation, r, *ends, info = self.env.step(actions[0])
        return (
            with_lanes(observation),
            np.array([r]),
            *(np.array([end], bool) for end in ends),
            info,
        )


def with_lanes(observation: Any) -> Any:
    """One environment's observation as that of a batch of one."""
    return nested(lambda x: np.asarray(x)[None], observation)


def as_array(values: Any) -> np.ndarray:
    """A tensor on any device, or an array, as an array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _replaced(following: Any, ended: np.ndarray, final: Sequence[Any]) -> Any:
    """`following` with the true last observations where episodes ended."""

    def put(values: np.ndarray, *last: np.ndarray) -> np.ndarray:
        out = np.array(values)
        out[ended] = last
        return out

    return nested(put, following, *(final[i] for i in ended.nonzero()[0]))


_NO_PICTURES = "it draws no pictures; give its class the argument render_mode and render()."


def camera(env_id: str, env_kwargs: Mapping[str, Any]) -> gym.Env:
    """An environment, made to render; arguments as `make_env`.

    Raises:
        ValueError: when it draws no pictures.
    """
    try:
        env = make_env(env_id, **{**env_kwargs, "render_mode": "rgb_array"})
        env.reset(seed=0)
        try:
            picture = env.unwrapped.render()
        except NotImplementedError as error:  # gymnasium.Env's own render
            raise ValueError(_NO_PICTURES) from error
    except (ValueError, TypeError, ImportError, RuntimeError, gym.error.Error) as error:
        refused = isinstance(error.__cause__, TypeError) and not draws(env_id)
        raise ValueError(
            f"{env_id} cannot be filmed: {_NO_PICTURES if refused else error}"
        ) from error
    if getattr(picture, "ndim", 0) != 3:
        raise ValueError(
            f"{env_id} cannot be filmed: its render() returns {type(picture).__name__}, not a "
            f"picture."
        )
    return env
