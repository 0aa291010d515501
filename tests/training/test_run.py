"""Which settings make another training."""

import re

import pytest

from gjwm.training.run import RunFolderError, changed_training, require_same_training

MADE = {
    "train": {"steps": 9},
    "collect": {"episodes": 4, "workers": 1},
    "refine": {"steps": 5, "batch": 8},
    "planner": {"samples": 2},
}


def changed(online=False, **groups):
    return list(changed_training(MADE, MADE | groups, online=online))


def test_what_training_reads_makes_another_training_and_what_comes_after_does_not():
    assert changed(train={"steps": 8}) == ["train.steps"] and changed(planner={"samples": 3}) == []
    assert changed(collect={"episodes": 4, "workers": 7}) == [] and changed(
        collect={"episodes": 5, "workers": 1}
    ) == ["collect.episodes"]
    assert changed(planner={"samples": 3}, online=True) == ["planner.samples"]  # which acts there


def test_a_folder_of_another_training_is_refused_with_what_differs():
    said = "runs/x was trained with other settings of train.steps (9 before, 8 now); choose another"
    with pytest.raises(RunFolderError, match=re.escape(said)):
        require_same_training(MADE, MADE | {"train": {"steps": 8}}, "runs/x")
    said = "of a (not set before, 1 now), b (not set before, 1 now), c (not set before, 1 now) and"
    with pytest.raises(RunFolderError, match=re.escape(f"{said} 2 more; choose")):
        require_same_training(MADE, MADE | dict.fromkeys("abcde", 1), "runs/x")
    require_same_training(MADE, MADE | {"latent_dim": None}, "runs/x")


def test_how_dynamics_are_refined_counts_only_where_they_are():
    assert changed(refine={"steps": 5, "batch": 9}) == ["refine.batch"]
    assert "refine.steps" in changed(refine={"steps": 0, "batch": 8})
    assert changed(online=True, refine={"steps": 6, "batch": 8}) == []
    unrefined = {name: value for name, value in MADE.items() if name != "refine"}
    for never in ({}, {"refine": {"steps": 0, "batch": 8}}, {"refine": {"steps": 0, "batch": 16}}):
        assert not changed_training(unrefined, unrefined | never)
