"""A dataset: a folder of shards that can be extended at any time, and that survives whatever stops
it.

    data/<name>/metadata.json       env, spaces, versions, totals, and one entry per shard; replaced
    as a whole data/<name>/shard-00000.h5      whole episodes, never changed again
    (`gjwm.data.dataset.shard`) data/<name>/journal             finished episodes that no shard
    holds yet (`gjwm.data.dataset.journal`) data/<name>/lock                held by the process that
    extends the dataset

An episode is in the journal as soon as it is finished. When enough have come, they are written as a
shard, the shard is listed, and the journal is cleared, each step complete on disk before the next;
whoever opens the folder after a crash takes up where it stopped. Readers need no lock: what is
listed never changes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces

from gjwm._core.files import acquire, replacing
from gjwm.data.dataset.episodes import Episode, checksum, from_columns, restack, to_columns
from gjwm.data.dataset.journal import MAGIC, Journal, Record, read_journal
from gjwm.data.dataset.shard import FORMAT, Shard, write_shard
from gjwm.data.replay import ReplayBuffer, box_fields, describe_space, rebuild_space

log = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
JOURNAL = "journal"
HEADER = (
    "env_id",
    "env_kwargs",
    "observation_space",
    "action_space",
    "frame_stack",
    "record_state",
)


def dataset_info(path: str | Path) -> dict[str, Any]:
    """The folder's metadata, plain JSON, after finishing what a crash may have left undone; see
    `recover`.

    Raises:
        FileNotFoundError, ValueError: when there is no dataset at `path`, or metadata.json is
            damaged.
    """
    recover(path)
    return read_metadata(path)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """metadata.json as it is; errors as `dataset_info`."""
    file = Path(path) / "metadata.json"
    if not file.is_file():
        if file.parent.is_dir() and any(file.parent.glob("shard-*.*")):
            raise ValueError(
                f"{path} holds shards and no metadata.json; restore that file, or convert the "
                f"shards one by one."
            )
        raise FileNotFoundError(
            f"no dataset at {path} (it has no metadata.json); collect one with `gjwm collect`."
        )
    try:
        info = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"{file} is not valid JSON ({error}); restore it or collect the dataset again."
        ) from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        found = info.get("format") if isinstance(info, dict) else type(info).__name__
        raise ValueError(
            f"{file} has dataset format {found!r}, this version reads {FORMAT}; collect it again."
        )
    missing = [
        name for name in (*HEADER, "versions", "episodes", "steps", "shards") if name not in info
    ]
    if missing:
        raise ValueError(
            f"{file} lacks {', '.join(missing)}; restore it or collect the dataset again."
        )
    return info


class DatasetWriter:
    """Extends a dataset folder, or starts one. A context manager: leaving it seals the last shard,
    also after an error.

    Args:
        path: a new or empty folder, or a dataset of the same env, arguments and columns.
        env_id, env_kwargs: what was played, plain JSON.
        observation_space, action_space: of one env.
        frame_stack: frames per image observation; single frames are stored.
        record_state: whether episodes hold sim_state and true_state.
        renderer: what drew the images, if anything did.
        compress: gzip images: small files, slower to read. A dataset keeps what it was started
            with.
        shard_bytes: size after which a shard is sealed.
        collected: who acted, how long and from which seed, kept with a new dataset, so that more
            episodes like these can be collected.

    Raises:
        ValueError: for a folder that cannot be extended so; nothing in it is touched.
        BlockingIOError: while another process extends it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        env_id: str,
        env_kwargs: Mapping[str, Any],
        observation_space: spaces.Space,
        action_space: spaces.Box,
        frame_stack: int = 1,
        record_state: bool = False,
        renderer: str = "",
        compress: bool = False,
        shard_bytes: int = SHARD_BYTES,
        collected: Mapping[str, Any] | None = None,
    ):
        self.path, self.shard_bytes = Path(path), shard_bytes
        self._space, self._action_space, self._frame_stack = (
            observation_space,
            action_space,
            frame_stack,
        )
        box_fields(observation_space)
        header = {
            "env_id": env_id,
            "env_kwargs": dict(env_kwargs),
            "observation_space": describe_space(observation_space),
            "action_space": describe_space(action_space),
            "frame_stack": frame_stack,
            "record_state": record_state,
        }
        try:
            header = json.loads(json.dumps(header))
        except TypeError as error:
            raise ValueError(
                f"env_kwargs {dict(env_kwargs)} must be plain JSON to be kept with a dataset: "
                f"{error}."
            ) from error
        if (self.path / "metadata.json").exists():
            info = read_metadata(self.path)
            for name, value in header.items():
                if info[name] != value:
                    raise ValueError(
                        f"{path} holds episodes with {name}={info[name]!r} and cannot be extended "
                        f"with {name}={value!r}; choose another folder."
                    )
        # A writer killed at its very start leaves these two and nothing to lose.
        elif self.path.is_dir() and (
            found := sorted(
                p.name
                for p in self.path.iterdir()
                if p.name not in ("lock", "metadata.json.partial")
            )
        ):
            raise ValueError(
                f"{path} is no dataset and not empty (it has {found[0]}); choose another folder."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _acquire(self.path)
        try:
            if (self.path / "metadata.json").exists():
                _finish(self.path)
                self.info = read_metadata(self.path)
                if renderer and renderer != self.info["renderer"]:
                    log.warning(
                        f"{path} was drawn by {self.info['renderer'] or 'nothing'}, new episodes "
                        f"are drawn by {renderer}."
                    )
            else:
                self.info = {"format": FORMAT, **header, "renderer": renderer, "compress": compress}
                self.info["collected"] = None if collected is None else dict(collected)
                self.info |= {"versions": _versions(), "episodes": 0, "steps": 0, "shards": []}
                _write_metadata(self.path, self.info)
            self._journal = Journal(self.path / JOURNAL)
        except BaseException:
            os.close(self._lock)
            raise
        self._pending: list[Record] = []
        self._bytes = 0

    @property
    def episodes(self) -> int:
        """Episodes in the dataset, sealed or not."""
        return self.info["episodes"] + len(self._pending)

    def append(self, episode: Episode, **source: Any) -> None:
        """Add a finished episode; when this returns, it survives the death of the process.

        Args:
            episode: observations stacked as the env returned them, or single frames.
            source: plain JSON kept with it, such as behaviour and seed.

        Raises:
            ValueError: for an episode that does not fit the dataset or holds NaN; the dataset stays
                as it was.
            OSError: when the disk is full, say; likewise.
        """
        try:
            columns = to_columns(episode, self._space, self._action_space, self._frame_stack)
        except ValueError as error:
            raise ValueError(f"episode {self.episodes} was not stored: {error}") from error
        if self._pending and columns.keys() != self._pending[0].columns.keys():
            raise ValueError(
                f"episode {self.episodes} has the columns {', '.join(columns)}, those before it "
                f"{', '.join(self._pending[0].columns)}; record the same of every episode."
            )
        record = Record(self.episodes, source, columns, checksum(columns))
        self._journal.append(record)
        self._pending.append(record)
        self._bytes += sum(values.nbytes for values in columns.values())
        if self._bytes >= self.shard_bytes:
            self.seal()

    def seal(self) -> None:
        """Move what the journal holds into a shard of its own."""
        if self._pending:
            self.info = _seal(self.path, self.info, self._pending)
            self._journal.clear()
            self._pending, self._bytes = [], 0

    def close(self) -> None:
        """Seal, and let others extend the dataset."""
        try:
            self.seal()
        finally:
            self._journal.close()
            if not self._pending:
                (self.path / JOURNAL).unlink(missing_ok=True)
            os.close(self._lock)

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def recover(path: str | Path) -> None:
    """Finish what a killed writer left: move whole episodes from its journal into a shard, and say
    so in the log.

    Does nothing when there is nothing to do, or while a writer is at work.
    """
    path = Path(path)
    if not (path / "metadata.json").is_file() or not _unfinished(path):
        return
    try:
        lock = _acquire(path)
    except BlockingIOError:
        return  # its journal is the writer's business
    except OSError as error:
        log.warning(
            f"{path} holds episodes of an interrupted collection and cannot be written ({error}); "
            f"they are left out."
        )
        return
    try:
        _finish(path)
    except OSError as error:
        log.warning(
            f"{path} holds finished episodes that could not be moved into a shard ({error}); they "
            f"are left out."
        )
    finally:
        os.close(lock)


def _unfinished(path: Path) -> bool:
    return (path / JOURNAL).exists() or any(path.glob("*.partial"))


def _finish(path: Path) -> None:
    """`recover` for the holder of the lock."""
    for partial in path.glob("*.partial"):
        partial.unlink()
    info = read_metadata(path)
    number = len(info["shards"])
    file = path / f"shard-{number:05d}.h5"
    if file.exists():  # sealed, but not listed yet
        with Shard(file) as shard:
            if shard.first_episode != info["episodes"]:
                raise ValueError(
                    f"{file} begins with episode {shard.first_episode}, metadata.json knows "
                    f"{info['episodes']} episodes; it belongs to another dataset: move it away."
                )
            info = _list(path, info, file, shard.episodes, int(shard.rows.sum()) - shard.episodes)
    journal = path / JOURNAL
    if not journal.exists():
        return
    records, lost = [], 0
    for item in read_journal(journal):
        if isinstance(item, int):
            lost = item
        elif item.episode >= info["episodes"]:
            records.append(item)
    if records and [r.episode for r in records] != list(
        range(info["episodes"], info["episodes"] + len(records))
    ):
        raise ValueError(
            f"{journal} begins with episode {records[0].episode} and {info['episodes']} are "
            f"sealed; shards are missing."
        )
    if records:
        _seal(path, info, records)
    if lost:
        _set_aside(journal, lost)
    if records or lost:
        kept = f"{len(records)} finished episodes were moved from its journal into a shard"
        dropped = f", {lost} bytes of an unfinished one were dropped" if lost else ""
        log.warning(f"{path}: repaired after an interrupted collection: {kept}{dropped}.")
    journal.unlink()


def _set_aside(journal: Path, lost: int) -> None:
    """Keep a copy of what follows the last whole record if more than one record's rest is in it."""
    with open(journal, "rb") as file:
        file.seek(-lost, os.SEEK_END)
        rest = file.read()
    if MAGIC in rest[1:]:
        copy = journal.with_name("journal-damaged")
        while copy.exists():
            copy = copy.with_name(copy.name + "-")
        copy.write_bytes(rest)
        log.warning(
            f"{journal} was damaged in its middle; the part that could not be read is kept as {copy}."
        )


def _seal(path: Path, info: dict[str, Any], records: list[Record]) -> dict[str, Any]:
    file = path / f"shard-{len(info['shards']):05d}.h5"
    header = {name: info[name] for name in ("format", *HEADER, "renderer", "versions")}
    write_shard(file, header, records, compress=info["compress"])
    rows = sum(len(record.columns["action"]) for record in records)
    return _list(path, info, file, len(records), rows - len(records))


def _list(
    path: Path, info: dict[str, Any], file: Path, episodes: int, steps: int
) -> dict[str, Any]:
    """The metadata with one shard more, on disk."""
    info = info | {
        "episodes": info["episodes"] + episodes,
        "steps": info["steps"] + steps,
        "shards": [*info["shards"], {"file": file.name, "episodes": episodes, "steps": steps}],
    }
    _write_metadata(path, info)
    return info


def _write_metadata(path: Path, info: dict[str, Any]) -> None:
    with replacing(path / "metadata.json") as partial:
        partial.write_text(json.dumps(info, indent=1, allow_nan=False) + "\n")


def _acquire(path: Path) -> int:
    """The lock's descriptor; the lock ends with it, or with the process."""
    try:
        return acquire(path / "lock")
    except BlockingIOError as error:
        raise BlockingIOError(
            f"{path} is being extended by another process; wait for it, or choose another folder."
        ) from error


# -- reading
# --  ----------------------------------------------------------------------------------------------


def open_shards(path: str | Path, info: Mapping[str, Any]) -> Iterator[Shard]:
    """The dataset's shards, each open until the next is asked for.

    Raises:
        ValueError: naming the first shard that is missing, damaged or of another dataset.
    """
    first = 0
    for entry in info["shards"]:
        with Shard(Path(path) / entry["file"]) as shard:
            steps = int(shard.rows.sum()) - shard.episodes
            if (shard.first_episode, shard.episodes, steps) != (
                first,
                entry["episodes"],
                entry["steps"],
            ):
                raise ValueError(
                    f"{shard.path} holds {shard.episodes} episodes from number "
                    f"{shard.first_episode} and {steps} steps, metadata.json says "
                    f"{entry['episodes']}, {first} and {entry['steps']}; restore the file or "
                    "collect the dataset again."
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
    count = info["episodes"] if episodes is None else episodes
    steps = info["steps"]
    if count < info["episodes"]:
        steps = sum(episode_lengths(path)[:count])
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
            episode = from_columns(shard.read_checked(k))
            try:
                buffer.add_episode(*episode[:5])
            except ValueError as error:
                raise ValueError(
                    f"episode {shard.first_episode + k} in {shard.path}: {error}"
                ) from error
        if shard.first_episode + shard.episodes >= count:
            break
    return buffer


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


def _versions() -> dict[str, str]:
    found = {}
    for package in ("gjwm", "torch", "numpy", "gymnasium", "mujoco", "dm-control"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
