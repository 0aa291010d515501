"""One figure of a page: a small plot as inline SVG, coloured by the page's style sheet, which
follows the reader's light or dark theme.

A plot takes 3 ms and 1 to 8 kB. Matplotlib's takes 130 ms and three times the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 38

Ends = tuple[float | None, float | None]


def stylesheet() -> str:
    """The page's style sheet, which standalone plots carry too."""
    return resources.files("gjwm.reporting").joinpath("style.css").read_text(encoding="utf-8")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within [low, high]: steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], or 1, 2 and 5 times these where there are too few."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    decades = [10.0**k for k in range(first, last + 1, max(1, -(-(last - first) // 5)))]
    if len(decades) > 2:
        return decades
    finer = [factor * 10.0**k for k in range(first - 1, last + 1) for factor in (1, 2, 5)]
    return [value for value in finer if low <= value <= high]


def number(value: float) -> str:
    """A tick's text."""
    plain = value == 0 or 9.9e-5 <= abs(value) < 1e5
    text = f"{value:.6g}" if plain else f"{value:.3g}"
    return text.replace("e-0", "e-").replace("e+0", "e")


class Figure:
    """A plot with a title, a legend and one sentence on how to read it.

    Marks have a role, a class of the style sheet: "model", "oracle", "linear", "plain", "ideal",
    "chance", "second", "third" or "ink". Those with a label are listed in `legend`.

    Args:
        key: the element's id.
        labels: of the x and the y axis.
        x, y: ends of the axes; None: from the marks.
        log_y: logarithmic y axis; values at or below zero are left out.
        categories: names at x = 0, 1, 2, ... in place of numbers.
        width: of the drawing in units of which it is 230 high.

    Raises:
        ValueError: for ends that are not in order, or not positive on a logarithmic axis.
    """

    def __init__(
        self,
        key: str,
        title: str,
        note: str = "",
        *,
        labels: tuple[str, str],
        x: Ends = (None, None),
        y: Ends = (None, None),
        log_y: bool = False,
        categories: Sequence[str] | None = None,
        width: int = WIDTH,
    ):
        for low, high in (x, y):
            if low is not None and high is not None and not low < high:
                raise ValueError(f"an axis needs some extent, got x={x} and y={y}.")
        if log_y and any(end is not None and end <= 0 for end in y):
            raise ValueError(f"a logarithmic axis needs positive ends, got {y}.")
        self.key, self.title, self.note = key, title, note
        self.legend: list[tuple[str, str, str]] = []  # role, kind of mark, label
        self._labels = labels
        self._categories, self._log, self._width = categories, log_y, width
        self._ends = (-0.6, len(categories) - 0.4) if categories else x, y
        self._values: tuple[list[float], list[float]] = ([], [])
        self._marks: list[Callable[[], str]] = []  # drawn once the axes are known

    # -- marks -------------------------------------------------------------------------------------

    def line(
        self,
        x: Iterable[float],
        y: Iterable[float | None],
        role: str,
        label: str | None = None,
        *,
        dashed: bool = False,
        dots: bool = False,
        faint: bool = False,
    ) -> Figure:
        """A polyline; None and NaN break it. With dots, each shows its values when pointed at."""
        x, y = np.array(list(x), np.float64), np.array(list(y), np.float64)
        known = np.isfinite(y) & ((y > 0) | (not self._log))
        self._see(x[known], y[known])
        kind = f"line {'dashed ' * dashed}{'faint ' * faint}".strip()
        for piece in np.split(np.arange(len(x)), np.flatnonzero(~known)):
            piece = piece[known[piece]]
            if len(piece) > 1:
                self._path(f"{kind} {role}", x[piece], y[piece])
            for i in piece if dots or len(piece) == 1 else ():
                self.dot(x[i], y[i], role)
        return self._name(role, kind, label)

    def band(
        self,
        x: Iterable[float],
        low: Iterable[float],
        high: Iterable[float],
        role: str,
        label: str | None = None,
    ) -> Figure:
        """The area between two curves."""
        x, low, high = (np.array(list(values), np.float64) for values in (x, low, high))
        known = np.isfinite(low) & np.isfinite(high)
        x, low, high = x[known], low[known], high[known]
        if len(x) > 1:
            around = np.concatenate([x, x[::-1]]), np.concatenate([low, high[::-1]])
            self._see(*around)
            self._path(f"area {role}", *around, close="Z")
        return self._name(role, "area", label)

    def bars(
        self, edges: Sequence[float], heights: Sequence[float], role: str, label: str | None = None
    ) -> Figure:
        """A histogram: N + 1 edges and N heights from 0."""
        self._see(edges, [0.0, *heights])

        def mark(a: float, b: float, height: float) -> str:
            (left, top), (right, floor) = self._at(a, max(height, 0)), self._at(b, 0)
            return (
                f'<rect class="bar {role}" x="{left:.1f}" y="{top:.1f}" '
                f'width="{max(right - left - 0.6, 0.4):.1f}" height="{max(floor - top, 0):.1f}">'
                f"<title>{number(a)} to {number(b)}: {height:.3g}</title></rect>"
            )

        for bar in zip(edges, edges[1:], heights):
            self._marks.append(lambda bar=bar: mark(*bar))
        return self._name(role, "bar", label)

    def dot(
        self, x: float, y: float, role: str, text: str | None = None, *, radius: float = 2.6
    ) -> Figure:
        """One point, which shows `text`, or its values, when pointed at."""
        self._see([x], [y])
        title = escape(text or f"{number(x)}: {y:.4g}")

        def mark() -> str:
            a, b = self._at(x, y)
            return (
                f'<circle class="dot {role}" cx="{a:.1f}" cy="{b:.1f}" r="{radius}">'
                f"<title>{title}</title></circle>"
            )

        self._marks.append(mark)
        return self

    def interval(self, x: float, low: float, high: float, role: str) -> Figure:
        """A vertical whisker."""
        self._see([x, x], [low, high])
        self._path(f"whisker {role}", (x, x), (low, high))
        return self

    def level(self, y: float, role: str, label: str | None = None) -> Figure:
        """A dashed horizontal line over the whole width."""
        self._see([], [y])

        def mark() -> str:
            height = self._at(0, y)[1]
            return f'<path class="line dashed {role}" d="M{LEFT} {height:.1f}H{self._right}"/>'

        self._marks.append(mark)
        return self._name(role, "line dashed", label)

    def text(self, x: float, y: float, words: str, *, anchor: str = "middle") -> Figure:
        """A value's text, just above a point."""

        def mark() -> str:
            a, b = self._at(x, y)
            return (
                f'<text class="value" x="{a:.1f}" y="{b - 4:.1f}" text-anchor="{anchor}">'
                f"{escape(words)}</text>"
            )

        self._marks.append(mark)
        return self

    # -- output ------------------------------------------------------------------------------------

    def svg(self, *, standalone: bool = False) -> str:
        """The plot as an <svg>; standalone: as a file with its legend and the style sheet."""
        self._axes = self._axis(0), self._axis(1)
        content = self._frame() + "".join(mark() for mark in self._marks)
        if not standalone:
            return self._element(0, self._width, HEIGHT, "", content)
        names, at = "", LEFT
        for role, _, label in self.legend:
            names += f'<circle class="dot {role}" cx="{at + 4}" cy="-10" r="4"/>'
            names += f'<text x="{at + 12}" y="-6">{escape(label)}</text>'
            at += 24 + 7 * len(label)
        top = 24 if names else 0
        height = HEIGHT + top
        extra = (
            f'xmlns="http://www.w3.org/2000/svg" width="{self._width}" height="{height}" '
            'font-family="system-ui, sans-serif" '
        )
        back = (
            f"<style>{escape(stylesheet(), quote=False)}</style>"
            f'<rect y="{-top}" width="{self._width}" height="{height}" style="fill: var(--card)"/>'
        )
        return self._element(-top, self._width, height, extra, back + names + content) + "\n"

    def _element(self, top: int, width: int, height: int, extra: str, content: str) -> str:
        words = escape(f"{self.title}. {self.note}".strip(), quote=True)
        box = f'viewBox="0 {top} {width} {height}"'
        return f'<svg {extra}{box} role="img" aria-label="{words}">{content}</svg>'

    def _name(self, role: str, kind: str, label: str | None) -> Figure:
        if label is not None:
            self.legend.append((role, kind, label))
        return self

    def _see(self, x: Iterable[float], y: Iterable[float]) -> None:
        for axis, values in zip(self._values, (x, y)):
            axis.extend(float(value) for value in values)

    def _path(self, kind: str, x: Iterable[float], y: Iterable[float], close: str = "") -> None:
        def mark() -> str:
            points = "L".join(f"{a:.1f} {b:.1f}" for a, b in (self._at(*p) for p in zip(x, y)))
            return f'<path class="{kind}" d="M{points}{close}"/>'

        self._marks.append(mark)

    @property
    def _right(self) -> int:
        return self._width - RIGHT

    def _axis(self, which: int) -> tuple[float, float]:
        """(low, high) of x (0) or y (1): as given, else so that it holds all marks."""
        values, (low, high) = self._values[which], self._ends[which]
        log = which == 1 and self._log
        first, last = (min(values), max(values)) if values else (1.0, 2.0)
        if log:
            first, last = first / 1.3, 1.3 * last
        elif which == 1:
            room = 0.04 * (last - first) or 0.5 * abs(last) or 1.0
            first, last = first - room, last + room
        low, high = first if low is None else low, last if high is None else high
        return (low, high) if low < high else (low, low + 1)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        """Axis values -> units of the drawing."""
        (left, right), (low, high) = self._axes
        if self._log:
            y, low, high = (math.log10(max(value, 1e-300)) for value in (y, low, high))
        # Values beyond the axes stay at the edge, a little outside so that a clipped curve is seen
        # to leave.
        across = min(max((x - left) / (right - left), -0.01), 1.01)
        up = min(max((y - low) / (high - low), -0.02), 1.02)
        return (
            LEFT + across * (self._right - LEFT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    def _frame(self) -> str:
        """Grid, ticks and labels."""

        def text(kind: str, anchor: str, words: str, place: str) -> str:
            return f'<text class="{kind}" {place} text-anchor="{anchor}">{escape(words)}</text>'

        (left, right), (low, high) = self._axes
        floor, parts = HEIGHT - BOTTOM, []
        for value in log_ticks(low, high) if self._log else ticks(low, high):
            y = self._at(left, value)[1]
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{self._right}"/>')
            parts.append(text("tick", "end", number(value), f'x="{LEFT - 5}" y="{y + 4:.1f}"'))
        if self._categories:
            at_x: list[tuple[Any, str]] = list(enumerate(self._categories))
        else:
            whole = all(value % 1 == 0 for value in self._values[0])
            at_x = [(v, number(v)) for v in ticks(left, right) if v % 1 == 0 or not whole]
        for value, words in at_x:
            x = self._at(value, low)[0]
            parts.append(text("tick", "middle", words, f'x="{x:.1f}" y="{floor + 15}"'))
        parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{self._right}"/>')
        x_label, y_label = self._labels
        middle, up = (LEFT + self._right) / 2, (TOP + floor) / 2
        parts.append(text("label", "middle", x_label, f'x="{middle:.0f}" y="{HEIGHT - 6}"'))
        turned = f'transform="translate(11 {up:.0f}) rotate(-90)"'
        parts.append(text("label", "middle", y_label, turned))
        return "".join(parts)
