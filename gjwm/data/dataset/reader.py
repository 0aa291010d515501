"""Reading a dataset: its metadata, its episodes one by one, all of them into a replay buffer, or
every byte to say what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gjwm.data.dataset.episodes import (
    Episode,
    checksum,
    from_columns,
    not_finite,
    restack,
    to_columns,
)
from gjwm.data.dataset.journal import read_journal
from gjwm.data.dataset.metadata import layout, read_metadata
from gjwm.data.dataset.shard import Shard
from gjwm.data.dataset.writer import JOURNAL, recover
from gjwm.data.replay import ReplayBuffer, box_fields, frame_shapes


def dataset_info(path: str | Path) -> dict[str, Any]:
    """The folder's metadata, plain JSON, after finishing what a crash may have left undone.

    Raises:
        FileNotFoundError, ValueError: without a dataset at `path`, or with damaged metadata.
    """
    recover(path)
    return read_metadata(path)


def mismatch(shard: Shard, entry: Mapping[str, Any], first: int) -> str:
    """What a shard holds against what metadata.json says of it; "" where they agree."""
    held = (shard.episodes, shard.first_episode, shard.steps)
    listed = (entry["episodes"], first, entry["steps"])
    if held == listed:
        return ""
    return "holds {} episodes from number {} and {} steps, ".format(
        *held
    ) + "metadata.json says {}, {} and {}".format(*listed)


def unfit(shard: Shard, info: Mapping[str, Any]) -> str:
    """What of a shard is not as metadata.json describes the dataset; "" where all is."""
    free = ("versions", "renderer")
    if other := [k for k, v in shard.header.items() if k not in free and info.get(k) != v]:
        return f"is of another dataset: it differs in {', '.join(other)}"
    space, action_space, frame_stack = layout(info)
    fields = box_fields(space)
    expected = {"action": (np.dtype("<f4"), action_space.shape), "reward": (np.dtype("<f4"), ())}
    expected |= dict.fromkeys(("terminated", "truncated"), (np.dtype(bool), ()))
    for name, shape in frame_shapes(fields, frame_stack).items():
        expected[f"observation/{name}" if name else "observation"] = (fields[name].dtype, shape)
    for name, kind in expected.items():
        if name not in shard.columns:
            return f"has no column {name}"
        if shard.kind(name) != kind:
            return "has {} {} in {}, expected {} {}".format(*shard.kind(name), name, *kind)
    free = {"sim_state", "position"} | {n for n in shard.columns if n.startswith("true_state/")}
    if strange := set(shard.columns) - set(expected) - free:
        return f"has the strange column {min(strange)}"
    return ""


def open_shards(path: str | Path, info: Mapping[str, Any]) -> Iterator[Shard]:
    """The dataset's shards, each open until the next is asked for.

    Raises:
        ValueError: naming the first shard that is missing, damaged or of another dataset.
    """
    first = 0
    for entry in info["shards"]:
        with Shard(Path(path) / entry["file"]) as shard:
            if wrong := mismatch(shard, entry, first) or unfit(shard, info):
                raise ValueError(
                    f"{shard.path} {wrong}; restore the file or collect the dataset again."
                )
            yield shard
        first += entry["episodes"]


def read_episodes(path: str | Path) -> Iterator[Episode]:
    """The dataset's episodes in order, observations stacked as the env returned them.

    Raises:
        ValueError: naming the first shard that is missing, or the first episode that is damaged.
    """
    info = dataset_info(path)
    space, _, frame_stack = layout(info)
    for shard in open_shards(path, info):
        for k in range(shard.episodes):
            episode = from_columns(shard.read_checked(k))
            yield episode._replace(o=restack(episode.o, space, frame_stack))


def episode_lengths(path: str | Path) -> list[int]:
    """Steps of each episode in order; errors as `read_episodes`, damage within episodes aside."""
    info = dataset_info(path)
    return [int(rows) - 1 for shard in open_shards(path, info) for rows in shard.rows]


def require_episodes(path: str | Path, episodes: int | None = None) -> dict[str, Any]:
    """The dataset's metadata, refused when there are no episodes, or fewer than asked for."""
    info = dataset_info(path)
    if not info["episodes"]:
        raise ValueError(f"the dataset {path} holds no episodes yet; collect some.")
    if episodes is not None and not 1 <= episodes <= info["episodes"]:
        raise ValueError(
            f"the dataset {path} holds {info['episodes']} episodes; {episodes} were asked for."
        )
    return info


def load_buffer(
    path: str | Path, device: torch.device | str = "cpu", *, episodes: int | None = None
) -> ReplayBuffer:
    """A replay buffer that holds the dataset, or its first `episodes`, and no more.

    Raises:
        ValueError: when the dataset is empty, a shard is missing, or an episode is damaged or holds
            NaN.
        MemoryError: when it does not fit into memory; `gjwm.data.dataset.DiskWindows` needs not.
    """
    info = require_episodes(path, episodes)
    count = episodes or info["episodes"]
    steps = info["steps"] if count == info["episodes"] else sum(episode_lengths(path)[:count])
    space, actions, frame_stack = layout(info)
    try:
        buffer = ReplayBuffer(
            steps, space, actions, device=device, frame_stack=frame_stack, episodes=count
        )
    except MemoryError as error:
        raise MemoryError(
            f"{path}: {error} Or read it from disk: storage=disk, gjwm.data.dataset.DiskWindows."
        ) from error
    for shard in open_shards(path, info):
        for k in range(min(shard.episodes, count - shard.first_episode)):
            try:
                buffer.add_episode(*from_columns(shard.read_checked(k))[:5])
            except ValueError as error:
                number = shard.first_episode + k
                raise ValueError(f"episode {number} in {shard.path}: {error}") from error
        if shard.first_episode + shard.episodes >= count:
            break
    return buffer


# -- every byte ------------------------------------------------------------------------------------


def verify(path: str | Path) -> list[str]:
    """All that is wrong with the dataset, a sentence each with shard and episode; [] if nothing is.

    Raises:
        FileNotFoundError, ValueError: without a dataset at `path`, or with damaged metadata.
    """
    path = Path(path)
    info = read_metadata(path)
    fitting, problems, first, columns = layout(info), [], 0, None
    for entry in info["shards"]:
        name, count = entry["file"], entry["episodes"]
        try:
            shard = Shard(path / name)
        except ValueError as error:
            which = f"episode {first}" if count == 1 else f"episodes {first} to {first + count - 1}"
            problems.append(f"{which}: {error}")
            first += count
            continue
        with shard:
            if wrong := mismatch(shard, entry, first):
                problems.append(f"{name} {wrong}.")
            if strange := unfit(shard, info):
                problems.append(f"{name} {strange}.")
                first += count
                continue
            columns = columns or shard.columns
            if shard.columns != columns:
                problems.append(
                    f"{name} has the columns {', '.join(shard.columns)}, others "
                    f"{', '.join(columns)}."
                )
            for k in range(shard.episodes):
                if problem := _episode_problem(shard, k, fitting):
                    problems.append(f"episode {first + k} in {name}: {problem}")
        first += count
    if first != info["episodes"]:
        problems.append(f"metadata.json counts {info['episodes']} episodes and lists {first}.")
    listed = {entry["file"] for entry in info["shards"]}
    for stray in sorted(p.name for p in path.glob("shard-*") if p.name not in listed):
        problems.append(
            f"{stray} is not listed in metadata.json; the next open takes it up if it continues "
            "the dataset."
        )
    if (path / JOURNAL).exists():
        records, lost = read_journal(path / JOURNAL)
        problems.append(
            f"the journal holds {len(records)} finished episodes"
            f"{' and an unfinished one' * bool(lost)}: a collection is running or was interrupted; "
            "the next open moves them into a shard."
        )
    return problems


def _episode_problem(shard: Shard, k: int, fitting: tuple) -> str:
    try:
        columns = shard.read(k)
    except ValueError as error:
        return f"cannot be read ({error.__cause__})."
    if checksum(columns) != shard.crc32[k]:
        return "its bytes are not those that were written (the checksum differs)."
    for name, values in columns.items():
        body = values[:-1] if name in ("action", "reward") else values
        if not_finite(body):
            row = int(np.flatnonzero(~np.isfinite(body).reshape(len(body), -1).all(1))[0])
            return f"{name} contains NaN or infinity at step {row}."
    try:
        to_columns(from_columns(columns), *fitting)
    except ValueError as error:
        return str(error)
    return ""
