"""The verdict's rules, each at its threshold: what is named, in which order, and what is
advised.
"""

import copy

import pytest

from gjwm.evaluation import verdict as rules
from gjwm.evaluation.intervals import wilson_interval
from gjwm.evaluation.verdict import judge


def policy(successes, of=100):
    interval = list(wilson_interval(successes, of))
    return {"success_rate": successes / of, "ci95": interval, "episodes": of}


GOOD = {
    "planning": {**policy(96), "oracle": policy(100), "random": policy(10), "hold": policy(5)},
    "prediction": {
        "horizon": 12,
        "r2_by_horizon": [0.99, 0.86],
        "copy_last_r2_by_horizon": [0.9, -0.8],
        "linear_gaussian": {"r2_by_horizon": [0.95, 0.1]},
        "variance_per_dim": 1.0,
    },
    "probe": {"linear_r2": 0.9, "knn_r2": 0.98, "mlp_r2": 0.99},
    "gaussianity": dict(
        effective_rank=15.0, effective_rank_ideal=16.0, epps_pulley=1.5, epps_pulley_null=1.06
    ),
    "calibration": {"coverage_90": 0.9, "horizon_5": {"coverage_90": 0.88}},
}


def but(**changes):
    """GOOD with some values changed: planning__success=..., or whole rows."""
    report = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *groups, key = path.split("__")
        at = report
        for group in groups:
            at = at[group]
        at[key] = value
    return report


def model_reaches(successes, **changes):
    report = but(**changes)
    report["planning"].update(policy(successes))
    return report


def names(report):
    return [finding.name for finding in judge(report).broken]


def test_a_good_model_is_called_good_and_nothing_is_wrong_with_it():
    verdict = judge(GOOD)
    assert verdict.grade == "good" and not verdict.broken and not verdict.remarks
    assert len(verdict.lines) == 3
    assert "96% of 100 goals" in verdict.lines[0] and "is 0.86" in verdict.lines[1]
    assert "Nothing stands out" in verdict.lines[2]


def test_good_is_nine_tenths_of_the_oracle():
    assert judge(model_reaches(90)).grade == "good"
    assert judge(model_reaches(89)).grade == "partly"
    assert judge(model_reaches(81, planning__oracle=policy(90))).grade == "good"


def test_without_an_oracle_the_verdict_speaks_of_what_was_measured():
    report = model_reaches(89)
    del report["planning"]["oracle"]
    verdict = judge(report)
    assert verdict.grade == "partly" and not verdict.broken
    assert "89% of 100 goals (chance 10%)" in verdict.lines[0]
    for claim in ("of the true simulator's", "true simulator 1", "distances in latent space"):
        assert claim not in " ".join(verdict.lines)
    assert "evaluate.oracle=true" in verdict.lines[2]
    report["planning"].update(policy(90))
    assert judge(report).grade == "good" and "true simulator" not in judge(report).lines[0]


def test_above_chance_means_intervals_that_do_not_meet():
    chance = policy(40)
    above = next(k for k in range(40, 100) if wilson_interval(k, 100)[0] > chance["ci95"][1])
    assert judge(model_reaches(above, planning__random=chance)).grade == "partly"
    below = judge(model_reaches(above - 1, planning__random=chance))
    assert below.grade == "poor" and "not clearly above chance" in below.lines[0]
    # standing still is chance too
    assert judge(model_reaches(above - 1, planning__hold=chance)).grade == "poor"


def test_a_planner_that_fails_on_the_simulator_leaves_the_model_undecided():
    assert judge(model_reaches(76, planning__oracle=policy(80))).grade == "good"
    verdict = judge(model_reaches(76, planning__oracle=policy(79)))
    assert verdict.grade == "undecided" and [f.name for f in verdict.broken] == ["planner"]
    assert "planner.samples" in verdict.lines[2]


def test_easy_goals_prove_little():
    assert judge(but(planning__hold=policy(49))).grade == "good"
    verdict = judge(but(planning__hold=policy(50)))
    assert verdict.grade == "undecided" and "goal_offset" in verdict.lines[2]


@pytest.mark.parametrize(
    ("path", "holds", "breaks", "name", "advice"),
    [
        ("prediction__variance_per_dim", 0.1, 0.099, "collapse", "objective.lam"),
        ("gaussianity__effective_rank", 1.6, 1.59, "collapse", "objective.lam"),
        ("prediction__r2_by_horizon", [0.9, 0.5], [0.9, 0.499], "prediction", "train.steps"),
        ("prediction__copy_last_r2_by_horizon", [0.859], [0.86], "prediction", "train.length"),
        ("prediction__linear_gaussian__r2_by_horizon", [0.859], [0.86], "prediction", "hidden"),
        ("calibration__coverage_90", 0.8, 0.799, "uncertainty", "calibrate.episodes"),
        ("calibration__coverage_90", 0.97, 0.971, "uncertainty", "calibrate.episodes"),
        ("calibration__horizon_5__coverage_90", 0.8, 0.799, "uncertainty", "calibrate.horizon"),
    ],
)
def test_each_link_breaks_at_its_threshold(path, holds, breaks, name, advice):
    assert names(but(**{path: holds})) == []
    verdict = judge(but(**{path: breaks}))
    assert [finding.name for finding in verdict.broken] == [name]
    assert advice in verdict.lines[2]


def test_the_best_probe_decides_whether_the_position_can_be_read():
    low = dict(probe__linear_r2=0.2, probe__knn_r2=0.3)
    assert names(but(**low, probe__mlp_r2=rules.READABLE)) == []
    assert names(but(**low, probe__mlp_r2=rules.READABLE - 1e-3)) == ["representation"]


def test_the_first_broken_link_is_the_reason():
    unread = {f"probe__{kind}_r2": 0.1 for kind in ("linear", "knn", "mlp")}
    report = model_reaches(50, **unread, prediction__r2_by_horizon=[0.2, 0.1])
    verdict = judge(report)
    assert [finding.name for finding in verdict.broken] == ["representation", "prediction"]
    assert verdict.grade == "partly" and verdict.lines[1] == verdict.broken[0].why
    collapsed = judge(model_reaches(96, prediction__variance_per_dim=1e-6))
    assert collapsed.grade == "poor" and "collapsed" in collapsed.lines[0]  # whatever it reaches


def test_with_every_link_whole_the_loss_lies_in_the_latent_distance():
    verdict = judge(model_reaches(60))
    assert verdict.grade == "partly" and not verdict.broken
    assert "latent space mislead" in verdict.lines[1] and "replan_every" in verdict.lines[2]


@pytest.mark.parametrize(
    ("path", "plain", "odd", "name"),
    [
        ("gaussianity__effective_rank", 9.6, 9.59, "unused directions"),
        ("gaussianity__epps_pulley", 5.3, 5.31, "far from Gaussian"),
    ],
)
def test_remarks_do_not_change_the_grade(path, plain, odd, name):
    assert judge(but(**{path: plain})).remarks == ()
    verdict = judge(but(**{path: odd}))
    assert [finding.name for finding in verdict.remarks] == [name]
    assert verdict.grade == "good" and verdict.lines[2] == verdict.remarks[0].change


def test_a_good_model_with_a_broken_link_is_told_so():
    verdict = judge(but(calibration__coverage_90=0.5))
    assert verdict.grade == "good" and "But: The model is too sure" in verdict.lines[1]
    assert "calibrate.episodes" in verdict.lines[2]
