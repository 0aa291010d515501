"""One recorded episode, in memory and as columns of equal length."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from gjwm.data.replay import box_fields, frame_shapes, stack_frames, stacked_fields

Arrays = np.ndarray | dict[str, np.ndarray]
Columns = dict[str, np.ndarray]


class Episode(NamedTuple):
    """T steps of one episode; the last three only where the env offers them."""

    o: Arrays  # (T+1, *O), or a dict of such arrays for a Dict space
    a: np.ndarray  # (T, A) float32
    r: np.ndarray  # (T,) float32
    terminated: np.ndarray  # (T,) bool, true on the last step at most
    truncated: np.ndarray  # (T,) bool, likewise; the recording's own length also truncates
    sim_state: np.ndarray | None = None  # (T+1, X) float64, what `env.unwrapped.set_state` takes
    position: np.ndarray | None = None  # (T+1, P) float64, what success is measured on
    true_state: dict[str, np.ndarray] | None = None  # (T+1, ...) named simulator variables


# Columns on disk that are not named as their field.
COLUMNS = {"o": "observation", "a": "action", "r": "reward"}
# Columns with a value per step: the last row holds NaN, or false.
PER_STEP = ("action", "reward", "terminated", "truncated")


def newest_frames(o: Arrays, observation_space: spaces.Space, frame_stack: int) -> Arrays:
    """Stacked images (T+1, frame_stack * C, h, w) -> frames (T+1, C, h, w), vectors as is."""
    return _of_images(
        lambda x: x[:, -(x.shape[1] // frame_stack) :], o, observation_space, frame_stack
    )


def restack(o: Arrays, observation_space: spaces.Space, frame_stack: int) -> Arrays:
    """The inverse of `newest_frames`, for the observations of one whole episode."""
    return _of_images(lambda x: stack_frames(x, frame_stack), o, observation_space, frame_stack)


def _of_images(
    change: Callable[[np.ndarray], np.ndarray], o: Arrays, space: spaces.Space, frame_stack: int
) -> Arrays:
    images = stacked_fields(box_fields(space), frame_stack)
    if isinstance(o, dict):
        return {name: change(x) if name in images else x for name, x in o.items()}
    return change(o) if images else o


def to_columns(
    episode: Episode, observation_space: spaces.Space, action_space: spaces.Box, frame_stack: int
) -> Columns:
    """An episode -> {column: (T+1, ...)}, images as single frames.

    Args:
        episode: observations stacked as the env returned them, or single frames.

    Raises:
        ValueError: for arrays that do not fit the spaces or one another, NaN, or an end in the
            middle.
    """
    steps = len(episode.a)
    columns: Columns = {}

    def put(name: str, values: Any, dtype: Any, shape: tuple[int, ...] | None = None) -> None:
        """A column of this shape per row; None: whatever it has."""
        values = np.asarray(values)
        rows = steps if name in PER_STEP else steps + 1
        expected = (rows, *(values.shape[1:] if shape is None else shape))
        if values.shape != expected or steps < 1:
            raise ValueError(
                f"{name} has shape {values.shape}; an episode of T >= 1 steps needs {expected}."
            )
        if not_finite(values):
            raise ValueError(f"{name} contains NaN or infinity; the simulation has diverged.")
        columns[name] = values.astype(dtype, copy=False)

    fields = box_fields(observation_space)
    o = episode.o if isinstance(episode.o, dict) else {"": episode.o}
    if set(o) != set(fields):
        raise ValueError(
            f"the observations have the keys {sorted(o)}; the space says {sorted(fields)}."
        )
    # Single frames have fewer channels than the space says.
    if all(np.shape(o[name])[1:] == box.shape for name, box in fields.items()):
        o = newest_frames(episode.o, observation_space, frame_stack)
        o = o if isinstance(o, dict) else {"": o}
    for name, shape in frame_shapes(fields, frame_stack).items():
        values, dtype = np.asarray(o[name]), fields[name].dtype
        if values.dtype != dtype and not (values.dtype.kind == dtype.kind == "f"):
            raise ValueError(
                f"observation {name!r} is {values.dtype}; the space says {dtype}, convert it first."
            )
        put(f"observation/{name}" if name else "observation", values, dtype, shape)
    put("action", episode.a, np.float32, action_space.shape)
    put("reward", episode.r, np.float32, ())
    for name in ("terminated", "truncated"):
        put(name, getattr(episode, name), bool, ())
        if columns[name][:-1].any():
            raise ValueError(
                f"{name} is true on step {columns[name].argmax()} of {steps}; only the last step "
                f"ends one."
            )
    for name in ("sim_state", "position"):
        if getattr(episode, name) is not None:
            put(name, getattr(episode, name), np.float64)
    for name, values in (episode.true_state or {}).items():
        put(f"true_state/{name}", values, np.asarray(values).dtype)
    for name in PER_STEP:
        nothing = np.nan if columns[name].dtype.kind == "f" else False
        last = np.full_like(columns[name][:1], nothing)
        columns[name] = np.concatenate([columns[name], last])
    # Copies: the caller may use its arrays again before these are on disk. Little-endian whatever
    # the machine.
    return {
        name: np.array(columns[name], columns[name].dtype.newbyteorder("<"), order="C")
        for name in sorted(columns)
    }


def not_finite(values: np.ndarray) -> bool:
    """Whether a floating-point array holds NaN or infinity."""
    return values.dtype.kind == "f" and not np.isfinite(values).all()


def from_columns(columns: Columns) -> Episode:
    """The inverse of `to_columns`, with single frames."""
    fields: dict[str, Any] = {}
    names = {column: field for field, column in COLUMNS.items()}
    for name, values in columns.items():
        group, _, key = name.partition("/")
        rows, field = values[:-1] if group in PER_STEP else values, names.get(group, group)
        if key:
            fields.setdefault(field, {})[key] = rows
        else:
            fields[field] = rows
    return Episode(**fields)


def checksum(columns: Columns) -> int:
    """CRC-32 of an episode: the little-endian bytes of its columns in order of their names."""
    crc = 0
    for name in sorted(columns):
        crc = zlib.crc32(np.ascontiguousarray(columns[name]).reshape(-1).view(np.uint8), crc)
    return crc
