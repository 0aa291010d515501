"""Claims about summaries over seeds."""

import pytest

from gjwm.study import aggregate, interquartile_over_tasks, pooled_success


def report(success, episodes=10, **planning):
    return {"planning": {"success_rate": success, "episodes": episodes, "seconds_per_step": 0.01, **planning}}


def test_the_summary_is_of_the_seeds_that_have_the_figure():
    hold = {"hold": {"success_rate": 0.2, "episodes": 10}}
    figures = aggregate({0: report(0.5), 1: report(0.9, **hold), 7: report(1.0)})
    assert figures["success"]["values"] == [0.5, 0.9, 1.0]
    assert figures["success"]["median"] == 0.9 and figures["success"]["mean"] == pytest.approx(0.8)
    assert (figures["success"]["min"], figures["success"]["max"]) == (0.5, 1.0)
    assert figures["hold"]["values"] == [None, 0.2, None] and figures["hold"]["median"] == 0.2
    assert figures["ms per step"]["median"] == 10 and "oracle" not in figures


def test_attempts_of_all_seeds_are_pooled():
    random = {"random": {"success_rate": 0.25, "episodes": 4}}
    reports = {0: report(0.5, **random), 1: report(1.0, 30, random={"success_rate": 1.0, "episodes": 4})}
    assert pooled_success(reports) == (35, 40)
    assert pooled_success(reports, "random") == (5, 8)


def test_no_runs_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        aggregate({})


def test_the_interquartile_mean_is_over_runs_of_all_tasks_and_of_figures_that_all_have():
    hold = {"hold": {"success_rate": 0.2, "episodes": 10}}
    easy = [report(rate, **hold) for rate in (0.9, 1.0, 0.95, 0.97)]
    hard = [report(rate) for rate in (0.1, 0.5, 0.3, 0.4)]
    found = interquartile_over_tasks({"easy": easy, "hard": hard})
    assert found["success"]["mean"] == pytest.approx((0.4 + 0.5 + 0.9 + 0.95) / 4)  # the middle half of eight
    assert (
        found["success"]["low"] < found["success"]["mean"] < found["success"]["high"] and found["success"]["runs"] == 8
    )
    assert "hold" not in found and found["ms per step"]["low"] == found["ms per step"]["high"] == 10
    with pytest.raises(ValueError, match="none of hard"):
        interquartile_over_tasks({"easy": easy, "hard": []})
