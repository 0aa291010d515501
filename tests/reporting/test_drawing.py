"""Claims about drawings for films: what is drawn lies where it should, and moves when it should."""

import itertools

import numpy as np
import pytest

from gjwm._core.drawing import (
    IMAGINED,
    REACHED,
    UNSURE,
    Curves,
    draw_curves,
    draw_paths,
    fit,
    grid_film,
    spread_of,
    stack_films,
)


def test_a_path_ends_where_it_says_and_leaves_other_frames_alone():
    frames = np.zeros((2, 40, 60, 3), np.uint8)
    drawn = draw_paths(frames, [np.array([[[0.25, 0.25], [0.75, 0.5]]]), None])
    np.testing.assert_allclose(drawn[0, 20, 45], IMAGINED, atol=3)
    assert not drawn[1].any() and not frames.any()
    assert not drawn[0, :5].any() and not drawn[0, 30:].any()


def test_the_tint_is_where_samples_differ():
    samples = np.full((8, 1, 10, 10, 3), 100, np.uint8)
    samples[::2, 0, :5] = 250
    picture = spread_of(samples)[0]
    assert picture.shape == (10, 10, 3)
    np.testing.assert_allclose(picture[2, 2], UNSURE, atol=2)
    assert np.ptp(picture[8, 8].astype(int)) == 0  # grey: all samples agree


def test_curves_have_a_frame_per_step_and_a_cursor_that_moves_right():
    rising = np.linspace(0, 1, 12)
    band = ((10, 20, 200), rising - 0.1, rising + 0.1)
    film = draw_curves(
        [
            Curves("a", [("true", (255, 0, 0), rising)], band, level=0.5),
            Curves("b", [("x", (0, 255, 0), rising)]),
        ],
        width=300,
    )
    assert film.shape == (12, 112, 300, 3)
    changed = [np.flatnonzero((film[t + 1] != film[t]).any((0, 2))) for t in range(11)]
    assert all(len(c) for c in changed)
    assert all(a.min() < b.min() for a, b in itertools.pairwise(changed))


def test_nan_is_left_out_of_a_curve_and_different_lengths_are_refused():
    holes = np.array([0.0, np.nan, 1.0, 2.0])
    assert draw_curves([Curves("a", [("x", (255, 255, 255), holes)])], width=120).shape[0] == 4
    with pytest.raises(ValueError, match="curves need 40 pixels each, got 16 for 1"):
        draw_curves([Curves("a", [("x", (255, 255, 255), holes)])], width=16)
    with pytest.raises(ValueError, match="one length"):
        draw_curves(
            [Curves("a", [("x", (0, 0, 0), holes), ("y", (0, 0, 0), holes[:2])])], width=120
        )


def test_a_grid_frames_a_film_from_the_step_it_is_reached():
    films = [np.full((3, 20, 20, 3), 10 * k, np.uint8) for k in range(5)]
    reached = [np.array([False, k == 0, k == 0]) for k in range(5)]
    grid = grid_film(films, reached)  # 3 columns, 2 rows of 24 x 24 cells
    assert grid.shape == (3, 48, 72, 3)
    assert tuple(grid[0, 0, 0]) != REACHED and tuple(grid[1, 0, 0]) == REACHED
    assert (grid[2, 26:46, 26:46] == 40).all()  # the fifth film, in the second row
    with pytest.raises(ValueError, match="one shape"):
        grid_film([films[0], films[1][:, :10]], reached[:2])


def test_stacked_films_have_even_sides():
    assert stack_films(
        [np.zeros((2, 5, 9, 3), np.uint8), np.zeros((2, 4, 9, 3), np.uint8)]
    ).shape == (2, 10, 10, 3)


def test_pictures_fit_without_new_colours_when_enlarged_and_by_averages_when_shrunk():
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit(frames, 24, 24), frames.repeat(3, 1).repeat(3, 2))
    np.testing.assert_array_equal(fit(fit(frames, 24, 24), 8, 8), frames)
    assert fit(frames, 8, 8) is frames and fit(frames, 4, 2).shape == (2, 4, 2, 3)
