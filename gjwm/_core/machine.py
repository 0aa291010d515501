"""What the machine offers to this process."""

from __future__ import annotations

import os

import torch


def cores() -> int:
    """Cores that this process may use."""
    # macOS and Windows cannot say what this process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
