"""Shapes drawn into batches of pictures: anti-aliased by coverage, at any size, with tensors alone.

A pixel takes a shape's colour by the share of its area that the shape covers, so that a shape moved
by a fraction of a pixel changes the picture by that much and never jumps. Straight edges along rows
and columns are exact; elsewhere the share is 0.5 minus the signed distance from the pixel's centre
to the outline, clipped to [0, 1], in pixels.

Lengths here are pixels and positions are measured from the picture's top left corner: the centre of
the first pixel is at (0.5, 0.5). x is along a row, y along a column, downwards. Nothing waits for a
device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Colour = tuple[int, int, int]  # RGB, 0..255
FLOOR: Colour = (236, 236, 228)  # what the worlds are painted with
DARK: Colour = (44, 52, 70)
RED: Colour = (222, 44, 40)
GREEN: Colour = (38, 150, 84)  # of goals, where people look at them
# (dx, dy, *planes) -> (coverage (n, P, P), ink (3,)), back to front
Shapes = Callable[..., Iterable[tuple[Tensor, Tensor]]]

CHUNK = 65536  # pixels that a CPU blends at a time: more would leave the cache


@functools.cache
def ink(colour: Colour, device: torch.device | str = "cpu") -> Tensor:
    """A colour as float32 (3,), not to be written to. Kept, because on an accelerator making it
    waits for a copy."""
    return torch.tensor(colour, dtype=torch.float32, device=device)


def layered(cover: Tensor, over: Colour, under: Tensor | Colour) -> Tensor:
    """A colour over another, or over a picture (..., 3, h, w), by the share (..., h, w) that it
    covers -> float32 (..., 3, h, w)."""
    cover, top = cover[..., None, :, :], ink(over, cover.device)[:, None, None]
    if isinstance(under, tuple):
        under = ink(under, cover.device)[:, None, None]
    return under + cover * (top - under)


def share(
    low: Tensor | float, high: Tensor | float, size: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Share of each of `size` pixels in a line within [low, high] (...) -> (..., size)."""
    # left or upper edge of each pixel
    pixel = torch.arange(size, device=device, dtype=torch.float32)
    low, high = (torch.as_tensor(edge, device=device)[..., None] for edge in (low, high))
    return (torch.minimum(pixel + 1, high) - torch.maximum(pixel, low)).clamp(min=0.0)


def band(distance: Tensor, half: float) -> Tensor:
    """Coverage of a straight band of half width `half` by pixels at `distance` from its middle
    line."""
    return (torch.clamp(distance + 0.5, max=half) - torch.clamp(distance - 0.5, min=-half)).clamp_(
        min=0.0
    )


def disc(dx: Tensor, dy: Tensor, radius: float) -> Tensor:
    """Coverage of a disc by pixels whose centres lie at (dx, dy) from its own."""
    return (radius + 0.5 - torch.sqrt(dx * dx + dy * dy)).clamp_(0.0, min(1.0, 2 * radius))


def turned(dx: Tensor, dy: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """(dx, dy) along and across the direction (cos, sin), each (n,): coordinates in a turned
    shape's own frame."""
    cos, sin = cos[:, None, None], sin[:, None, None]
    return dx * cos + dy * sin, dy * cos - dx * sin


def capsule(along: Tensor, across: Tensor, length: float, radius: float) -> Tensor:
    """Coverage of a round-ended line from the origin to `length` along."""
    beyond = along - along.clamp(0.0, length)
    distance = torch.addcmul(across * across, beyond, beyond).sqrt_()
    return (radius + 0.5 - distance).clamp_(0.0, min(1.0, 2 * radius))


def box(along: Tensor, across: Tensor, half_length: float, half_width: float) -> Tensor:
    """Coverage of a rectangle around the origin; exact when it is not turned."""
    return band(along, half_length) * band(across, half_width)


def stamp(
    frames: Tensor, x: Tensor, y: Tensor, reach: float, shapes: Shapes, *planes: Tensor
) -> Tensor:
    """Blend shapes into each picture, in place, touching only a square patch of pixels around (x,
    y).

    Args:
        frames: (n, 3, size, size) uint8, contiguous; overwritten. What lies outside is cut off.
        x, y: (n,) where the patches are, px.
        reach: px from (x, y), along x and along y, within which `shapes` cover anything.
        shapes: called as `shapes(dx, dy, *planes)` with the pixel centres' offsets from (x, y), dx
            (n, 1, P) and dy (n, P, 1), px; gives coverage (n, P, P) and ink (3,) of each shape,
            from back to front.
        planes: (n,) each: what the shapes depend on.

    Returns:
        `frames`."""
    count, _, size, _ = frames.shape
    patch = min(size, int(2 * reach) + 2)
    pixel = torch.arange(patch, device=frames.device)
    pictures = frames.view(count, 3, size * size)
    rows = max(1, CHUNK // patch**2) if frames.device.type == "cpu" else count
    for at in range(0, count, rows):
        part = slice(at, at + rows)
        index, offset = [], []
        for centre in (x[part] - 0.5, y[part] - 0.5):  # in units of pixel indices
            first = (centre - reach - 0.5).ceil_().clamp_(0, size - patch)
            offset.append((first - centre)[:, None] + pixel)
            index.append(first.long()[:, None] + pixel)
        columns, lines = index
        pixels = (lines[:, :, None] * size + columns[:, None]).flatten(1)[:, None].expand(-1, 3, -1)
        colours = pictures[part].gather(2, pixels).float()
        for coverage, colour in shapes(
            offset[0][:, None], offset[1][:, :, None], *(plane[part] for plane in planes)
        ):
            colours.lerp_(colour[:, None], coverage.flatten(1)[:, None])
        pictures[part].scatter_(2, pixels, colours.add_(0.5).to(torch.uint8))
    return frames


def draw_disc(frames: Tensor, x: Tensor, y: Tensor, radius: float, colour: Colour) -> Tensor:
    """A disc in each of the pictures (n, 3, size, size), its centre at x, y (n,)."""
    paint = ink(colour, frames.device)
    return stamp(frames, x, y, radius, lambda dx, dy: [(disc(dx, dy, radius), paint)])


def draw_pole(
    frames: Tensor,
    x: Tensor,
    y: Tensor,
    way: tuple[Tensor, Tensor],
    length: float,
    radius: float,
    colour: Colour,
) -> Tensor:
    """A round-ended line in each of the pictures (n, 3, size, size), its middle at x, y (n,), its
    direction `way` (n,), (n,)."""
    paint = ink(colour, frames.device)

    def pole(dx: Tensor, dy: Tensor, cos: Tensor, sin: Tensor) -> list[tuple[Tensor, Tensor]]:
        along, across = turned(dx, dy, cos, sin)
        return [(capsule(along + length / 2, across, length, radius), paint)]

    return stamp(frames, x, y, length / 2 + radius, pole, *way)
