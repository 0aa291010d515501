"""Windows of 64x64x3 images per second: from memory and from disk, ours beside the ways of other
packages and the bare floor.

A window is T = 4 steps, five frames, in batches of 128. Cold rows
drop the files from the operating system's cache before each batch, as if the dataset were much
larger than memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from gymnasium import spaces
from torch import Generator, Tensor

from benchmarks import seconds as timed
from gjwm.data.dataset import DatasetWriter, DiskWindows, Episode, load_buffer
from gjwm.data.replay import ReplayBuffer

T, BATCH = 4, 128
SPAN = T + 1
SPACE, ACTIONS = spaces.Box(0, 255, (3, 64, 64), np.uint8), spaces.Box(-1, 1, (2,), np.float32)
LENGTH = 100


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Rows: from, what, threads, frames_per_s, spread_percent, times_reference; one thread
    computes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(quick)
    finally:
        torch.set_num_threads(threads)


def _run(quick: bool) -> list[dict[str, Any]]:
    episodes = 8 if quick else 400
    with tempfile.TemporaryDirectory(prefix="gjwm-replay-") as folder:
        data = Path(folder) / "data"
        _write(data, episodes)
        with DiskWindows(data) as disk:
            buffer = load_buffer(data)
            rows = _memory(buffer, quick) + _disk(data, disk, quick)
    return rows


def _write(path: Path, episodes: int) -> None:
    rng = np.random.default_rng(0)
    described = dict(env_id="noise", env_kwargs={}, observation_space=SPACE, action_space=ACTIONS)
    with DatasetWriter(path, **described) as writer:
        for _ in range(episodes):
            o = rng.integers(0, 256, (LENGTH + 1, 3, 64, 64), np.uint8)
            a = rng.uniform(-1, 1, (LENGTH, 2)).astype(np.float32)
            r, no = np.zeros(LENGTH, np.float32), np.zeros(LENGTH, bool)
            writer.append(Episode(o, a, r, no, np.arange(LENGTH) == LENGTH - 1))


def _memory(buffer: ReplayBuffer, quick: bool) -> list[dict[str, Any]]:
    generator = Generator().manual_seed(0)
    starts = buffer._window_starts(T)
    o, a, r = buffer._o[""], buffer._a, buffer._r
    frames = torch.arange(T + 1)

    def draw() -> Tensor:
        return starts[torch.randint(len(starts), (BATCH,), generator=generator)]

    def floor() -> None:
        start = draw()[:, None]
        steps = (start + torch.arange(T)).view(-1)
        (
            o.index_select(0, (start + frames).view(-1)),
            a.index_select(0, steps),
            r.index_select(0, steps),
        )

    def sliced() -> None:  # one clip after another, each a slice of its episode, then stacked
        clips = [
            (o[s : s + SPAN], a[s : s + SPAN - 1], r[s : s + SPAN - 1]) for s in draw().tolist()
        ]
        for parts in zip(*clips):
            torch.stack(parts)

    cases = {
        "per-window slices and stack": sliced,
        "ours, ReplayBuffer.sample": lambda: buffer.sample(BATCH, T, generator),
        "floor: bare vectorised gather": floor,
    }
    return _rows("memory", cases, "floor: bare vectorised gather", 0.3 if quick else 10)


def _disk(data: Path, disk: DiskWindows, quick: bool) -> list[dict[str, Any]]:
    generator = Generator().manual_seed(0)
    files = [h5py.File(path, "r") for path in sorted(data.glob("shard-*.h5"))]
    lengths = [(file, int(offset)) for file in files for offset in file["ep_offset"][:]]
    paths = sorted(data.glob("shard-*.h5"))

    def naive() -> None:  # a loader that reads each window from HDF5
        o, a, r = [], [], []
        for episode in torch.randint(len(lengths), (BATCH,), generator=generator).tolist():
            file, offset = lengths[episode]
            start = offset + int(torch.randint(LENGTH - SPAN + 2, (), generator=generator))
            o.append(torch.from_numpy(file["observation"][start : start + SPAN]))
            a.append(torch.from_numpy(file["action"][start : start + SPAN - 1]))
            r.append(torch.from_numpy(file["reward"][start : start + SPAN - 1]))
        torch.stack(o), torch.stack(a), torch.stack(r)

    seconds = 0.3 if quick else 10
    draw = lambda g: disk.sample(BATCH, T, generator=g)  # noqa: E731
    rows = _rows(
        "disk, cached",
        {"naive h5py": naive, "ours, DiskWindows.sample": lambda: draw(generator)},
        "naive h5py",
        seconds,
    )
    rows += _rows(
        "disk, cold",
        {"naive h5py": naive, "ours, DiskWindows.sample": lambda: draw(generator)},
        "naive h5py",
        seconds,
        lambda: _forget(paths),
    )
    return rows


def _forget(paths: list[Path]) -> None:
    """Drop the files from the page cache, where the system lets us."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _rows(
    where: str,
    cases: dict[str, Callable[[], Any]],
    reference: str,
    seconds: float,
    before: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Frames per second of batches; the cases take turns."""
    trial = sum(spent.median for spent in timed(cases, 1, before=before).values())
    rounds = max(3, int(seconds / trial))
    found = timed(cases, rounds, warmup=0, before=before)
    return [
        {
            "from": where,
            "what": what,
            "threads": torch.get_num_threads(),
            "frames_per_s": BATCH * (T + 1) / spent.median,
            "spread_percent": spent.spread_percent,
            "times_reference": found[reference].over(spent),
        }
        for what, spent in found.items()
    ]
