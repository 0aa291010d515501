"""Claims about intervals: they cover what they promise, and they know what is independent."""

import numpy as np
import pytest

from gjwm.evaluation.intervals import (
    mean_interval,
    mean_over_tasks,
    rate_interval,
    ratio_interval,
    wilson_interval,
)


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


# -- over seeds ------------------------------------------------------------------------------------


def beta_binomial(rng, rate, spread, seeds, goals, draws):
    """Successes (draws, seeds) of seeds whose true rates have this mean and standard deviation."""
    rates = np.full((draws, seeds), rate)
    if spread:
        size = rate * (1 - rate) / spread**2 - 1
        rates = rng.beta(rate * size, (1 - rate) * size, (draws, seeds))
    return rng.binomial(goals, rates)


@pytest.mark.parametrize("seeds", [3, 5, 9])
@pytest.mark.parametrize("spread", [0, 0.05, 0.2])
def test_a_rate_over_seeds_is_held_where_the_pooled_attempts_promise_too_much(seeds, spread):
    rate, goals, draws = 0.8, 100, 600
    counts = beta_binomial(np.random.default_rng(5), rate, spread, seeds, goals, draws)
    ours = [rate_interval(row, np.full(seeds, goals))[1:] for row in counts]
    known = {k: wilson_interval(int(k), seeds * goals) for k in np.unique(counts.sum(1))}
    pooled = [known[k] for k in counts.sum(1)]
    held, promised = (np.mean([a <= rate <= b for a, b in ends]) for ends in (ours, pooled))
    assert 0.92 <= held <= 0.995
    if spread:
        assert promised < {0.05: 0.84, 0.2: 0.36}[spread]
    else:
        assert promised > 0.93


def test_a_rate_over_seeds_is_wilsons_where_seeds_agree_and_wide_where_they_do_not():
    for k in (0, 40, 50):
        rate, *ends = rate_interval([k] * 3, [50] * 3)
        assert ends == pytest.approx(list(wilson_interval(3 * k, 150))) and rate == pytest.approx(
            k / 50
        )
    assert rate_interval([9], [10])[1:] == pytest.approx(wilson_interval(9, 10))
    low, high = rate_interval([77, 84, 29], [100] * 3)[1:]  # two-room without a discrepancy
    assert low < 0.2 and high > 0.9
    # Around a half, and with variance between seeds alone, it is nearly Student's t.
    k = np.random.default_rng(6).normal(500, 60, 12).astype(int)
    mean, *ends = mean_interval(k / 1000)
    assert rate_interval(k, np.full(12, 1000)) == pytest.approx((mean, *ends), abs=0.005)
    # Seeds weigh the same, however many goals they had.
    assert rate_interval([5, 100], [10, 100])[0] == 0.75


def bootstrap(rng, tasks, draws=400):
    """The usual percentile bootstrap of a mean over tasks (T, R), which draws runs within tasks."""
    count, runs = tasks.shape
    index = rng.integers(0, runs, (draws, count, runs))
    means = np.take_along_axis(tasks[None], index, 2).mean((1, 2))
    return np.percentile(means, [2.5, 97.5])


@pytest.mark.parametrize("spreads", [(1, 1, 1), (3, 2, 1)])
def test_a_mean_over_tasks_is_held_where_a_bootstrap_of_nine_runs_falls_short(spreads):
    rng, held, promised = np.random.default_rng(7), [], []
    for _ in range(1500):
        tasks = rng.normal(0, np.array(spreads)[:, None], (3, 3))
        _, low, high = mean_over_tasks(dict(zip("abc", tasks)))
        held.append(low <= 0 <= high)
        low, high = bootstrap(rng, tasks)
        promised.append(low <= 0 <= high)
    assert 0.94 <= np.mean(held) <= 0.985
    assert 0.78 <= np.mean(promised) <= 0.87  # of a nominal 0.95


def test_a_mean_over_tasks_weighs_tasks_alike_and_is_the_t_interval_of_one():
    few, many = np.array([1.0, 2.0, 6.0]), np.zeros(9)
    assert mean_over_tasks({"a": few, "b": many})[0] == pytest.approx(1.5)
    assert mean_over_tasks({"a": few}) == pytest.approx(mean_interval(few))
    # A task that does not vary adds no uncertainty and no degrees of freedom.
    (_, low, high), (_, *alone) = mean_over_tasks({"a": few, "b": many}), mean_interval(few)
    assert high - low == pytest.approx((alone[1] - alone[0]) / 2)
    assert mean_over_tasks({"a": few, "b": [1.0]})[1:] == (None, None)
    agreed = mean_over_tasks({"easy": np.ones(4), "hard": np.zeros(4)})
    assert agreed == (0.5, None, None)


def test_what_cannot_be_summarised_is_named():
    with pytest.raises(ValueError, match="at least one"):
        ratio_interval(np.ones(0), np.ones(0))
    with pytest.raises(ValueError, match="runs of each task"):
        mean_over_tasks({"a": np.ones(0)})
    with pytest.raises(ValueError, match="NaN"):
        mean_over_tasks({"a": np.array([1.0, np.nan])})
    for counts in (([], []), ([3], [2]), ([1, 2], [4]), ([0], [0])):
        with pytest.raises(ValueError, match="successes of attempts of each seed"):
            rate_interval(*counts)


def test_wilson_interval_is_sane_at_the_edges():
    assert wilson_interval(100, 100)[0] == pytest.approx(0.963, abs=1e-3)
    assert wilson_interval(0, 100)[0] == 0
