"""Claims about the rasteriser: coverage is the share of a pixel's area, and pictures move by less
than a pixel.
"""

import math

import numpy as np
import pytest
import torch

from gjwm.envs import raster

INK, PAPER = (250, 20, 10), (10, 240, 230)
FINE = 24  # samples of a pixel's side


def picture(size, x, y, reach, shapes, *planes):
    frames = (
        raster.ink(PAPER)
        .to(torch.uint8)[:, None, None]
        .expand(3, size, size)
        .repeat(len(x), 1, 1, 1)
    )
    return raster.stamp(frames, x, y, reach, shapes, *planes)


def coverage_of(frames):
    """(n, size, size) share of ink, from the red channel."""
    return (frames[:, 0].double() - PAPER[0]) / (INK[0] - PAPER[0])


def supersampled(size, inside):
    """Shares of `inside(x, y)` by counting samples -> (size, size)."""
    at = (np.arange(size * FINE) + 0.5) / FINE
    hit = inside(at[None], at[:, None])
    return hit.reshape(size, FINE, size, FINE).mean((1, 3))


def one(shape):
    return lambda dx, dy, *planes: [(shape(dx, dy, *planes), raster.ink(INK))]


def turned_box(dx, dy, cos, sin):
    return raster.box(*raster.turned(dx, dy, cos, sin), 7.3, 4.1)


def turned_capsule(dx, dy, cos, sin):
    along, across = raster.turned(dx, dy, cos, sin)
    return raster.capsule(along + 6, across, 12.0, 1.7)


def draws(seed, n=6):
    g = torch.Generator().manual_seed(seed)
    x, y = 20 + 8 * torch.rand(2, n, generator=g)
    angle = 2 * math.pi * torch.rand(n, generator=g)
    return x, y, angle


@pytest.mark.parametrize("kind", ["disc", "box", "capsule"])
def test_coverage_agrees_with_supersampling(kind):
    size, (x, y, angle) = 48, draws(0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    radius = 5.3
    frames = {
        "disc": lambda: picture(
            size, x, y, radius, one(lambda dx, dy: raster.disc(dx, dy, radius))
        ),
        "box": lambda: picture(size, x, y, 8.4, one(turned_box), cos, sin),
        "capsule": lambda: picture(size, x, y, 7.8, one(turned_capsule), cos, sin),
    }[kind]()
    for i, got in enumerate(coverage_of(frames)):

        def inside(px, py, i=i):
            dx, dy = px - x[i].item(), py - y[i].item()
            c, s = cos[i].item(), sin[i].item()
            u, v = dx * c + dy * s, dy * c - dx * s
            if kind == "disc":
                return dx**2 + dy**2 < radius**2
            if kind == "box":
                return (abs(u) < 7.3) & (abs(v) < 4.1)
            return (u - np.clip(u, -6, 6)) ** 2 + v**2 < 1.7**2

        true = supersampled(size, inside)
        error = np.abs(got.numpy() - true)
        # a pixel on an edge at 45 degrees is the worst
        assert error.max() < 0.1 and error.mean() < 0.002
        assert got.sum().item() == pytest.approx(true.sum(), rel=0.02)  # the area, in pixels


def test_straight_boxes_are_exact_also_below_a_pixel():
    size, x, y = 16, torch.tensor([7.37, 5.5]), torch.tensor([8.81, 9.0])
    frames = picture(size, x, y, 4.0, one(lambda dx, dy: raster.box(dx, dy, 3.2, 0.3)))
    for i, got in enumerate(coverage_of(frames)):
        columns = raster.share(x[i] - 3.2, x[i] + 3.2, size)
        rows = raster.share(y[i] - 0.3, y[i] + 0.3, size)
        assert np.abs(got.numpy() - (rows[:, None] * columns).numpy()).max() < 0.005  # of 8 bits
        assert got.sum().item() == pytest.approx(6.4 * 0.6, rel=0.01)


@pytest.mark.parametrize("kind", ["disc", "box", "capsule"])
def test_a_shape_moved_by_a_fraction_of_a_pixel_moves_its_centroid_by_as_much(kind):
    shift = torch.linspace(0, 1.5, 31)
    angle = torch.full_like(shift, 0.6)
    x, y = 20.2 + shift, 21.7 + 0.37 * shift
    cos, sin = torch.cos(angle), torch.sin(angle)
    frames = {
        "disc": lambda: picture(48, x, y, 2.6, one(lambda dx, dy: raster.disc(dx, dy, 2.6))),
        "box": lambda: picture(48, x, y, 8.4, one(turned_box), cos, sin),
        "capsule": lambda: picture(48, x, y, 7.8, one(turned_capsule), cos, sin),
    }[kind]()
    weight = coverage_of(frames)
    grid = torch.arange(48, dtype=torch.float64) + 0.5
    mass = weight.sum((1, 2))
    seen_x, seen_y = (weight.sum(1) * grid).sum(1) / mass, (weight.sum(2) * grid).sum(1) / mass
    assert (seen_x - x).abs().max() < 0.03 and (seen_y - y).abs().max() < 0.03
    # a twentieth of a pixel shows
    assert all((frames[k] != frames[k + 1]).any() for k in range(30))


def test_patches_are_cut_off_at_the_edge_and_order_is_back_to_front():
    x = torch.tensor([0.0, 16.0, 8.0])
    frames = picture(16, x, x, 4.0, one(lambda dx, dy: raster.disc(dx, dy, 4.0)))
    areas = coverage_of(frames).sum((1, 2))
    assert areas[0].item() == pytest.approx(areas[2].item() / 4, rel=0.02) and areas[0] == areas[1]
    both = picture(
        16,
        x,
        x,
        4.0,
        lambda dx, dy: [
            (raster.disc(dx, dy, 4.0), raster.ink(INK)),
            (raster.disc(dx, dy, 2.0), raster.ink((0, 0, 0))),
        ],
    )
    assert both[2, :, 8, 8].tolist() == [0, 0, 0] and both[2, :, 8, 10].tolist() == list(INK)


def test_chunks_change_nothing(monkeypatch):
    x, y, angle = draws(1, n=40)
    arguments = (48, x, y, 8.4, one(turned_box), torch.cos(angle), torch.sin(angle))
    whole = picture(*arguments)
    monkeypatch.setattr(raster, "CHUNK", 1000)
    assert torch.equal(whole, picture(*arguments))
