"""Windows straight from a dataset's files, for data that memory cannot hold."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gjwm.data.dataset.episodes import not_finite
from gjwm.data.dataset.metadata import layout
from gjwm.data.dataset.reader import load_buffer, open_shards, require_episodes
from gjwm.data.dataset.shard import CHUNKED_BYTES, Column, Shard
from gjwm.data.replay import ReplayBuffer, Windows, available_memory, buffer_bytes, in_words

log = logging.getLogger(__name__)

STORAGES = ("auto", "memory", "disk")
# Shards kept open; more are opened for each read, as processes may hold about a thousand files.
OPEN_FILES = 512


class DiskWindows(Windows):
    """Windows of a dataset that stays on disk: the same ones that `load_buffer(path).sample` gives
    for a generator.

    Actions, rewards and small observations are kept in memory (about 40 bytes per step); of images
    a window reads exactly the frames it needs, and all of a batch are asked for at once.

    Args:
        path: the dataset's folder. Episodes added to it later are not seen.
        episodes: only the first so many.
        readers: threads that unpack compressed images.

    Raises:
        ValueError: when the dataset is empty, a shard is missing or damaged, or actions or rewards
            hold NaN.
    """

    prefetch = 2  # batches that a training reads ahead

    def __init__(self, path: str | Path, *, episodes: int | None = None, readers: int = 4):
        info = require_episodes(path, episodes)
        count = info["episodes"] if episodes is None else episodes
        super().__init__(*layout(info), num_envs=1)
        self.device = torch.device("cpu")
        names = {name: f"observation/{name}" if name else "observation" for name in self._fields}
        on_disk = {
            name
            for name, box in self._fields.items()
            if math.prod(self._frame_shapes[name]) * box.dtype.itemsize >= CHUNKED_BYTES
        }
        in_memory = ["action", "reward", "terminated"]
        in_memory += [column for name, column in names.items() if name not in on_disk]
        parts: dict[str, list[np.ndarray]] = {column: [] for column in in_memory}
        self._columns: dict[str, list[Column]] = {name: [] for name in on_disk}
        self._files: list[Path] = []
        clocks = []
        for shard in open_shards(path, info):
            rows = shard.rows[: count - shard.first_episode]
            total, last = int(rows.sum()), rows.cumsum() - 1
            for column in in_memory:
                values = shard.all(column)[:total]
                if column in ("action", "reward"):
                    values[last] = 0  # NaN: nothing is done in an episode's last frame
                _require_finite(shard, last, column, values)
                parts[column].append(values)
            number = shard.first_episode + np.repeat(np.arange(len(rows)), rows)
            step = np.arange(total) - np.repeat(rows.cumsum() - rows, rows)
            clocks.append((number << 32) + step)
            for name in on_disk:
                self._columns[name].append(shard.column(names[name]))
            self._files.append(shard.path)
            if shard.first_episode + shard.episodes >= count:
                break
        self._first_row = np.cumsum([0, *map(len, clocks)])  # of each shard, and the last one's end
        self._clock = np.concatenate(clocks)
        self._lane_rows = len(self._clock)
        self._lane_steps = self._lane_rows - count
        whole = {column: torch.from_numpy(np.concatenate(x)) for column, x in parts.items()}
        self._a, self._r, self._terminated = (whole[column] for column in in_memory[:3])
        self._small = {
            name: whole[column].reshape(self._lane_rows, -1).to(self._dtype(name))
            for name, column in names.items()
            if name not in on_disk
        }
        self._readers, self._pool = readers, ThreadPoolExecutor(readers, "gjwm-unpack")
        keep_open = len(self._files) <= OPEN_FILES
        self._descriptors = [_open(file) for file in self._files] if keep_open else None

    def __len__(self) -> int:
        """Steps in the dataset."""
        return self._lane_steps

    def _observations(self, name: str, rows: Tensor) -> Tensor:
        if name in self._small:
            return self._small[name].index_select(0, rows)
        columns, rows = self._columns[name], rows.numpy()
        out = np.empty((len(rows), columns[0].row_bytes), np.uint8)
        shard = np.searchsorted(self._first_row, rows, side="right") - 1
        where = {k: np.flatnonzero(shard == k) for k in np.unique(shard).tolist()}
        with self._opened(list(where)) as descriptors:
            for k, places in where.items():
                inside = np.unique(rows[places] - self._first_row[k])
                columns[k].want(descriptors[k], inside)

            def read(part: tuple[int, np.ndarray]) -> None:
                k, places = part
                columns[k].read(descriptors[k], rows[places] - self._first_row[k], out, places)

            # Reading takes one thread no time, unpacking does.
            shares = self._readers if columns[0].packed else 1
            parts = [(k, places[i::shares]) for k, places in where.items() for i in range(shares)]
            list((self._pool.map if shares > 1 else map)(read, parts))
        values = out.view(columns[0].dtype)
        if self._fields[name].dtype != np.uint8 and not_finite(values):
            raise ValueError(
                f"observation {name!r} contains NaN or infinity; `gjwm data verify` names the "
                "episode."
            )
        return torch.from_numpy(values).to(self._dtype(name))

    @contextmanager
    def _opened(self, shards: list[int]) -> Iterator[dict[int, int]]:
        """Descriptors of these shards."""
        if self._descriptors is not None:
            yield {k: self._descriptors[k] for k in shards}
            return
        with ExitStack() as stack:
            descriptors = {}
            for k in shards:
                descriptors[k] = _open(self._files[k])
                stack.callback(os.close, descriptors[k])
            yield descriptors

    def close(self) -> None:
        """Close the files."""
        self._pool.shutdown()
        for descriptor in self._descriptors or ():
            os.close(descriptor)
        self._descriptors = []

    def __enter__(self) -> DiskWindows:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _require_finite(shard: Shard, last: np.ndarray, name: str, values: np.ndarray) -> None:
    """Raise for NaN in a column, naming the episode; `last` (E,) is the last row of each."""
    if not_finite(values):
        row = int(np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))[0])
        number = shard.first_episode + int(np.searchsorted(last, row))
        raise ValueError(
            f"episode {number} in {shard.path}: {name} contains NaN or infinity; collect the "
            f"dataset again."
        )


def _open(file: Path) -> int:
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise ValueError(
            f"the shard {file} cannot be opened ({error}); restore it or collect the dataset again."
        ) from error
    if hasattr(os, "posix_fadvise"):  # neighbours of a frame are rarely wanted
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return descriptor


def bytes_in_memory(info: Mapping[str, Any]) -> int:
    """What `load_buffer` would take."""
    space, action_space, frame_stack = layout(info)
    return buffer_bytes(
        info["steps"], space, action_space, frame_stack=frame_stack, episodes=info["episodes"]
    )


def open_windows(
    path: str | Path,
    device: torch.device | str = "cpu",
    *,
    storage: str = "auto",
    episodes: int | None = None,
    notify: Callable[[str], None] = log.info,
) -> ReplayBuffer | DiskWindows:
    """A dataset to train on: in memory if it fits well, else from disk. The windows drawn are the
    same.

    Args:
        path, device, episodes: as `load_buffer`.
        notify: told what memory the dataset will take, before it is taken.
        storage: "memory", "disk", or "auto": memory if the dataset takes less than half of what is
            available.

    Raises:
        ValueError, MemoryError: as `load_buffer` and `DiskWindows`.
    """
    if storage not in STORAGES:
        raise ValueError(f"storage must be one of {', '.join(STORAGES)}, got {storage!r}.")
    info = require_episodes(path, episodes)
    needed, available = bytes_in_memory(info), available_memory()
    if storage == "auto":
        storage = "memory" if available is None or 2 * needed < available else "disk"
    where = "they are kept in memory" if storage == "memory" else "windows are read from disk"
    notify(f"{path}: {info['steps']} steps would take {in_words(needed, available)}; {where}.")
    if storage == "memory":
        return load_buffer(path, device, episodes=episodes)
    return DiskWindows(path, episodes=episodes)
