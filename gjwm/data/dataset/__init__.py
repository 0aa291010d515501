"""Datasets on disk: folders of HDF5 shards that can be extended at any time and outlive whatever
stops the writing; docs/data.md describes the format.

`writer` writes and repairs, `reader` reads and verifies, `stream` draws windows straight from disk,
`episodes` is one episode in memory, `shard` one file, `journal` what no shard holds yet, `metadata`
the list of shards; `foreign` brings other formats in.
"""

from gjwm.data.dataset.episodes import Arrays, Episode, newest_frames, restack
from gjwm.data.dataset.reader import (
    dataset_info,
    episode_lengths,
    load_buffer,
    read_episodes,
    verify,
)
from gjwm.data.dataset.stream import STORAGES, DiskWindows, bytes_in_memory, open_windows
from gjwm.data.dataset.writer import SHARD_BYTES, DatasetWriter

__all__ = [
    "SHARD_BYTES",
    "STORAGES",
    "Arrays",
    "DatasetWriter",
    "DiskWindows",
    "Episode",
    "bytes_in_memory",
    "dataset_info",
    "episode_lengths",
    "load_buffer",
    "newest_frames",
    "open_windows",
    "read_episodes",
    "restack",
    "verify",
]
