"""Files that are whole or absent (written aside, forced to disk, then renamed), and locks that end
with their process.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: two processes that extend one dataset are then not kept apart
    fcntl = None


# What reading a damaged file raises, by whichever library reads it.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,  # a size that was read from it
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # of file systems without locks


def inside(folder: str | Path, name: Any) -> Path:
    """`folder / name`, of a name that some file gives.

    Raises:
        ValueError: for one that could lead out of the folder, on this system or another.
    """
    ways = (
        [kind(name) for kind in (PurePosixPath, PureWindowsPath)] if isinstance(name, str) else []
    )
    if not name or not ways or any(way.anchor or ".." in way.parts for way in ways):
        raise ValueError(f"{name!r} does not name a file within {folder}.")
    return Path(folder) / name


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends well and vanishes when it does
    not.

    The content is on disk (fsync) before the name is, and the name before the block is left, so
    that neither a killed process nor a power cut leaves half a file under `path`, and whatever was
    there before stays until then."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        force_to_disk(partial)
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk says only that it is full
        raise
    force_to_disk(path.parent)


class _Remembering(io.BufferedWriter):
    """A file that remembers that it could not be written."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failed = error
            raise


@contextmanager
def for_torch(path: str | Path) -> Iterator[io.BufferedWriter]:
    """A file to give to `torch.save`, which may answer a disk that runs full half way with a
    RuntimeError about positions in its archive.

    Raises:
        OSError: when the file cannot be written, as on a full disk.
    """
    with _Remembering(open(path, "wb", buffering=0)) as file:
        try:
            yield file
        except RuntimeError as error:
            if file.failed is None:
                raise
            raise file.failed from error


def require_room(path: Path, size: int) -> None:
    """Make an empty file `path` where there is room for `size` bytes. HDF5 must know before: it
    crashes the process where it cannot write what it held back.

    Raises:
        OSError: when the disk is full, or a quota used up.
    """
    with open(path, "wb") as file:
        if not hasattr(os, "posix_fallocate"):
            return  # macOS, Windows
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def force_to_disk(path: Path) -> None:
    """fsync a file, or a folder's list of names where the system allows it."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handle to a folder
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def holding(path: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, in a folder that is made, while the block runs; then it is
    removed, and so are folders made for it in which nothing else is. The lock of a process that is
    killed ends with it, its file stays for the next.

    Raises:
        BlockingIOError: when another process holds it and `wait` is false.
    """
    path = Path(path)
    made = [folder for folder in path.parents if not folder.exists()]  # the deepest first
    descriptor = _acquire(path, wait)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            path.unlink()
        os.close(descriptor)
        with suppress(OSError):  # not empty: the block left something
            for folder in made:
                folder.rmdir()


def _acquire(path: Path, wait: bool) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            if path.parent.is_dir():
                raise
            continue  # whoever held it removed the folder that it had made
        if fcntl is None:
            return descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in _NO_LOCKS:
                return descriptor  # as on Windows
            os.close(descriptor)
            raise
        # Whoever held it removed the file, and another process may have made the next: a lock on
        # the old one keeps nobody out.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)
