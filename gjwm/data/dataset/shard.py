"""A shard: one HDF5 file of whole episodes, written once and never changed; see docs/data.md for
its layout.

Columns whose rows are at least 1 kB (images) have one chunk per row, so that a window reads only
the frames it needs.
Uncompressed chunks are laid out when the file is made, one after another: row i lies at a fixed
distance from row 0, and `Column` reads it there without asking the HDF5 library, from any number of
threads."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gjwm._core.files import DAMAGE, replacing, require_room
from gjwm.data.dataset.episodes import Columns, checksum
from gjwm.data.dataset.journal import Record

FORMAT = 2  # of shards and of the folder that holds them
PAGE = 4096
ROOM = 2**18  # bytes of a shard beside its columns, and more
CHUNKED_BYTES = 1024  # rows of this size or more are chunks of their own
# The attributes once more. HDF5 keeps text of attributes in a heap without a checksum, and can hang
# on a damaged one, so that readers take this instead.
HEADER = "ep_header"
# Attributes that are no JSON text.
PLAIN = ("format", "env_id", "frame_stack", "renderer", "record_state", "first_episode")


def write_shard(
    path: Path, header: Mapping[str, Any], records: Sequence[Record], *, compress: bool = False
) -> None:
    """Write episodes as one shard that appears under its name only when it is whole and on disk.

    Args:
        header: JSON-like; what describes the dataset as a whole, kept as attributes.
        records: one or more, in order and without a gap.
        compress: gzip the chunks of large rows.
    """
    rows = np.array([len(record.columns["action"]) for record in records])
    sources: list[Any] = []
    for record in records:
        if record.source not in sources:
            sources.append(record.source)
    attributes = {**header, "first_episode": records[0].episode, "sources": sources}
    # Large columns begin on a page: a row of 12 kB then lies on three pages and not on four.
    alignment = {"alignment_threshold": PAGE, "alignment_interval": PAGE}
    size = sum(column.nbytes + PAGE for record in records for column in record.columns.values())
    with replacing(path) as partial:
        require_room(partial, size + ROOM)
        with h5py.File(partial, "w", libver=("v110", "v110"), **alignment) as file:
            for name, value in attributes.items():
                file.attrs[name] = value if name in PLAIN else json.dumps(value)
            text = np.frombuffer(json.dumps(attributes).encode(), np.uint8)
            file.create_dataset(HEADER, data=text, chunks=text.shape, fletcher32=True)
            file["ep_len"] = rows.astype("<i8")
            file["ep_offset"] = (rows.cumsum() - rows).astype("<i8")
            file["ep_crc32"] = np.array([record.crc32 for record in records], "<u4")
            file["ep_source"] = np.array([sources.index(r.source) for r in records], "<i4")
            for name, first in records[0].columns.items():
                shape = (int(rows.sum()), *first.shape[1:])
                dataset = _create(file, name, shape, first.dtype, compress)
                for end, count, record in zip(rows.cumsum(), rows, records):
                    dataset[end - count : end] = record.columns[name]


def _create(
    file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype, compress: bool
) -> h5py.Dataset:
    row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
    if row_bytes < CHUNKED_BYTES:
        return file.create_dataset(name, shape, dtype)
    chunk = (1, *shape[1:])
    if compress:
        return file.create_dataset(name, shape, dtype, chunks=chunk, compression="gzip")
    # Early allocation without a filter needs no index: HDF5 computes where a chunk lies, and so can
    # anyone.
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(chunk)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    kind, space = h5py.h5t.py_create(dtype), h5py.h5s.create_simple(shape)
    made = h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=properties, lcpl=links)
    return h5py.Dataset(made)


class Shard:
    """A shard opened for reading.

    Raises (on opening):
        ValueError: naming the file, when it is missing, damaged, or of another format.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = h5py.File(path, "r")
        except FileNotFoundError as error:
            raise ValueError(
                f"the shard {path} is missing; restore it or collect the dataset again."
            ) from error
        except OSError as error:
            raise damaged(path, error) from error
        try:
            form = self._file.attrs.get("format")  # a number, thus not in the heap
            if form == FORMAT:
                self._read_table(self._read_header())
        except BaseException as error:
            self._file.close()
            if isinstance(error, DAMAGE):
                raise damaged(path, error) from error
            raise
        if form != FORMAT:
            self._file.close()
            raise ValueError(
                f"{path} has dataset format {form}, this version reads {FORMAT}; convert or "
                "collect it again."
            )

    def _read_header(self) -> dict[str, Any]:
        """What describes the dataset, `first_episode` and `sources`."""
        _stay_inside(self._file)
        if HEADER in self._file:
            return json.loads(self._file[HEADER][:].tobytes())
        # A shard from before 2026-11-29 has its attributes only.
        return {
            name: (value.item() if isinstance(value, np.generic) else value)
            if name in PLAIN
            else json.loads(value)
            for name, value in self._file.attrs.items()
        }

    def _read_table(self, header: dict[str, Any]) -> None:
        """What the file says of its episodes."""
        self.first_episode, _ = int(header.pop("first_episode")), header.pop("sources")
        self.header = header
        self.rows = self._file["ep_len"][:].astype(np.int64)
        self.offset = self._file["ep_offset"][:].astype(np.int64)
        self.crc32: np.ndarray = self._file["ep_crc32"][:]
        self.columns = sorted(_datasets(self._file))
        total = int(self.rows.sum())
        alike = self.rows.shape == self.offset.shape == self.crc32.shape
        whole = alike and self.rows.ndim == 1 and len(self.rows) > 0 and (self.rows >= 2).all()
        if not whole or (self.offset != self.rows.cumsum() - self.rows).any():
            raise KeyError("its table of episodes does not add up")
        if self.first_episode < 0:
            raise KeyError(f"its first episode is number {self.first_episode}")
        for name in self.columns:
            if len(self._file[name]) != total:
                raise KeyError(f"{name} has {len(self._file[name])} rows, its episodes {total}")

    @property
    def episodes(self) -> int:
        """Episodes in this shard."""
        return len(self.rows)

    @property
    def steps(self) -> int:
        """Steps of its episodes, each one row shorter than its rows."""
        return int(self.rows.sum()) - len(self.rows)

    def read(self, episode: int) -> Columns:
        """All columns of the shard's `episode`-th episode, unchecked."""
        begin = int(self.offset[episode])
        rows = slice(begin, begin + int(self.rows[episode]))
        try:
            return {name: self._file[name][rows] for name in self.columns}
        except DAMAGE as error:
            raise damaged(self.path, error, self.first_episode + episode) from error

    def read_checked(self, episode: int) -> Columns:
        """As `read`.

        Raises:
            ValueError: naming the episode, when its bytes are not those that were written.
        """
        columns = self.read(episode)
        if checksum(columns) != self.crc32[episode]:
            raise damaged(self.path, "its checksum differs", self.first_episode + episode)
        return columns

    def all(self, name: str) -> np.ndarray:
        """A whole column."""
        try:
            return self._file[name][:]
        except DAMAGE as error:
            raise damaged(self.path, error) from error

    def kind(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        """The dtype of a column and the shape of its rows."""
        return self._file[name].dtype, self._file[name].shape[1:]

    def column(self, name: str) -> Column:
        """A column that is read row by row, without this object."""
        try:
            return Column(self.path, self._file[name])
        except Rewritten:
            raise
        except DAMAGE as error:
            raise damaged(self.path, error) from error

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


class Rewritten(ValueError):
    """A file of ours that another program has laid out anew."""


class Column:
    """Where one column's rows lie in a shard's file; several threads may `read`."""

    def __init__(self, path: Path, dataset: h5py.Dataset):
        self.path, self.dtype, self.shape = path, dataset.dtype, dataset.shape[1:]
        self.row_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self.packed = dataset.compression == "gzip"
        count, self.sizes = len(dataset), None
        regular = dataset.chunks == (1, *self.shape)
        if regular and self.packed:
            chunks: list[tuple[int, int, int, int]] = []  # row, place, size, filters left out

            def note(chunk: h5py.h5d.StoreInfo) -> None:
                place = (chunk.chunk_offset[0], chunk.byte_offset)
                chunks.append((*place, chunk.size, chunk.filter_mask))

            dataset.id.chunk_iter(note)
            _, self.offsets, self.sizes, left_out = np.array(sorted(chunks), np.int64).T.copy()
            regular = len(chunks) == count and not left_out.any()
        elif regular:
            corner = (0,) * len(self.shape)
            first, last = (
                dataset.id.get_chunk_info_by_coord((row, *corner)).byte_offset
                for row in (0, count - 1)
            )
            self.offsets = first + self.row_bytes * np.arange(count)
            regular = last == self.offsets[-1]
        if not regular:
            raise Rewritten(
                f"{path} has been rewritten by another program; run `gjwm data convert` on the "
                "dataset."
            )

    def want(self, descriptor: int, rows: np.ndarray) -> None:
        """Have the system fetch rows (n,) meanwhile: a disk answers many requests together."""
        if not hasattr(os, "posix_fadvise"):
            return
        sizes = np.full(len(rows), self.row_bytes) if self.sizes is None else self.sizes[rows]
        for offset, size in zip(self.offsets[rows].tolist(), sizes.tolist()):
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def read(self, descriptor: int, rows: np.ndarray, out: np.ndarray, where: np.ndarray) -> None:
        """Rows (n,) of the open file into out[where], out (N, row_bytes) uint8 and where (n,)."""
        size, target = self.row_bytes, memoryview(out).cast("B")
        for k, row, offset in zip(where.tolist(), rows.tolist(), self.offsets[rows].tolist()):
            if not self.packed:
                if os.preadv(descriptor, [target[k * size : (k + 1) * size]], offset) != size:
                    raise damaged(self.path, "it ends too soon")
                continue
            try:
                packed = os.pread(descriptor, int(self.sizes[row]), offset)
                row_bytes = np.frombuffer(zlib.decompress(packed), np.uint8)
                if len(row_bytes) != size:  # numpy would repeat a single byte
                    raise ValueError(f"a row has {len(row_bytes)} bytes of {size}")
                out[k] = row_bytes
            except (zlib.error, ValueError) as error:
                raise damaged(self.path, error) from error


def _stay_inside(group: h5py.Group) -> None:
    """HDF5 can take rows from other files, which whoever sent a shard has no business to name."""
    for name in group:
        link = group.get(name, getlink=True)
        item = group[name] if isinstance(link, h5py.HardLink) else link
        if isinstance(item, h5py.Group):
            _stay_inside(item)
        elif not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
            raise KeyError(f"{name} lies in another place")


def _datasets(group: h5py.Group, prefix: str = "") -> list[str]:
    names = []
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            names += _datasets(item, f"{prefix}{name}/")
        elif not name.startswith("ep_"):
            names.append(prefix + name)
    return names


def damaged(path: Path, reason: object, episode: int | None = None) -> ValueError:
    """The error that names a damaged file and, where known, the episode."""
    where = f"{path}" if episode is None else f"episode {episode} in {path}"
    kind = f"{type(reason).__name__}: " if isinstance(reason, Exception) else ""
    said = " ".join(str(reason).split())  # HDF5's come in several lines
    return ValueError(
        f"{where} is damaged ({kind}{said}); restore the file or collect the dataset again."
    )
