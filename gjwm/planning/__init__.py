"""Planners over a score function, the costs that make one, and the agent that acts by them.

Planners know neither models nor costs: score(a (B, N, H, A)) -> cost (B, N). A planner is
stateless: the warm start comes in as `mean` and the randomness as `generator`, so a plan replays
exactly, and the agent decides what to carry from one plan to the next. `docs/planning.md` says
which to use when."""

from gjwm.planning.agent import AgentOptions, MPCAgent
from gjwm.planning.categorical import CategoricalCEM
from gjwm.planning.controller import RecedingHorizon
from gjwm.planning.costs import GoalCost, RewardCost, RiskCost, SumCost
from gjwm.planning.gradient import GradientPlanner
from gjwm.planning.sampling import CEM, ICEM, MPPI, RandomShooting
from gjwm.planning.search import Plan, Planner, Score

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "AgentOptions",
    "CategoricalCEM",
    "GoalCost",
    "GradientPlanner",
    "MPCAgent",
    "Plan",
    "Planner",
    "RandomShooting",
    "RecedingHorizon",
    "RewardCost",
    "RiskCost",
    "Score",
    "SumCost",
]
