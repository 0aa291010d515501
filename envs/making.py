"""Environments by id: any of Gymnasium's, as this package takes them."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator

from gjwm.envs.common import keywords

_SET_BY_THE_ID = {"domain", "task", "name", "num_envs"}


def importable(env_id: str) -> str:
    """The id with the module that registers it in front, where it is one of ours."""
    return f"gjwm.envs:{env_id}" if env_id.startswith("gjwm/") else env_id


def spec_of(env_id: str) -> EnvSpec:
    """What Gymnasium's registry says about an id, "module:" in front or not.

    Raises:
        gymnasium.error.NameNotFound: for an unknown id, naming the nearest.
        ModuleNotFoundError: for an unknown module in front, naming the id.
    """
    module, _, name = importable(env_id).rpartition(":")
    try:
        if module:
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the module of {env_id} cannot be imported: {error}.", name=error.name
        ) from error
    try:
        return gym.spec(name)
    except gym.error.Error as error:
        # By what tells ids apart, and of several alike one of the same namespace.
        space = name.rpartition("/")[0]
        known = sorted(gym.registry, key=lambda other: other.rpartition("/")[0] == space)
        ids = {_bare(other): other for other in known}
        nearest = difflib.get_close_matches(_bare(name), ids, 1, cutoff=0.75)
        hint = f"the nearest id is {ids[nearest[0]]}" if nearest else "and none of a similar id"
        raise gym.error.NameNotFound(f"there is no environment {name}; {hint}.") from error


def _bare(name: str) -> str:
    """An id without namespace and version, in small letters."""
    return re.sub(r"-v\d+$", "", name.rpartition("/")[2]).lower()


def make_env(env_id: str, **kwargs: Any) -> gym.Env:
    """`gymnasium.make` for the pipeline: every environment takes the same arguments and actions in
    [-1, 1], or one-hot ones.

    Ids "gjwm/..." need no module in front. Environments that offer `get_state` are made as they
    are, bounded actions rescaled; all others are wrapped in `gjwm.envs.gym_env.GymEnv`.
    `max_episode_steps` goes to the environment where it takes it, so that it can lengthen episodes
    too; `gymnasium.make` would keep it for a `TimeLimit`, which can only shorten them.

    Raises:
        ValueError: for arguments the environment does not take. gymnasium.error.Error: for an
        unknown id, naming the nearest."""
    foreign = is_foreign(env_id)
    spec = spec_of("gjwm/gym-v0" if foreign else env_id)
    if foreign and "name" in kwargs:
        raise ValueError(
            f"{env_id} cannot be made with name={kwargs['name']!r}: its id is its name."
        )
    fixed = {"name": env_id} if foreign else {}
    steps = kwargs.get("max_episode_steps")
    if steps is not None and steps < 1:
        raise ValueError(f"max_episode_steps must be at least 1 or None, got {steps}.")
    if steps is not None and "max_episode_steps" in keywords(_creator(spec.entry_point)):
        fixed["max_episode_steps"] = steps
        spec = dataclasses.replace(spec, max_episode_steps=None)
    spec = dataclasses.replace(spec, kwargs={**spec.kwargs, **fixed})
    with one_sentence(env_id, kwargs):
        env = gym.make(spec, **{k: v for k, v in kwargs.items() if k not in fixed})
    space = env.action_space
    if isinstance(space, spaces.Box) and space.is_bounded() and not is_unit(space) and not foreign:
        env = gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
    return env


@contextlib.contextmanager
def one_sentence(env_id: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Within: an argument that the environment does not take is one ValueError, which says what it
    takes."""
    try:
        yield
    except TypeError as error:
        takes = set(keywords(_creator(spec_of(env_id).entry_point))) - _SET_BY_THE_ID
        drawing: set[str] = set()
        if is_foreign(env_id):
            drawing = set() if draws(env_id) else {"render_mode"}
            wrapped = set(keywords(_creator(spec_of("gjwm/gym-v0").entry_point)))
            takes |= wrapped - drawing - _SET_BY_THE_ID
        reason = str(error).partition(" was raised from the environment creator")[0]
        if drawing and not kwargs.keys() - takes - drawing:
            reason = "its class does not take render_mode, so it draws no pictures"
        given = ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
        raise ValueError(
            f"{env_id} cannot be made with {given}: {reason}; "
            f"it takes {', '.join(sorted(takes)) or 'none'}."
        ) from error


def draws(env_id: str) -> bool:
    """Whether an environment's own class takes `render_mode`."""
    return "render_mode" in keywords(_creator(spec_of(env_id).entry_point))


def is_foreign(env_id: str) -> bool:
    """Whether the env does not speak this package's protocol: it has no `get_state`."""
    entry = spec_of(env_id).entry_point
    if isinstance(entry, str) and entry.startswith(("gymnasium.", "gjwm.")):
        return entry.startswith("gymnasium.")  # known without importing a simulator
    return not hasattr(_creator(entry), "get_state")


def is_unit(space: spaces.Box) -> bool:
    """Whether a box is [-1, 1] in every component."""
    return bool((space.low == -1).all() and (space.high == 1).all())


def torch_native(spec: EnvSpec) -> bool:
    """Whether an id has a vector environment on tensors: one that takes a `device`, which
    Gymnasium's own numpy ones do not."""
    creator = spec.vector_entry_point
    return creator is not None and "device" in inspect.signature(_creator(creator)).parameters


def _creator(entry: Any) -> Callable[..., Any]:
    return entry if callable(entry) else load_env_creator(entry)
