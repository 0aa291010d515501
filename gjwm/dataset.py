"""Datasets on disk: a folder of episodes that can be extended at any time, independent of how they were collected.

    data/<name>/metadata.json      env, spaces, versions, totals, and one entry per shard; written last
    data/<name>/shard-00000.npz    whole episodes end to end, never changed again

Columns of a shard, for E episodes of T_1 .. T_E steps: `length` (E,); `o` (sum T+1, *O), or `o.<key>` for each key of a Dict
space, single frames where the env stacks them; `a` (sum T, A), `r`, `terminated`, `truncated` (sum T,); and, where the
simulator was recorded, `sim_state` (sum T+1, X), `position` (sum T+1, P), `true_state.<key>` (sum T+1, ...).
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from gjwm.replay import ReplayBuffer, box_fields, describe_space, rebuild_space, stack_frames, stacked_fields

FORMAT = 1

Arrays = np.ndarray | dict[str, np.ndarray]


class Episode(NamedTuple):
    """T steps of one episode; the last three only where the simulator was recorded."""

    o: Arrays  # (T+1, *O), or a dict of such arrays for a Dict space
    a: np.ndarray  # (T, A) float32
    r: np.ndarray  # (T,) float32
    terminated: np.ndarray  # (T,) bool, true on the last step at most
    truncated: np.ndarray  # (T,) bool, likewise; the recording's own length also truncates
    sim_state: np.ndarray | None = None  # (T+1, X) float64, what `env.unwrapped.set_state` takes
    position: np.ndarray | None = None  # (T+1, P) float64, what success is measured on
    true_state: dict[str, np.ndarray] | None = None  # (T+1, ...) named simulator variables


def newest_frames(o: Arrays, observation_space: spaces.Space, frame_stack: int) -> Arrays:
    """Stacked observations (T+1, frame_stack * C, h, w) -> single frames (T+1, C, h, w); state vectors unchanged."""
    fields = box_fields(observation_space)
    images = stacked_fields(fields, frame_stack)

    def newest(name: str, values: np.ndarray) -> np.ndarray:
        return values[:, -(fields[name].shape[0] // frame_stack) :] if name in images else values

    return {name: newest(name, values) for name, values in o.items()} if isinstance(o, dict) else newest("", o)


def restack(o: Arrays, observation_space: spaces.Space, frame_stack: int) -> Arrays:
    """The inverse of `newest_frames`, for the observations of one whole episode."""
    images = stacked_fields(box_fields(observation_space), frame_stack)
    if isinstance(o, dict):
        return {name: stack_frames(values, frame_stack) if name in images else values for name, values in o.items()}
    return stack_frames(o, frame_stack) if images else o


def dataset_info(path: str | Path) -> dict[str, Any]:
    """The folder's metadata, plain JSON.

    Raises:
        FileNotFoundError, ValueError: when there is no dataset at `path`, or metadata.json is damaged.
    """
    file = Path(path) / "metadata.json"
    if not file.is_file():
        raise FileNotFoundError(f"no dataset at {path} (it has no metadata.json); collect one with `gjwm collect`.")
    try:
        info = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); restore it or collect the dataset again.") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        found = info.get("format") if isinstance(info, dict) else type(info).__name__
        raise ValueError(f"{file} has dataset format {found!r}, this version reads {FORMAT}; collect it again.")
    return info


def open_dataset(
    path: str | Path,
    *,
    env_id: str,
    env_kwargs: Mapping[str, Any],
    observation_space: spaces.Space,
    action_space: spaces.Space,
    frame_stack: int = 1,
    record_state: bool = False,
) -> dict[str, Any]:
    """Start a dataset folder, or open one to be extended, and return its metadata.

    Raises:
        ValueError: when the folder holds episodes of another env, other arguments, or other columns.
    """
    path = Path(path)
    try:
        header = json.loads(
            json.dumps(
                {
                    "env_id": env_id,
                    "env_kwargs": dict(env_kwargs),
                    "observation_space": describe_space(observation_space),
                    "action_space": describe_space(action_space),
                    "frame_stack": frame_stack,
                    "record_state": record_state,
                }
            )
        )
    except TypeError as error:
        raise ValueError(
            f"env_kwargs {dict(env_kwargs)} must be plain JSON to be kept with a dataset: {error}."
        ) from error
    if (path / "metadata.json").exists():
        info = dataset_info(path)
        for name, value in header.items():
            if info[name] != value:
                raise ValueError(
                    f"{path} holds episodes with {name}={info[name]!r} and cannot be extended with {name}={value!r}; choose "
                    "another folder."
                )
        return info
    info = {"format": FORMAT, **header, "versions": _versions(), "episodes": 0, "steps": 0, "shards": []}
    path.mkdir(parents=True, exist_ok=True)
    _write_metadata(path, info)
    return info


def write_shard(path: str | Path, episodes: Sequence[Episode], **source: Any) -> Path:
    """Append episodes to an opened dataset as one new shard, atomically: a crash leaves the dataset as it was.

    Args:
        episodes: observations stacked as the env returned them, or single frames.
        source: plain JSON kept with the shard, such as behaviour and seed.

    Returns:
        the shard's file.
    """
    path = Path(path)
    info = dataset_info(path)
    if not episodes:
        raise ValueError("a shard needs at least one episode, got none.")
    space, frame_stack = rebuild_space(info["observation_space"]), info["frame_stack"]
    single = []
    for episode in episodes:
        o = episode.o
        given = o if isinstance(o, dict) else {"": o}
        # Single frames have fewer channels than the space says.
        stacked = all(given[name].shape[1:] == box.shape for name, box in box_fields(space).items())
        single.append(episode._replace(o=newest_frames(o, space, frame_stack) if stacked else o))
    columns = {"length": np.array([len(e.a) for e in single])}
    for field in Episode._fields:
        if getattr(single[0], field) is not None:
            parts = [_columns(field, getattr(e, field)) for e in single]
            columns |= {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    file = path / f"shard-{len(info['shards']):05d}.npz"
    with _Replacing(file) as stream:
        np.savez(stream, **columns)
    entry = {"file": file.name, "episodes": len(single), "steps": int(columns["length"].sum()), **source}
    info["shards"].append(entry)
    info["episodes"] += entry["episodes"]
    info["steps"] += entry["steps"]
    _write_metadata(path, info)
    return file


def read_episodes(path: str | Path) -> Iterator[Episode]:
    """The dataset's episodes in the order they were collected, observations stacked as the env returned them.

    Raises:
        ValueError: naming the first shard that is missing or damaged.
    """
    info = dataset_info(path)
    space = rebuild_space(info["observation_space"])
    for episode in _single_frame_episodes(Path(path), info):
        yield episode._replace(o=restack(episode.o, space, info["frame_stack"]))


def load_buffer(path: str | Path, device: torch.device | str = "cpu") -> ReplayBuffer:
    """A replay buffer that holds the whole dataset and no more.

    Raises:
        ValueError: when the dataset is empty or a shard is missing or damaged.
        MemoryError: when it does not fit into memory.
    """
    info = dataset_info(path)
    if not info["episodes"]:
        raise ValueError(f"the dataset {path} holds no episodes yet; collect some.")
    buffer = ReplayBuffer(
        info["steps"],
        rebuild_space(info["observation_space"]),
        rebuild_space(info["action_space"]),
        device=device,
        frame_stack=info["frame_stack"],
        episodes=info["episodes"],
    )
    for episode in _single_frame_episodes(Path(path), info):
        buffer.add_episode(*episode[:5])
    return buffer


def _single_frame_episodes(path: Path, info: dict[str, Any]) -> Iterator[Episode]:
    for entry in info["shards"]:
        columns = _read_shard(path / entry["file"])
        length = columns.pop("length")
        if len(length) != entry["episodes"] or length.sum() != entry["steps"]:
            raise ValueError(
                f"{path / entry['file']} holds {len(length)} episodes and {length.sum()} steps, its metadata says "
                f"{entry['episodes']} and {entry['steps']}; restore the file or collect the dataset again."
            )
        first_action, first_frame = np.cumsum(length) - length, np.cumsum(length + 1) - (length + 1)
        for t, action, frame in zip(length, first_action, first_frame):
            fields: dict[str, Any] = {}
            for name, values in columns.items():
                field, _, key = name.partition(".")
                per_step = field in ("a", "r", "terminated", "truncated")
                rows = values[action : action + t] if per_step else values[frame : frame + t + 1]
                if key:
                    fields.setdefault(field, {})[key] = rows
                else:
                    fields[field] = rows
            yield Episode(**fields)


def _read_shard(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as columns:
            return {name: columns[name] for name in columns.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"the shard {file} is missing or damaged ({type(error).__name__}: {error}); restore it or collect the dataset "
            "again."
        ) from error


def _columns(field: str, values: Arrays) -> dict[str, np.ndarray]:
    if isinstance(values, dict):
        return {f"{field}.{key}": array for key, array in sorted(values.items())}
    return {field: values}


def _write_metadata(path: Path, info: dict[str, Any]) -> None:
    with _Replacing(path / "metadata.json") as stream:
        stream.write((json.dumps(info, indent=1, allow_nan=False) + "\n").encode())


class _Replacing:
    """A binary file that appears under its name only when it is complete and on disk."""

    def __init__(self, file: Path):
        self.file, self.partial = file, file.with_name(file.name + ".partial")

    def __enter__(self):
        self.stream = open(self.partial, "wb")
        return self.stream

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.stream.flush()
            os.fsync(self.stream.fileno())
        self.stream.close()
        if kind is None:
            self.partial.replace(self.file)
        else:
            self.partial.unlink()


def _versions() -> dict[str, str]:
    found = {}
    for package in ("gjwm", "torch", "numpy", "gymnasium", "mujoco", "dm-control"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
