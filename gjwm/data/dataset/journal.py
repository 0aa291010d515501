"""The journal of a dataset: finished episodes that no shard holds yet, appended one record each.

A process can be killed at any moment. What it had handed to the operating system stays, so a
journal is a run of whole records and perhaps a torn last one, which reading drops. A record, all
integers little-endian:

    8 bytes   "GJWMEPI1"
    u32       H, length of the head
    u32       CRC-32 of the head
    H bytes   head: JSON {"episode", "source", "crc32", "columns": [[name, dtype, shape], ...]}
    ...       the columns' bytes, in that order; crc32 is their `checksum`
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gjwm.data.dataset.episodes import Columns, checksum

MAGIC = b"GJWMEPI1"
_PREFIX = struct.Struct("<8sII")


class Record(NamedTuple):
    """A finished episode with its number in the dataset."""

    episode: int
    source: dict[str, Any]
    crc32: int
    columns: Columns


class Journal:
    """Appends to a journal file.

    Args:
        path: created if it does not exist.
        sync_seconds: longest time for which a finished episode is in the operating system's hands
            only: a killed process never loses it, a power cut may.
    """

    def __init__(self, path: Path, *, sync_seconds: float = 1.0):
        self.path, self.sync_seconds = path, sync_seconds
        self._file = open(path, "ab", buffering=0)
        self._synced = time.monotonic()

    def append(self, record: Record) -> None:
        """Write one record; when it returns the episode survives the death of this process.

        Raises:
            OSError: when it cannot be written; the journal then holds what it held before.
        """
        described = record._asdict()
        described["columns"] = [
            [name, values.dtype.str, list(values.shape)] for name, values in record.columns.items()
        ]
        head = json.dumps(described).encode()
        parts = [_PREFIX.pack(MAGIC, len(head), zlib.crc32(head)), head]
        parts += [values.reshape(-1).view(np.uint8) for values in record.columns.values()]
        before = os.fstat(self._file.fileno()).st_size
        try:
            for view in map(memoryview, parts):
                while view:
                    view = view[self._file.write(view) :]
        except BaseException:  # Ctrl-C too: nothing may follow half a record
            os.ftruncate(self._file.fileno(), before)
            raise
        if time.monotonic() - self._synced >= self.sync_seconds:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def clear(self) -> None:
        """Forget everything: a shard holds it now."""
        os.ftruncate(self._file.fileno(), 0)
        self._synced = time.monotonic()  # what was in it is on disk

    def close(self) -> None:
        """Close the file, which stays."""
        self._file.close()


def read_journal(path: Path) -> tuple[list[Record], int]:
    """Whole records in order, and how many bytes follow them that are not a record."""
    records, size = [], path.stat().st_size
    with open(path, "rb") as file:
        while (begin := file.tell()) < size:
            record = _read_record(file, size)
            if record is None:
                return records, size - begin
            records.append(record)
    return records, 0


def _read_record(file: Any, size: int) -> Record | None:
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        return None
    magic, length, crc = _PREFIX.unpack(prefix)
    if magic != MAGIC or file.tell() + length > size:
        return None
    head = file.read(length)
    if zlib.crc32(head) != crc:
        return None
    record = Record(**json.loads(head))
    columns = {name: np.empty(shape, dtype) for name, dtype, shape in record.columns}
    for values in columns.values():
        if file.readinto(values.reshape(-1).view(np.uint8)) < values.nbytes:
            return None
    return record._replace(columns=columns) if checksum(columns) == record.crc32 else None
