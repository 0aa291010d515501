"""Random numbers, drawn where their generator lives and moved to where they are needed.

torch refuses a generator of another device than the numbers'. Drawn this way one generator serves
models on every device, and one on the CPU gives the same numbers everywhere. Without a generator
the device's own is used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

Device = torch.device | str


def normal(
    shape: Sequence[int],
    generator: Generator | None,
    *,
    device: Device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers of `shape`."""
    return torch.randn(
        shape, generator=generator, device=_source(generator, device), dtype=dtype
    ).to(device)


def uniform(
    shape: Sequence[int],
    generator: Generator | None,
    *,
    device: Device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Numbers of `shape`, uniform on [0, 1)."""
    return torch.rand(
        shape, generator=generator, device=_source(generator, device), dtype=dtype
    ).to(device)


def integers(
    high: int, shape: Sequence[int], generator: Generator | None, *, device: Device
) -> Tensor:
    """int64 numbers of `shape`, uniform on 0 .. high - 1."""
    return torch.randint(high, shape, generator=generator, device=_source(generator, device)).to(
        device
    )


def permutation(count: int, generator: Generator | None, *, device: Device) -> Tensor:
    """0 .. count - 1 in random order, int64."""
    return torch.randperm(count, generator=generator, device=_source(generator, device)).to(device)


def _source(generator: Generator | None, device: Device) -> Device:
    return device if generator is None else generator.device
