"""Claims about videos: what is written can be read back, frame by frame."""

import os
import signal
import time
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from gjwm._core.video import FilmWriter, panel, read_video, write_video

CHILDREN = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")


def frames(count=6, h=20, w=24):
    return np.random.default_rng(0).integers(0, 256, (count, h, w, 3), dtype=np.uint8)


def test_a_panel_shows_its_columns_enlarged_and_untouched():
    left, right = frames(), 255 - frames()
    film = panel({"a": left, "b": right}, captions=[f"step {t}" for t in range(6)], scale=3)
    assert film.shape[0] == 6 and film.shape[1] % 2 == film.shape[2] % 2 == 0
    np.testing.assert_array_equal(film[:, 18:78:3, 0:72:3], left)
    np.testing.assert_array_equal(film[:, 18:78:3, 75:147:3], right)
    assert (film[0, :18] > 200).any() and (
        film[0, 78:] != film[1, 78:]
    ).any()  # title, and a caption that changes


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_written_video_has_all_its_frames(tmp_path, suffix):
    film = (
        np.repeat(np.linspace(0, 250, 12).astype(np.uint8)[:, None, None, None], 3, -1)
        .repeat(64, 1)
        .repeat(96, 2)
    )
    path = write_video(tmp_path / f"deep/film{suffix}", film, fps=5)
    back = iio.imread(path)
    assert back.shape[:3] == (12, 64, 96)
    levels = back[..., :3].mean((1, 2, 3))
    assert (np.diff(levels) > 5).all()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("suffix", "partial"), [(".mp4", ".film.partial.mp4"), (".gif", "film.gif.partial")]
)
def test_a_film_that_the_disk_has_no_room_for_leaves_the_one_before(tmp_path, suffix, partial):
    path = write_video(tmp_path / f"film{suffix}", frames(), fps=5)
    kept = path.read_bytes()
    (tmp_path / partial).symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"kept 0 of 9 frames|No space left") as caught:
        write_video(path, frames(9), fps=5)
    assert len(str(caught.value).splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == kept


@pytest.mark.skipif(not CHILDREN.exists(), reason="needs Linux's /proc")
def test_a_film_whose_ffmpeg_is_killed_is_an_error_of_one_line(tmp_path):
    film = FilmWriter(tmp_path / "film.mp4", fps=5, quality=20)
    film.add(frames(1)[0])
    time.sleep(0.1)
    for child in CHILDREN.read_text().split():
        if "ffmpeg" in Path(f"/proc/{child}/cmdline").read_text():
            os.kill(int(child), signal.SIGKILL)
    with pytest.raises(OSError, match=r"film\.mp4 cannot be written: ffmpeg") as caught:
        for frame in frames(200):
            film.add(frame)
        film.close()
    assert len(str(caught.value).splitlines()) == 1


def test_a_gif_keeps_the_colour_of_a_small_moving_body_and_a_still_background(tmp_path):
    film = np.full((8, 32, 48, 3), (236, 236, 228), np.uint8)
    # more colours than a palette holds
    film[:, 20:] = np.random.default_rng(0).integers(0, 256, (8, 12, 48, 3))
    for t in range(8):
        film[t, 4:6, 5 * t : 5 * t + 2] = (222, 44, 40)
    back = iio.imread(write_video(tmp_path / "film.gif", film))[..., :3].astype(int)
    for t in range(8):
        assert np.abs(back[t, 4:6, 5 * t : 5 * t + 2] - (222, 44, 40)).max() < 40
    assert (back[:, 10:20] == (236, 236, 228)).all()


def test_a_lossless_film_of_any_size_is_exact_and_can_be_begun_anywhere(tmp_path):
    film = np.random.default_rng(0).integers(0, 256, (9, 31, 33, 3), np.uint8)
    lossless = dict(quality=0, codec="libx264rgb", pixels="rgb24", keyframes=2)
    writer = FilmWriter(tmp_path / "film.mp4", fps=10, **lossless)
    for frame in film:
        writer.add(frame)
    writer.close()
    for start in (0, 5):
        back = np.stack(list(read_video(tmp_path / "film.mp4", start / 10)))
        assert np.array_equal(back, film[start:])


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.mp4", frames().astype(float))
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.mp4", frames(0))
    with pytest.raises(ValueError, match=r"\.mp4 or \.gif"):
        write_video(tmp_path / "a.avi", frames())
    with pytest.raises(ValueError, match="even"):
        write_video(tmp_path / "a.mp4", frames(h=21))
    with pytest.raises(ValueError, match="captions"):
        panel({"a": frames()}, captions=["one"])
    with pytest.raises(ValueError, match="one uint8 shape"):
        panel({"a": frames(), "b": frames(h=22)}, captions=["x"] * 6)
