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

from gjwm.data.collect import make_env
from gjwm.evaluation.evaluate import (
    Policy,
    attempt_goals,
    copies,
    goal_pairs_from_resets,
    oracle_policy,
    planning_report,
    random_policy,
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
    env = make_env(env_id, **kwargs, obs="state", terminate_on_goal=False)
    pairs = goal_pairs_from_resets(env, count=count, seed=40_000_000)
    envs = copies(env, count)
    plan = dict(
        horizon=horizon, replan_every=replan_every, generator=torch.Generator().manual_seed(0)
    )
    policies = {
        "CEM on the simulator": lambda: oracle_policy(envs[0], _cem(quick, repeat), pairs, **plan),
        "scripted": lambda: _scripted(envs, pairs.start),
        "random": lambda: random_policy(env.action_space.shape[0], np.random.default_rng(0)),
    }
    rows = []
    for name, make in policies.items():
        episodes = attempt_goals(envs, pairs, make(), steps=4 if quick else steps)
        report = planning_report(episodes, env.unwrapped.success_radius)
        rows.append(
            _row(
                world,
                name,
                "success",
                report["success_rate"],
                report["ci95"],
                count,
                episodes.seconds_per_step,
            )
        )
    return rows


def _scripted(envs: list[Any], starts: np.ndarray) -> Policy:
    """Each environment's own expert, which reads goals from the state: the start's, as
    `attempt_goals` sets them.
    """
    return lambda observation, states: np.stack([env.unwrapped.expert_action() for env in envs])


def _swingup(world: str, quick: bool, count: int) -> list[dict[str, Any]]:
    env_id, action_repeat, horizon, replan_every, samples, rounds = SWINGUPS[world]
    kwargs = dict(obs="state", action_repeat=action_repeat)
    simulator = make_env(env_id, reward="smooth", **kwargs).unwrapped

    def score(states: np.ndarray):
        return lambda a: -simulator.simulate_return(states, a)

    def planning(planner: Planner) -> Policy:
        controller = RecedingHorizon(
            planner,
            horizon=4 if quick else horizon,
            action_dim=1,
            replan_every=replan_every,
            generator=torch.Generator().manual_seed(0),
        )
        return lambda envs, states: controller.act(score(states), len(states)).numpy()

    gradient = GradientPlanner(
        **(dict(starts=2, iterations=2, survivors=1) if quick else dict(starts=24, iterations=15))
    )
    rng = np.random.default_rng(0)
    policies: dict[str, Any] = {
        "CEM on the simulator": planning(_cem(quick, 2, samples, rounds)),
        "GradientPlanner on the simulator": planning(gradient),
        "scripted": lambda env, states: env.unwrapped.expert_action(),
        "random": lambda env, states: rng.uniform(-1, 1, (count, 1)).astype(np.float32),
    }
    return [
        _episodes(world, name, policy, env_id, kwargs, quick, count)
        for name, policy in policies.items()
    ]


def _episodes(
    world: str, name: str, policy: Any, env_id: str, kwargs: dict[str, Any], quick: bool, count: int
) -> dict[str, Any]:
    import time

    import gymnasium

    env = gymnasium.make_vec(
        f"gjwm.envs:{env_id}", num_envs=count, vectorization_mode="vector_entry_point", **kwargs
    )
    env.reset(seed=40_000_000)
    returns, seconds, steps = np.zeros(count), 0.0, 4 if quick else 1000 // kwargs["action_repeat"]
    for _ in range(steps):
        states, since = env.unwrapped.get_state(), time.perf_counter()
        action = policy(env, states)
        seconds += time.perf_counter() - since
        returns += env.step(action)[1]
    half = 1.96 * returns.std(ddof=1) / np.sqrt(count)
    interval = [returns.mean() - half, returns.mean() + half]
    return _row(world, name, "return", returns.mean(), interval, count, seconds / steps / count)


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
