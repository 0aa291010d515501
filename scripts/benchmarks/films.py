"""What films cost a dataset of small pictures, and what their loss does to a model.

Twenty episodes of each task, as the model that ships was trained on, are kept in several ways:
bytes per frame, how far decoded frames are from true ones, how far the model's latents of them are
from those of true ones, and the time of a random window (five frames). Films keep one frame in two
whole, as LeRobot's do, or one in 250. `window_ms` of a film is an ffmpeg that seeks; `decode_ms` is
only the frames that any decoder has to go through, at the speed of reading the film in order."""

from __future__ import annotations

import io
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import seconds
from gjwm._core.video import FilmWriter, read_video
from gjwm.data.collect import collect_dataset
from gjwm.data.dataset import DiskWindows, newest_frames, read_episodes, restack
from gjwm.data.dataset.foreign import convert
from gjwm.data.dataset.lerobot import CODECS, _png
from gjwm.data.dataset.metadata import layout
from gjwm.data.dataset.reader import dataset_info
from gjwm.models import WorldModel

T, BATCH, FPS = 4, 128, 10
MODELS = ("two-room", "reacher")
# What is kept: quality, keyframes, then codec and pixels where they are not `write_lerobot`'s.
FILMS: dict[str, tuple] = {
    "film, quality 0": (0, 2),
    "film, quality 10": (10, 2),
    "film, quality 18": (18, 2),
    "film, quality 30": (30, 2),
    "LeRobot's own: AV1, 30": (30, 2, "libsvtav1", "yuv420p"),
    "film, quality 0, 250": (0, 250),
}


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Rows: task, kept, bytes_per_frame, psnr_db, max_error, latent_error, latent_r2, window_ms,
    decode_ms.

    psnr_db is None where every pixel is kept; latent_error is the root mean square distance of the
    latents' components in units of their standard deviation over the data; latent_r2 the share of
    the latents' variance that is kept."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="gjwm-films-") as folder:
            return [row for name in MODELS for row in _task(name, Path(folder, name), quick)]
    finally:
        torch.set_num_threads(threads)


def _task(name: str, folder: Path, quick: bool) -> list[dict[str, Any]]:
    model = WorldModel.from_pretrained(name)
    origin = model.origin
    collect_dataset(
        folder / "raw",
        origin.env_id,
        origin.env_kwargs,
        origin.behaviour,
        episodes=2 if quick else 20,
        length=origin.length,
        seed=1000,  # not the episodes that it learned from
        workers=0,
    )
    convert(folder / "raw", folder / "gzip", compress="true")
    space, _, frame_stack = layout(dataset_info(folder / "raw"))
    episodes = [
        np.ascontiguousarray(newest_frames(e.o, space, frame_stack).transpose(0, 2, 3, 1))
        for e in read_episodes(folder / "raw")
    ]
    frames, bounds = np.concatenate(episodes), np.cumsum([len(e) for e in episodes])[:-1]

    def latents(frames: np.ndarray) -> torch.Tensor:
        stacked = [
            restack(np.ascontiguousarray(part.transpose(0, 3, 1, 2)), space, frame_stack)
            for part in np.split(frames, bounds)
        ]
        with torch.no_grad():
            return torch.cat([model.encode(torch.as_tensor(o)) for o in stacked])

    true = latents(frames)
    rows = []

    def add(kept: str, size: float, back: np.ndarray, window: float, decode: float) -> None:
        apart = back.astype(float) - frames
        z = latents(back) - true
        square = (apart**2).mean()
        rows.append(
            {
                "task": name,
                "kept": kept,
                "bytes_per_frame": round(size),
                "psnr_db": float(10 * np.log10(255**2 / square)) if square else None,
                "max_error": int(np.abs(apart).max()),
                "latent_error": float((z / true.std(0)).square().mean().sqrt()),
                "latent_r2": float(1 - z.square().sum() / (true - true.mean(0)).square().sum()),
                "window_ms": 1000 * window,
                "decode_ms": 1000 * decode,
            }
        )

    rounds = 1 if quick else 9
    packed = [zlib.compress(frame.transpose(2, 0, 1).tobytes(), 4) for frame in frames]
    png = [_png(frame) for frame in frames]
    sizes = {"raw": frames[0].nbytes, "gzip": np.mean([len(one) for one in packed])}
    for kept, size in sizes.items():
        with DiskWindows(folder / kept) as disk:
            generator = torch.Generator().manual_seed(0)
            draw = lambda: disk.sample(BATCH, T, generator)  # noqa: B023, E731
            window = _median(draw, rounds) / BATCH
        add(f"ours, {kept}", size, frames, window, window)
    window = _median(lambda: [np.asarray(_picture(one)) for one in png[: T + 1]], rounds)
    add("PNG in tables", np.mean([len(one) for one in png]), frames, window, window)
    for kept, (quality, keyframes, *coder) in FILMS.items():
        codec, pixels = coder or CODECS[quality > 0][:2]
        path = folder / "film.mp4"
        film = FilmWriter(
            path, fps=FPS, quality=quality, codec=codec, pixels=pixels, keyframes=keyframes
        )
        for frame in frames:
            film.add(frame)
        film.close()
        size, starts = path.stat().st_size / len(frames), np.random.default_rng(0)
        film = read_video(path)
        back = [next(film)]  # ffmpeg has started
        since = time.perf_counter()
        back += film
        each = (time.perf_counter() - since) / len(frames)
        passed = T + 1 + (min(keyframes, len(frames)) - 1) / 2  # from the last whole frame on

        def draw() -> None:
            _take(path, int(starts.integers(len(frames) - T)))  # noqa: B023

        window = _median(draw, rounds)
        add(kept, size, np.stack(back), window, each * passed)
    return rows


def _median(call: Callable[[], Any], rounds: int) -> float:
    return seconds({"": call}, rounds)[""].median


def _picture(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def _take(path: Path, start: int) -> None:
    """A window's frames."""
    film = read_video(path, start / FPS)
    for _ in range(T + 1):
        next(film)
    film.close()
