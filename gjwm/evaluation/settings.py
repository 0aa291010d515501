"""What an evaluation does: one place for its settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Settings of `gjwm.evaluation.evaluate`.

    Args:
        episodes, length: held-out episodes, and steps of each.
        goals: "ahead": the state `goal_offset` agent steps after the start in the same episode;
            "reset": the start and goal that the world draws; None: "reset" where the world draws
            goals, else "ahead".
        goal_offset: agent steps between start and goal.
        pairs: attempts per actor.
        steps: agent steps to reach the goal.
        horizon, replan_every: of every plan, the oracle's too.
        oracle: also plan on the true simulator.
        probe_steps: gradient steps of each MLP probe.
        seed: of everything random; other seeds are other held-out episodes and goals.

    Raises:
        ValueError: for settings that cannot work.
    """

    episodes: int = 200
    length: int = 60
    goals: str | None = None
    goal_offset: int | None = 12
    pairs: int = 100
    steps: int = 25
    horizon: int = 12
    replan_every: int = 2
    oracle: bool = True
    probe_steps: int = 1500
    seed: int = 1

    def __post_init__(self):
        if self.goals not in (None, "ahead", "reset"):
            raise ValueError(f"goals must be 'ahead', 'reset' or None, got {self.goals!r}.")
        if not _whole(self.episodes, 8) or not _whole(self.length, 1):
            raise ValueError(
                "expected evaluate.episodes >= 8, half of which fit the probes, and "
                f"evaluate.length >= 1, got {self.episodes!r} and {self.length!r}."
            )
        counts = ["pairs", "steps", "horizon", "replan_every", "probe_steps"]
        if self.goals == "ahead" or (self.goals is None and self.goal_offset is not None):
            counts.append("goal_offset")
        for name in counts:
            if not _whole(value := getattr(self, name), 1):
                raise ValueError(f"{name} must be a whole number, 1 or more, got {value!r}.")
        if not _whole(self.seed, 0):
            raise ValueError(f"seed must be a whole number, 0 or more, got {self.seed!r}.")
        if self.replan_every > self.horizon:
            raise ValueError(
                f"a plan of horizon={self.horizon} actions cannot last for "
                f"replan_every={self.replan_every} of them."
            )


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
