"""What an evaluation does: one place for its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from gjwm._core.settings import Bounds, Count, Natural, Settings, check


@dataclass(frozen=True, kw_only=True)
class Evaluation(Settings):
    """Settings of `gjwm.evaluation.evaluate`.

    Args:
        episodes, length: held-out episodes, half of which fit the probes, and steps of each.
        leave_out_short: others take the place of episodes that end sooner than `length`, as in
            protocols whose goals are so many steps ahead; else these are an error.
        goals: "ahead": the state `goal_offset` agent steps after the start in the same episode;
            "reset": the start and goal that the world draws; None: "reset" where the world draws
            goals, else "ahead".
        goal_offset: agent steps between start and goal.
        pairs: attempts per actor.
        steps: agent steps to reach the goal.
        horizon, replan_every: of every plan.
        oracle: also plan on the true simulator.
        probe_steps: gradient steps of each MLP probe.
        information: also `information_report`, half a minute of one core.
        seed: of everything random; other seeds are other held-out episodes and goals.

    Raises:
        ValueError: for settings that cannot work.
    """

    group = "evaluate"
    episodes: Annotated[int, Bounds(least=8)] = 200
    length: Count = 60
    leave_out_short: bool = False
    goals: Literal["ahead", "reset"] | None = None
    goal_offset: Count | None = 12
    pairs: Count = 100
    steps: Count = 25
    horizon: Count = 12
    replan_every: Count = 2
    oracle: bool = True
    probe_steps: Count = 1500
    information: bool = False
    seed: Natural = 1

    def __post_init__(self):
        super().__post_init__()
        if self.goals == "ahead":
            check("evaluate.goal_offset", self.goal_offset, Count)
        if self.replan_every > self.horizon:
            raise ValueError(
                f"a plan of evaluate.horizon={self.horizon} actions cannot last for "
                f"evaluate.replan_every={self.replan_every} of them."
            )
