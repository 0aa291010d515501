"""Replay: steps in memory, and windows of them drawn uniformly or by priority.

`buffer` keeps the steps, `windows` says which windows are whole and gathers them (datasets on disk
use it too), `priorities` holds the tree that prioritised sampling draws from, `prefetch` draws
ahead in a thread, `spaces` says what of an observation is stored. Datasets on disk are in
`gjwm.data.dataset`."""

from gjwm.data.replay.buffer import (
    PrioritisedBatch,
    ReplayBuffer,
    available_memory,
    buffer_bytes,
    residence,
    row_bytes,
)
from gjwm.data.replay.prefetch import Prefetch
from gjwm.data.replay.spaces import (
    box_fields,
    describe_space,
    frame_shapes,
    rebuild_space,
    stack_frames,
    stacked_fields,
)
from gjwm.data.replay.windows import Windows

__all__ = [
    "Prefetch",
    "PrioritisedBatch",
    "ReplayBuffer",
    "Windows",
    "available_memory",
    "box_fields",
    "buffer_bytes",
    "describe_space",
    "frame_shapes",
    "rebuild_space",
    "residence",
    "row_bytes",
    "stack_frames",
    "stacked_fields",
]
