"""Where an episode is written: `DatasetWriter.append`, and what repairs a folder after a crash.

    data/<name>/metadata.json   env, spaces, versions, totals, and one entry per shard
    data/<name>/shard-00000.h5  whole episodes, never changed again (`shard`)
    data/<name>/journal         finished episodes that no shard holds yet (`journal`)
    data/<name>/lock            held by the process that extends the dataset, then removed

An episode is in the journal as soon as it is finished. When enough have come, they are written as a
shard, the shard is listed, and the journal is cleared, each step complete on disk before the next;
whoever opens the folder after a crash takes up where it stopped. Readers need no lock: what is
listed never changes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gymnasium import spaces

from gjwm._core.files import holding
from gjwm.data.dataset.episodes import Episode, checksum, to_columns
from gjwm.data.dataset.journal import MAGIC, Journal, Record, read_journal
from gjwm.data.dataset.metadata import (
    FILE,
    HEADER,
    list_shard,
    package_versions,
    read_metadata,
    write_metadata,
)
from gjwm.data.dataset.shard import FORMAT, write_shard
from gjwm.data.replay import box_fields, describe_space

log = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
JOURNAL, LOCK = "journal", "lock"


class DatasetWriter:
    """Extends a dataset folder, or starts one. A context manager: leaving it seals the last shard,
    also after an error.

    Args:
        path: a new or empty folder, or a dataset of the same env, arguments and columns; one
            without episodes is started anew.
        env_id, env_kwargs: what was played, plain JSON.
        observation_space, action_space: of one env.
        frame_stack: frames per image observation; single frames are stored.
        record_state: whether episodes hold sim_state and true_state.
        renderer: what drew the images, if anything did.
        compress: gzip images: small files, slower to read. A dataset keeps what it started with.
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
        self._layout = (observation_space, action_space, frame_stack)
        box_fields(observation_space)
        described = (describe_space(observation_space), describe_space(action_space))
        values = (env_id, dict(env_kwargs), *described, frame_stack, record_state)
        try:
            header = json.loads(json.dumps(dict(zip(HEADER, values))))
        except TypeError as error:
            raise ValueError(
                f"env_kwargs {dict(env_kwargs)} must be plain JSON to be kept with a dataset: "
                f"{error}."
            ) from error
        _require_fitting(self.path, header)
        self._pending: list[Record] = []
        self._bytes = 0
        with ExitStack() as stack:
            stack.enter_context(_sole_writer(self.path))
            if (self.path / FILE).exists():
                _finish(self.path)
                _require_fitting(self.path, header)  # again, as another process may have written
            if not _empty(self.path):
                self.info = read_metadata(self.path)
                if renderer and renderer != self.info["renderer"]:
                    log.warning(
                        f"{path} was drawn by {self.info['renderer'] or 'nothing'}, new episodes "
                        f"are drawn by {renderer}."
                    )
            else:
                self.info = {"format": FORMAT, **header, "renderer": renderer, "compress": compress}
                self.info["collected"] = None if collected is None else dict(collected)
                nothing = {"episodes": 0, "steps": 0, "shards": []}
                self.info |= {"versions": package_versions(), **nothing}
                write_metadata(self.path, self.info)
            self._journal = Journal(self.path / JOURNAL)
            self._held = stack.pop_all()

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
            columns = to_columns(episode, *self._layout)
        except ValueError as error:
            raise ValueError(f"episode {self.episodes} was not stored: {error}") from error
        if self._pending and columns.keys() != self._pending[0].columns.keys():
            raise ValueError(
                f"episode {self.episodes} has the columns {', '.join(columns)}, those before it "
                f"{', '.join(self._pending[0].columns)}; record the same of every episode."
            )
        record = Record(self.episodes, source, checksum(columns), columns)
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
            self._held.close()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _require_fitting(path: Path, header: dict[str, Any]) -> None:
    """Refuse a folder that holds something else than a dataset with this header."""
    if (path / FILE).exists():
        if _empty(path):
            return
        info = read_metadata(path)
        for name, value in header.items():
            if info[name] != value:
                raise ValueError(
                    f"{path} holds episodes with {name}={info[name]!r} and cannot be extended with "
                    f"{name}={value!r}; choose another folder."
                )
        return
    # A writer killed at its very start leaves these two and nothing to lose.
    harmless = (LOCK, FILE + ".partial")
    names = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    if others := [name for name in names if name not in harmless]:
        raise ValueError(
            f"{path} is no dataset and not empty (it has {others[0]}); choose another folder."
        )


def _empty(path: Path) -> bool:
    """Whether a folder holds no episode, sealed or not: a collection that failed at once leaves
    one."""
    if not (path / FILE).exists():
        return True
    journal = path / JOURNAL
    waiting = (journal.exists() and journal.stat().st_size) or any(path.glob("shard-*.h5"))
    return not waiting and not read_metadata(path)["episodes"]


def _seal(path: Path, info: dict[str, Any], records: list[Record]) -> dict[str, Any]:
    file = path / f"shard-{len(info['shards']):05d}.h5"
    header = {name: info[name] for name in ("format", *HEADER, "renderer", "versions")}
    write_shard(file, header, records, compress=info["compress"])
    return list_shard(path, info, file)


@contextmanager
def _sole_writer(path: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(holding(path / LOCK))
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{path} is being extended by another process; wait for it, or choose another "
                "folder."
            ) from error
        yield


# -- after a crash ---------------------------------------------------------------------------------


def recover(path: str | Path) -> None:
    """Finish what a killed writer left, and say so in the log; leave a writer at work alone."""
    path = Path(path)
    unfinished = (path / JOURNAL).exists() or any(path.glob("*.partial"))
    if not unfinished or not (path / FILE).is_file():
        return
    try:
        with _sole_writer(path):
            _finish(path)
    except BlockingIOError:
        pass  # its journal is the writer's business
    except OSError as error:
        log.warning(
            f"{path} holds finished episodes of an interrupted collection that cannot be moved "
            f"into a shard ({error}); they are left out."
        )


def _finish(path: Path) -> None:
    """`recover` for the holder of the lock."""
    for partial in path.glob("*.partial"):
        partial.unlink()
    info = read_metadata(path)
    file = path / f"shard-{len(info['shards']):05d}.h5"
    if file.exists():  # sealed, but not listed yet
        info = list_shard(path, info, file)
    journal = path / JOURNAL
    if not journal.exists():
        return
    records, lost = read_journal(journal)
    records = [record for record in records if record.episode >= info["episodes"]]
    expected = list(range(info["episodes"], info["episodes"] + len(records)))
    if [record.episode for record in records] != expected:
        raise ValueError(
            f"{journal} begins with episode {records[0].episode} and {info['episodes']} are "
            "sealed; shards are missing."
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
    rest = journal.read_bytes()[-lost:]
    if MAGIC in rest[1:]:
        copy = journal.with_name("journal-damaged")
        while copy.exists():
            copy = copy.with_name(copy.name + "-")
        copy.write_bytes(rest)
        log.warning(
            f"{journal} was damaged in its middle; the part that could not be read is kept as "
            f"{copy}."
        )
