"""Which observations are stored and how: Boxes, frame stacks, and spaces as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from gjwm._core.files import DAMAGE

MOST = 2**26  # numbers in one observation: more are a damaged description's
# float64 is stored as float32, which is what the networks compute in.
_SAME = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32")
DTYPES = {name: getattr(torch, name) for name in _SAME} | {"float64": torch.float32}


def box_fields(space: spaces.Space) -> dict[str, spaces.Box]:
    """The Boxes of an observation space by name; a Box alone has the name "".

    Raises:
        ValueError: for anything but a Box or a flat Dict of Boxes of a common dtype.
    """
    fields = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
    for name, box in fields.items():
        if not isinstance(box, spaces.Box) or box.dtype.name not in DTYPES:
            raise ValueError(
                f"observation {name!r} has the space {box}; expected a Box of {', '.join(DTYPES)}, "
                f"alone or in a flat Dict."
            )
    return fields


def stacked_fields(fields: Mapping[str, spaces.Box], frame_stack: int) -> set[str]:
    """Names of the images, whose channels hold `frame_stack` frames; vectors are never stacked."""
    images = {name for name, box in fields.items() if box.dtype == np.uint8 and len(box.shape) == 3}
    if frame_stack < 1:
        raise ValueError(f"frame_stack is {frame_stack}; expected 1 (no stacking) or more.")
    if frame_stack == 1:
        return set()
    for name in images:
        if fields[name].shape[0] % frame_stack:
            raise ValueError(
                f"an observation of shape {fields[name].shape} cannot hold {frame_stack} frames; "
                "frame_stack expects the space of stacked images (frame_stack * C, h, w)."
            )
    if not images:
        raise ValueError(
            f"frame_stack={frame_stack} needs uint8 images (frame_stack * C, h, w) in the "
            f"observation space."
        )
    return images


def frame_shapes(fields: Mapping[str, spaces.Box], frame_stack: int) -> dict[str, tuple[int, ...]]:
    """Shape of what is stored of each field: one frame (C, h, w) of a stack, all else as it is."""
    stacked = stacked_fields(fields, frame_stack)
    return {
        name: (box.shape[0] // frame_stack, *box.shape[1:]) if name in stacked else box.shape
        for name, box in fields.items()
    }


def stack_frames(frames: np.ndarray, frame_stack: int) -> np.ndarray:
    """Frames (T+1, C, h, w) -> (T+1, frame_stack * C, h, w), oldest first, the first repeated."""
    steps = np.arange(len(frames))[:, None] - np.arange(frame_stack - 1, -1, -1)
    return frames[steps.clip(min=0)].reshape(len(frames), -1, *frames.shape[2:])


def describe_space(space: spaces.Space) -> dict[str, Any]:
    """A Box, or a Dict of Boxes, as plain JSON; see `rebuild_space`."""
    if isinstance(space, spaces.Dict):
        parts = {name: describe_space(box) for name, box in space.spaces.items()}
        return {"type": "Dict", "spaces": parts}
    if not isinstance(space, spaces.Box):
        raise ValueError(f"cannot store the space {space}; expected a Box or a Dict of Boxes.")

    def bound(values: np.ndarray) -> Any:
        # Strings, because JSON has no infinity; one number where all are equal, as for images.
        plain = [str(x) if x in (math.inf, -math.inf) else x for x in values.ravel().tolist()]
        return plain[0] if len(set(plain)) == 1 else plain

    return {
        "type": "Box",
        "shape": list(space.shape),
        "dtype": space.dtype.name,
        "low": bound(space.low),
        "high": bound(space.high),
    }


def rebuild_space(description: Mapping[str, Any]) -> spaces.Space:
    """The inverse of `describe_space`.

    Raises:
        ValueError: for what describes none.
    """
    try:
        return _rebuilt(description)
    except DAMAGE as error:
        raise ValueError(
            f"{str(description)[:200]} describes no space ({type(error).__name__}: "
            f"{str(error).rstrip('.')})."
        ) from error


def _rebuilt(description: Mapping[str, Any]) -> spaces.Space:
    if description["type"] == "Dict":
        parts = description["spaces"].items()
        return spaces.Dict({name: rebuild_space(box) for name, box in parts})
    shape, dtype = tuple(description["shape"]), np.dtype(description["dtype"])
    if dtype.name not in DTYPES or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"shape {shape} of {dtype}")
    if math.prod(shape) > MOST:
        raise ValueError(f"its {math.prod(shape)} numbers are more than {MOST}")

    def bound(values: Any) -> np.ndarray:
        plain = [float(x) if isinstance(x, str) else x for x in np.atleast_1d(values).tolist()]
        flat = np.array(plain, dtype)
        return np.broadcast_to(flat[0], shape) if flat.size == 1 else flat.reshape(shape)

    return spaces.Box(bound(description["low"]), bound(description["high"]), shape, dtype)
