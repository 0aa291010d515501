"""Judge a world model by what it predicts and what it can plan, on held-out episodes.

The protocol: fresh episodes are collected with seeds that training never saw. Prediction, probes,
Gaussianity and calibration are measured on their latents; planning on start and goal pairs taken
from them (or, for a world that draws its own goals, from its resets)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Generator, Tensor

from gjwm._core.settings import check
from gjwm.data.acting import HoldActor, RandomActor, make_env
from gjwm.data.behaviours import Behaviour, behaviour_from_weights
from gjwm.data.collect import collect_episodes
from gjwm.data.dataset import Episode
from gjwm.data.handle import HELD_OUT
from gjwm.evaluation.baselines import linear_gaussian_report, noise_floor
from gjwm.evaluation.calibration import calibration_by_horizon
from gjwm.evaluation.geometry import embedding_report, gaussianity_curves, trajectory_report
from gjwm.evaluation.goals import (
    CostOfGoals,
    GoalEpisodes,
    GoalPairs,
    OracleActor,
    attempt_goals,
    check_cost,
    check_planner,
    goal_lanes,
    goal_pairs_ahead,
    goal_pairs_from_resets,
    model_actor,
    planning_report,
    simulator_planner,
    usual_cost,
)
from gjwm.evaluation.information import information_report
from gjwm.evaluation.intervals import ratio_interval
from gjwm.evaluation.prediction import encode_episodes, marginal_report, prediction_report
from gjwm.evaluation.probes import Readout, probe_report
from gjwm.evaluation.settings import Evaluation
from gjwm.evaluation.surprise import violation_report
from gjwm.models.world_model import WorldModel
from gjwm.planning import Planner
from gjwm.planning.agent import default_planner
from gjwm.planning.costs import GoalCost

NOISE_FLOOR_WINDOWS = 24


@dataclass
class Details:
    """What was measured on the way to the figures of `evaluate`, which fills it: for a report's
    curves and films.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # plain and small, for one .npz
    pairs: GoalPairs | None = None
    attempts: GoalEpisodes | None = None  # the model's
    # the model's, see `RememberedPlans`
    plans: list[tuple[int, np.ndarray]] = field(default_factory=list)
    # z -> each true state variable, the MLP probes
    readouts: dict[str, Readout] = field(default_factory=dict)


def without_pictures(env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the same world for who needs no picture: the state vector costs much less.

    What was not given is not added: an environment of the user's own may not take it.
    """
    plain = {"obs": "state", "frame_stack": 1}
    return {name: plain.get(name, value) for name, value in env_kwargs.items()}


@dataclass(frozen=True)
class Task:
    """The environment that a model is judged in, and who acted in its held-out episodes."""

    env_id: str
    env_kwargs: dict[str, Any]
    behaviour: Behaviour | None

    @staticmethod
    def of(
        model: WorldModel,
        env_id: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        behaviour: Behaviour | Mapping[str, Any] | None = None,
    ) -> Task:
        """What is None comes from the model's origin.

        Raises:
            ValueError: when nobody says the environment.
        """
        if env_id is None:
            origin = model.origin
            if origin is None or origin.env_id is None:
                raise ValueError(
                    "the model does not say which environment it comes from: pass env_id, "
                    "env_kwargs and behaviour."
                )
            env_id, env_kwargs = origin.env_id, {**origin.env_kwargs, **(env_kwargs or {})}
            behaviour = origin.behaviour if behaviour is None else behaviour
        if isinstance(behaviour, str | Mapping):
            behaviour = behaviour_from_weights(behaviour)
        return Task(env_id, dict(env_kwargs or {}), behaviour)

    @property
    def frame_stack(self) -> int:
        """Pictures per observation."""
        return int(self.env_kwargs.get("frame_stack", 1))

    def _peek(self) -> tuple[tuple[int, ...], bool]:
        """The environment's groups of discrete actions, and whether it draws goals."""
        env = make_env(self.env_id, **without_pictures(self.env_kwargs))
        world = env.unwrapped
        seen = getattr(world, "action_groups", ()), hasattr(world, "goal_state")
        env.close()
        return seen

    def goals(self, settings: Evaluation, planner: Planner) -> str:
        """Where goals come from, "ahead" or "reset", checked with the planner before anything
        expensive.
        """
        groups, draws_goals = self._peek()
        check_planner(planner, groups, self.env_id)
        if settings.goals == "reset" and not draws_goals:
            raise ValueError(
                f"{self.env_id} draws no goals of its own (it has no goal_state): use "
                f"goals='ahead'."
            )
        goals = settings.goals or ("reset" if draws_goals else "ahead")
        if goals == "ahead" and settings.goal_offset is None:
            raise ValueError(
                f"goals of {self.env_id} are states ahead in held-out episodes: set "
                "evaluate.goal_offset, agent steps ahead."
            )
        return goals

    def require_fit(self, model: WorldModel) -> None:
        """Raise ValueError for a model of other observations or actions."""
        env = make_env(self.env_id, **self.env_kwargs)
        shown = env.observation_space.shape, env.action_space.shape
        env.close()
        # an encoder of the user's own may not say it
        known = getattr(model.encoder, "observation_shape", shown[0]), (model.action_dim,)
        if shown != known:
            origin = model.origin and model.origin.env_id
            raise ValueError(
                f"this model, of {origin or 'unknown origin'}, takes observations {known[0]} and "
                f"actions {known[1]}, and {self.env_id} has {shown[0]} and {shown[1]}: judge it in "
                "its own task, or choose another model."
            )

    def default_planner(self) -> Planner:
        """The usual search among the environment's kind of actions."""
        return default_planner(self._peek()[0])

    def pairs(
        self, envs: Any, episodes: Sequence[Episode], goals: str, settings: Evaluation
    ) -> GoalPairs:
        """One start and goal per lane."""
        if goals == "reset":
            return goal_pairs_from_resets(envs, seed=10_000_000 + settings.seed)
        rng = np.random.default_rng(settings.seed)
        return goal_pairs_ahead(envs, episodes, offset=settings.goal_offset, rng=rng)


def held_out_episodes(
    task: Task,
    settings: Evaluation,
    *,
    workers: int | None = None,
    notify: Callable[[str], None] = lambda message: None,
) -> list[Episode]:
    """Episodes with seeds that training never saw, recorded with their simulator states.

    Args:
        notify: told how many were left out, where `settings.leave_out_short` asks for it.

    Raises:
        ValueError: where episodes are to be left out and less than one in 50 lasts.
    """

    def collected(numbers: range) -> list[Episode]:
        return list(
            collect_episodes(
                task.env_id,
                task.env_kwargs,
                task.behaviour,
                episodes=numbers,
                length=settings.length,
                seed=HELD_OUT + settings.seed,
                workers=workers,
                record_state=True,
            )
        )

    count = settings.episodes
    episodes = collected(range(count))
    if not settings.leave_out_short:
        return episodes
    lasting = [e for e in episodes if len(e.a) == settings.length]
    played = count
    while len(lasting) < count:
        if 50 * len(lasting) < played:
            raise ValueError(
                f"{len(lasting)} of {played} episodes of {task.env_id} last for evaluate.length="
                f"{settings.length} steps: shorten it."
            )
        # as many as should do, by how many have lasted
        more = 1 + (count - len(lasting)) * played // len(lasting)
        lasting += [
            e for e in collected(range(played, played + more)) if len(e.a) == settings.length
        ]
        played += more
    notify(f"of {played} held-out episodes the first {count} that last {settings.length} steps")
    return lasting[:count]


def check_equal_length(episodes: Sequence[Episode]) -> None:
    """Raise a ValueError for held-out episodes of different lengths, which no batch of latents can
    hold.
    """
    lengths = sorted({len(e.a) for e in episodes})
    if len(lengths) != 1:
        raise ValueError(
            f"held-out episodes must have one length, and these have {lengths[0]} to {lengths[-1]} "
            "steps: shorten evaluate.length, keep the env from ending them (terminate: false for a "
            "Gymnasium environment), or set evaluate.leave_out_short=true."
        )


def evaluate(
    model: WorldModel,
    settings: Evaluation | None = None,
    *,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    behaviour: Behaviour | Mapping[str, Any] | None = None,
    episodes: Sequence[Episode] | None = None,
    planner: Planner | None = None,
    cost: CostOfGoals | None = None,
    notify: Callable[[str], Any] = print,
    details: Details | None = None,
) -> dict[str, Any]:
    """The whole report on a model, as nested plain JSON.

    Args:
        settings: None: `Evaluation()`.
        env_id, env_kwargs, behaviour: of held-out episodes and goals; None: those that the model
            comes from.
        episodes: held out, recorded with their states and equally long; None: they are collected.
        planner: of the model's plans; the oracle has a cheaper search of its own.
        cost: goals (B, D) -> the cost of plans towards them, in latents; None: `ReachCost` of a
            model that has a reach, else `GoalCost`.
        notify: told what is being measured; whoever wants silence gives `lambda message: None`.
        details: filled with what the figures were made of.

    Raises:
        ValueError: for settings that do not fit the environment, or a model of unknown origin.
    """
    settings = Evaluation() if settings is None else settings
    check("gjwm.evaluate's model", model, WorldModel)
    check("gjwm.evaluate's settings", settings, Evaluation)
    if isinstance(episodes, int):
        raise ValueError(
            "gjwm.evaluate's episodes are held-out episodes; how many is "
            f"Evaluation(episodes={episodes})."
        )
    cost = usual_cost(model) if cost is None else cost
    check_cost(cost, model.latent_dim, model.reach is not None)
    task = Task.of(model, env_id, env_kwargs, behaviour)
    planner = task.default_planner() if planner is None else planner
    goals = task.goals(settings, planner)
    details = Details() if details is None else details
    stages = Stages(notify)
    if episodes is None:
        task.require_fit(model)
        stages("collecting held-out episodes")
        episodes = held_out_episodes(task, settings, notify=notify)
    check_equal_length(episodes)
    z = encode_episodes(model, episodes)
    a = torch.from_numpy(np.stack([e.a for e in episodes])).to(model.device)
    report = _prediction(model, task, settings, episodes, z, a, stages)
    stages("representation")
    report["probe"] = probe_report(
        z,
        episodes,
        steps=settings.probe_steps,
        fitted=details.readouts,
        generator=_seeded(settings),
    )
    report["gaussianity"] = embedding_report(z.cpu(), generator=_seeded(settings))
    report["trajectory"] = trajectory_report(z)
    details.arrays.update(gaussianity_curves(z.cpu(), generator=_seeded(settings)))
    if settings.information:
        stages("information")
        report["information"] = information_report(z, episodes, generator=_seeded(settings))
    report["planning"] = _planning(
        model, task, settings, episodes, goals, planner, cost, stages, details
    )
    report["timings"] = stages.seconds()
    return report


def _prediction(
    model: WorldModel,
    task: Task,
    settings: Evaluation,
    episodes: Sequence[Episode],
    z: Tensor,
    a: Tensor,
    stages: Stages,
) -> dict[str, Any]:
    """What is measured on latents and actions alone, and on pictures that are spoiled."""
    stages("prediction")
    horizons = dict(horizons=(5, 10), particles=64)
    report: dict[str, Any] = {
        "prediction": prediction_report(
            model, z, a, horizon=settings.horizon, generator=_seeded(settings)
        ),
        "calibration": calibration_by_horizon(
            model, z, a, generator=_seeded(settings, model.device), **horizons
        ),
        "marginal": marginal_report(model, z, a, generator=_seeded(settings, model.device)),
    }
    ahead = report["prediction"]["horizon"]
    report["prediction"]["linear_gaussian"] = linear_gaussian_report(z, a, horizon=ahead)
    windows = min(NOISE_FLOOR_WINDOWS, len(episodes))
    with goal_lanes(task.env_id, task.env_kwargs, windows) as envs:
        report["prediction"]["noise_floor"] = noise_floor(
            model, envs, episodes, horizon=ahead, frame_stack=task.frame_stack, seed=settings.seed
        )
    if model.calibration is not None:
        report["calibration"]["temperature_by_horizon"] = model.calibration.temperature.tolist()
        report["calibration"]["tail"] = model.calibration.tail.item()
    if episodes[0].o.ndim == 4 and len(episodes[0].a) >= 16:  # pictures, long enough to be spoiled
        stages("violations of expectation")
        report["surprise"] = violation_report(
            model,
            episodes,
            observation_space=gymnasium.spaces.Box(0, 255, episodes[0].o.shape[1:], np.uint8),
            frame_stack=task.frame_stack,
            seed=settings.seed,
        )
    return report


def attempt(
    model: WorldModel,
    task: Task,
    settings: Evaluation,
    episodes: Sequence[Episode],
    goals: str,
    planner: Planner,
    cost: CostOfGoals = GoalCost,
) -> Details:
    """The model's attempts at `settings.pairs` held-out goals, and nothing else of `evaluate`."""
    with goal_lanes(task.env_id, task.env_kwargs, settings.pairs) as envs:
        pairs = task.pairs(envs, episodes, goals, settings)
        actor = model_actor(
            model,
            planner,
            pairs,
            cost=cost,
            horizon=settings.horizon,
            replan_every=settings.replan_every,
            generator=_seeded(settings, model.device),
        )
        attempts = attempt_goals(envs, pairs, actor, steps=settings.steps)
    return Details(pairs=pairs, attempts=attempts, plans=actor.plans)


def _planning(
    model: WorldModel,
    task: Task,
    settings: Evaluation,
    episodes: Sequence[Episode],
    goals: str,
    planner: Planner,
    cost: CostOfGoals,
    stages: Stages,
    details: Details,
) -> dict[str, Any]:
    """Attempts of the model, beside chance, standing still and the true simulator."""
    stages("planning with the model")
    made = attempt(model, task, settings, episodes, goals, planner, cost)
    details.pairs, details.attempts, details.plans = made.pairs, made.attempts, made.plans
    outcomes = {"model": made.attempts}
    plan = dict(horizon=settings.horizon, replan_every=settings.replan_every)
    actors = {
        "random": RandomActor(model.action_dim, np.random.default_rng(settings.seed)),
        "hold": HoldActor(model.action_dim),
    }
    if settings.oracle:
        actors["oracle"] = OracleActor(
            made.pairs.goal_position,
            simulator_planner(planner, settings.horizon, model.action_dim),
            **plan,
            generator=_seeded(settings),
        )
    with goal_lanes(task.env_id, without_pictures(task.env_kwargs), settings.pairs) as envs:
        radius = envs.success_radius
        for name, actor in actors.items():
            stages(f"planning: {name}")
            outcomes[name] = attempt_goals(envs, made.pairs, actor, steps=settings.steps)
    report = planning_report(outcomes["model"], radius)
    report |= {name: planning_report(outcomes[name], radius) for name in actors}
    if settings.oracle:
        best = report["oracle"]["success_rate"]
        report["share_of_oracle"] = report["success_rate"] / best if best else None
        if best:
            reached = [outcomes[k].reached(radius).astype(float) for k in ("model", "oracle")]
            report["share_of_oracle_ci95"] = [float(end) for end in ratio_interval(*reached)]
    details.arrays |= {
        f"distance_{name}": run.distance.astype(np.float32) for name, run in outcomes.items()
    }
    report["protocol"] = {
        "goals": goals,
        "goal_offset": settings.goal_offset if goals == "ahead" else None,
        "leave_out_short": settings.leave_out_short,
        "steps": settings.steps,
        "success_radius": radius,
        "action_repeat": int(task.env_kwargs.get("action_repeat", 1)),
        **plan,
        "cost": cost_name(cost),
    }
    return report


def cost_name(cost: CostOfGoals) -> str:
    """Of a class, a function or a partial of one."""
    cost = getattr(cost, "func", cost)
    return getattr(cost, "__qualname__", type(cost).__name__)


class Stages:
    """Tells what is being measured, and keeps how long each stage took."""

    def __init__(self, notify: Callable[[str], None]):
        self._notify = notify
        self._begun: list[tuple[str, float]] = []

    def __call__(self, name: str) -> None:
        """Begin a stage, which ends the one before."""
        self._notify(name)
        self._begun.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds, the last one's until now."""
        ends = [since for _, since in self._begun[1:]] + [time.perf_counter()]
        return {name: end - since for (name, since), end in zip(self._begun, ends)}


def _seeded(settings: Evaluation, device: torch.device | str = "cpu") -> Generator:
    return torch.Generator(device).manual_seed(settings.seed)
