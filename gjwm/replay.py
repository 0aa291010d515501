"""Replay: a ring of observation rows per env, from which windows within one episode are drawn uniformly.

A lane (one env) is a ring of rows in time order. A row holds one observation and, unless it is the last of its episode or
the newest of all, the action taken there with its reward. An episode of T steps is T+1 rows, so the true last frame is
kept, every image is stored once (frame stacks are rebuilt when sampling), and a window of T steps is T+1 neighbouring rows.
This module knows gymnasium's spaces and no environments. Datasets on disk are in `gjwm.dataset`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike
from torch import Generator, Tensor

from gjwm.types import Batch

_EMPTY = -(2**62)  # clock of a row that holds nothing
_ROW_COLUMNS = ("a", "r", "terminated", "clock", "acted")  # saved besides the observations
_LANE_COLUMNS = ("head", "rows", "steps", "open")

FORMAT = 1  # of the file that `ReplayBuffer.save` writes

Observation = Any  # one array or tensor, or a dict of them, as the space says

# float64 is stored as float32, which is what the networks compute in.
_DTYPES = {
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float32,
}


def box_fields(space: spaces.Space) -> dict[str, spaces.Box]:
    """The Boxes of an observation space by name; a Box alone has the name "".

    Raises:
        ValueError: for anything but a Box or a flat Dict of Boxes of a common dtype.
    """
    fields = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
    for name, box in fields.items():
        if not isinstance(box, spaces.Box) or box.dtype.name not in _DTYPES:
            raise ValueError(
                f"observation {name!r} has the space {box}; expected a Box of {', '.join(_DTYPES)}, alone or in a flat Dict."
            )
    return fields


def stacked_fields(fields: Mapping[str, spaces.Box], frame_stack: int) -> set[str]:
    """Names of the images, whose channels hold `frame_stack` frames; state vectors are never stacked."""
    images = {name for name, box in fields.items() if box.dtype == np.uint8 and len(box.shape) == 3}
    if frame_stack < 1:
        raise ValueError(f"frame_stack is {frame_stack}; expected 1 (no stacking) or more.")
    if frame_stack == 1:
        return set()
    for name in images:
        if fields[name].shape[0] % frame_stack:
            raise ValueError(
                f"an observation of shape {fields[name].shape} cannot hold {frame_stack} frames; frame_stack expects the "
                "space of stacked images (frame_stack * C, h, w)."
            )
    if not images:
        raise ValueError(
            f"frame_stack={frame_stack} needs uint8 images (frame_stack * C, h, w) in the observation space."
        )
    return images


def stack_frames(frames: np.ndarray, frame_stack: int) -> np.ndarray:
    """An episode's frames (T+1, C, h, w) -> (T+1, frame_stack * C, h, w), oldest first, the first frame repeated."""
    steps = np.arange(len(frames))[:, None] - np.arange(frame_stack - 1, -1, -1)
    return frames[steps.clip(min=0)].reshape(len(frames), -1, *frames.shape[2:])


def describe_space(space: spaces.Space) -> dict[str, Any]:
    """A Box, or a Dict of Boxes, as plain JSON; see `rebuild_space`."""
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {name: describe_space(box) for name, box in space.spaces.items()}}
    if not isinstance(space, spaces.Box):
        raise ValueError(f"cannot store the space {space}; expected a Box or a Dict of Boxes.")

    def bound(values: np.ndarray) -> Any:
        # Strings, because JSON has no infinity; one number where all are equal, as for images.
        plain = [str(x) if isinstance(x, float) and math.isinf(x) else x for x in values.ravel().tolist()]
        return plain[0] if len(set(plain)) == 1 else plain

    return {
        "type": "Box",
        "shape": list(space.shape),
        "dtype": space.dtype.name,
        "low": bound(space.low),
        "high": bound(space.high),
    }


def rebuild_space(description: Mapping[str, Any]) -> spaces.Space:
    """The inverse of `describe_space`."""
    if description["type"] == "Dict":
        return spaces.Dict({name: rebuild_space(box) for name, box in description["spaces"].items()})
    shape, dtype = tuple(description["shape"]), np.dtype(description["dtype"])

    def bound(values: Any) -> np.ndarray:
        flat = np.array([float(x) if isinstance(x, str) else x for x in np.ravel(values).tolist()], dtype)
        return np.broadcast_to(flat, shape) if flat.size == 1 else flat.reshape(shape)

    return spaces.Box(bound(description["low"]), bound(description["high"]), shape, dtype)


class ReplayBuffer:
    """Steps of `num_envs` envs in memory, and uniform windows of them.

    Args:
        capacity: steps kept in all, divided evenly over the envs; the oldest are dropped first.
        observation_space: of one env: a Box, or a flat Dict of Boxes. float64 is stored as float32.
        action_space: of one env: a Box (A,).
        num_envs: lanes, each a stream of its own.
        device: where the rows live and `sample` gathers.
        frame_stack: frames in an image observation (frame_stack * C, h, w), oldest first. Only the newest is stored.
        episodes: last frames to leave room for besides the steps. The default, capacity / 16 but at least 4096 (or the
            capacity, if that is smaller), suffices for episodes of 16 steps on average; shorter ones drop steps earlier.

    Raises:
        ValueError: for spaces or sizes it cannot hold.
        MemoryError: when the rows would not fit into the memory that is available now.
    """

    def __init__(
        self,
        capacity: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        *,
        frame_stack: int = 1,
        episodes: int | None = None,
    ):
        if num_envs < 1 or capacity < num_envs:
            raise ValueError(f"expected 1 <= num_envs <= capacity, got num_envs={num_envs} and capacity={capacity}.")
        if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
            raise ValueError(f"expected a Box (A,) as action space, got {action_space}.")
        self.capacity, self.num_envs, self.device = int(capacity), int(num_envs), torch.device(device)
        self.observation_space, self.action_space = observation_space, action_space
        self.frame_stack, self.action_dim = int(frame_stack), action_space.shape[0]
        self.episodes = max(capacity // 16, min(capacity, 4096)) if episodes is None else int(episodes)
        self._fields = box_fields(observation_space)
        self._stacked = stacked_fields(self._fields, self.frame_stack)
        self._frame_shapes = {
            name: (box.shape[0] // self.frame_stack, *box.shape[1:]) if name in self._stacked else box.shape
            for name, box in self._fields.items()
        }
        self._lane_steps = self.capacity // self.num_envs
        # One row more for the newest observation of an episode that is still going on, one for what replaces it.
        self._lane_rows = self._lane_steps + math.ceil(self.episodes / self.num_envs) + 2

        rows = self.num_envs * self._lane_rows
        self._require_memory(rows)
        self._o = {
            name: torch.empty(rows, math.prod(shape), dtype=_DTYPES[self._fields[name].dtype.name], device=self.device)
            for name, shape in self._frame_shapes.items()
        }
        self._a = torch.zeros(rows, self.action_dim, device=self.device)
        self._r = torch.zeros(rows, device=self.device)
        self._terminated = torch.zeros(rows, dtype=torch.bool, device=self.device)
        # Bookkeeping stays on the CPU: it decides which rows to touch.
        # The row's episode * 2^32 + its step there: it counts on within an episode and jumps between episodes.
        self._clock = np.full(rows, _EMPTY, np.int64)
        self._acted = np.zeros(rows, bool)  # whether the row holds an action, and so the next row its outcome
        self._head = np.zeros(self.num_envs, np.int64)  # next row of the lane to write
        self._rows = np.zeros(self.num_envs, np.int64)  # rows stored
        self._steps = np.zeros(self.num_envs, np.int64)  # of these, rows with an action
        self._open = np.zeros(self.num_envs, bool)  # the lane's newest row awaits an action
        self._next_episode = 0
        self._starts: dict[tuple[int, int], Tensor] = {}

    def __len__(self) -> int:
        """Steps stored."""
        return int(self._steps.sum())

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take when all are filled."""
        return self._row_bytes() * self.num_envs * self._lane_rows

    def _row_bytes(self) -> int:
        bookkeeping = 8 + 1  # clock, acted
        frames = sum(
            math.prod(shape) * _DTYPES[self._fields[name].dtype.name].itemsize
            for name, shape in self._frame_shapes.items()
        )
        return frames + 4 * self.action_dim + 4 + 1 + bookkeeping

    def _require_memory(self, rows: int) -> None:
        needed, available = rows * self._row_bytes(), _available_memory(self.device)
        if available is not None and needed > available:
            raise MemoryError(
                f"a replay buffer of {self.capacity} steps takes {needed / 2**30:.1f} GiB and {available / 2**30:.1f} GiB are "
                f"available on {self.device}; lower the capacity or the image size."
            )

    # -- writing ---------------------------------------------------------------------------------------------------

    def add(
        self,
        obs: Observation,
        action: ArrayLike | Tensor,
        reward: ArrayLike | Tensor,
        terminated: ArrayLike | Tensor,
        truncated: ArrayLike | Tensor,
        next_obs: Observation,
        *,
        mask: ArrayLike | Tensor | None = None,
    ) -> None:
        """One step of every env, arrays or tensors with leading axis num_envs.

        An env whose `obs` is not its last `next_obs` starts a new episode, also when the last one never ended.

        Args:
            obs, next_obs: observations before and after the step. Where an episode ends, `next_obs` is its true last
                frame (a vector env's `final_obs`), not the next episode's first.
            action, reward, terminated, truncated: (num_envs, A), (num_envs,), (num_envs,), (num_envs,).
            mask: (num_envs,) bool, the envs to record. Under gymnasium's next-step autoreset pass the envs that were not
                done on the step before: the others have only been reset.

        Raises:
            ValueError: for a wrong shape or dtype, NaN, or a first frame stack that does not repeat its first frame.
        """
        n = self.num_envs
        o, stacks = self._frames("obs", obs, (n,))
        o_next, _ = self._frames("next_obs", next_obs, (n,))
        a = self._floats("action", action, (n, self.action_dim))
        r = self._floats("reward", reward, (n,))
        terminated = _flags("terminated", terminated, (n,))
        done = terminated | _flags("truncated", truncated, (n,))
        chosen = np.ones(n, bool) if mask is None else _flags("mask", mask, (n,))

        newest = np.arange(n) * self._lane_rows + (self._head - 1) % self._lane_rows
        continues = self._open.copy()
        for name, frames in o.items():
            continues &= (self._o[name][torch.from_numpy(newest).to(self.device)] == frames).all(-1).cpu().numpy()
        first = chosen & ~continues
        self._check_first_stacks(stacks, first)

        lanes = np.flatnonzero(first)
        numbers = self._next_episode + np.arange(len(lanes))
        self._next_episode += len(lanes)
        self._append(lanes, o, numbers << 32)

        lanes = np.flatnonzero(chosen)
        rows = lanes * self._lane_rows + (self._head[lanes] - 1) % self._lane_rows
        self._write_actions(rows, lanes, a, r, terminated)
        self._steps[lanes] += 1
        self._append(lanes, o_next, self._clock[rows] + 1)
        self._open[lanes] = ~done[lanes]
        while (over := np.flatnonzero(self._steps > self._lane_steps)).size:
            self._drop_oldest(over)
        self._starts.clear()

    def add_episode(
        self,
        o: Observation,
        a: ArrayLike | Tensor,
        r: ArrayLike | Tensor,
        terminated: ArrayLike | Tensor,
        truncated: ArrayLike | Tensor,
    ) -> None:
        """One whole episode of T steps at once, into the lane with the fewest steps.

        Args:
            o: (T+1, *O); with frame_stack > 1 also the single frames (T+1, C, h, w).
            a, r: (T, A) and (T,).
            terminated, truncated: (T,) bool, true on the last step at most. Neither need be: the recording just stopped.

        Raises:
            ValueError: as `add`, and for an episode longer than a lane or with an end in its middle.
        """
        a = self._floats("a", a, (None, self.action_dim))
        length = len(a)
        if not 1 <= length <= self._lane_steps:
            raise ValueError(
                f"an episode of {length} steps does not fit a lane of {self._lane_steps} (capacity {self.capacity} over "
                f"{self.num_envs} envs); expected 1 to {self._lane_steps} steps."
            )
        frames, stacks = self._frames("o", o, (length + 1,))
        r = self._floats("r", r, (length,))
        terminated = _flags("terminated", terminated, (length,))
        done = terminated | _flags("truncated", truncated, (length,))
        if done[:-1].any():
            raise ValueError(f"the episode ends on step {done.argmax()} of {length}; pass each episode by itself.")
        self._check_first_stacks(stacks, np.arange(length + 1) == 0)
        closed = np.flatnonzero(~self._open)
        if not closed.size:
            raise ValueError("every env is in the middle of an episode; end one before adding a whole episode.")

        lane = closed[self._steps[closed].argmin(keepdims=True)]  # (1,)
        while self._steps[lane] + length > self._lane_steps or self._rows[lane] + length + 1 > self._lane_rows:
            self._drop_oldest(lane)
        rows = lane * self._lane_rows + (self._head[lane] + np.arange(length + 1)) % self._lane_rows
        index = torch.from_numpy(rows).to(self.device)
        for name, values in frames.items():
            self._o[name].index_copy_(0, index, values)
        self._clock[rows], self._acted[rows] = (self._next_episode << 32) + np.arange(length + 1), False
        self._write_actions(rows[:-1], np.arange(length), a, r, terminated)
        self._head[lane] = (self._head[lane] + length + 1) % self._lane_rows
        self._rows[lane] += length + 1
        self._steps[lane] += length
        self._next_episode += 1
        self._starts.clear()

    def _append(self, lanes: np.ndarray, frames: dict[str, Tensor], clock: np.ndarray) -> None:
        """Write one new row into each of `lanes`, taking frames (num_envs, ...) of these lanes."""
        self._drop_oldest(lanes[self._rows[lanes] == self._lane_rows])
        rows = lanes * self._lane_rows + self._head[lanes]
        index, source = torch.from_numpy(rows).to(self.device), torch.from_numpy(lanes).to(self.device)
        for name, values in frames.items():
            self._o[name].index_copy_(0, index, values[source])
        self._clock[rows], self._acted[rows] = clock, False
        self._head[lanes] = (self._head[lanes] + 1) % self._lane_rows
        self._rows[lanes] += 1

    def _write_actions(
        self, rows: np.ndarray, source: np.ndarray, a: Tensor, r: Tensor, terminated: np.ndarray
    ) -> None:
        index, chosen = torch.from_numpy(rows).to(self.device), torch.from_numpy(source).to(self.device)
        self._a.index_copy_(0, index, a[chosen])
        self._r.index_copy_(0, index, r[chosen])
        self._terminated.index_copy_(0, index, torch.from_numpy(terminated).to(self.device)[chosen])
        self._acted[rows] = True

    def _drop_oldest(self, lanes: np.ndarray) -> None:
        """Forget the oldest row of each of `lanes`."""
        rows = lanes * self._lane_rows + (self._head[lanes] - self._rows[lanes]) % self._lane_rows
        self._steps[lanes] -= self._acted[rows]
        self._rows[lanes] -= 1
        self._clock[rows], self._acted[rows] = _EMPTY, False

    # -- checks at the edge ----------------------------------------------------------------------------------------

    def _frames(
        self, what: str, value: Observation, leading: tuple[int]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Newest frames (*leading, numel) by field, and the full stacks (*leading, frame_stack, numel) where given."""
        given = value if isinstance(self.observation_space, spaces.Dict) else {"": value}
        if not isinstance(given, Mapping) or set(given) != set(self._fields):
            found = sorted(given) if isinstance(given, Mapping) else type(given).__name__
            raise ValueError(f"{what} is {found}; expected a dict with the keys {sorted(self._fields)}.")
        frames, stacks = {}, {}
        for name, box in self._fields.items():
            label, dtype = f"{what}[{name!r}]" if name else what, _DTYPES[box.dtype.name]
            tensor = _tensor(label, given[name]).to(self.device)
            if tensor.dtype != dtype and not (dtype.is_floating_point and not tensor.dtype.is_complex):
                raise ValueError(f"{label} is {tensor.dtype}; the observation space says {dtype}, convert it first.")
            shape = tuple(tensor.shape)
            if shape == (*leading, *box.shape):
                if name in self._stacked:
                    stacks[name] = tensor.reshape(*leading, self.frame_stack, -1)
                    frames[name] = stacks[name][:, -1].contiguous()
                else:
                    frames[name] = tensor.reshape(*leading, -1).to(dtype)
            elif what == "o" and shape == (*leading, *self._frame_shapes[name]):
                frames[name] = tensor.reshape(*leading, -1).to(dtype)
            else:
                raise ValueError(
                    f"{label} has shape {shape}; expected {(*leading, *box.shape)}, the leading axis being "
                    f"{'the observations, one more than the actions' if what == 'o' else 'num_envs'}."
                )
            if dtype.is_floating_point and frames[name].isnan().any():
                raise ValueError(f"{label} contains NaN; the simulation has diverged, do not store this step.")
        return frames, stacks

    def _check_first_stacks(self, stacks: dict[str, Tensor], first: np.ndarray) -> None:
        # Otherwise sampling would rebuild another stack than the env showed.
        for stack in stacks.values():
            begun = stack[torch.from_numpy(first).to(self.device)]
            if (begun != begun[:, -1:]).any():
                raise ValueError(
                    f"an episode begins with {self.frame_stack} different frames; expected the first frame repeated, so "
                    "record from the env's reset on."
                )

    def _floats(self, what: str, value: ArrayLike | Tensor, shape: tuple[int | None, ...]) -> Tensor:
        tensor = _tensor(what, value).to(self.device)
        found = tuple(tensor.shape)
        if len(found) != len(shape) or any(s is not None and s != f for s, f in zip(shape, found)):
            expected = ", ".join("T" if s is None else str(s) for s in shape) + ("," if len(shape) == 1 else "")
            raise ValueError(f"{what} has shape {found}; expected ({expected}).")
        tensor = tensor.float()
        if not tensor.isfinite().all():
            raise ValueError(f"{what} contains NaN or infinity; expected finite numbers, do not store this step.")
        return tensor

    # -- sampling --------------------------------------------------------------------------------------------------

    def sample(
        self,
        batch: int,
        length: int,
        stride: int = 1,
        generator: Generator | None = None,
        episodes: int | None = None,
    ) -> Batch:
        """`batch` windows of `length` steps, uniform over all windows stored, with replacement; none crosses an episode.

        With stride s a window spans length * s env steps: every s-th observation is kept, the s actions between two of
        them lie side by side (B, T, s*A) in time order, their rewards are summed, and `terminated` is any of theirs.
        With `episodes` the windows come from at most that many episodes, drawn in proportion to their windows.

        Raises:
            ValueError: when no stored episode is as long as a window, or the capacity never can be.
        """
        if batch < 1 or length < 1 or stride < 1 or (episodes is not None and episodes < 1):
            raise ValueError(
                f"expected batch, length, stride and episodes >= 1, got {batch}, {length}, {stride} and {episodes}."
            )
        starts = self._window_starts(length, stride)
        source = "cpu" if generator is None else generator.device
        count = batch if episodes is None else episodes
        chosen = torch.randint(len(starts), (count,), generator=generator, device=source).cpu()
        if episodes is not None:
            share = torch.rand(batch, generator=generator, device=source).cpu()
            chosen = self._spread(chosen[torch.arange(batch) % episodes], share, starts)
        start = starts[chosen]  # (B,) rows, over all lanes
        row = start % self._lane_rows
        lane = (start - row)[:, None]
        clock = torch.from_numpy(self._clock)[start]
        observed = row[:, None] + stride * torch.arange(length + 1)  # (B, T+1), unwrapped
        acted = lane + (row[:, None] + torch.arange(length * stride)) % self._lane_rows  # (B, T*s)

        o = {}
        for name, shape in self._frame_shapes.items():
            index, channels = observed, shape[:1]
            if name in self._stacked:
                # A frame before the episode's first is the first again.
                step = (clock % 2**32)[:, None] + stride * torch.arange(length + 1)
                back = torch.minimum(step[..., None], torch.arange(self.frame_stack - 1, -1, -1))
                index, channels = observed[..., None] - back, (self.frame_stack * shape[0],)
            index = lane.view(-1, *[1] * (index.dim() - 1)) + index % self._lane_rows
            rows = self._o[name].index_select(0, index.reshape(-1).to(self.device))
            o[name] = rows.view(batch, length + 1, *channels, *shape[1:])

        index = acted.reshape(-1).to(self.device)
        terminated = self._terminated.index_select(0, index).view(batch, length, stride)
        return Batch(
            o=o if isinstance(self.observation_space, spaces.Dict) else o[""],
            a=self._a.index_select(0, index).view(batch, length, stride * self.action_dim),
            r=self._r.index_select(0, index).view(batch, length, stride).sum(-1),
            terminated=terminated.any(-1),
            episode=(clock >> 32).to(self.device),
        )

    def _spread(self, chosen: Tensor, share: Tensor, starts: Tensor) -> Tensor:
        """Move each chosen index into `starts` to a share in [0, 1) of the way through its episode's run of starts."""
        episode = torch.from_numpy(self._clock)[starts] >> 32
        first = torch.cat([torch.zeros(1, dtype=torch.int64), (episode.diff() != 0).nonzero()[:, 0] + 1])
        run = torch.searchsorted(first, chosen, right=True) - 1
        low, high = first[run], torch.cat([first[1:], torch.tensor([len(starts)])])[run]
        return low + (share * (high - low)).long()

    def _window_starts(self, length: int, stride: int) -> Tensor:
        """Rows from which a whole window can be read, int64; kept until something is added."""
        if (length, stride) in self._starts:
            return self._starts[length, stride]
        span = length * stride
        if span > self._lane_steps:
            raise ValueError(
                f"a window of {length} steps with stride {stride} spans {span} and an env's share of the capacity is "
                f"{self._lane_steps}; raise the capacity or shorten the window."
            )
        clock = self._clock.reshape(self.num_envs, self._lane_rows)
        # Rows of one episode are neighbours, so a window is whole if its last row's clock is `span` ahead of its first's.
        valid = np.empty(clock.shape, bool)
        np.equal(clock[:, span:] - clock[:, :-span], span, out=valid[:, :-span])
        np.equal(clock[:, :span] - clock[:, -span:], span, out=valid[:, -span:])  # around the end of the ring
        if self._stacked:
            # The ring may have dropped frames that the first stack shows.
            back = np.minimum(clock % 2**32, self.frame_stack - 1)
            oldest = (np.arange(self._lane_rows) - back) % self._lane_rows
            valid &= np.take_along_axis(clock, oldest, 1) == clock - back
        starts = np.flatnonzero(valid)
        if not starts.size:
            longest = int((clock[clock != _EMPTY] % 2**32).max(initial=0))
            raise ValueError(
                f"nothing to sample yet: a window spans {span} steps and the longest of the episodes stored has {longest}; "
                "collect more, shorten the window, or see that each `obs` added is the env's last `next_obs`."
            )
        self._starts[length, stride] = torch.from_numpy(starts)
        return self._starts[length, stride]

    # -- files -----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write everything to one file, atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Rows that were never written are left out.
        used = self._lane_rows if (self._rows != self._head).any() else int(self._head.max())

        def rows(values: Tensor | np.ndarray) -> Tensor:
            tensor = torch.as_tensor(values)
            return tensor.view(self.num_envs, self._lane_rows, *tensor.shape[1:])[:, :used].cpu().contiguous()

        payload = {
            "format": FORMAT,
            "config": {
                "capacity": self.capacity,
                "num_envs": self.num_envs,
                "frame_stack": self.frame_stack,
                "episodes": self.episodes,
            },
            "observation_space": json.dumps(describe_space(self.observation_space)),
            "action_space": json.dumps(describe_space(self.action_space)),
            "next_episode": self._next_episode,
            "o": {name: rows(values) for name, values in self._o.items()},
            "rows": {name: rows(getattr(self, f"_{name}")) for name in _ROW_COLUMNS},
            "lanes": {name: torch.from_numpy(getattr(self, f"_{name}")) for name in _LANE_COLUMNS},
        }
        partial = path.with_name(path.name + ".partial")
        with open(partial, "wb") as file:
            torch.save(payload, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> ReplayBuffer:
        """The buffer that `save` wrote, with the same windows for the same generator. No code is unpickled.

        Raises:
            FileNotFoundError, ValueError: when the file is missing, damaged or not a replay buffer.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no replay buffer at {path}.")
        try:
            payload = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises many kinds for a damaged file; all mean the same to the reader
            raise ValueError(
                f"{path} is not a readable replay buffer ({type(error).__name__}); collect it again."
            ) from error
        if not isinstance(payload, dict) or payload.get("format") != FORMAT or "lanes" not in payload:
            raise ValueError(f"{path} is not a replay buffer of format {FORMAT}; collect it again.")
        spaces_ = (rebuild_space(json.loads(payload[name])) for name in ("observation_space", "action_space"))
        config = dict(payload["config"])
        buffer = cls(config.pop("capacity"), *spaces_, config.pop("num_envs"), device, **config)
        shape = (buffer.num_envs, buffer._lane_rows)
        columns = [(values, payload["o"][name]) for name, values in buffer._o.items()]
        columns += [(torch.as_tensor(getattr(buffer, f"_{name}")), payload["rows"][name]) for name in _ROW_COLUMNS]
        for values, saved in columns:
            values.view(*shape, *values.shape[1:])[:, : saved.shape[1]] = saved.to(values.device)
        for name in _LANE_COLUMNS:
            getattr(buffer, f"_{name}")[:] = payload["lanes"][name].numpy()
        buffer._next_episode = payload["next_episode"]
        return buffer


def _tensor(what: str, value: ArrayLike | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    if array.dtype == object:
        raise ValueError(f"{what} is an array of objects; expected numbers of one shape for every env or step.")
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))  # torch takes no read-only or reversed arrays


def _flags(what: str, value: ArrayLike | Tensor, shape: tuple[int]) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.shape != shape or not (array.dtype == bool or np.isin(array, (0, 1)).all()):
        raise ValueError(f"{what} has shape {array.shape} and dtype {array.dtype}; expected bool {shape}.")
    return np.array(array, bool)


def _available_memory(device: torch.device) -> int | None:
    """Bytes free on the device, or None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")  # Linux only; elsewhere the allocation itself decides
    if device.type != "cpu" or not meminfo.is_file():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None
