"""A ring of observation rows per env in memory, from which windows within one episode are drawn.

An episode of T steps is T+1 rows (see `gjwm.data.replay.windows`), so the true last frame is kept,
every image is stored once (frame stacks are rebuilt when sampling), and a window of T steps is T+1
neighbouring rows. This module knows gymnasium's spaces and no environments."""

from __future__ import annotations

import functools
import json
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike
from torch import Generator, Tensor

from gjwm._core.files import replacing
from gjwm._core.types import Batch
from gjwm.data.replay.memory import available_memory, residence
from gjwm.data.replay.spaces import (
    DTYPES,
    box_fields,
    describe_space,
    frame_shapes,
    rebuild_space,
)
from gjwm.data.replay.windows import EMPTY, Windows

_ROW_COLUMNS = ("a", "r", "terminated", "clock", "acted")  # saved besides the observations
_LANE_COLUMNS = ("head", "rows", "steps", "open")

FORMAT = 2  # of the file that `ReplayBuffer.save` writes

Observation = Any  # one array or tensor, or a dict of them, as the space says


def row_bytes(
    fields: Mapping[str, spaces.Box], shapes: Mapping[str, tuple[int, ...]], action_dim: int
) -> int:
    """Bytes of one row of a buffer: fields and frame shapes as in `gjwm.data.replay.spaces`."""
    bookkeeping = 8 + 1  # clock, acted
    frames = sum(
        math.prod(shape) * DTYPES[fields[name].dtype.name].itemsize
        for name, shape in shapes.items()
    )
    return frames + 4 * action_dim + 4 + 1 + bookkeeping


def buffer_bytes(
    capacity: int,
    observation_space: spaces.Space,
    action_space: spaces.Box,
    num_envs: int = 1,
    *,
    frame_stack: int = 1,
    episodes: int | None = None,
) -> int:
    """Bytes that a `ReplayBuffer` of these arguments takes when all its rows are filled."""
    fields = box_fields(observation_space)
    shapes = frame_shapes(fields, frame_stack)
    rows = num_envs * _lane_rows(capacity, num_envs, episodes)
    return rows * row_bytes(fields, shapes, action_space.shape[0])


def _lane_rows(capacity: int, num_envs: int, episodes: int | None) -> int:
    # One row more for the newest observation of an episode that is still going on, one for what
    # replaces it.
    return capacity // num_envs + math.ceil(_last_frames(capacity, episodes) / num_envs) + 2


def _last_frames(capacity: int, episodes: int | None) -> int:
    return max(capacity // 16, min(capacity, 4096)) if episodes is None else int(episodes)


def _locked(method: Callable) -> Callable:
    """One thread at a time: a collector may add while a learner samples."""

    @functools.wraps(method)
    def call(self: ReplayBuffer, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return method(self, *args, **kwargs)

    return call


class ReplayBuffer(Windows):
    """Steps of `num_envs` envs in memory, and windows of them. One thread may add while another
    samples.

    Args:
        capacity: steps kept in all, divided evenly over the envs; the oldest are dropped first.
        observation_space: of one env: a Box, or a flat Dict of Boxes. float64 is stored as float32.
        action_space: of one env: a Box (A,).
        num_envs: lanes, each a stream of its own.
        device: where the rows live and `sample` gathers; "auto": a CUDA device if the rows take
            less than 1 / 2.5 of its free memory (the rest is the model's), else the CPU.
        frame_stack: frames in an image observation (frame_stack * C, h, w), oldest first. Only the
            newest is stored.
        episodes: last frames to leave room for besides the steps. The default, capacity / 16 but at
            least 4096 (or the capacity, if that is smaller), suffices for episodes of 16 steps on
            average; shorter ones drop steps earlier.

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
            raise ValueError(
                f"expected 1 <= num_envs <= capacity, got num_envs={num_envs} and "
                f"capacity={capacity}."
            )
        if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
            raise ValueError(f"expected a Box (A,) as action space, got {action_space}.")
        super().__init__(observation_space, action_space, frame_stack, num_envs)
        self.capacity = int(capacity)
        self.episodes = _last_frames(self.capacity, episodes)
        self._lane_steps = self.capacity // self.num_envs
        self._lane_rows = _lane_rows(self.capacity, self.num_envs, self.episodes)

        rows = self.num_envs * self._lane_rows
        self.device = residence(device, self.nbytes)
        self._require_memory()
        self._lock = threading.RLock()
        self._o = {
            name: torch.empty(
                rows,
                math.prod(shape),
                dtype=self._dtype(name),
                device=self.device,
            )
            for name, shape in self._frame_shapes.items()
        }
        self._a = torch.zeros(rows, self.action_dim, device=self.device)
        self._r = torch.zeros(rows, device=self.device)
        self._terminated = torch.zeros(rows, dtype=torch.bool, device=self.device)
        # Bookkeeping stays on the CPU: it decides which rows to touch. The row's episode * 2^32 +
        # its step there: it counts on within an episode and jumps between episodes.
        self._clock = np.full(rows, EMPTY, np.int64)
        self._acted = np.zeros(
            rows, bool
        )  # whether the row holds an action, and so the next row its outcome
        self._head = np.zeros(self.num_envs, np.int64)  # next row of the lane to write
        self._rows = np.zeros(self.num_envs, np.int64)  # rows stored
        self._steps = np.zeros(self.num_envs, np.int64)  # of these, rows with an action
        self._open = np.zeros(self.num_envs, bool)  # the lane's newest row awaits an action
        self._next_episode = 0

    def __len__(self) -> int:
        """Steps stored."""
        return int(self._steps.sum())

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take when all are filled; refused by the constructor if they are not
        to be had.
        """
        return buffer_bytes(
            self.capacity,
            self.observation_space,
            self.action_space,
            self.num_envs,
            frame_stack=self.frame_stack,
            episodes=self.episodes,
        )

    def _require_memory(self) -> None:
        needed, available = self.nbytes, available_memory(self.device)
        if available is not None and needed > available:
            raise MemoryError(
                f"a replay buffer of {self.capacity} steps takes {needed / 2**30:.1f} GiB and "
                f"{available / 2**30:.1f} GiB are available on {self.device}; lower the capacity "
                "or the image size."
            )

    # -- writing -----------------------------------------------------------------------------------

    @_locked
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

        An env whose `obs` is not its last `next_obs` starts a new episode, also when the last one
        never ended.

        Args:
            obs, next_obs: observations before and after the step. Where an episode ends, `next_obs`
                is its true last frame (a vector env's `final_obs`), not the next episode's first.
            action, reward, terminated, truncated: (num_envs, A), (num_envs,), (num_envs,),
                (num_envs,).
            mask: (num_envs,) bool, the envs to record. Under gymnasium's next-step autoreset pass
                the envs that were not done on the step before: the others have only been reset.

        Raises:
            ValueError: for a wrong shape or dtype, NaN, or a first frame stack that does not repeat
                its first frame.
        """
        n = self.num_envs
        o, stacks = self._frames("obs", obs, (n,))
        o_next, _ = self._frames("next_obs", next_obs, (n,))
        a = self._floats("action", action, (n, self.action_dim))
        r = self._floats("reward", reward, (n,))
        terminated = _flags("terminated", terminated, (n,))
        done = terminated | _flags("truncated", truncated, (n,))
        chosen = np.ones(n, bool) if mask is None else _flags("mask", mask, (n,))

        newest = self._index(np.arange(n) * self._lane_rows + (self._head - 1) % self._lane_rows)
        continues = self._open.copy()
        for name, frames in o.items():
            continues &= (self._o[name][newest] == frames).all(-1).cpu().numpy()
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

    @_locked
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
            terminated, truncated: (T,) bool, true on the last step at most. Neither need be: the
                recording just stopped.

        Raises:
            ValueError: as `add`, and for an episode longer than a lane or with an end in its
                middle.
        """
        a = self._floats("a", a, (None, self.action_dim))
        length = len(a)
        if not 1 <= length <= self._lane_steps:
            raise ValueError(
                f"an episode of {length} steps does not fit a lane of {self._lane_steps} (capacity "
                f"{self.capacity} over {self.num_envs} envs); expected 1 to {self._lane_steps} "
                "steps."
            )
        frames, stacks = self._frames("o", o, (length + 1,))
        r = self._floats("r", r, (length,))
        terminated = _flags("terminated", terminated, (length,))
        done = terminated | _flags("truncated", truncated, (length,))
        if done[:-1].any():
            raise ValueError(
                f"the episode ends on step {done.argmax()} of {length}; pass each episode by "
                "itself."
            )
        self._check_first_stacks(stacks, np.arange(length + 1) == 0)
        closed = np.flatnonzero(~self._open)
        if not closed.size:
            raise ValueError(
                "every env is in the middle of an episode; end one before adding a whole episode."
            )

        lane = closed[self._steps[closed].argmin(keepdims=True)]  # (1,)
        while (
            self._steps[lane] + length > self._lane_steps
            or self._rows[lane] + length + 1 > self._lane_rows
        ):
            self._drop_oldest(lane)
        rows = lane * self._lane_rows + (self._head[lane] + np.arange(length + 1)) % self._lane_rows
        for name, values in frames.items():
            self._o[name].index_copy_(0, self._index(rows), values)
        self._clock[rows] = (self._next_episode << 32) + np.arange(length + 1)
        self._acted[rows] = False
        self._write_actions(rows[:-1], np.arange(length), a, r, terminated)
        self._head[lane] = (self._head[lane] + length + 1) % self._lane_rows
        self._rows[lane] += length + 1
        self._steps[lane] += length
        self._next_episode += 1
        self._starts.clear()

    def _index(self, values: np.ndarray) -> Tensor:
        """Row numbers or flags, on the device of the rows."""
        return torch.from_numpy(values).to(self.device)

    def _append(self, lanes: np.ndarray, frames: dict[str, Tensor], clock: np.ndarray) -> None:
        """Write one new row into each of `lanes`, taking frames (num_envs, ...) of these lanes."""
        self._drop_oldest(lanes[self._rows[lanes] == self._lane_rows])
        rows = lanes * self._lane_rows + self._head[lanes]
        for name, values in frames.items():
            self._o[name].index_copy_(0, self._index(rows), values[self._index(lanes)])
        self._clock[rows], self._acted[rows] = clock, False
        self._head[lanes] = (self._head[lanes] + 1) % self._lane_rows
        self._rows[lanes] += 1

    def _write_actions(
        self, rows: np.ndarray, source: np.ndarray, a: Tensor, r: Tensor, terminated: np.ndarray
    ) -> None:
        index, chosen = self._index(rows), self._index(source)
        self._a.index_copy_(0, index, a[chosen])
        self._r.index_copy_(0, index, r[chosen])
        self._terminated.index_copy_(0, index, self._index(terminated)[chosen])
        self._acted[rows] = True

    def _drop_oldest(self, lanes: np.ndarray) -> None:
        """Forget the oldest row of each of `lanes`."""
        rows = lanes * self._lane_rows + (self._head[lanes] - self._rows[lanes]) % self._lane_rows
        self._steps[lanes] -= self._acted[rows]
        self._rows[lanes] -= 1
        self._clock[rows], self._acted[rows] = EMPTY, False

    # -- checks at the edge ------------------------------------------------------------------------

    def _frames(
        self, what: str, value: Observation, leading: tuple[int]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Newest frames (*leading, numel) by field, and the full stacks (*leading, frame_stack,
        numel) where given.
        """
        given = value if isinstance(self.observation_space, spaces.Dict) else {"": value}
        if not isinstance(given, Mapping) or set(given) != set(self._fields):
            keys = sorted(given) if isinstance(given, Mapping) else type(given).__name__
            raise ValueError(
                f"{what} is {keys}; expected a dict with the keys {sorted(self._fields)}."
            )
        frames, stacks = {}, {}
        for name, box in self._fields.items():
            label, dtype = f"{what}[{name!r}]" if name else what, DTYPES[box.dtype.name]
            tensor = _tensor(label, given[name]).to(self.device)
            if tensor.dtype != dtype and not (
                dtype.is_floating_point and not tensor.dtype.is_complex
            ):
                raise ValueError(
                    f"{label} is {tensor.dtype}; the observation space says {dtype}, convert it "
                    "first."
                )
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
                axis = "the observations, one more than the actions" if what == "o" else "num_envs"
                raise ValueError(
                    f"{label} has shape {shape}; expected {(*leading, *box.shape)}, the leading "
                    f"axis being {axis}."
                )
            if dtype.is_floating_point and frames[name].isnan().any():
                raise ValueError(
                    f"{label} contains NaN; the simulation has diverged, do not store this step."
                )
        return frames, stacks

    def _check_first_stacks(self, stacks: dict[str, Tensor], first: np.ndarray) -> None:
        # Otherwise sampling would rebuild another stack than the env showed.
        for stack in stacks.values():
            begun = stack[self._index(first)]
            if (begun != begun[:, -1:]).any():
                raise ValueError(
                    f"an episode begins with {self.frame_stack} different frames; expected the "
                    "first frame repeated, so record from the env's reset on."
                )

    def _floats(
        self, what: str, value: ArrayLike | Tensor, shape: tuple[int | None, ...]
    ) -> Tensor:
        tensor = _tensor(what, value).to(self.device)
        sizes = tuple(tensor.shape)
        if len(sizes) != len(shape) or any(s not in (None, n) for s, n in zip(shape, sizes)):
            expected = ", ".join("T" if s is None else str(s) for s in shape) + (
                "," if len(shape) == 1 else ""
            )
            raise ValueError(f"{what} has shape {sizes}; expected ({expected}).")
        tensor = tensor.float()
        if not tensor.isfinite().all():
            raise ValueError(
                f"{what} contains NaN or infinity; expected finite numbers, do not store this step."
            )
        return tensor

    # -- sampling ----------------------------------------------------------------------------------

    @_locked
    def sample(
        self,
        batch: int,
        length: int,
        generator: Generator | None = None,
        episodes: int | None = None,
    ) -> Batch:
        """See `Windows.sample`."""
        return super().sample(batch, length, generator, episodes)

    def _observations(self, name: str, rows: Tensor) -> Tensor:
        return self._o[name].index_select(0, rows.to(self.device))

    # -- files -------------------------------------------------------------------------------------

    @_locked
    def save(self, path: str | Path) -> None:
        """Write everything to one file, atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Rows that were never written are left out.
        used = self._lane_rows if (self._rows != self._head).any() else int(self._head.max())

        def rows(values: Tensor | np.ndarray) -> Tensor:
            tensor = torch.as_tensor(values)
            return (
                tensor.view(self.num_envs, self._lane_rows, *tensor.shape[1:])[:, :used]
                .cpu()
                .contiguous()
            )

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
        with replacing(path) as partial:
            torch.save(payload, partial)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> ReplayBuffer:
        """The buffer that `save` wrote, with the same windows for the same generator. No code is
        unpickled.

        Raises:
            FileNotFoundError, ValueError: when the file is missing, damaged or not a replay buffer.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no replay buffer at {path}.")
        try:
            payload = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (
            Exception
        ) as error:  # torch raises many kinds for a damaged file; all mean the same to the reader
            raise ValueError(
                f"{path} is not a readable replay buffer ({type(error).__name__}); write it again."
            ) from error
        if (
            not isinstance(payload, dict)
            or payload.get("format") != FORMAT
            or "lanes" not in payload
        ):
            raise ValueError(f"{path} is not a replay buffer of format {FORMAT}; write it again.")
        spaces_ = (
            rebuild_space(json.loads(payload[name]))
            for name in ("observation_space", "action_space")
        )
        config = payload["config"]
        more = {name: config[name] for name in ("frame_stack", "episodes")}
        buffer = cls(config["capacity"], *spaces_, config["num_envs"], device, **more)
        lanes = (buffer.num_envs, buffer._lane_rows)
        columns = [(values, payload["o"][name]) for name, values in buffer._o.items()]
        columns += [(getattr(buffer, f"_{name}"), payload["rows"][name]) for name in _ROW_COLUMNS]
        for values, saved in columns:
            tensor = torch.as_tensor(values)  # shares the memory of an array
            tensor.view(*lanes, *tensor.shape[1:])[:, : saved.shape[1]] = saved.to(tensor.device)
        for name in _LANE_COLUMNS:
            getattr(buffer, f"_{name}")[:] = payload["lanes"][name].numpy()
        buffer._next_episode = payload["next_episode"]
        return buffer


def _tensor(what: str, value: ArrayLike | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    if array.dtype == object:
        raise ValueError(
            f"{what} is an array of objects; expected numbers of one shape for every env or step."
        )
    return torch.from_numpy(
        np.require(array, requirements=["C", "W"])
    )  # torch takes no read-only or reversed arrays


def _flags(what: str, value: ArrayLike | Tensor, shape: tuple[int]) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.shape != shape or not (array.dtype == bool or np.isin(array, (0, 1)).all()):
        raise ValueError(
            f"{what} has shape {array.shape} and dtype {array.dtype}; expected bool {shape}."
        )
    return np.array(array, bool)
