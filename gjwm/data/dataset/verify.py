"""Reading every byte of a dataset and saying what is wrong with it. Nothing is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gjwm.data.dataset.episodes import checksum, from_columns, not_finite, to_columns
from gjwm.data.dataset.journal import read_journal
from gjwm.data.dataset.metadata import read_metadata
from gjwm.data.dataset.reader import mismatch
from gjwm.data.dataset.shard import Shard
from gjwm.data.dataset.writer import JOURNAL
from gjwm.data.replay import rebuild_space


def verify(path: str | Path) -> list[str]:
    """Everything that is wrong with the dataset, one sentence each, naming the shard and the
    episode; [] if nothing is.

    Raises:
        FileNotFoundError, ValueError: when there is no dataset at `path`, or metadata.json is
            damaged.
    """
    path = Path(path)
    info = read_metadata(path)
    fitting = (
        rebuild_space(info["observation_space"]),
        rebuild_space(info["action_space"]),
        info["frame_stack"],
    )
    problems, first, columns = [], 0, None
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
            free = ("versions", "renderer")
            if other := [k for k, v in shard.header.items() if k not in free and info[k] != v]:
                problems.append(f"{name} is of another dataset: it differs in {', '.join(other)}.")
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
