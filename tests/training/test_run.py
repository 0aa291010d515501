"""Which settings make another training."""

import pytest

from gjwm.training.run import changed_training, require_same_training

MADE = {
    "train": {"steps": 9},
    "collect": {"episodes": 4, "workers": 1},
    "refine": {"steps": 5, "batch": 8},
    "planner": {"samples": 2},
}


def changed(online=False, **groups):
    return changed_training(MADE, MADE | groups, online=online)


def test_what_training_reads_makes_another_training_and_what_comes_after_does_not():
    assert changed(train={"steps": 8}) == ["train"] and changed(planner={"samples": 3}) == []
    assert changed(collect={"episodes": 4, "workers": 7}) == [] and changed(
        collect={"episodes": 5, "workers": 1}
    ) == ["collect"]
    assert changed(planner={"samples": 3}, online=True) == ["planner"]  # which acts there
    with pytest.raises(ValueError, match="other settings of train; choose another name"):
        require_same_training(MADE, MADE | {"train": {"steps": 8}}, "runs/x")


def test_how_dynamics_are_refined_counts_only_where_they_are():
    assert changed(refine={"steps": 5, "batch": 9}) == ["refine"] and changed(
        refine={"steps": 0, "batch": 8}
    ) == ["refine"]
    assert changed(online=True, refine={"steps": 6, "batch": 8}) == []
    unrefined = {name: value for name, value in MADE.items() if name != "refine"}
    for never in ({}, {"refine": {"steps": 0, "batch": 8}}, {"refine": {"steps": 0, "batch": 16}}):
        assert changed_training(unrefined, unrefined | never) == []
