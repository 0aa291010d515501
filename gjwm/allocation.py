"""The C library's allocator, told to keep what is freed.

glibc returns large freed blocks to the system and gets them back, page by page and zeroed, for the next tensor of that size. Small
networks on a CPU make and free the same tensors thousands of times per second; keeping them made an update a fifth faster.
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_LARGE = 2**31 - 1
_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory -> whether its C library has the switch (glibc has). Memory in use is not touched."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*pair) for pair in ((_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, _LARGE), (_TOP_PAD, _PAD)))
