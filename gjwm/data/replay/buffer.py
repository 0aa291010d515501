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
from torch import Tensor

from gjwm._core.checkpoint import load_tensors, save_tensors
from gjwm._core.files import replacing
from gjwm.data.replay.memory import require_memory, residence
from gjwm.data.replay.spaces import DTYPES, box_fields, describe_space, frame_shapes, rebuild_space
from gjwm.data.replay.windows import EMPTY, Windows

_ROW_COLUMNS = ("a", "r", "terminated", "clock", "acted")  # saved besides the observations
_LANE_COLUMNS = ("head", "rows", "steps", "open")
_CONFIG = ("capacity", "num_envs", "frame_stack", "episodes")

FORMAT = 2  # of the file that `ReplayBuffer.save` writes

Observation = Any  # one array or tensor, or a dict of them, as the space says


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
    frames = sum(
        math.prod(shape) * DTYPES[fields[name].dtype.name].itemsize
        for name, shape in frame_shapes(fields, frame_stack).items()
    )
    # action, reward, terminated, clock, acted
    row = frames + 4 * action_space.shape[0] + 4 + 1 + 8 + 1
    return num_envs * _rows_per_lane(capacity, num_envs, episodes) * row


def _rows_per_lane(capacity: int, num_envs: int, episodes: int | None) -> int:
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
        self._lane_rows = _rows_per_lane(self.capacity, self.num_envs, self.episodes)
        self.device = residence(device, self.nbytes)
        require_memory(self.capacity, self.nbytes, self.device)
        self._lock = threading.RLock()

        rows = self.num_envs * self._lane_rows
        self._o = {
            name: torch.empty(rows, math.prod(shape), dtype=self._dtype(name), device=self.device)
            for name, shape in self._frame_shapes.items()
        }
        self._a = torch.zeros(rows, self.action_dim, device=self.device)
        self._r = torch.zeros(rows, device=self.device)
        self._terminated = torch.zeros(rows, dtype=torch.bool, device=self.device)
        # Bookkeeping stays on the CPU: it decides which rows to touch.
        self._clock = np.full(rows, EMPTY, np.int64)
        self._acted = np.zeros(rows, bool)  # the row holds an action, and so the next its outcome
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
        """Bytes that the rows take when all are filled."""
        spaces_ = (self.observation_space, self.action_space)
        options = dict(frame_stack=self.frame_stack, episodes=self.episodes)
        return buffer_bytes(self.capacity, *spaces_, self.num_envs, **options)

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

        newest = self._index(self._row(np.arange(n), -1))
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
        rows = self._row(lanes, -1)
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
        rows = self._row(lane, np.arange(length + 1))
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

    def _row(self, lanes: np.ndarray, ahead: Any) -> np.ndarray:
        """Rows that lie so far ahead of where each of `lanes` writes next."""
        return lanes * self._lane_rows + (self._head[lanes] + ahead) % self._lane_rows

    def _append(self, lanes: np.ndarray, frames: dict[str, Tensor], clock: np.ndarray) -> None:
        """Write one new row into each of `lanes`, taking frames (num_envs, ...) of these lanes."""
        self._drop_oldest(lanes[self._rows[lanes] == self._lane_rows])
        rows = self._row(lanes, 0)
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
        rows = self._row(lanes, -self._rows[lanes])
        self._steps[lanes] -= self._acted[rows]
        self._rows[lanes] -= 1
        self._clock[rows], self._acted[rows] = EMPTY, False

    # -- checks at the edge ------------------------------------------------------------------------

    def _frames(
        self, what: str, value: Observation, leading: tuple[int]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Newest frames (*leading, numel) by field; full stacks (*leading, frame_stack, numel)."""
        given = value if isinstance(self.observation_space, spaces.Dict) else {"": value}
        if not isinstance(given, Mapping) or set(given) != set(self._fields):
            keys = sorted(given) if isinstance(given, Mapping) else type(given).__name__
            raise ValueError(
                f"{what} is {keys}; expected a dict with the keys {sorted(self._fields)}."
            )
        frames, stacks = {}, {}
        for name, box in self._fields.items():
            label, dtype = f"{what}[{name!r}]" if name else what, self._dtype(name)
            tensor = _tensor(label, given[name]).to(self.device)
            if tensor.dtype != dtype and (tensor.is_complex() or not dtype.is_floating_point):
                raise ValueError(
                    f"{label} is {tensor.dtype}; the observation space says {dtype}, convert it "
                    "first."
                )
            shape = tuple(tensor.shape)
            whole = shape == (*leading, *box.shape)
            if not whole and (what != "o" or shape != (*leading, *self._frame_shapes[name])):
                axis = "the observations, one more than the actions" if what == "o" else "num_envs"
                raise ValueError(
                    f"{label} has shape {shape}; expected {(*leading, *box.shape)}, the leading "
                    f"axis being {axis}."
                )
            if whole and name in self._stacked:
                stacks[name] = tensor.reshape(*leading, self.frame_stack, -1)
                tensor = stacks[name][:, -1].contiguous()
            frames[name] = tensor.reshape(*leading, -1).to(dtype)
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
            expected = str(shape).replace("None", "T")
            raise ValueError(f"{what} has shape {sizes}; expected {expected}.")
        tensor = tensor.float()
        if not tensor.isfinite().all():
            raise ValueError(
                f"{what} contains NaN or infinity; expected finite numbers, do not store this step."
            )
        return tensor

    # -- sampling ----------------------------------------------------------------------------------

    sample = _locked(Windows.sample)

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
            by_lane = torch.as_tensor(values).unflatten(0, (self.num_envs, self._lane_rows))
            return by_lane[:, :used].cpu().contiguous()

        payload = {
            "format": FORMAT,
            "config": {name: getattr(self, name) for name in _CONFIG},
            "observation_space": json.dumps(describe_space(self.observation_space)),
            "action_space": json.dumps(describe_space(self.action_space)),
            "next_episode": self._next_episode,
            "o": {name: rows(values) for name, values in self._o.items()},
            "rows": {name: rows(getattr(self, f"_{name}")) for name in _ROW_COLUMNS},
            "lanes": {name: torch.from_numpy(getattr(self, f"_{name}")) for name in _LANE_COLUMNS},
        }
        with replacing(path) as partial:
            save_tensors(payload, partial)

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
            payload = load_tensors(path, mmap=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise ValueError(
                f"{path} is not a readable replay buffer ({type(error).__name__}); write it again."
            ) from error
        known = isinstance(payload, dict) and "lanes" in payload
        if not known or payload.get("format") != FORMAT:
            raise ValueError(f"{path} is not a replay buffer of format {FORMAT}; write it again.")
        try:
            described = {
                name: rebuild_space(json.loads(payload[name]))
                for name in ("observation_space", "action_space")
            }
            buffer = cls(**payload["config"], **described, device=device)
            lanes = (buffer.num_envs, buffer._lane_rows)
            columns = [(values, payload["o"][name]) for name, values in buffer._o.items()]
            columns += [
                (getattr(buffer, f"_{name}"), payload["rows"][name]) for name in _ROW_COLUMNS
            ]
            for values, saved in columns:
                # shares the memory of an array
                by_lane = torch.as_tensor(values).unflatten(0, lanes)
                by_lane[:, : saved.shape[1]] = saved.to(by_lane.device)
            for name in _LANE_COLUMNS:
                getattr(buffer, f"_{name}")[:] = payload["lanes"][name].numpy()
            buffer._next_episode = payload["next_episode"]
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is a replay buffer whose contents do not fit ({type(error).__name__}: "
                f"{error}); write it again."
            ) from error
        return buffer


def _tensor(what: str, value: ArrayLike | Tensor) -> Tensor:
    array = None if isinstance(value, Tensor) else np.asarray(value)
    if array is not None and array.dtype.kind not in "biuf":
        kind = "objects" if array.dtype == object else str(array.dtype)
        raise ValueError(
            f"{what} is an array of {kind}; expected real numbers of one shape for every env or "
            "step."
        )
    if array is None:
        assert isinstance(value, Tensor)
        if value.is_complex():
            raise ValueError(f"{what} is {value.dtype}; expected real numbers.")
        return value.detach()
    # torch takes no read-only or reversed arrays
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _flags(what: str, value: ArrayLike | Tensor, shape: tuple[int]) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.shape != shape or not (array.dtype == bool or np.isin(array, (0, 1)).all()):
        raise ValueError(
            f"{what} has shape {array.shape} and dtype {array.dtype}; expected bool {shape}."
        )
    return np.array(array, bool)
