"""Replay: steps in memory, and windows of them drawn uniformly.

`buffer` keeps the steps, `windows` gathers windows (of datasets on disk too), `prefetch` draws
ahead in a thread, `spaces` says what of an observation is stored, `memory` how much there is.
"""

from gjwm.data.replay.buffer import ReplayBuffer, buffer_bytes
from gjwm.data.replay.memory import available_memory, in_words, require_memory, residence
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
    "in_words",
    "rebuild_space",
    "require_memory",
    "residence",
    "stack_frames",
    "stacked_fields",
]
