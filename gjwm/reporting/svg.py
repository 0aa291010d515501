"""Small plots as inline SVG, coloured by the page's style sheet.

A page needs a dozen simple plots that follow the reader's light or dark theme, stay sharp and
readable on a phone, and load without a network. As SVG with classes in place of colours they weigh
1 to 5 kB each and need no plotting library; matplotlib's would be several times as large and fixed
to one theme, and its packages would add 75 MB to every install."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from importlib import resources

import numpy as np

WIDTH, HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 38


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about `count` of them, steps of 1, 2 or 5 times a power of
    ten.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's text."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 9.9e-5:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{float(f'{value:.6g}'):.10g}"


class Plot:
    """Axes in a box of 360 by 230 units, to which marks are added; `svg()` is the text of an <svg>.

    Marks have a role, which is a class of the page's style sheet ("model", "oracle", "linear",
    "plain", "ideal", "chance", "second", "third"); with a label they are listed in `legend`.

    Args:
        x, y: (low, high) of the axes.
        x_label, y_label: with units.
        log_y: logarithmic y axis; values at or below zero are left out.
        describe: one sentence for who cannot see the plot.
        x_ticks: value and text of the ticks; None: round numbers.

    Raises:
        ValueError: for an axis without an extent or, if logarithmic, with values that are not
            positive.
    """

    def __init__(
        self,
        *,
        x: tuple[float, float],
        y: tuple[float, float],
        x_label: str,
        y_label: str,
        describe: str,
        log_y: bool = False,
        x_ticks: Sequence[tuple[float, str]] | None = None,
        width: int = WIDTH,
        height: int = HEIGHT,
        left: int = _LEFT,
    ):
        if not x[0] < x[1] or not y[0] < y[1] or (log_y and y[0] <= 0):
            raise ValueError(
                f"a plot needs axes of some extent (positive where logarithmic), got x={x} and "
                f"y={y}."
            )
        self._x, self._y, self._log = x, y, log_y
        self._width, self._height, self._left = width, height, left
        self._marks: list[str] = []
        self.legend: list[tuple[str, str, str]] = []  # (role, kind, label)
        self._describe = describe
        self._frame = self._axes(x_label, y_label, x_ticks)

    # -- marks -------------------------------------------------------------------------------------

    def line(
        self,
        x: Sequence[float],
        y: Sequence[float | None],
        role: str,
        label: str | None = None,
        *,
        dashed: bool = False,
        dots: bool = False,
        faint: bool = False,
    ) -> Plot:
        """A polyline; None and NaN break it. With dots, each tells its values when pointed at."""
        kind = f"{'dashed ' * dashed}{'faint ' * faint}".strip()
        pieces, piece = [], []
        for a, b in zip(x, y):
            if b is None or not math.isfinite(b) or (self._log and b <= 0):
                pieces, piece = [*pieces, piece], []
            else:
                piece.append((a, b))
        pieces.append(piece)
        for points in pieces:
            if len(points) > 1:
                path = "M" + "L".join(self._point(a, b) for a, b in points)
                self._marks.append(f'<path class="line {role} {kind}" d="{path}"/>')
            for a, b in points if dots or len(points) == 1 else ():
                self.dot(a, b, role)
        return self._named(role, f"line {kind}", label)

    def band(
        self,
        x: Sequence[float],
        low: Sequence[float],
        high: Sequence[float],
        role: str,
        label: str | None = None,
    ) -> Plot:
        """The area between two curves."""
        known = [
            (a, b, c) for a, b, c in zip(x, low, high) if math.isfinite(b) and math.isfinite(c)
        ]
        if len(known) > 1:
            edge = [self._point(a, b) for a, b, _ in known] + [
                self._point(a, c) for a, _, c in reversed(known)
            ]
            self._marks.append(f'<path class="area {role}" d="M{"L".join(edge)}Z"/>')
        return self._named(role, "area", label)

    def bars(
        self, edges: Sequence[float], values: Sequence[float], role: str, label: str | None = None
    ) -> Plot:
        """A histogram: N + 1 edges and N heights."""
        base = max(self._y[0], 0.0)
        for a, b, value in zip(edges, edges[1:], values):
            (left, top), (right, floor) = self._at(a, max(value, base)), self._at(b, base)
            self._marks.append(
                f'<rect class="bar {role}" x="{left:.1f}" y="{top:.1f}" '
                f'width="{max(right - left - 0.6, 0.4):.1f}" '
                f'height="{max(floor - top, 0):.1f}"><title>{number(a)} to {number(b)}: '
                f"{value:.3g}</title></rect>"
            )
        return self._named(role, "bar", label)

    def dot(
        self, x: float, y: float, role: str, text: str | None = None, *, radius: float = 2.6
    ) -> Plot:
        """One point, which tells its values, or `text`, when pointed at."""
        a, b = self._at(x, y)
        told = escape(text or f"{number(x)}: {y:.4g}")
        self._marks.append(
            f'<circle class="dot {role}" cx="{a:.1f}" cy="{b:.1f}" '
            f'r="{radius}"><title>{told}</title></circle>'
        )
        return self

    def interval(self, x: float, low: float, high: float, role: str) -> Plot:
        """A vertical whisker."""
        (a, top), (_, floor) = self._at(x, high), self._at(x, low)
        self._marks.append(f'<path class="whisker {role}" d="M{a:.1f} {floor:.1f}V{top:.1f}"/>')
        return self

    def level(self, y: float, role: str, label: str | None = None) -> Plot:
        """A horizontal line over the whole width."""
        return self.line(self._x, (y, y), role, label, dashed=True)

    def text(
        self, x: float, y: float, words: str, role: str = "", *, anchor: str = "middle"
    ) -> Plot:
        """Words at a point."""
        a, b = self._at(x, y)
        self._marks.append(
            f'<text class="{role}" x="{a:.1f}" y="{b:.1f}" '
            f'text-anchor="{anchor}">{escape(words)}</text>'
        )
        return self

    # -- output ------------------------------------------------------------------------------------

    def svg(self) -> str:
        """The whole plot."""
        return (
            f'<svg viewBox="0 0 {self._width} {self._height}" role="img" '
            f'aria-label="{escape(self._describe, quote=True)}">'
            f"{self._frame}{''.join(self._marks)}</svg>"
        )

    def standalone(self) -> str:
        """The plot as a file of its own, with its legend and the page's style sheet."""
        style = resources.files("gjwm.reporting").joinpath("style.css").read_text(encoding="utf-8")
        names, at = [], self._left
        for role, _, label in self.legend:
            names.append(f'<circle class="dot {role}" cx="{at + 4}" cy="-10" r="4"/>')
            names.append(f'<text x="{at + 12}" y="-6">{escape(label)}</text>')
            at += 24 + 7 * len(label)
        top = 24 if names else 0
        width, height = self._width, self._height + top
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 '
            f'{-top} {width} {height}" '
            f'role="img" aria-label="{escape(self._describe, quote=True)}" font-family="system-ui, '
            f'sans-serif">'
            f'<style>{escape(style, quote=False)}</style><rect y="{-top}" width="{width}" '
            f'height="{height}" '
            f'style="fill: '
            f'var(--card)"/>{"".join(names)}{self._frame}{"".join(self._marks)}</svg>\n'
        )

    def _named(self, role: str, kind: str, label: str | None) -> Plot:
        if label is not None:
            self.legend.append((role, kind, label))
        return self

    def _at(self, x: float, y: float) -> tuple[float, float]:
        low, high = self._y
        if self._log:
            share = (math.log10(max(y, 1e-300)) - math.log10(low)) / (
                math.log10(high) - math.log10(low)
            )
        else:
            share = (y - low) / (high - low)
        across = (x - self._x[0]) / (self._x[1] - self._x[0])
        # Values beyond the axes stay at the edge, and a little outside so that a clipped curve is
        # seen to leave.
        share, across = min(max(share, -0.02), 1.02), min(max(across, -0.01), 1.01)
        return (
            self._left + across * (self._width - self._left - _RIGHT),
            self._height - _BOTTOM - share * (self._height - _TOP - _BOTTOM),
        )

    def _point(self, x: float, y: float) -> str:
        a, b = self._at(x, y)
        return f"{a:.1f} {b:.1f}"

    def _axes(self, x_label: str, y_label: str, x_ticks: Sequence[tuple[float, str]] | None) -> str:
        left, right, floor = self._left, self._width - _RIGHT, self._height - _BOTTOM
        parts = []
        for value in self._y_ticks():
            _, y = self._at(self._x[0], value)
            parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
            parts.append(
                f'<text class="tick" x="{left - 5}" y="{y + 4:.1f}" '
                f'text-anchor="end">{number(value)}</text>'
            )
        for value, words in x_ticks or [(v, number(v)) for v in ticks(*self._x)]:
            x, _ = self._at(value, self._y[0])
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{floor + 15}" '
                f'text-anchor="middle">{escape(words)}</text>'
            )
        parts.append(f'<path class="axis" d="M{left} {_TOP}V{floor}H{right}"/>')
        middle = (left + right) / 2
        parts.append(
            f'<text class="label" x="{middle:.0f}" y="{self._height - 6}" '
            f'text-anchor="middle">{escape(x_label)}</text>'
        )
        up = (_TOP + floor) / 2
        parts.append(
            f'<text class="label" transform="translate(11 {up:.0f}) rotate(-90)" '
            f'text-anchor="middle">'
            f"{escape(y_label)}</text>"
        )
        return "".join(parts)

    def _y_ticks(self) -> list[float]:
        if not self._log:
            return ticks(*self._y)
        low, high = (
            math.ceil(math.log10(self._y[0]) - 1e-9),
            math.floor(math.log10(self._y[1]) + 1e-9),
        )
        every = max(1, -(-(high - low) // 5))
        decades = [10.0**k for k in range(low, high + 1, every)]
        if len(decades) > 2:
            return decades
        finer = [factor * 10.0**k for k in range(low - 1, high + 1) for factor in (1, 2, 5)]
        return [value for value in finer if self._y[0] <= value <= self._y[1]]


def extent(*values: object, pad: float = 0.04, least: float | None = None) -> tuple[float, float]:
    """(low, high) that holds all finite values, with a little room; `least` is below all of them if
    given.
    """
    flat = np.concatenate([np.ravel(np.array(v, dtype=np.float64)) for v in values])
    flat = flat[np.isfinite(flat)]
    low, high = (float(flat.min()), float(flat.max())) if len(flat) else (0.0, 1.0)
    if least is not None:
        low = min(low, least)
    room = pad * (high - low) or 0.5 * abs(high) or 1.0
    return (low if least is not None and low == least else low - room), high + room
