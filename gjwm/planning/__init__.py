"""Planners over a score function. They know neither models nor costs: score(a (B, N, H, A)) -> cost
(B, N).

A planner is stateless: the warm start comes in as `mean` and the randomness as `generator`, so a
plan replays exactly, and whoever acts (`gjwm.planning.agent`) decides what to carry from one plan
to the next. `docs/planning.md` says which to use when."""

from gjwm.planning.categorical import CategoricalCEM
from gjwm.planning.gradient import GradientPlanner, HybridPlanner
from gjwm.planning.noise import coloured_noise
from gjwm.planning.sampling import CEM, ICEM, MPPI, RandomShooting
from gjwm.planning.search import Plan, Planner, Score

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "CategoricalCEM",
    "GradientPlanner",
    "HybridPlanner",
    "Plan",
    "Planner",
    "RandomShooting",
    "Score",
    "coloured_noise",
]
