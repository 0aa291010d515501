"""Batches drawn ahead of their use, the same ones as without."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Generator, Tensor

from gjwm._core.types import Batch


class Prefetch:
    """Batches of `draw(generator)`, up to `ahead` of them read in a thread while the caller works.

    What it gives depends neither on `ahead` nor on what else is random. A context manager.

    Args:
        draw: generator -> batch; must bear a second thread when `ahead` > 0.
        seed: of the generator.
        ahead: batches kept ready; 0 draws each when it is asked for.
    """

    def __init__(self, draw: Callable[[Generator], Batch], seed: int, ahead: int = 0):
        if ahead < 0:
            raise ValueError(f"expected ahead >= 0, got {ahead}.")
        self._draw, self._ahead = draw, ahead
        self._generator = torch.Generator().manual_seed(seed)
        self._pool = ThreadPoolExecutor(1, "gjwm-prefetch") if ahead else None
        self._waiting: deque[Future] = deque()

    def _next(self) -> tuple[Tensor, Batch]:
        return self._generator.get_state(), self._draw(self._generator)

    def next(self) -> Batch:
        """The next batch; errors of `draw` are raised here."""
        if self._pool is None:
            return self._next()[1]
        self._fill()
        batch = self._waiting.popleft().result()[1]
        self._fill()
        return batch

    def _fill(self) -> None:
        while len(self._waiting) < self._ahead:
            self._waiting.append(self._pool.submit(self._next))  # one thread, so in order

    def state(self) -> Tensor:
        """The generator's state before the batch that `next` will give."""
        return self._waiting[0].result()[0] if self._waiting else self._generator.get_state()

    def restore(self, state: Tensor) -> None:
        """Go on from a `state`: the next batch is the one that would have come then."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.cancel():
                future.exception()  # waits; nobody asked for this batch
        self._generator.set_state(state)

    def close(self) -> None:
        """Stop reading ahead."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
