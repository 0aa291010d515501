"""Pictures from arrays, for films: paths over frames, spread of samples, curves with a moving
cursor, grids of films.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

BACKGROUND = (24, 24, 27)
TEXT, FAINT = (228, 228, 231), (82, 82, 91)
TRUTH, IMAGINED, REACHED, UNSURE = (244, 244, 245), (96, 165, 250), (74, 222, 128), (251, 146, 60)
_FINE = 2  # drawn larger, then averaged: lines without stairs


def enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    """(..., h, w, 3) -> (..., scale h, scale w, 3) without smoothing, so that nothing is shown that
    was not there.
    """
    return frames.repeat(scale, -3).repeat(scale, -2)


def fit(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (T, h, w, 3) -> (T, height, width, 3): enlarged without smoothing, shrunk by
    averaging.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    how = Image.Resampling.NEAREST if frames.shape[1] <= height else Image.Resampling.BOX
    return np.stack(
        [np.asarray(Image.fromarray(frame).resize((width, height), how)) for frame in frames]
    )


def draw_paths(
    frames: np.ndarray,
    paths: Sequence[np.ndarray | None],
    *,
    colour: Colour = IMAGINED,
    mark_end: bool = True,
) -> np.ndarray:
    """Paths over frames, which are not changed.

    Args:
        frames: uint8 (T, h, w, 3).
        paths: per frame, K paths (K, L, 2) in shares of width and height from the top left corner,
            or None. The first is drawn strong, the others faint.
        mark_end: put a dot on the end of the first.

    Returns:
        uint8 (T, h, w, 3).
    """
    drawn = frames.copy()
    height, width = frames.shape[1:3]
    for t, lines in enumerate(paths):
        if lines is None:
            continue
        size = (_FINE * width, _FINE * height)
        layer = Image.new("RGBA", size, (*colour, 0))
        draw = ImageDraw.Draw(layer)
        for k in reversed(range(len(lines))):
            points = [(x * size[0], y * size[1]) for x, y in lines[k]]
            draw.line(
                points,
                fill=(*colour, 255 if k == 0 else 70),
                width=2 * _FINE if k == 0 else _FINE,
                joint="curve",
            )
        if mark_end:
            x, y = lines[0][-1] * size
            radius = 2.5 * _FINE
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*colour, 255))
        layer = layer.resize((width, height), Image.Resampling.BOX)
        picture = Image.fromarray(drawn[t]).convert("RGBA")
        drawn[t] = np.asarray(Image.alpha_composite(picture, layer).convert("RGB"))
    return drawn


def spread_of(samples: np.ndarray) -> np.ndarray:
    """The mean of samples in grey, tinted where they differ: uint8 (P, T, h, w, 3) -> uint8 (T, h,
    w, 3).

    The tint is full where the standard deviation of brightness over samples is a fifth of the
    range."""
    values = samples.astype(np.float32).mean(-1)  # (P, T, h, w)
    mean, unsure = values.mean(0), np.clip(values.std(0) / 51, 0, 1)[..., None]
    grey = (0.75 * mean)[..., None].repeat(3, -1)
    return (grey * (1 - unsure) + np.array(UNSURE, np.float32) * unsure).astype(np.uint8)


_NARROWEST = 40  # pixels of a plot, whose margins are 38


@dataclass(frozen=True)
class Curves:
    """One small plot over the steps of a film.

    Args:
        title: above it.
        lines: (label, colour, values (T,)); NaN is left out.
        band: (colour, low (T,), high (T,)) behind the lines.
        level: a horizontal line, such as the success radius.
    """

    title: str
    lines: Sequence[tuple[str, Colour, np.ndarray]]
    band: tuple[Colour, np.ndarray, np.ndarray] | None = None
    level: float | None = None
    zero: bool = field(default=True)  # the axis begins at 0 when nothing is negative


def draw_curves(plots: Sequence[Curves], *, width: int, height: int = 112) -> np.ndarray:
    """Plots side by side with a cursor that moves a step per frame -> uint8 (T, height, width, 3).

    Raises:
        ValueError: without plots, with lines of different lengths, or without room for an axis.
    """
    counts = {len(values) for plot in plots for _, _, values in plot.lines}
    if len(counts) != 1:
        raise ValueError(f"curves need lines of one length, got {sorted(counts)}.")
    (count,) = counts
    if width // len(plots) < _NARROWEST:
        raise ValueError(
            f"curves need {_NARROWEST} pixels each, got {width} for {len(plots)}; draw on a larger "
            "scale (video.scale)."
        )
    strips = []
    for i, plot in enumerate(plots):
        left, right = round(i * width / len(plots)), round((i + 1) * width / len(plots))
        strips.append(_draw_plot(plot, count, right - left, height))
    return np.concatenate(strips, 2)


def _draw_plot(plot: Curves, count: int, width: int, height: int) -> np.ndarray:
    margin_left, margin_right, top, bottom = 30, 8, 34, 12
    values = np.concatenate([v for _, _, v in plot.lines] + ([*plot.band[1:]] if plot.band else []))
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if plot.level is not None:
        low, high = min(low, plot.level), max(high, plot.level)
    low = min(0.0, low) if plot.zero and low > 0 else low
    high = high if high > low else low + 1

    def at(t: float, value: float) -> tuple[float, float]:
        x = margin_left + (width - margin_left - margin_right) * t / max(1, count - 1)
        return _FINE * x, _FINE * (
            height - bottom - (height - top - bottom) * (value - low) / (high - low)
        )

    layer = Image.new("RGBA", (_FINE * width, _FINE * height), (*BACKGROUND, 255))
    draw = ImageDraw.Draw(layer, "RGBA")
    draw.line([at(0, high), at(0, low), at(count - 1, low)], fill=FAINT, width=_FINE)
    if plot.band is not None:
        colour, under, over = plot.band
        known = [t for t in range(count) if np.isfinite(under[t]) and np.isfinite(over[t])]
        if len(known) > 1:
            edge = [at(t, under[t]) for t in known] + [at(t, over[t]) for t in reversed(known)]
            draw.polygon(edge, fill=(*colour, 70))
    if plot.level is not None:
        draw.line([at(0, plot.level), at(count - 1, plot.level)], fill=REACHED, width=_FINE)
    for _, colour, line in plot.lines:
        points = [at(t, v) for t, v in enumerate(line) if np.isfinite(v)]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2 * _FINE, joint="curve")
    done = np.asarray(layer.convert("RGB").resize((width, height), Image.Resampling.BOX))
    ahead = (0.35 * done + 0.65 * np.array(BACKGROUND)).astype(np.uint8)

    font = ImageFont.load_default(11)
    frames = np.empty((count, height, width, 3), np.uint8)
    for t in range(count):
        x = round(at(t, low)[0] / _FINE)
        frames[t] = np.where((np.arange(width) <= x)[None, :, None], done, ahead)
        frames[t, top : height - bottom, x] = (frames[t, top : height - bottom, x] // 2) + 90
        picture = Image.fromarray(frames[t])
        draw = ImageDraw.Draw(picture)
        draw.text((4, 1), plot.title, fill=TEXT, font=font)
        x = 4.0
        for label, colour, _ in plot.lines:
            draw.text((x, 15), label, fill=colour, font=font)
            x += draw.textlength(label, font=font) + 8
        for value, y in ((high, top - 6), (low, height - bottom - 7)):
            text = f"{value:.2g}"
            draw.text(
                (margin_left - 3 - draw.textlength(text, font=font), y), text, fill=FAINT, font=font
            )
        frames[t] = np.asarray(picture)
    return frames


def stack_films(films: Sequence[np.ndarray]) -> np.ndarray:
    """Films of one length and width under each other, padded to even sides as h264 wants: (T, h_i,
    w, 3) -> (T, H, W, 3).
    """
    return _even(np.concatenate(list(films), 1))


def grid_film(
    films: Sequence[np.ndarray], reached: Sequence[np.ndarray], *, columns: int | None = None
) -> np.ndarray:
    """Many small films at once, framed in green from the step their goal is reached.

    Args:
        films: N of uint8 (T, h, w, 3), all of one shape.
        reached: N of bool (T,).
        columns: of the grid; None: about as many as rows.

    Returns:
        uint8 (T, H, W, 3) with even sides.

    Raises:
        ValueError: without films, or for films of different shapes.
    """
    if not films or len({film.shape for film in films}) != 1 or len(films) != len(reached):
        raise ValueError(
            f"a grid needs films of one shape and as many outcomes, got {[f.shape for f in films]} "
            f"and {len(reached)}."
        )
    count, height, width, _ = films[0].shape
    columns = columns or int(np.ceil(np.sqrt(len(films))))
    rows, border = -(-len(films) // columns), max(2, width // 40)
    cell = (height + 2 * border, width + 2 * border)
    canvas = np.empty((count, rows * cell[0], columns * cell[1], 3), np.uint8)
    canvas[:] = BACKGROUND
    for i, (film, there) in enumerate(zip(films, reached)):
        y, x = i // columns * cell[0], i % columns * cell[1]
        frame = canvas[:, y : y + cell[0], x : x + cell[1]]
        frame[np.asarray(there, bool)] = REACHED
        frame[:, border:-border, border:-border] = film
    return _even(canvas)


def _even(film: np.ndarray) -> np.ndarray:
    pad = ((0, 0), (0, film.shape[1] % 2), (0, film.shape[2] % 2), (0, 0))
    return np.pad(film, pad, mode="edge") if any(sum(p) for p in pad) else film
