"""Windows of steps from rows in time order: which ones are whole, and how their rows are gathered.

Rows lie in lanes of equal size. A row holds one observation and, unless it is the last of its
episode or the newest of its lane, the action taken there with its reward. A row's clock is its
episode * 2^32 + its step there: it counts on within an episode and jumps between episodes, so that
one subtraction says whether a window is whole.
"""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Generator, Tensor

from gjwm._core import draws
from gjwm._core.types import Batch
from gjwm.data.replay.spaces import DTYPES, box_fields, frame_shapes, stacked_fields

EMPTY = -(2**62)  # clock of a row that holds nothing


class Windows:
    """What a replay buffer in memory and a dataset on disk have in common: uniform windows of their
    rows.

    A subclass sets `device`, `_lane_rows`, `_lane_steps`, `_clock` (rows,) int64 numpy, and the
    tensors `_a`, `_r`, `_terminated` by row; it says how to read observations.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        frame_stack: int,
        num_envs: int,
    ):
        self.observation_space, self.action_space = observation_space, action_space
        self.frame_stack, self.action_dim = int(frame_stack), action_space.shape[0]
        self.num_envs = int(num_envs)  # lanes
        self._fields = box_fields(observation_space)
        self._stacked = stacked_fields(self._fields, self.frame_stack)
        self._frame_shapes = frame_shapes(self._fields, self.frame_stack)
        self._starts: dict[int, Tensor] = {}

    def _dtype(self, name: str) -> torch.dtype:
        return DTYPES[self._fields[name].dtype.name]

    prefetch = 0  # batches that a training reads ahead

    def _observations(self, name: str, rows: Tensor) -> Tensor:
        """Frames of the field `name` at rows (n,) int64 on the CPU -> (n, numel) on `device`."""
        raise NotImplementedError

    def sample(
        self,
        batch: int,
        length: int,
        generator: Generator | None = None,
        episodes: int | None = None,
        part: slice = slice(None),
    ) -> Batch:
        """`batch` windows of `length` steps, uniform over all windows stored, with replacement;
        none crosses an episode.

        With `episodes` they come from at most that many episodes, drawn in proportion to their
        windows. Only the `part` of the batch that is asked for is read; which windows it holds does
        not depend on that.

        Raises:
            ValueError: when no stored episode is as long as a window, or the capacity never can be.
        """
        if batch < 1 or length < 1 or (episodes is not None and episodes < 1):
            raise ValueError(
                f"expected batch, length and episodes >= 1, got {batch}, {length} and {episodes}."
            )
        starts = self._window_starts(length)
        count = batch if episodes is None else episodes
        chosen = draws.integers(len(starts), (count,), generator, device="cpu")
        if episodes is not None:
            share = draws.uniform((batch,), generator, device="cpu")
            chosen = self._spread(chosen[torch.arange(batch) % episodes], share, starts)
        return self._gather(starts[chosen[part]], length)

    def _gather(self, start: Tensor, length: int) -> Batch:
        """The windows that begin at rows `start` (B,)."""
        batch = len(start)
        row = start % self._lane_rows
        lane = (start - row)[:, None]
        clock = torch.from_numpy(self._clock[start.numpy()])
        observed = row[:, None] + torch.arange(length + 1)  # (B, T+1), unwrapped

        o = {}
        for name, shape in self._frame_shapes.items():
            index, channels = observed, shape[:1]
            if name in self._stacked:
                # A frame before the episode's first is the first again.
                step = (clock % 2**32)[:, None] + torch.arange(length + 1)
                back = torch.minimum(step[..., None], torch.arange(self.frame_stack - 1, -1, -1))
                index, channels = observed[..., None] - back, (self.frame_stack * shape[0],)
            index = lane.view(-1, *[1] * (index.dim() - 1)) + index % self._lane_rows
            rows = self._observations(name, index.reshape(-1))
            o[name] = rows.view(batch, length + 1, *channels, *shape[1:])

        acted = (lane + observed[:, :-1] % self._lane_rows).reshape(-1).to(self._a.device)
        return Batch(
            o=o if isinstance(self.observation_space, spaces.Dict) else o[""],
            a=self._a.index_select(0, acted).view(batch, length, self.action_dim),
            r=self._r.index_select(0, acted).view(batch, length),
            terminated=self._terminated.index_select(0, acted).view(batch, length),
            episode=(clock >> 32).to(self.device),
        )

    def _spread(self, chosen: Tensor, share: Tensor, starts: Tensor) -> Tensor:
        """Move each chosen index to a share of the way through its episode's run of starts."""
        episode = torch.from_numpy(self._clock)[starts] >> 32
        zero = torch.zeros(1, dtype=torch.int64)
        first = torch.cat([zero, (episode.diff() != 0).nonzero()[:, 0] + 1])
        run = torch.searchsorted(first, chosen, right=True) - 1
        low, high = first[run], torch.cat([first[1:], torch.tensor([len(starts)])])[run]
        return low + (share * (high - low)).long()

    def _window_starts(self, length: int) -> Tensor:
        """Rows from which a whole window can be read, int64; kept until something is added."""
        if length in self._starts:
            return self._starts[length]
        if length > self._lane_steps:
            raise ValueError(
                f"a window has {length} steps and an env's share of the capacity is "
                f"{self._lane_steps}; raise the capacity or shorten the window."
            )
        clock = self._clock.reshape(self.num_envs, self._lane_rows)
        # Rows of one episode are neighbours, so a window is whole if its last row's clock is
        # `length` ahead of its first's.
        valid = np.empty(clock.shape, bool)
        np.equal(clock[:, length:] - clock[:, :-length], length, out=valid[:, :-length])
        # Around the end of the ring.
        np.equal(clock[:, :length] - clock[:, -length:], length, out=valid[:, -length:])
        if self._stacked:
            # The ring may have dropped frames that the first stack shows.
            back = np.minimum(clock % 2**32, self.frame_stack - 1)
            oldest = (np.arange(self._lane_rows) - back) % self._lane_rows
            valid &= np.take_along_axis(clock, oldest, 1) == clock - back
        starts = np.flatnonzero(valid)
        if not starts.size:
            longest = int((clock[clock != EMPTY] % 2**32).max(initial=0))
            raise ValueError(
                f"nothing to sample yet: a window has {length} steps and the longest of the "
                f"episodes stored has {longest}; collect more, shorten the window, or see that "
                "each `obs` added is the env's last `next_obs`."
            )
        self._starts[length] = torch.from_numpy(starts)
        return self._starts[length]
