"""Settings of learning from reward: how the learner learns, acts and explores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from gjwm._core.settings import (
    Bounds,
    Count,
    Factory,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    Settings,
)

_Rate = Annotated[float, Bounds(least=0, below=math.inf)]  # 0: learns nothing
Share = Annotated[float, Bounds(above=0, most=1)]


@dataclass(frozen=True, kw_only=True)
class LearnerSettings(Settings):
    """How a `RewardLearner` learns.

    Args:
        lr, value_lr, policy_lr: Adam's learning rates, of the world model, the values and the
            policy.
        encoder_rate: the encoder's learning rate as a share of lr: values follow a representation
            that moves slowly.
        shift: pixels by which pictures are moved at random as they are learned from, see
            `random_shift`; 0 for other observations.
        clip: largest gradient norm.
        discount: g per step.
        lam: of the value targets, see `lambda_returns`.
        expansion: steps that the policy is followed in the model before the slow values are asked,
            for each target (model-based value expansion, Feinberg et al., 2018).
        target_rate: share of the values that their slow copy, which gives the targets, takes over
            at each update.
        rho: each further open-loop step counts this much less.
        reward_weight, value_weight, termination_weight: of these errors beside the objective. They
            reach the dynamics and the encoder too, which so keep what matters for reward.
        entropy: the policy's gain from a nat of entropy, in units of the values' spread.
        clone: weight of the policy's squared distance to the actions that were taken, in the same
            units (TD3+BC, Fujimoto & Gu, 2021): for data that no acting will correct.
        compile: compile the two halves of an update (about a minute at the start).
    """

    group = "learner"
    lr: _Rate = 1e-3
    value_lr: _Rate = 1e-3
    policy_lr: _Rate = 1e-3
    encoder_rate: NonNegative = 0.3
    shift: Natural = 0
    clip: Positive = 10.0
    discount: Share = 0.99
    lam: Fraction = 1.0
    expansion: Natural = 0
    target_rate: Share = 0.01
    rho: Share = 0.7
    reward_weight: float = 1.0
    value_weight: float = 0.1
    termination_weight: float = 0.1
    entropy: float = 1e-3
    clone: float = 0.0
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class Exploration(Settings):
    """How much noise there is on actions, for how long and of what colour: see `Explorer`.

    Args:
        start, end: first and last standard deviation of the noise on plans, the mean over lanes, in
            units of the action range's half width. It rises evenly from 0 in the first lane to
            twice that in the last (a single lane has the mean).
        steps: over which it falls linearly, after the aimless ones.
        colour: exponent of its spectrum along time: 0 white, 1 pink, 2 brown.
        quiet: first aimless steps, counted over the lanes in whole blocks, that are uniform and
            white.
        loud_colours: of the aimless blocks after those, one after the other over the lanes.
        loudness: their standard deviation; they are clipped to the range, and mostly at its ends
            with 3.
        block: steps of one draw, about an episode.
    """

    group = "online.exploration"
    start: NonNegative = 0.5
    end: NonNegative = 0.1
    steps: Count = 10_000
    colour: float = 0.0
    quiet: Natural = 2000
    loud_colours: Sequence[float] = (2.0, 1.0, 2.0, 0.0)
    loudness: NonNegative = 3.0
    block: Annotated[int, Bounds(least=2)] = 500

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "loud_colours", tuple(self.loud_colours))
        if not self.loud_colours:
            raise ValueError("online.exploration.loud_colours must name a colour, got none.")

    def std(self, step: int) -> float:
        """Of the noise after `step` steps with the planner."""
        return self.end + (self.start - self.end) * max(0.0, 1 - step / self.steps)


@dataclass(frozen=True, kw_only=True)
class Oracle(Settings):
    """A planner on the true simulator, see `RewardOracle`; `planner` makes one."""

    group = "online.oracle"
    planner: Factory
    horizon: Count = 40
    replan_every: Count = 4


@dataclass(frozen=True, kw_only=True)
class OnlineSettings(Settings):
    """How long, from what and how often; counted in agent steps over all lanes.

    Args:
        steps: agent steps in all (control-suite frames are action_repeat times as many). 0: learn
            from `data` alone.
        aimless_steps: of these, without a plan at the start: see `Exploration`. Their updates are
            made up for at once.
        aimless_limit: while no reward but 0 has been seen, there is nothing to plan for: actions
            stay aimless up to this step.
        update_ratio: updates per step.
        cooldown: share of the steps, the last ones, over which the learning rates fall linearly to
            a tenth: what is learned then is the average of many updates.
        lanes: environments side by side.
        batch, length: windows per update, and steps of each: the open-loop horizon that is learned.
        horizon, policy_plans: of the planner, and rollouts of the policy among its candidates.
        exploration: the noise on actions.
        data: folder of a dataset that replay begins with.
        pretrain: updates on it before the first step. Logs and states count them as steps.
        capacity: steps remembered; None: all of them, of episodes of four steps and more on
            average.
        evaluate_every, episodes: steps between evaluations, and episodes of each.
        oracle: also play the planner on the true simulator at the end.
        log_every, checkpoint_every: steps (or updates on data) between these.

    Raises:
        ValueError: also for settings that do not go together.
    """

    group = "online"
    steps: Natural = 50_000
    aimless_steps: int = 2000
    aimless_limit: int = 20_000
    update_ratio: Positive = 0.5
    cooldown: Fraction = 0.2
    lanes: Count = 4
    batch: Count = 128
    length: Count = 3
    horizon: Count = 4
    policy_plans: Count = 8
    exploration: Exploration = field(default_factory=Exploration)
    data: str | Path | None = None
    pretrain: Natural = 0
    capacity: Count | None = None
    evaluate_every: Count = 5000
    episodes: Count = 10
    oracle: Oracle | None = None
    log_every: Count = 500
    checkpoint_every: Count = 5000

    def __post_init__(self):
        super().__post_init__()
        least = self.lanes * (self.length + 1)  # a window in each lane
        if self.steps and not least <= self.aimless_steps < self.steps:
            raise ValueError(
                f"expected online.aimless_steps from lanes * (length + 1) = {least} to below "
                f"online.steps = {self.steps}, got {self.aimless_steps}."
            )
        if self.capacity is not None and self.capacity < least:
            raise ValueError(
                f"online.capacity={self.capacity} has no room for a window in each lane: expected "
                f"at least lanes * (length + 1) = {least}."
            )
        if self.pretrain and self.data is None:
            raise ValueError(
                f"online.pretrain={self.pretrain} updates learn from a dataset and online.data "
                "names none: set it, or online.pretrain=0."
            )
        if not self.pretrain and not self.steps:
            raise ValueError(
                "there is nothing to learn from: set online.steps, or online.data and "
                "online.pretrain to learn from a dataset."
            )
