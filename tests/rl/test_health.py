"""Claims about what a training that learns nothing says of itself."""

from dataclasses import replace

import pytest

from gjwm.rl.actor_critic import TwoHot
from gjwm.rl.health import Signs, ailments, sentence

# In the middle of learning cartpole-swingup from states.
WELL = Signs(
    steps=30_000,
    largest_reward=1.9,
    rank=14.0,
    std=0.99,
    latent_dim=32,
    value=90.0,
    discount=0.99,
    value_ends=TwoHot(51, -2.0, 7.0).ends,
    value_begun=TwoHot(51, -2.0, 7.0).start,
    evaluations=[60.0, 150.0, 280.0, 420.0, 560.0, 700.0],
    aimless=40.0,
    aimless_high=75.0,
)


def said(**changes):
    """Names of what is wrong, and all that is said of it."""
    found = ailments(replace(WELL, **changes))
    return [finding.name for finding in found], " ".join(map(sentence, found))


def test_a_healthy_run_says_nothing_nor_does_one_that_has_shown_nothing_yet():
    assert ailments(WELL) == () and ailments(Signs(steps=0)) == ()
    # an early one: values where they begin, small rewards, few and poor evaluations
    early = dict(steps=2500, largest_reward=0.01, value=WELL.value_begun, evaluations=[3.0, 5.0])
    assert said(**early) == ([], "")


def test_a_run_without_a_reward_says_how_long_and_what_to_change():
    names, text = said(largest_reward=0.0, value=0.3, evaluations=[0.0] * 9, aimless_high=0.0)
    assert names == ["no reward"]  # and not that chance is as good
    assert "30,000 steps" in text and "online.aimless_limit" in text and "loudness" in text
    names, text = said(largest_reward=0.0, steps=0)
    assert names == ["no reward"] and "data" in text and "aimless" not in text
    assert said(largest_reward=1e-6, value=0.0)[0] == []


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"rank": 1.9}, ["collapse"]),
        ({"rank": 2.1}, []),
        ({"rank": 1.9, "latent_dim": 3}, []),  # of three directions half will do
        ({"rank": 1.4, "latent_dim": 3}, ["collapse"]),
        ({"std": 0.3}, ["collapse"]),  # a variance below a tenth
        ({"std": 0.33}, []),
        ({"std": 1e-9, "rank": 0.0}, ["collapse"]),
    ],
)
def test_latents_that_collapse_are_told(changes, names):
    found, text = said(**changes)
    assert found == names and ("objective.lam" in text) == bool(names)


def test_values_that_rewards_cannot_pay_are_told():
    names, text = said(value=381.0)  # at most 190 for ever
    assert names == ["runaway"] and "1.9 are worth 190.0" in text
    assert said(value=379.0)[0] == []
    assert said(value=-381.0, value_ends=None)[0] == ["runaway"]
    assert said(value=381.0, discount=1.0)[0] == []  # any value can be paid
    # the end of the bins, symlog 7 here, is told even where rewards are that large
    names, text = said(value=1000.0, largest_reward=16.0)
    assert names == ["runaway"] and "heads.value.low and high" in text
    assert said(value=-6.0)[0] == ["runaway"]  # of a least of expm1(2) = 6.4
    assert said(value=0.0, value_ends=(0.0, 1096.0))[0] == []


def test_evaluations_that_chance_could_earn_are_told_once_there_are_enough():
    names, text = said(evaluations=[900.0, 30.0, 40.0, 35.0, 80.0, 60.0])
    assert names == ["no better"] and "last 2 of 6 evaluations earned 70.0" in text
    assert "at most 75.0" in text
    assert said(evaluations=[900.0, 30.0, 40.0, 35.0, 80.0, 75.0])[0] == []
    assert said(evaluations=[30.0, 40.0, 35.0, 80.0, 60.0])[0] == []  # five
    assert said(evaluations=[0.0] * 9, aimless=None, aimless_high=None)[0] == []
    # of one aimless episode no interval is known
    assert said(evaluations=[41.0] * 6, aimless_high=None)[0] == []
    assert said(evaluations=[39.0] * 6, aimless_high=None)[0] == ["no better"]


def test_several_ailments_are_told_together():
    names, text = said(rank=1.0, value=900.0, evaluations=[1.0] * 6)
    assert names == ["collapse", "runaway", "no better"]
    assert all(line.count("  ") == 0 for line in text.split(". "))
