"""How much of a world some episodes have seen: visited cells, and how evenly they were visited."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from gjwm.data.dataset import Episode

CELL = 0.05  # side of a cell, in the units of positions and observations
GRID, LEVELS = (
    8,
    16,
)  # an image without a position counts as GRID x GRID grey blocks of so many levels


class Coverage:
    """Counts the cells that episodes visit.

    A frame's cell is its position in steps of `cell` where the env tells a position, else its
    observation vector likewise, else a coarse grey picture of its image. Cells are absolute, so
    figures of one world can be compared between behaviours.

    Args:
        cell: side of a cell.
    """

    def __init__(self, *, cell: float = CELL):
        if not cell > 0:
            raise ValueError(f"expected cell > 0, got {cell}.")
        self.cell, self.of = cell, ""
        self._visits: Counter[bytes] = Counter()

    def add(self, episode: Episode) -> None:
        """Count one episode's T+1 frames."""
        self.of, cells = _cells(episode, self.cell)
        rows, counts = np.unique(cells, axis=0, return_counts=True)
        for row, count in zip(rows, counts.tolist()):
            self._visits[row.tobytes()] += count

    def report(self) -> dict[str, Any]:
        """{"of", "frames", "cells", "effective_cells"}.

        `of` says what was counted ("position", "observation" or "pixels"); effective_cells =
        exp(entropy of the visits) is as many cells as there would be if all were visited alike."""
        counts = np.array(list(self._visits.values()), float)
        share = counts / max(counts.sum(), 1)
        return {
            "of": self.of,
            "frames": int(counts.sum()),
            "cells": len(counts),
            "effective_cells": float(np.exp(-(share * np.log(share)).sum()))
            if len(counts)
            else 0.0,
        }


def _cells(episode: Episode, cell: float) -> tuple[str, np.ndarray]:
    """What the cells are of, and those of one episode (T+1, ...) int64."""
    if episode.position is not None:
        return "position", np.floor(episode.position / cell).astype(np.int64)
    fields = episode.o if isinstance(episode.o, dict) else {"": episode.o}
    vectors = [values.reshape(len(values), -1) for values in fields.values() if values.ndim < 4]
    if vectors:
        return "observation", np.floor(np.concatenate(vectors, 1) / cell).astype(np.int64)
    images = next(iter(fields.values()))
    grey = images.astype(np.float32).mean(1)  # (T+1, h, w)
    bands = [np.linspace(0, size, GRID + 1).astype(int) for size in grey.shape[1:]]
    for axis, edges in enumerate(bands, 1):
        grey = np.add.reduceat(grey, edges[:-1], axis=axis) / np.diff(edges).reshape(
            -1, *[1] * (2 - axis)
        )
    return "pixels", np.floor(grey / (256 / LEVELS)).astype(np.int64).reshape(len(grey), -1)
