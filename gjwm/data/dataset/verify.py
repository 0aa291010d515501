"""Reading every byte of a dataset and saying what is wrong with which episode. Nothing is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gjwm.data.dataset.episodes import Episode, checksum, from_columns, not_finite, to_columns
from gjwm.data.dataset.folder import JOURNAL, read_metadata
from gjwm.data.dataset.journal import read_journal
from gjwm.data.dataset.shard import Shard
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
    space, action_space = (
        rebuild_space(info["observation_space"]),
        rebuild_space(info["action_space"]),
    )
    problems, first, columns = [], 0, None
    for entry in info["shards"]:
        try:
            shard = Shard(path / entry["file"])
        except ValueError as error:
            last = first + entry["episodes"] - 1
            which = f"episode {first}" if last == first else f"episodes {first} to {last}"
            problems.append(f"{which}: {error}")
            first += entry["episodes"]
            continue
        with shard:
            steps = int(shard.rows.sum()) - shard.episodes
            if (shard.first_episode, shard.episodes, steps) != (
                first,
                entry["episodes"],
                entry["steps"],
            ):
                problems.append(
                    f"{entry['file']} holds {shard.episodes} episodes from number "
                    f"{shard.first_episode} and {steps} steps; metadata.json says "
                    f"{entry['episodes']}, {first} and {entry['steps']}."
                )
            different = [
                k
                for k, v in shard.header.items()
                if k not in ("versions", "renderer") and info[k] != v
            ]
            if different:
                problems.append(
                    f"{entry['file']} is of another dataset: it differs in {', '.join(different)}."
                )
            columns = columns or shard.columns
            if shard.columns != columns:
                problems.append(
                    f"{entry['file']} has the columns {', '.join(shard.columns)}, others "
                    f"{', '.join(columns)}."
                )
            for k in range(shard.episodes):
                problem = _episode_problem(shard, k, space, action_space, info["frame_stack"])
                if problem:
                    problems.append(f"episode {first + k} in {entry['file']}: {problem}")
        first += entry["episodes"]
    if first != info["episodes"]:
        problems.append(f"metadata.json counts {info['episodes']} episodes and lists {first}.")
    listed = {entry["file"] for entry in info["shards"]}
    for stray in sorted(p.name for p in path.glob("shard-*") if p.name not in listed):
        problems.append(
            f"{stray} is not listed in metadata.json; the next open takes it up if it continues "
            f"the dataset."
        )
    if (path / JOURNAL).exists():
        found = list(read_journal(path / JOURNAL))
        whole, torn = (
            sum(not isinstance(item, int) for item in found),
            any(isinstance(item, int) for item in found),
        )
        problems.append(
            f"the journal holds {whole} finished episodes{' and an unfinished one' * torn}: a "
            "collection is running or was interrupted; the next open moves them into a shard."
        )
    return problems


def _episode_problem(
    shard: Shard, k: int, space: object, action_space: object, frame_stack: int
) -> str | None:
    try:
        columns = shard.read(k)
    except ValueError as error:
        return f"cannot be read ({error.__cause__})."
    if checksum(columns) != shard.crc32[k]:
        return "its bytes are not those that were written (the checksum differs)."
    episode: Episode = from_columns(columns)
    for name, values in columns.items():
        body = values[:-1] if name in ("action", "reward") else values
        if not_finite(body):
            row = int(np.flatnonzero(~np.isfinite(body).reshape(len(body), -1).all(1))[0])
            return f"{name} contains NaN or infinity at step {row}."
    try:
        to_columns(episode, space, action_space, frame_stack)
    except ValueError as error:
        return str(error)
    return None
