"""Pictures moved by a few pixels at random, so that nothing learned hangs on a single one."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from gjwm._core import draws


def random_shift(o: Tensor, most: int, generator: Generator | None = None) -> Tensor:
    """Each picture of (..., C, h, w) moved by up to `most` pixels along both axes, its edge
    repeated (DrQ, Yarats et al., 2021).

    The channels of one picture, which may be several frames, move together; pictures move
    independently. So two steps of a window are two views as well, and aligning the predicted with
    the encoded latent asks for one that does not know by how much each was moved.

    Returns:
        a new tensor like `o`.
    """
    lead, (height, width) = o.shape[:-3], o.shape[-2:]
    flat = o.reshape(-1, *o.shape[-3:])
    padded = flat.new_empty((*flat.shape[:2], height + 2 * most, width + 2 * most))
    inner = padded[..., most : most + height, :]
    inner[..., most : most + width] = flat
    inner[..., :most] = flat[..., :1]
    inner[..., most + width :] = flat[..., -1:]
    padded[..., :most, :] = inner[..., :1, :]
    padded[..., most + height :, :] = inner[..., -1:, :]
    corners = draws.integers(2 * most + 1, (len(flat), 2), generator, device="cpu").tolist()
    moved = [picture[:, y : y + height, x : x + width] for picture, (y, x) in zip(padded, corners)]
    return torch.stack(moved).reshape(*lead, *o.shape[-3:])
