"""Datasets on disk: folders of HDF5 shards that can be extended at any time and outlive whatever
stops the writing.

`folder` writes, repairs and reads them, `shard` is one file, `journal` keeps what no shard holds
yet, `stream` draws windows straight from disk, `verify` checks every byte, `foreign` brings other
formats in, `episodes` is one episode in memory. The format is described in docs/data.md. Nothing
here knows how the episodes were collected."""

from gjwm.data.dataset.episodes import Arrays, Episode, newest_frames, restack
from gjwm.data.dataset.folder import (
    SHARD_BYTES,
    DatasetWriter,
    dataset_info,
    episode_lengths,
    load_buffer,
    read_episodes,
)
from gjwm.data.dataset.stream import STORAGES, DiskWindows, bytes_in_memory, open_windows
from gjwm.data.dataset.verify import verify

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
