"""Frames to files. The only module that imports imageio, and only when it is used."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gjwm._core.drawing import BACKGROUND, enlarge
from gjwm._core.files import replacing

_MARGIN = 18  # pixels for a line of text above and below a panel


def panel(
    columns: Mapping[str, np.ndarray],
    *,
    captions: Sequence[str],
    scale: int = 4,
    per_row: int | None = None,
) -> np.ndarray:
    """Pictures side by side, each under its title, with one caption per frame below all.

    Args:
        columns: title -> uint8 (T, h, w, 3), all of one shape.
        captions: T texts.
        scale: pixels are enlarged without smoothing, so nothing is shown that was not there.
        per_row: begin a new row after so many; None: all in one.

    Returns:
        uint8 (T, H, W, 3) with even H and W, as h264 wants them.

    Raises:
        ValueError: for other shapes, types or counts.
    """
    shapes = {frames.shape for frames in columns.values()}
    if len(shapes) != 1 or any(
        f.dtype != np.uint8 or f.ndim != 4 or f.shape[-1] != 3 for f in columns.values()
    ):
        got = {title: (frames.dtype.name, frames.shape) for title, frames in columns.items()}
        raise ValueError(f"a panel needs columns of one uint8 shape (T, h, w, 3), got {got}.")
    (shape,) = shapes
    count, h, w, _ = shape
    if len(captions) != count:
        raise ValueError(f"a panel of {count} frames needs as many captions, got {len(captions)}.")
    gap, per_row = scale, per_row or len(columns)
    rows = -(-len(columns) // per_row)
    cell = h * scale + _MARGIN  # a title and its picture
    height, width = rows * cell + _MARGIN, (w * scale + gap) * min(per_row, len(columns)) - gap
    canvas = np.empty((count, height + height % 2, width + width % 2, 3), np.uint8)
    canvas[:] = BACKGROUND
    corners = [(i % per_row * (w * scale + gap), i // per_row * cell) for i in range(len(columns))]
    for (x, y), frames in zip(corners, columns.values()):
        canvas[:, y + _MARGIN : y + cell, x : x + w * scale] = enlarge(frames, scale)
    font = ImageFont.load_default(12)
    for t, caption in enumerate(captions):
        image = Image.fromarray(canvas[t])
        draw = ImageDraw.Draw(image)
        for (x, y), title in zip(corners, columns):
            draw.text((x + 4, y + 2), title, fill="white", font=font)
        draw.text((4, rows * cell + 1), caption, fill="white", font=font)
        canvas[t] = np.asarray(image)
    return canvas


def check_suffix(path: str | Path) -> Path:
    """The path of a video; ValueError unless it ends in .mp4 or .gif."""
    path = Path(path)
    if path.suffix not in (".mp4", ".gif"):
        raise ValueError(f"a video is written as .mp4 or .gif, got {path.name!r}.")
    return path


def write_video(path: str | Path, frames: np.ndarray, *, fps: float = 8, quality: int = 20) -> Path:
    """Write uint8 frames (T, h, w, 3) to .mp4 (h264, with the ffmpeg that pip brings) or a looping
    .gif; atomically.

    Args:
        quality: of .mp4, x264's constant rate factor: 18 looks lossless, 28 is small.

    Raises:
        ValueError: for no frames, another type or shape, or another suffix.
        OSError: when the file cannot be written whole, as on a full disk; what was there stays.
    """
    path = check_suffix(path)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(
            f"a video needs uint8 frames (T, h, w, 3), got {frames.dtype} {frames.shape}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mp4":
        if frames.shape[1] % 2 or frames.shape[2] % 2:
            raise ValueError(f"h264 needs an even height and width, got {frames.shape[1:3]}.")
        with replacing(path) as partial:
            named = path.with_name(f".{path.stem}.partial.mp4")  # imageio looks at the suffix
            try:
                film = FilmWriter(named, fps=fps, quality=quality)
                try:
                    for frame in frames:
                        film.add(frame)
                finally:
                    film.close()  # or ffmpeg would stay
                named.replace(partial)
            finally:
                named.unlink(missing_ok=True)
    else:
        palette = _palette(frames)
        images = [
            Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
            for frame in frames
        ]
        with replacing(path) as partial:
            images[0].save(
                partial,
                format="GIF",
                save_all=True,
                append_images=images[1:],
                duration=round(1000 / fps),
                loop=0,
                optimize=True,
            )
    return path


class FilmWriter:
    """An .mp4 (h264) that is written frame by frame, with the ffmpeg that pip brings.

    Args:
        quality: x264's constant rate factor: 18 looks lossless, 28 is small.
        codec, pixels: ffmpeg's names. yuv420p plays everywhere, wants even sizes and keeps a
            quarter of the colours; yuv444p keeps all; codec libx264rgb, pixels rgb24 and quality 0
            are lossless.
        keyframes: at most so many frames from one that stands alone; None: ffmpeg's choice.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: float,
        quality: int,
        codec: str = "libx264",
        pixels: str = "yuv420p",
        keyframes: int | None = None,
    ):
        import imageio.v2 as iio

        seeking = [] if keyframes is None else ["-g", str(keyframes)]
        self.path, self._frames = Path(path), 0
        self._writer = iio.get_writer(
            path,
            format="FFMPEG",
            fps=fps,
            codec=codec,
            pixelformat=pixels,
            macro_block_size=1,  # or frames would be resized
            ffmpeg_log_level="fatal",  # what fails is told in a sentence
            output_params=["-crf", str(quality), *seeking],
        )

    def add(self, frame: np.ndarray) -> None:
        """Append a frame (h, w, 3) uint8, of the size of the first."""
        try:
            self._writer.append_data(frame)
        except OSError as error:  # whose text is ffmpeg's command and all that it said
            raise self._broken("ffmpeg ended before its last frame") from error
        self._frames += 1

    def bytes(self) -> int:
        """How large the file is already; ffmpeg holds a few frames back."""
        return self.path.stat().st_size if self.path.exists() else 0

    def close(self) -> None:
        """Finish the file.

        Raises:
            OSError: when it does not hold every frame: ffmpeg's exit status, which would say so of
                a full disk, is not passed on.
        """
        import imageio_ffmpeg

        self._writer.close()
        if not self._frames:
            return
        try:
            kept = imageio_ffmpeg.count_frames_and_secs(str(self.path))[0]
        except (OSError, RuntimeError):
            kept = 0
        if kept != self._frames:
            raise self._broken(f"ffmpeg kept {kept} of {self._frames} frames")

    def _broken(self, what: str) -> OSError:
        full = shutil.disk_usage(self.path.parent).free < 2**20
        if full:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        return OSError(f"{self.path} cannot be written: {what}.")


def _palette(frames: np.ndarray, colours: int = 64) -> Image.Image:
    """One palette for a whole film: half its commonest colours, exact, so that a background keeps
    still; half spread over all that occur, so that a small moving body, which is rare, keeps its
    own."""
    codes = frames.reshape(-1, 3).astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    present, counts = np.unique(codes, return_counts=True)
    rgb = np.stack([present >> 16, present >> 8 & 255, present & 255], -1).astype(np.uint8)
    common = rgb[counts.argsort()[::-1][: colours // 2]]
    spread = (
        Image.fromarray(rgb[None])
        .quantize(colours // 2, method=Image.Quantize.MAXCOVERAGE)
        .getpalette()
    )
    palette = Image.new("P", (1, 1))
    palette.putpalette([*common.ravel().tolist(), *(spread or [])[: 3 * (colours // 2)]])
    return palette


def read_video(path: str | Path, start: float = 0) -> Iterator[np.ndarray]:
    """Frames (h, w, 3) uint8 of a film, one after another, with the ffmpeg that pip brings.

    Args:
        start: seconds to begin at.

    Raises:
        ValueError: when the file is missing or no film.
    """
    import imageio.v3 as iio

    try:
        seeking = ["-ss", str(start)] if start else []
        yield from iio.imiter(path, plugin="FFMPEG", input_params=seeking)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as a film ({error}).") from error
