"""How much memory there is, and where rows should live."""

from __future__ import annotations

from pathlib import Path

import torch


def residence(device: torch.device | str, nbytes: int) -> torch.device:
    """The device that `device` means for rows of `nbytes`."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available() and 2.5 * nbytes < torch.cuda.mem_get_info()[0]:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def available_memory(device: torch.device | str = "cpu") -> int | None:
    """Bytes that can be had on the device, within a container's limit; None where nobody says."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")  # Linux only; elsewhere the allocation itself decides
    if device.type != "cpu" or not meminfo.is_file():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = [int(lines["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in lines else []
    for folder, limit, used, cached in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", ("inactive_file", "active_file")),
        (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            ("total_inactive_file", "total_active_file"),
        ),
    ):
        try:
            ceiling, taken = (int(Path(folder, name).read_text()) for name in (limit, used))
            pages = dict(
                line.split() for line in Path(folder, "memory.stat").read_text().splitlines()
            )
        except (OSError, ValueError):
            continue  # no such file, or "max"
        # Cached files give way when memory is asked for.
        free.append(ceiling - taken + sum(int(pages.get(name, 0)) for name in cached))
    return max(min(free), 0) if free else None


def in_words(nbytes: int, available: int | None) -> str:
    """Bytes, and of how many that are available."""
    free = "" if available is None else f" of {available / 2**30:.1f} GiB available"
    return f"{nbytes / 2**20:,.1f} MiB{free}"


def require_memory(
    steps: int,
    nbytes: int,
    device: torch.device,
    *,
    settings: str = "the capacity or the image size",
) -> str:
    """What a replay of so many steps takes, in words.

    Raises:
        MemoryError: when it is more than there is, naming the settings to lower.
    """
    available = available_memory(device)
    if available is not None and nbytes > available:
        raise MemoryError(
            f"a replay of {steps} steps takes {nbytes / 2**30:.1f} GiB and "
            f"{available / 2**30:.1f} GiB are available on {device}; lower {settings}."
        )
    return in_words(nbytes, available)
