"""What can be done in the torch-native worlds: planners on the true simulator, scripted policies,
and random actions.

Goals (two-room, point-maze, push): the share of starts and goals drawn by resets that are reached
in time, planning on
`simulate` with the squared distance of positions. Swing-ups: the suite's own return over an episode
of 1000 control steps,
planning on `simulate_return` of the smooth reward. Nothing is learned here: this is the ceiling
that a world model is measured against."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gjwm.data.acting import Actor, Memoryless, RandomActor, as_array, make_vec, play
from gjwm.evaluation.goals import (
    OracleActor,
    attempt_goals,
    goal_lanes,
    goal_pairs_from_resets,
    planning_report,
)
from gjwm.planning import CEM, GradientPlanner, Planner
from gjwm.planning.controller import RecedingHorizon

# world: (id, arguments, steps, horizon, steps between plans, steps per planned action)
GOALS: dict[str, tuple[str, dict[str, Any], int, int, int, int]] = {
    "two-room": ("gjwm/two-room-v0", {"goal": "other-room"}, 60, 24, 4, 1),
    **{
        f"point-maze, {maze}": (f"gjwm/point-maze-{maze}-v0", {}, 80, 48, 4, 4)
        for maze in ("u", "rooms", "medium", "spiral")
    },
    "push": ("gjwm/push-v0", {}, 80, 24, 2, 2),
}
# world: (id, action repeat, horizon, steps between plans, samples and rounds of CEM; the cartpole's
# cost ten times as much)
SWINGUPS: dict[str, tuple[str, int, int, int, int, int]] = {
    "pendulum-swingup": ("gjwm/torch-pendulum-swingup-v0", 4, 32, 2, 384, 5),
    "cartpole-swingup": ("gjwm/torch-cartpole-swingup-v0", 4, 32, 4, 240, 2),
}


def run(*, quick: bool = False, count: int = 100, only: str = "") -> list[dict[str, Any]]:
    """Rows: world, policy, measure (success or return), mean, low, high (95%), episodes,
    ms_per_step (of deciding, per env).

    Args:
        count: episodes per row.
        only: part of the names of the worlds to run; all by default.
    """
    rows, count = [], 3 if quick else count
    for world in [name for name in GOALS if only in name]:
        rows += _goals(world, quick, count)
    for world in [name for name in SWINGUPS if only in name]:
        rows += _swingup(world, quick, count)
    return rows


def _cem(quick: bool, repeat: int, samples: int = 384, iterations: int = 5) -> Planner:
    size = (
        dict(samples=8, iterations=2, elites=2)
        if quick
        else dict(samples=samples, iterations=iterations, elites=samples // 12)
    )
    return CEM(repeat=repeat, noise_beta=1.0, init_std=1.0, memory=0.1, **size)


def _goals(world: str, quick: bool, count: int) -> list[dict[str, Any]]:
    env_id, kwargs, steps, horizon, replan_every, repeat = GOALS[world]
    kwargs = {**kwargs, "obs": "state", "terminate_on_goal": False}
    plan = dict(
        horizon=horizon, replan_every=replan_every, generator=torch.Generator().manual_seed(0)
    )
    rows = []
    with goal_lanes(env_id, kwargs, count) as envs:
        pairs = goal_pairs_from_resets(envs, seed=40_000_000)
        actors = {
            "CEM on the simulator": OracleActor(pairs.goal_position, _cem(quick, repeat), **plan),
            "scripted": ScriptedActor(),
            "random": RandomActor(envs.single_action_space.shape[0], np.random.default_rng(0)),
        }
        for name, actor in actors.items():
            episodes = attempt_goals(envs, pairs, actor, steps=4 if quick else steps)
            report = planning_report(episodes, envs.success_radius)
            mean, seconds = report["success_rate"], episodes.seconds_per_step
            rows.append(_row(world, name, "success", mean, report["ci95"], count, seconds))
    return rows


class ScriptedActor(Memoryless):
    """The environments' own expert, which reads goals from the state."""

    def act(self, o: Any, info: Any) -> np.ndarray:
        return as_array(info.envs.expert_action())


class ReturnOracle(Memoryless):
    """A planner for the return that `simulator` predicts: a world with a smooth reward, where the
    one that is played has the suite's own.
    """

    def __init__(self, planner: Planner, simulator: Any, **options: Any):
        self.controller = RecedingHorizon(planner, action_dim=1, **options)
        self.simulator = simulator

    def act(self, o: Any, info: Any) -> Any:
        states = as_array(info.envs.get_state())
        return self.controller.act(
            lambda a: -self.simulator.simulate_return(states, a), info.envs.num_envs
        )


def _swingup(world: str, quick: bool, count: int) -> list[dict[str, Any]]:
    env_id, action_repeat, horizon, replan_every, samples, rounds = SWINGUPS[world]
    kwargs = dict(obs="state", action_repeat=action_repeat)
    simulator = make_vec(env_id, 1, reward="smooth", **kwargs)
    gradient = GradientPlanner(
        **(dict(starts=2, iterations=2, survivors=1) if quick else dict(starts=24, iterations=15))
    )

    def planning(planner: Planner) -> Actor:
        return ReturnOracle(
            planner,
            simulator,
            horizon=4 if quick else horizon,
            replan_every=replan_every,
            generator=torch.Generator().manual_seed(0),
        )

    actors: dict[str, Actor] = {
        "CEM on the simulator": planning(_cem(quick, 2, samples, rounds)),
        "GradientPlanner on the simulator": planning(gradient),
        "scripted": ScriptedActor(),
        "random": RandomActor(1, np.random.default_rng(0)),
    }
    steps = 4 if quick else 1000 // action_repeat
    rows = []
    for name, actor in actors.items():
        envs = make_vec(env_id, count, **kwargs)
        o, _ = envs.reset(seed=40_000_000)
        returns, seconds = np.zeros(count), 0.0
        for step in play(envs, actor, o, steps):
            returns += step.r
            seconds += step.seconds
        half = 1.96 * returns.std(ddof=1) / np.sqrt(count)
        interval = [returns.mean() - half, returns.mean() + half]
        mean = returns.mean()
        rows.append(_row(world, name, "return", mean, interval, count, seconds / steps / count))
    return rows


def _row(
    world: str, policy: str, measure: str, mean: float, interval: Any, episodes: int, seconds: float
) -> dict[str, Any]:
    low, high = interval
    return {
        "world": world,
        "policy": policy,
        "measure": measure,
        "mean": float(mean),
        "low": float(low),
        "high": float(high),
        "episodes": episodes,
        "ms_per_step": 1e3 * seconds,
    }
