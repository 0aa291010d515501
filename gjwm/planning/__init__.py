"""Planners over a score function, the costs that make one, and the agent that acts by them.

Planners know neither models nor costs: score(a (B, N, H, A)) -> cost (B, N). A planner is
stateless: the warm start comes in as `mean` and the randomness as `generator`, so a plan replays
exactly, and the agent decides what to carry from one plan to the next. `docs/planning.md` says
which to use when.

Costs and agents know models, and are imported when they are used: a planner alone needs none."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gjwm.planning.categorical import CategoricalCEM as CategoricalCEM
from gjwm.planning.controller import RecedingHorizon as RecedingHorizon
from gjwm.planning.gradient import GradientPlanner as GradientPlanner
from gjwm.planning.sampling import CEM as CEM
from gjwm.planning.sampling import ICEM as ICEM
from gjwm.planning.sampling import MPPI as MPPI
from gjwm.planning.sampling import RandomShooting as RandomShooting
from gjwm.planning.search import Plan as Plan
from gjwm.planning.search import Planner as Planner
from gjwm.planning.search import Score as Score

if TYPE_CHECKING:
    from gjwm.planning.agent import AgentOptions as AgentOptions
    from gjwm.planning.agent import MPCAgent as MPCAgent
    from gjwm.planning.costs import GoalCost as GoalCost
    from gjwm.planning.costs import ReachCost as ReachCost
    from gjwm.planning.costs import RewardCost as RewardCost
    from gjwm.planning.costs import RiskCost as RiskCost
    from gjwm.planning.costs import SumCost as SumCost

_HOMES = {
    **dict.fromkeys(("AgentOptions", "MPCAgent"), "agent"),
    **dict.fromkeys(("GoalCost", "ReachCost", "RewardCost", "RiskCost", "SumCost"), "costs"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"gjwm.planning.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
