"""What the machine offers to this process."""

from __future__ import annotations

import ctypes
import os
import platform

import torch


def cores() -> int:
    """Cores that this process may use."""
    # macOS and Windows cannot say what this process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def most_threads() -> int:
    """Threads that this process may use: one per core, and no more than OMP_NUM_THREADS says."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2" where nested
    return min(cores(), int(asked)) if asked.isdecimal() and int(asked) else cores()


def check_device(name: str | torch.device) -> None:
    """Raise ValueError for what is no device, or one that this machine does not have."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {str(name)!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={name} was asked for and this machine has no CUDA device; use device=cpu."
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {str(name)!r}.")


def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees, for what it allocates next -> whether it
    does; only glibc can be told.

    A step of training on a CPU frees tens of megabytes. glibc gives them back to the system, whose
    pages the next step then faults in again one by one, a quarter of its time.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    m_trim_threshold, m_mmap_threshold = -1, -3  # names and values of malloc.h
    # Blocks up to so many bytes come from what was freed. Older ones refuse more than 32 MB: larger
    # blocks then come from the system anew, unless there happens to be room.
    kept = any(mallopt(m_mmap_threshold, size) for size in (2**30, 2**25))
    return kept and bool(mallopt(m_trim_threshold, -1))
