"""Replay: steps in memory, and windows of them drawn uniformly.

`buffer` keeps the steps, `windows` says which windows are whole and gathers them (datasets on disk
use it too), `prefetch` draws ahead in a thread, `spaces` says what of an observation is stored,
`memory` how much there is room for. Datasets on disk are in `gjwm.data.dataset`.
"""

from gjwm.data.replay.buffer import ReplayBuffer, buffer_bytes, row_bytes
from gjwm.data.replay.memory import available_memory, residence
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
