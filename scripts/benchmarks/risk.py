"""Risk-aware planning where it matters: success in two-room with a near bridge over ice and a far,
safe door.

The cost wants the goal reached, and soon. The bridge saves ten steps and more and drowns about a
third of who crosses, so it is the right choice on average and the wrong one for who must arrive.
*simulator* plans on the true stochastic simulator, so that nothing but the treatment of risk
differs between rows; *learned* plans on particles of a GaussianDynamics trained on state vectors.
All rows of a model share starts, goals, planner, particles and seeds; kappa = 0 is the mean. Takes
half an hour on one core for the simulator, longer for the model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.planning import state_model
from gjwm.data.acting import as_array
from gjwm.data.behaviours import behaviour_from_weights
from gjwm.envs.two_room_layout import WALL_REACH
from gjwm.evaluation.goals import (
    CostOfGoals,
    GoalPairs,
    OracleActor,
    attempt_goals,
    goal_lanes,
    goal_pairs_from_resets,
    model_actor,
    planning_report,
)
from gjwm.planning import CEM
from gjwm.planning.costs import Cost, GoalCost, RiskCost, SumCost, per_particle
from gjwm.training.settings import TrainSettings

# With a slip of 0.027 about two of three cross the bridge, and who counts a fall as the whole
# horizon lost still goes over it.
ENV_ID, ENV = "gjwm/two-room-slippery-v0", dict(obs="state", terminate_on_goal=False, slip=0.027)
STEPS, HORIZON, REPLAN = 60, 40, 4
PARTICLES = 16
# Of being there: in positions, and in latents, whose unit is the data's standard deviation.
WIDTH = {"simulator": 0.05, "learned": 0.35}

# Which starts and goals, see `tempting_pairs`.
SAVED = 10  # steps that the bridge saves at least
SPARE = 6  # steps of the horizon that the door's way leaves at least
DEPTH = 0.15  # of the goal behind the wall's face, world units
BRIDGE, SPEED = 0.35, 0.04  # the world's own: the ice's y, and world units per step


class SaturatingGoalCost(GoalCost):
    """`GoalCost` with d = 1 - exp(-|z - goal|^2 / (2 width^2)), as in PILCO (Deisenroth &
    Rasmussen, 2011): there or not.

    Beyond a few widths all misses are alike, so an outcome that ends stuck near the goal is as bad
    as one that never left. Far
    from the goal it leads nowhere: add a `GoalCost` to guide the search.

    Args:
        width: distance at which the cost is 0.39, in the units of z.
        **weights: nearest, mean, final of `GoalCost`.
    """

    def __init__(self, goal: Tensor, *, width: float, **weights: float):
        super().__init__(goal, **weights)
        if not width > 0:
            raise ValueError(f"SaturatingGoalCost expects width > 0, got {width}.")
        self.width = width

    def distance(self, z: Tensor, goal: Tensor) -> Tensor:
        return 1 - torch.exp(-0.5 * (z - goal).square().sum(-1) / self.width**2)


class CVaRCost:
    """Conditional value at risk: the mean of the worst share of the particles' costs.

    Args:
        cost: of one trajectory, such as `GoalCost`.
        alpha: the share, in (0, 1]; 1 is the mean. At least one particle counts.
    """

    def __init__(self, cost: Cost, *, alpha: float = 0.25):
        if not 0 < alpha <= 1:
            raise ValueError(f"CVaRCost expects 0 < alpha <= 1, got {alpha}.")
        self.cost, self.alpha = cost, alpha

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        c = per_particle(self.cost, z, a)
        return c.topk(math.ceil(self.alpha * c.shape[-1]), dim=-1).values.mean(-1)


def treatments(width: float) -> dict[str, tuple[CostOfGoals, bool]]:
    """What is done about risk -> the cost of goals, and whether outcomes are imagined at all."""

    def soon(goal: torch.Tensor) -> SumCost:
        """The share of the plan that is not spent at the goal. A faint squared distance guides the
        search.
        """
        there = SaturatingGoalCost(goal, width=width, nearest=0.0, mean=1.0)
        return SumCost({"there": there, "guide": (0.1, GoalCost(goal, nearest=1.0, mean=0.0))})

    return {
        "no noise imagined": (soon, False),
        "mean (kappa = 0)": (lambda goal: RiskCost(soon(goal), kappa=0.0), True),
        "mean + 1 std": (lambda goal: RiskCost(soon(goal), kappa=1.0), True),
        "mean + 2 std": (lambda goal: RiskCost(soon(goal), kappa=2.0), True),
        "CVaR, worst quarter": (lambda goal: CVaRCost(soon(goal), alpha=0.25), True),
    }


def steps_through(opening: float | np.ndarray, start: np.ndarray) -> np.ndarray:
    """States (E, X) -> about how many steps their agents take to their goals through the opening at
    y, one number or (E,).
    """
    x, y, goal_x, goal_y, wall_x = start[:, :5].T
    ahead = np.sign(goal_x - wall_x) * WALL_REACH
    legs = [(x, y, wall_x - ahead, opening), (wall_x - ahead, opening, wall_x + ahead, opening)]
    legs += [(wall_x + ahead, opening, goal_x, goal_y)]
    return sum(np.maximum(np.abs(x1 - x0), np.abs(y1 - y0)) for x0, y0, x1, y1 in legs) / SPEED


def tempting_pairs(*, count: int, seed: int) -> GoalPairs:
    """The first `count` starts and goals of the world's resets that are `SAVED` steps and more
    nearer by the bridge.

    Only those whose way through the door fits the horizon, with goals `DEPTH` and more behind the
    wall, so that nobody in the
    water is near one: about an eighth of the resets.

    Raises:
        ValueError: when there are not as many among the resets drawn.
    """
    with goal_lanes(ENV_ID, ENV, max(16 * count, 200)) as envs:
        drawn = goal_pairs_from_resets(envs, seed=seed)
    bridge, door = steps_through(BRIDGE, drawn.start), steps_through(drawn.start[:, 5], drawn.start)
    deep = np.abs(drawn.start[:, 2] - drawn.start[:, 4]) >= WALL_REACH + DEPTH
    kept = np.flatnonzero((door - bridge >= SAVED) & (door <= HORIZON - SPARE) & deep)[:count]
    if len(kept) < count:
        raise ValueError(
            f"expected {count} tempting starts among {len(drawn.start)} resets, got {len(kept)}; "
            f"choose another seed."
        )
    return GoalPairs(*(getattr(drawn, f.name)[kept] for f in dataclasses.fields(drawn)))


def steps_to_goal(distance: np.ndarray, radius: float) -> float:
    """Distances (E, T+1) -> mean step of the first arrival; T for who never arrives."""
    there = distance[:, 1:] <= radius
    return float(np.where(there.any(1), there.argmax(1) + 1, there.shape[1]).mean())


def run(
    *, quick: bool = False, models: Sequence[str] = ("simulator", "learned")
) -> list[dict[str, Any]]:
    """Rows: model, risk, success, low, high (95%), episodes, steps (mean until the goal), drowned,
    ms_per_step.
    """
    count = 4 if quick else 200
    pairs = tempting_pairs(count=count, seed=20_000_000)
    planner = CEM(
        samples=16 if quick else 256,
        iterations=2 if quick else 4,
        elites=8 if quick else 25,
        repeat=4,
        noise_beta=1.0,
        init_std=1.0,
        min_std=0.05,
        covariance="diagonal",
        memory=0.1,
    )
    model = None
    if "learned" in models:  # on state vectors, from hurried and from aimless episodes
        behaviour = behaviour_from_weights({"scripted": 0.6, "coloured": 0.4})
        episodes, steps, mixed = (8, 20, None) if quick else (2000, 4000, 16)
        settings = TrainSettings(steps=steps, batch=128, episodes=mixed)
        options = dict(count=episodes, settings=settings, latent_dim=12, hidden=64, std_hidden=32)
        model = state_model(ENV_ID, ENV, behaviour, **options)
    rows = []
    for kind in models:
        for name, (cost, uncertain) in treatments(WIDTH[kind]).items():
            options = dict(
                horizon=HORIZON,
                replan_every=REPLAN,
                generator=torch.Generator().manual_seed(0),
                cost=cost,
            )
            particles = PARTICLES if uncertain else None
            if kind == "simulator":
                outcomes = dict(particles=particles)
                actor = OracleActor(pairs.goal_position, planner, outcomes=outcomes, **options)
            else:
                actor = model_actor(model, planner, pairs, particles=particles, **options)
            with goal_lanes(ENV_ID, ENV, count) as envs:
                episodes = attempt_goals(envs, pairs, actor, steps=6 if quick else STEPS)
                radius, sunk = envs.success_radius, float(np.mean(as_array(envs.sunk)))
            report = planning_report(episodes, radius)
            rows.append(
                {
                    "model": kind,
                    "risk": name,
                    "success": report["success_rate"],
                    "low": report["ci95"][0],
                    "high": report["ci95"][1],
                    "episodes": report["episodes"],
                    "steps": steps_to_goal(episodes.distance, radius),
                    "drowned": sunk,
                    "ms_per_step": 1e3 * report["seconds_per_step"],
                }
            )
    return rows
