"""One recorded episode, in memory and as columns of equal length."""

from __future__ import annotations

import zlib
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


# Field of an episode -> its column, or the group of its columns, on disk.
NAMES = {
    "o": "observation",
    "a": "action",
    "r": "reward",
    "terminated": "terminated",
    "truncated": "truncated",
    "sim_state": "sim_state",
    "position": "position",
    "true_state": "true_state",
}
PER_STEP = (
    "action",
    "reward",
    "terminated",
    "truncated",
)  # a value per step; the last row holds NaN, or false


def newest_frames(o: Arrays, observation_space: spaces.Space, frame_stack: int) -> Arrays:
    """Stacked observations (T+1, frame_stack * C, h, w) -> single frames (T+1, C, h, w); state
    vectors unchanged.
    """
    fields = box_fields(observation_space)
    images = stacked_fields(fields, frame_stack)

    def newest(name: str, values: np.ndarray) -> np.ndarray:
        return values[:, -(fields[name].shape[0] // frame_stack) :] if name in images else values

    return (
        {name: newest(name, values) for name, values in o.items()}
        if isinstance(o, dict)
        else newest("", o)
    )


def restack(o: Arrays, observation_space: spaces.Space, frame_stack: int) -> Arrays:
    """The inverse of `newest_frames`, for the observations of one whole episode."""
    images = stacked_fields(box_fields(observation_space), frame_stack)
    if isinstance(o, dict):
        return {
            name: stack_frames(values, frame_stack) if name in images else values
            for name, values in o.items()
        }
    return stack_frames(o, frame_stack) if images else o


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
    fields = box_fields(observation_space)
    o = episode.o if isinstance(episode.o, dict) else {"": episode.o}
    if set(o) != set(fields):
        raise ValueError(
            f"the observations have the keys {sorted(o)}; the space says {sorted(fields)}."
        )
    # Single frames have fewer channels than the space says.
    if all(np.shape(o[name])[1:] == box.shape for name, box in fields.items()):
        given = newest_frames(episode.o, observation_space, frame_stack)
        o = given if isinstance(given, dict) else {"": given}
    columns: Columns = {}
    for name, shape in frame_shapes(fields, frame_stack).items():
        values, dtype = np.asarray(o[name]), fields[name].dtype
        if values.dtype != dtype and not (values.dtype.kind == dtype.kind == "f"):
            raise ValueError(
                f"observation {name!r} is {values.dtype}; the space says {dtype}, convert it first."
            )
        columns[f"observation/{name}" if name else "observation"] = _fitting(
            name or "observation", values, (steps + 1, *shape), dtype
        )
    columns["action"] = _fitting("action", episode.a, (steps, *action_space.shape), np.float32)
    columns["reward"] = _fitting("reward", episode.r, (steps,), np.float32)
    for name in ("terminated", "truncated"):
        columns[name] = _fitting(name, getattr(episode, name), (steps,), bool)
        if columns[name][:-1].any():
            raise ValueError(
                f"{name} is true on step {columns[name].argmax()} of {steps}; only the last step "
                f"ends one."
            )
    for name in ("sim_state", "position"):
        if getattr(episode, name) is not None:
            values = np.asarray(getattr(episode, name))
            columns[name] = _fitting(name, values, (steps + 1, *values.shape[1:]), np.float64)
    for name, values in (episode.true_state or {}).items():
        values = np.asarray(values)
        columns[f"true_state/{name}"] = _fitting(
            name, values, (steps + 1, *values.shape[1:]), values.dtype
        )
    for name in PER_STEP:
        values = columns[name]
        last = np.full(
            (1, *values.shape[1:]), np.nan if values.dtype.kind == "f" else False, values.dtype
        )
        columns[name] = np.concatenate([values, last])
    # Copies: the caller may use its arrays again before these are on disk.
    return {
        name: np.array(columns[name], _little(columns[name].dtype), order="C")
        for name in sorted(columns)
    }


def _fitting(name: str, values: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != shape or shape[0] < 1:
        raise ValueError(
            f"{name} has shape {values.shape}; an episode of T >= 1 steps needs {shape}."
        )
    if not_finite(values):
        raise ValueError(f"{name} contains NaN or infinity; the simulation has diverged.")
    return values.astype(dtype, copy=False)


def not_finite(values: np.ndarray) -> bool:
    """Whether a floating-point array holds NaN or infinity."""
    return values.dtype.kind == "f" and not np.isfinite(values).all()


def _little(dtype: np.dtype) -> np.dtype:
    """The dtype as it is stored, whatever the machine."""
    return dtype.newbyteorder("<")


def from_columns(columns: Columns) -> Episode:
    """The inverse of `to_columns`, with single frames."""
    fields: dict[str, Any] = {}
    by_column = {column: field for field, column in NAMES.items()}
    for name, values in columns.items():
        group, _, key = name.partition("/")
        rows = values[:-1] if group in PER_STEP else values
        if key:
            fields.setdefault(by_column[group], {})[key] = rows
        else:
            fields[by_column[group]] = rows
    return Episode(**fields)


def checksum(columns: Columns) -> int:
    """CRC-32 of an episode: the little-endian bytes of its columns in order of their names."""
    crc = 0
    for name in sorted(columns):
        crc = zlib.crc32(np.ascontiguousarray(columns[name]).reshape(-1).view(np.uint8), crc)
    return crc
