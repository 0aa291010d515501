"""Risk-aware planning where it matters: success in two-room with a near bridge over ice and a far, safe door.

The cost wants the goal reached, and soon, so the bridge is tempting: most who take it arrive earlier, some fall into the water
and stay there. *simulator* plans on the true stochastic simulator's outcomes, so that nothing but the treatment of risk differs
between rows; *learned* plans on particles of a GaussianDynamics trained on state vectors. All rows of a model share starts,
goals, planner, particles and seeds; kappa = 0 is the mean. Takes half an hour and more on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gjwm.behaviours import behaviour_from_weights
from gjwm.collect import collect_episodes, make_env
from gjwm.costs import CVaRCost, GoalCost, RiskCost, SaturatingGoalCost, SumCost
from gjwm.dynamics import GaussianDynamics
from gjwm.encoders import MLPEncoder
from gjwm.evaluate import (
    CostOfGoals,
    attempt_goals,
    copies,
    goal_pairs_from_resets,
    model_policy,
    oracle_policy,
    planning_report,
)
from gjwm.objectives import JointEmbeddingObjective, SIGReg
from gjwm.planning import CEM
from gjwm.replay import ReplayBuffer
from gjwm.train import train
from gjwm.world_model import WorldModel

ENV_ID, ENV = "gjwm/two-room-slippery-v0", dict(obs="state", terminate_on_goal=False)
STEPS, HORIZON, REPLAN = 60, 48, 4
WIDTH = {"simulator": 0.1, "learned": 0.7}  # of being there, in positions and in latents, whose unit is the data's std
PARTICLES = 8


def treatments(width: float) -> dict[str, tuple[CostOfGoals, bool]]:
    """What is done about risk -> the cost of goals, and whether outcomes are imagined at all."""

    def soon(goal: torch.Tensor) -> SumCost:
        """Being there at all and being there early count alike; the squared distance guides the search."""
        there = SaturatingGoalCost(goal, width=width, nearest=1.0, mean=1.0)
        return SumCost({"there": there, "guide": GoalCost(goal, nearest=1.0, mean=0.0)})

    return {
        "no noise imagined": (soon, False),
        "mean (kappa = 0)": (lambda goal: RiskCost(soon(goal), kappa=0.0), True),
        "mean + 1 std": (lambda goal: RiskCost(soon(goal), kappa=1.0), True),
        "mean + 2 std": (lambda goal: RiskCost(soon(goal), kappa=2.0), True),
        "CVaR, worst quarter": (lambda goal: CVaRCost(soon(goal), alpha=0.25), True),
    }


def run(*, quick: bool = False, models: Sequence[str] = ("simulator", "learned")) -> list[dict[str, Any]]:
    """Rows: model, risk, success, low, high (95%), episodes, drowned, ms_per_step."""
    count = 4 if quick else 200
    env = make_env(ENV_ID, **ENV)
    pairs = goal_pairs_from_resets(env, count=count, seed=20_000_000)
    envs = copies(env, count)
    planner = CEM(
        samples=16 if quick else 128,
        iterations=2 if quick else 4,
        elites=8 if quick else 16,
        repeat=4,
        noise_beta=1.0,
        init_std=1.0,
        min_std=0.05,
        covariance="diagonal",
        memory=0.1,
    )
    model = _train(quick) if "learned" in models else None
    rows = []
    for kind in models:
        for name, (cost, uncertain) in treatments(WIDTH[kind]).items():
            options = dict(
                horizon=HORIZON,
                replan_every=REPLAN,
                generator=torch.Generator().manual_seed(0),
                cost=cost,
                particles=PARTICLES if uncertain else None,
            )
            if kind == "simulator":
                policy = oracle_policy(envs[0], planner, pairs, **options)
            else:
                policy = model_policy(model, planner, pairs, **options)
            episodes = attempt_goals(envs, pairs, policy, steps=6 if quick else STEPS)
            report = planning_report(episodes, env.unwrapped.success_radius)
            rows.append(
                {
                    "model": kind,
                    "risk": name,
                    "success": report["success_rate"],
                    "low": report["ci95"][0],
                    "high": report["ci95"][1],
                    "episodes": report["episodes"],
                    "drowned": sum(bool(e.unwrapped.sunk) for e in envs) / count,
                    "ms_per_step": 1e3 * report["seconds_per_step"],
                }
            )
    return rows


def _train(quick: bool) -> WorldModel:
    """A world model of the slippery world on state vectors, from hurried and from aimless episodes."""
    behaviour = behaviour_from_weights({"scripted": 0.6, "coloured": 0.4})
    count = 8 if quick else 2000
    episodes = list(collect_episodes(ENV_ID, ENV, behaviour, episodes=count, length=60, seed=0, workers=0))
    env = make_env(ENV_ID, **ENV)
    buffer = ReplayBuffer(61 * count, env.observation_space, env.action_space)
    for episode in episodes:
        buffer.add_episode(*episode[:5])
    torch.manual_seed(0)
    model = WorldModel(MLPEncoder(env.observation_space.shape, 12), GaussianDynamics(12, 2, hidden=64, std_hidden=32))
    train(
        model,
        JointEmbeddingObjective(SIGReg()),
        buffer,
        steps=20 if quick else 4000,
        batch=128,
        episodes=None if quick else 16,
        generator=torch.Generator().manual_seed(0),
    )
    return model
