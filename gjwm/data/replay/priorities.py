"""A sum tree: numbers that can be changed and drawn from in proportion, both in O(log N) per number
(Schaul et al., 2016).
"""

from __future__ import annotations

import numpy as np


class SumTree:
    """N priorities >= 0, all 0 at first. Every node of a binary tree holds the sum of the leaves
    below it.
    """

    def __init__(self, size: int):
        self.depth = max(size - 1, 1).bit_length()
        self.leaves = 1 << self.depth
        self._nodes = np.zeros(
            2 * self.leaves
        )  # node 1 is the root, n's children are 2n and 2n + 1
        self.size = size

    @property
    def total(self) -> float:
        """Sum of all priorities."""
        return float(self._nodes[1])

    @property
    def nbytes(self) -> int:
        """Bytes that the tree takes."""
        return self._nodes.nbytes

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """Priorities at index (n,)."""
        return self._nodes[self.leaves + np.asarray(index)]

    def __setitem__(self, index: np.ndarray, priority: np.ndarray | float) -> None:
        """Set priorities at index (n,); of an index that comes twice the last one counts."""
        node = self.leaves + np.asarray(index)
        self._nodes[node] = priority
        for _ in range(self.depth):
            node = np.unique(node >> 1)
            # Summed anew rather than adjusted by the difference: rounding errors would pile up.
            self._nodes[node] = self._nodes[2 * node] + self._nodes[2 * node + 1]

    def find(self, mass: np.ndarray) -> np.ndarray:
        """Index whose share of [0, total) holds each mass (n,)."""
        mass, node = np.array(mass, float), np.ones(len(mass), np.int64)
        for _ in range(self.depth):
            left = self._nodes[2 * node]
            right = mass >= left
            mass -= np.where(right, left, 0)
            node = 2 * node + right
        return np.minimum(node - self.leaves, self.size - 1)  # rounding may step past the last
