"""Reading a dataset: its metadata, its episodes one by one, or all of them into a replay buffer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from gjwm.data.dataset.episodes import Episode, from_columns, restack
from gjwm.data.dataset.metadata import read_metadata
from gjwm.data.dataset.shard import Shard
from gjwm.data.dataset.writer import recover
from gjwm.data.replay import ReplayBuffer, rebuild_space


def dataset_info(path: str | Path) -> dict[str, Any]:
    """The folder's metadata, plain JSON, after finishing what a crash may have left undone.

    Raises:
        FileNotFoundError, ValueError: when there is no dataset at `path`, or metadata.json is
            damaged.
    """
    recover(path)
    return read_metadata(path)


def mismatch(shard: Shard, entry: Mapping[str, Any], first: int) -> str:
    """What a shard holds against what metadata.json says of it; "" where they agree."""
    if (shard.first_episode, shard.episodes, shard.steps) == (
        first,
        entry["episodes"],
        entry["steps"],
    ):
        return ""
    return (
        f"holds {shard.episodes} episodes from number {shard.first_episode} and {shard.steps} "
        f"steps, metadata.json says {entry['episodes']}, {first} and {entry['steps']}"
    )


def open_shards(path: str | Path, info: Mapping[str, Any]) -> Iterator[Shard]:
    """The dataset's shards, each open until the next is asked for.

    Raises:
        ValueError: naming the first shard that is missing, damaged or of another dataset.
    """
    first = 0
    for entry in info["shards"]:
        with Shard(Path(path) / entry["file"]) as shard:
            if wrong := mismatch(shard, entry, first):
                raise ValueError(
                    f"{shard.path} {wrong}; restore the file or collect the dataset again."
                )
            yield shard
        first += entry["episodes"]


def read_episodes(path: str | Path) -> Iterator[Episode]:
    """The dataset's episodes in the order they were collected, observations stacked as the env
    returned them.

    Raises:
        ValueError: naming the first shard that is missing, or the first episode that is damaged.
    """
    info = dataset_info(path)
    space = rebuild_space(info["observation_space"])
    for shard in open_shards(path, info):
        for k in range(shard.episodes):
            episode = from_columns(shard.read_checked(k))
            yield episode._replace(o=restack(episode.o, space, info["frame_stack"]))


def episode_lengths(path: str | Path) -> list[int]:
    """Steps of each episode in the order they were collected; errors as `read_episodes`, damage
    within episodes aside.
    """
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
    try:
        buffer = ReplayBuffer(
            steps,
            rebuild_space(info["observation_space"]),
            rebuild_space(info["action_space"]),
            device=device,
            frame_stack=info["frame_stack"],
            episodes=count,
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
