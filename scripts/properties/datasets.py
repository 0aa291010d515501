"""Readers of datasets: of damaged files they give the data that were written, or one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import torch
from gymnasium import spaces
from hypothesis import strategies as st

from gjwm.data.dataset import (
    DatasetWriter,
    DiskWindows,
    Episode,
    dataset_info,
    episode_lengths,
    load_buffer,
    read_episodes,
    verify,
)
from gjwm.data.dataset.foreign import convert
from gjwm.data.dataset.lerobot import write_lerobot
from properties import one_sentence, refused, register
from properties.files import laid_out, made, with_damage, wounds
from properties.replay import ACTION, check, episode, lengths, space

LENGTHS = (4, 3, 6)
PICTURES = spaces.Box(0, 255, (6, 16, 32), np.uint8)  # frames of 1.5 kB, chunks of their own
ERRORS = (ValueError, FileNotFoundError, MemoryError)


def picture_episode(number: int, length: int) -> Episode:
    """An episode of pictures of two frames."""
    from gjwm.data.replay import stack_frames

    frames = np.random.default_rng(number).integers(0, 256, (length + 1, 3, 16, 32), np.uint8)
    frames[:, 0, 0, 0], frames[:, 0, 0, 1] = number, np.arange(length + 1)
    return Episode(stack_frames(frames, 2), *episode(number, length, "vector", 1)[1:])


def vectors(path: Path) -> None:
    """A dataset of vectors in two shards."""
    _write(path, space("vector", 1), 1, False)


def pictures(path: Path) -> None:
    """Of pictures, uncompressed, two frames each."""
    _write(path, PICTURES, 2, False)


def packed(path: Path) -> None:
    """Of pictures, compressed."""
    _write(path, PICTURES, 2, True)


def interrupted(path: Path) -> None:
    """With its last episode in the journal, as a killed collection leaves it."""
    _write(path, space("vector", 1), 1, False, seal=False)


def _write(path: Path, box: spaces.Space, frame_stack: int, compress: bool, seal=True) -> None:
    header = dict(env_id="x", env_kwargs={"size": 4}, observation_space=box, action_space=ACTION)
    header |= dict(frame_stack=frame_stack, compress=compress, shard_bytes=10**9)
    writer = DatasetWriter(path, **header)
    for k, length in enumerate(LENGTHS):
        writer.append(written(k, length, frame_stack))
        if k == 1:
            writer.seal()
    if seal:
        writer.close()
    else:
        writer._journal.close()  # what the end of a process does
        writer._held.close()


def written(number: int, length: int, frame_stack: int) -> Episode:
    """The episode of that number."""
    if frame_stack == 2:
        return picture_episode(number, length)
    return Episode(*episode(number, length, "vector", 1))


def same(read: list[Episode], frame_stack: int) -> None:
    """What was read is what was written.

    Raises:
        AssertionError: otherwise.
    """
    for k, (length, got) in enumerate(zip(LENGTHS, read)):
        for name, x, y in zip(Episode._fields, got, written(k, length, frame_stack)):
            if y is not None:
                assert np.array_equal(x, y), f"{name} of episode {k} is not what was written"


@register(
    6,
    make=st.sampled_from([vectors, pictures, packed, interrupted]),
    which=st.integers(0, 5),
    damage=wounds,
    reader=st.sampled_from(["episodes", "buffer", "disk", "verify", "lengths"]),
)
def a_damaged_dataset_gives_its_data_or_one_sentence(make, which, damage, reader):
    """Bytes flipped, cut, zeroed or repeated in a shard, the journal or the metadata. Windows from
    disk are read without checksums (`verify` has them): of those the shapes are promised."""
    whole = made(make)
    files = with_damage(whole, which, damage)
    frame_stack = 2 if make in (pictures, packed) else 1
    names = {name for name in whole if whole[name] != files[name]}
    # the torn end of a journal is an episode that was never finished
    count = 2 if names == {"journal"} else 3
    with laid_out(files) as folder, refused(*ERRORS):
        if reader == "episodes":
            read = list(read_episodes(folder))
            assert len(read) in (count, 3), f"{len(read)} episodes of 3"
            same(read, frame_stack)
        elif reader == "lengths":
            assert episode_lengths(folder) in (list(LENGTHS), list(LENGTHS[:count]))
        elif reader == "buffer":
            drawn = load_buffer(folder).sample(6, 2, torch.Generator().manual_seed(0))
            if frame_stack == 1:
                check(drawn, [written(k, n, 1)[:5] for k, n in enumerate(LENGTHS)], 2, "vector")
        elif reader == "disk":
            with DiskWindows(folder) as disk:
                drawn = disk.sample(6, 2, torch.Generator().manual_seed(0))
            expected = PICTURES if frame_stack == 2 else space("vector", 1)
            assert drawn.o.shape == (6, 3, *expected.shape) and drawn.a.shape == (6, 2, 2)
            assert drawn.r.isfinite().all() and drawn.o.isfinite().all()
        else:
            problems = verify(folder)
            for problem in problems:
                one_sentence(problem)
            if not problems:
                same(list(read_episodes(folder)), frame_stack)


@register(
    1,
    lengths=lengths,
    window=st.integers(1, 8),
    sealed=st.integers(1, 4),
    compress=st.booleans(),
    kind=st.sampled_from(["vector", "image", "dict"]),
    seed=st.integers(0, 2**32 - 1),
)
def windows_from_disk_are_those_from_memory(lengths, window, sealed, compress, kind, seed):
    """Any lengths, in any number of shards: what was written, and alike from both."""
    frame_stack = 1 if kind == "vector" else 2
    episodes = [episode(k, n, kind, frame_stack) for k, n in enumerate(lengths)]
    header = dict(observation_space=space(kind, frame_stack), action_space=ACTION)
    header |= dict(env_id="x", env_kwargs={}, frame_stack=frame_stack, compress=compress)
    with laid_out({}) as folder:
        with DatasetWriter(folder, **header) as writer:
            for k, each in enumerate(episodes):
                writer.append(Episode(*each))
                if k % sealed == 0:
                    writer.seal()
        assert verify(folder) == [] and dataset_info(folder)["steps"] == sum(lengths)
        with DiskWindows(folder) as disk, refused() as said:
            drawn = [
                source.sample(7, window, torch.Generator().manual_seed(seed))
                for source in (load_buffer(folder), disk)
            ]
            for each in drawn:
                check(each, episodes, window, kind)
            assert torch.equal(drawn[0].r, drawn[1].r)
        assert bool(said) == (window > max(lengths))


# -- files of other programs -----------------------------------------------------------------------


def minari(path: Path) -> None:
    """A dataset as Minari writes it."""
    rng = np.random.default_rng(0)
    (path / "data").mkdir()
    box = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-2, 0], "high": [2, 10]}
    metadata = {"action_space": json.dumps(box), "env_spec": json.dumps({"id": "Pen-v0"})}
    (path / "data" / "metadata.json").write_text(json.dumps(metadata))
    with h5py.File(path / "data" / "main_data.hdf5", "w") as file:
        for k, length in enumerate(LENGTHS):
            group = file.create_group(f"episode_{k}")
            group["observations"] = rng.normal(size=(length + 1, 3))
            group["actions"] = rng.uniform([-2, 0], [2, 10], (length, 2))
            group["rewards"] = np.arange(float(length))
            group["terminations"] = np.arange(length) == length - 1
            group["truncations"] = np.zeros(length, bool)


def swm(path: Path) -> None:
    """A file as stable-worldmodel writes it."""
    rng = np.random.default_rng(0)
    rows = np.array(LENGTHS) + 1
    with h5py.File(path / "file.h5", "w") as file:
        file["observation"] = rng.normal(size=(rows.sum(), 3))
        file["action"] = rng.uniform(-1, 1, (rows.sum(), 2))
        file["reward"] = np.arange(float(rows.sum()))
        file["ep_len"], file["ep_offset"] = rows, rows.cumsum() - rows


def _converted(source: Path) -> list[Episode]:
    """What becomes of a foreign dataset: the episodes of one that verifies; none, if it is refused
    in a sentence."""
    with laid_out({}) as folder:
        target = folder / "d"
        with refused(*ERRORS) as said:
            result = convert(source, target)
        if said:
            return []
        assert verify(target) == [], verify(target)
        read = list(read_episodes(target))
        assert result["episodes"] == len(read)
        return read


@register(
    2,
    make=st.sampled_from([minari, swm]),
    which=st.integers(0, 3),
    damage=wounds,
)
def a_damaged_foreign_dataset_is_converted_whole_or_refused(make, which, damage):
    """These have no checksums: what becomes of one is a dataset that verifies, with episodes of
    the shapes and lengths that were written, or one sentence."""
    files = with_damage(made(make), which, damage)
    with laid_out(files) as folder:
        source = folder if make is minari else folder / "file.h5"
        for got in _converted(source):
            assert got.o.ndim == 2 and got.a.ndim == 2 and len(got.o) == len(got.a) + 1
            assert np.abs(got.a).max() <= 1 and np.isfinite(got.o).all()


def lerobot_tables(path: Path) -> None:
    """A LeRobot folder as `write_lerobot` makes it, with its pictures in the tables."""
    _lerobot(path, "png")


def lerobot_films(path: Path) -> None:
    """With its pictures in a film."""
    _lerobot(path, "video")


def lerobot_of_a_stranger(path: Path) -> None:
    """With a film and without the file that only this package writes."""
    _lerobot(path, "video")
    (path / "meta" / "gjwm.json").unlink()


JSON = ("meta/info", "meta/gjwm")  # small, and all else is read as they say


def _lerobot(path: Path, kept: str) -> None:
    with laid_out(made(pictures)) as folder:
        write_lerobot(folder, path, pictures=kept)


@register(
    1,
    needs="pyarrow",
    make=st.sampled_from([lerobot_tables, lerobot_films, lerobot_of_a_stranger]),
    which=st.sampled_from(["data", "meta/episodes", "meta/stats", "videos", *JSON, *JSON]),
    damage=wounds,
)
def a_damaged_lerobot_folder_is_converted_whole_or_refused(make, which, damage):
    """In meta/*.json, a table or a film: what becomes of it is a dataset that verifies, with
    episodes of pictures and actions of the shapes that were written, or one sentence."""
    whole = made(make)
    number = [k for k, name in enumerate(sorted(whole)) if name.startswith(which)]
    files = with_damage(whole, number[0] if number else 0, damage)
    with laid_out(files) as folder:
        for got in _converted(folder):
            assert got.o.dtype == np.uint8 and got.o.ndim == 4 and got.a.shape[1:] == (2,)
            assert len(got.o) == len(got.a) + 1 == len(got.r) + 1
            assert np.abs(got.a).max() <= 1 and np.isfinite(got.r).all()
