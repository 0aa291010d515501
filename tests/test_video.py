"""Claims about videos: what is written can be read back, frame by frame."""

import imageio.v3 as iio
import numpy as np
import pytest

from gjwm.video import panel, write_video


def frames(count=6, h=20, w=24):
    return np.random.default_rng(0).integers(0, 256, (count, h, w, 3), dtype=np.uint8)


def test_a_panel_shows_its_columns_enlarged_and_untouched():
    left, right = frames(), 255 - frames()
    film = panel({"a": left, "b": right}, captions=[f"step {t}" for t in range(6)], scale=3)
    assert film.shape[0] == 6 and film.shape[1] % 2 == film.shape[2] % 2 == 0
    np.testing.assert_array_equal(film[:, 18:78:3, 0:72:3], left)
    np.testing.assert_array_equal(film[:, 18:78:3, 75:147:3], right)
    assert (film[0, :18] > 200).any() and (film[0, 78:] != film[1, 78:]).any()  # title, and a caption that changes


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_written_video_has_all_its_frames(tmp_path, suffix):
    film = np.repeat(np.linspace(0, 250, 12).astype(np.uint8)[:, None, None, None], 3, -1).repeat(64, 1).repeat(96, 2)
    path = write_video(tmp_path / f"deep/film{suffix}", film, fps=5)
    back = iio.imread(path)
    assert back.shape[:3] == (12, 64, 96)
    levels = back[..., :3].mean((1, 2, 3))
    assert (np.diff(levels) > 5).all()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


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
