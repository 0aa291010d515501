"""Claims about bootstrap intervals: they cover what they promise, and they know what is
independent.
"""

import numpy as np
import pytest

from gjwm.evaluation.intervals import (
    pooled_interquartile_mean,
    ratio_interval,
    stratified_interval,
    wilson_interval,
)


def iqm_interval(runs, **options):
    return stratified_interval(runs, pooled_interquartile_mean, **options)


def test_the_interval_of_a_mean_is_the_classical_one():
    x = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = ratio_interval(x, np.ones_like(x))
    half = 1.96 * x.std() / 20
    assert low == pytest.approx(x.mean() - half, abs=0.02) and high == pytest.approx(
        x.mean() + half, abs=0.02
    )


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    held = 0
    for k in range(300):
        x = rng.exponential(2.0, 60)
        low, high = ratio_interval(x, np.ones_like(x), level=0.9, draws=500, seed=k)
        held += low <= 2.0 <= high
    # a percentile bootstrap of a skewed law falls a little short of 0.9
    assert 0.83 <= held / 300 <= 0.94


def test_axes_behind_the_first_are_ratios_of_their_own():
    part = np.random.default_rng(2).random((50, 3))
    low, high = ratio_interval(part, 2 * np.ones_like(part))
    for k in range(3):
        column = ratio_interval(part[:, k], 2 * np.ones(50))
        np.testing.assert_allclose((low[k], high[k]), column)


def test_the_interquartile_mean_ignores_both_ends():
    scores = np.array([[-1e9, 1.0, 2.0, 3.0]]), np.array([[4.0, 5.0, 6.0, 1e9]])
    assert pooled_interquartile_mean(scores) == pytest.approx(3.5)


def test_a_stratified_draw_keeps_every_task():
    """Two tasks whose scores never vary: any draw within tasks gives the same mean, one over all
    runs would not.
    """
    mean, low, high = iqm_interval({"easy": np.ones(4), "hard": np.zeros(4)})
    assert mean == low == high == 0.5
    rng = np.random.default_rng(3)
    three = {k: rng.normal(size=3) for k in "ab"}
    many = {k: rng.normal(size=300) for k in "ab"}
    spread = [
        high - low for _, low, high in (iqm_interval(runs, draws=2000) for runs in (three, many))
    ]
    assert spread[0] > 4 * spread[1]


def test_what_cannot_be_summarised_is_named():
    with pytest.raises(ValueError, match="at least one"):
        ratio_interval(np.ones(0), np.ones(0))
    with pytest.raises(ValueError, match="runs of each task"):
        iqm_interval({"a": np.ones(0)})
    with pytest.raises(ValueError, match="NaN"):
        iqm_interval({"a": np.array([1.0, np.nan])})


def test_wilson_interval_is_sane_at_the_edges():
    assert wilson_interval(100, 100)[0] == pytest.approx(0.963, abs=1e-3)
    assert wilson_interval(0, 100)[0] == 0
