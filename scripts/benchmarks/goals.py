"""Goal reaching with every planner: success and time per step, on trained models and on the true
simulator, pooled over seeds.

Checkpoints are found where `gjwm train` and `gjwm study` leave them: runs/<task>/checkpoint.pt,
runs/<task>/seed-<k>/ and runs/<task>-seed<k>/, for the tasks two-room-random and reacher-easy. All
planners of a checkpoint get the same starts, goals and seeds, none of which training or tuning has
seen. A task without a checkpoint is left out, and a line says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.planning import FEW_ROUNDS, observation_of
from gjwm.data.behaviours import Coloured
from gjwm.data.collect import collect_episodes
from gjwm.evaluation.goals import (
    GoalPairs,
    OracleActor,
    attempt_goals,
    goal_lanes,
    goal_pairs_ahead,
    goal_pairs_from_resets,
    model_actor,
    planning_report,
)
from gjwm.evaluation.intervals import rate_interval
from gjwm.models.world_model import WorldModel
from gjwm.planning import CEM, ICEM, MPPI, GradientPlanner, Planner, RandomShooting

TASKS: dict[str, dict[str, Any]] = {
    "two-room-random": dict(
        env_id="gjwm/two-room-v0",
        env=dict(goal="other-room", wall="random", door="random", terminate_on_goal=False),
        plan=dict(horizon=48, replan_every=4),
        repeat=4,
        steps=60,
    ),
    "reacher-easy": dict(
        env_id="gjwm/reacher-easy-v0",
        env=dict(action_repeat=2, hidden=["target"]),
        plan=dict(horizon=12, replan_every=2),
        repeat=1,
        steps=25,
        ahead=12,
    ),
}


def planners(repeat: int) -> dict[str, Planner]:
    """About a thousand rollouts each where they sample, all in blocks of `repeat` steps."""
    return {
        "CEM": CEM(repeat=repeat, **FEW_ROUNDS["CEM"]),
        "ICEM": ICEM(repeat=repeat, **FEW_ROUNDS["ICEM"]),
        "MPPI": MPPI(repeat=repeat, **FEW_ROUNDS["MPPI"]),
        "RandomShooting": RandomShooting(repeat=repeat, **FEW_ROUNDS["RandomShooting"]),
        "GradientPlanner": GradientPlanner(repeat=repeat, **FEW_ROUNDS["GradientPlanner"]),
    }


def checkpoints(task: str, runs: Path) -> list[Path]:
    """Every trained seed of a task."""
    paths = [runs / task / "checkpoint.pt", *runs.glob(f"{task}/seed-*/checkpoint.pt")]
    paths += runs.glob(f"{task}-seed*/checkpoint.pt")
    return sorted(path for path in paths if path.is_file())


def run(
    *,
    quick: bool = False,
    runs: Path = Path("runs"),
    pairs: int = 34,
    simulate: Sequence[str] = ("CEM", "ICEM"),
) -> list[dict[str, Any]]:
    """Rows: task, world (model or simulator), planner, success, low, high (95%), episodes,
    ms_per_step.

    Args:
        runs: folder of checkpoints.
        pairs: start and goal pairs per checkpoint.
        simulate: planners that also plan on the true simulator.
    """
    rows = []
    for task, settings in TASKS.items():
        paths = [None] if quick else checkpoints(task, runs)
        if not paths:
            print(
                f"no checkpoint of {task} under {runs}/: train one with `gjwm train`; the task is "
                f"left out.",
                flush=True,
            )
        tried: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for seed, path in enumerate(paths):
            for key, report in _one_seed(
                settings, path, 2 if quick else pairs, seed, quick, simulate
            ):
                tried.setdefault(key, []).append(report)
        for (world, planner), reports in tried.items():
            attempts = np.array([report["episodes"] for report in reports])
            rates = np.array([report["success_rate"] for report in reports])
            reached = np.rint(rates * attempts)
            if world == "simulator":  # nothing was trained: all attempts are independent
                reached, attempts = reached.sum(keepdims=True), attempts.sum(keepdims=True)
            success, low, high = rate_interval(reached, attempts)
            rows.append(
                {
                    "task": f"{task}, H={settings['plan']['horizon']}",
                    "world": world,
                    "planner": planner,
                    "success": success,
                    "low": low,
                    "high": high,
                    "episodes": int(attempts.sum()),
                    "ms_per_step": 1e3
                    * float(np.mean([report["seconds_per_step"] for report in reports])),
                }
            )
    return rows


def _one_seed(
    settings: dict[str, Any],
    path: Path | None,
    pairs: int,
    seed: int,
    quick: bool,
    simulate: Sequence[str],
) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    steps = 4 if quick else settings["steps"]
    model = None if path is None else WorldModel.load(path)
    seen = {**settings["env"], **observation_of(model)}
    with goal_lanes(settings["env_id"], seen, pairs) as envs:
        chosen = _pairs(envs, settings, seed)
    blind = {**settings["env"], "obs": "state"}
    generator = torch.Generator().manual_seed
    for name, planner in planners(settings["repeat"]).items():
        if quick:
            planner = {
                "CEM": CEM(samples=8, iterations=4, elites=2),
                "ICEM": ICEM(samples=8, iterations=6, elites=2),
            }.get(name)
            if planner is None:
                continue
        plan = dict(settings["plan"], generator=generator(seed))
        if name in simulate:
            actor = OracleActor(chosen.goal_position, planner, **plan)
            with goal_lanes(settings["env_id"], blind, pairs) as envs:
                attempts = attempt_goals(envs, chosen, actor, steps=steps)
                yield ("simulator", name), planning_report(attempts, envs.success_radius)
        if model is not None:
            actor = model_actor(model, planner, chosen, **plan)
            with goal_lanes(settings["env_id"], seen, pairs) as envs:
                attempts = attempt_goals(envs, chosen, actor, steps=steps)
                yield ("model", name), planning_report(attempts, envs.success_radius)


def _pairs(envs: Any, settings: dict[str, Any], seed: int) -> GoalPairs:
    if "ahead" not in settings:
        return goal_pairs_from_resets(envs, seed=30_000_000 + seed)
    episodes = list(
        collect_episodes(
            settings["env_id"],
            dict(settings["env"], obs="state"),
            Coloured(),
            episodes=envs.num_envs,
            length=60,
            seed=3_000_000 + seed,
            workers=0,
            record_state=True,
        )
    )
    rng = np.random.default_rng(seed)
    return goal_pairs_ahead(envs, episodes, offset=settings["ahead"], rng=rng)
