"""Judge a world model by what it predicts and what it can plan, on held-out episodes.

The protocol: fresh episodes are collected with seeds that training never saw. Prediction, probes,
Gaussianity and calibration are measured on their latents; planning on start and goal pairs taken
from them (or, for a world that draws its own goals, from its resets). Success is measured on the
simulator's true position, never on a latent distance."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Generator, Tensor

from gjwm._core import draws
from gjwm.data.collect import Episode, make_env
from gjwm.evaluation.baselines import (
    linear_gaussian_report,
    noise_floor,
    open_loop_windows,
    r2_by_horizon,
)
from gjwm.evaluation.geometry import (
    embedding_report,
    gaussianity_curves,
    trajectory_report,
)
from gjwm.evaluation.intervals import ratio_interval, wilson_interval
from gjwm.evaluation.probes import Readout, knn_readout, linear_readout, mlp_readout, r2_score
from gjwm.evaluation.surprise import violation_report
from gjwm.models.calibration import calibration_report, concatenate, forecast_windows, past_of
from gjwm.models.dynamics import Prediction
from gjwm.models.world_model import WorldModel
from gjwm.objectives import EPPS_PULLEY_NULL_MEAN, epps_pulley, random_directions
from gjwm.planning import CEM, CategoricalCEM, Planner
from gjwm.planning.agent import MPCAgent, RecedingHorizon
from gjwm.planning.costs import Cost, GoalCost, RiskCost

UNIT_GAUSSIAN_NATS = (
    1.418939  # nats per dimension that N(0, I) needs for itself: the baseline of "skill"
)


# --  ----------------------------------------------------------------------------------------------
# representation


@torch.inference_mode()
def encode_episodes(model: WorldModel, episodes: Sequence[Episode], *, chunk: int = 1024) -> Tensor:
    """Latents of equally long episodes -> (E, T+1, D)."""
    return torch.stack(
        [
            torch.cat(
                [model.encode(part.to(model.device)) for part in torch.from_numpy(e.o).split(chunk)]
            )
            for e in episodes
        ]
    )


@torch.inference_mode()
def prediction_report(
    model: WorldModel,
    z: Tensor,
    a: Tensor,
    *,
    horizon: int = 12,
    distractors: int = 255,
    generator: Generator,
) -> dict[str, Any]:
    """Open-loop prediction of encoded latents.

    Args:
        z, a: latents (E, T+1, D) and actions (E, T, A) of held-out episodes.
        horizon: predictions reach 1..horizon steps.
        distractors: latents of other windows among which the true one must be nearest for rank
            accuracy.

    Returns:
        r2_by_horizon: 1 - squared error / variance, per k, with r2_ci95_by_horizon, its ends (2, H)
            by a bootstrap over episodes; copy_last_r2_by_horizon: the same for "nothing changes";
        rank_accuracy (at `horizon`), rank_accuracy_by_horizon; skill_nats_per_dim: one step,
        against N(0, I), and
        skill_copy_last_nats_per_dim: a Gaussian around the last latent with the best constant
            variance;
        variance_per_dim: of z (near 0 when collapsed, and R^2 then means nothing).
    """
    horizon = min(horizon, a.shape[1])
    truth, actions, starts = open_loop_windows(z, a, horizon)  # (E, W, H+1, D), (E, W, H, A)
    rolled = [
        model.rollout(z[:, s], actions[:, w], past=past_of(z, a, s)) for w, s in enumerate(starts)
    ]
    predicted = torch.stack(rolled, 1)
    variance = z.flatten(0, 1).var(0).sum()
    scored = r2_by_horizon(predicted[:, :, 1:], truth[:, :, 1:], variance)
    copied = r2_by_horizon(truth[:, :, :1].expand_as(truth[:, :, 1:]), truth[:, :, 1:], variance)
    truth, predicted = truth.flatten(0, 1), predicted.flatten(0, 1)

    def rank_accuracy(k: int) -> float:
        order = draws.permutation(len(truth), generator, device=z.device)[: distractors + 1]
        distance = torch.cdist(predicted[order, k], truth[order, k])
        return (
            (distance.argmin(1) == torch.arange(len(order), device=z.device)).float().mean().item()
        )

    ranks = [rank_accuracy(k) for k in range(1, horizon + 1)]
    one_step = model.predict_sequence(z[:, :-1], a)
    nll = -one_step.log_prob(z[:, 1:]).mean() / z.shape[-1]
    copy = Prediction(
        z[:, :-1], (z[:, 1:] - z[:, :-1]).square().mean((0, 1)).clamp(min=1e-8).expand_as(z[:, 1:])
    )
    copy_nll = -copy.log_prob(z[:, 1:]).mean() / z.shape[-1]
    return {
        "horizon": horizon,
        "r2_by_horizon": scored["r2"],
        "r2_ci95_by_horizon": scored["ci95"],
        "copy_last_r2_by_horizon": copied["r2"],
        "rank_accuracy": ranks[-1],
        "rank_accuracy_by_horizon": ranks,
        "rank_chance": 1 / min(distractors + 1, len(truth)),
        "skill_nats_per_dim": UNIT_GAUSSIAN_NATS - nll.item(),
        "skill_copy_last_nats_per_dim": UNIT_GAUSSIAN_NATS - copy_nll.item(),
        "variance_per_dim": (variance / z.shape[-1]).item(),
    }


def probe_report(
    z: Tensor,
    episodes: Sequence[Episode],
    *,
    steps: int = 1500,
    fitted: dict[str, Readout] | None = None,
    generator: Generator,
) -> dict[str, Any]:
    """Read the true state from z: probes are fitted on one half of the held-out episodes and scored
    on the other.

    Args:
        z: latents (E, T+1, D) of the episodes, which were recorded with their true states.
        steps: gradient steps of the MLP probe.
        fitted: filled with the MLP probe of each variable.

    Returns:
        linear_r2, knn_r2, mlp_r2 of the goal-relevant position, each with its *_ci95 by a bootstrap
        over the scoring episodes, and under "variables" those of every true state variable.
    """
    half = len(episodes) // 2
    flat = z.double().cpu()
    z_train, z_test = flat[:half].flatten(0, 1), flat[half:].flatten(0, 1)
    variables = {}
    for name in episodes[0].true_state:
        y = torch.from_numpy(np.stack([e.true_state[name] for e in episodes])).double().flatten(2)
        if y.flatten(0, 1).var(0).max() < 1e-12:
            continue  # constant over the episodes: nothing to read
        y_train, y_test = y[:half].flatten(0, 1), y[half:]
        readouts = {
            "linear": linear_readout(z_train, y_train),
            "knn": knn_readout(z_train, y_train),
            "mlp": mlp_readout(z_train, y_train, steps=steps, generator=generator),
        }
        if fitted is not None:
            fitted[name] = readouts["mlp"]
        variables[name] = {}
        for kind, read in readouts.items():
            estimate = read(z_test).view_as(y_test)
            variables[name][f"{kind}_r2"] = r2_score(estimate.flatten(0, 1), y_test.flatten(0, 1))
            error = (estimate - y_test).square().sum((1, 2)).numpy()  # per episode
            low, high = ratio_interval(
                error, (y_test - y_test.mean((0, 1))).square().sum((1, 2)).numpy()
            )
            variables[name][f"{kind}_r2_ci95"] = [float(1 - high), float(1 - low)]
    if "position" not in variables:
        raise ValueError(
            "the held-out true_state() has no 'position' that varies, which the headline probe "
            "reads."
        )
    return {**variables["position"], "variables": variables}


@torch.inference_mode()
def calibration_by_horizon(
    model: WorldModel,
    z: Tensor,
    a: Tensor,
    *,
    horizons: Sequence[int],
    particles: int,
    generator: Generator,
) -> dict[str, Any]:
    """One-step calibration at the top level, and under "horizon_k" that of forecasts k steps
    ahead.
    """
    report: dict[str, Any] = dict(
        calibration_report(model.predict_sequence(z[:, :-1], a), z[:, 1:])
    )
    reached = [k for k in horizons if k <= a.shape[1]]
    if reached:
        windows = forecast_windows(
            model, z, a, horizon=max(reached), particles=particles, generator=generator
        )
        law, truth = (
            concatenate([law for law, _ in windows]),
            torch.cat([truth for _, truth in windows]),
        )
        for k in reached:
            report[f"horizon_{k}"] = calibration_report(law[:, k - 1], truth[:, k - 1])
    return report


@torch.inference_mode()
def marginal_report(
    model: WorldModel, z: Tensor, a: Tensor, *, slices: int = 256, generator: Generator
) -> dict[str, float]:
    """The long-horizon marginal test: open-loop samples, one per episode, must relax to the law
    that encoded latents have.

    Args:
        z, a: latents (E, T+1, D) and actions (E, T, A) of held-out episodes; samples run from z_0
            for all T steps.

    Returns:
        steps; epps_pulley and variance_per_dim of the E samples of z_T, of the true z_T
        (`encoded_*`) and variance_per_dim of the mean rollout (`mean_*`, which must be smaller: it
        has lost what cannot be predicted). An ideal Gaussian batch has `epps_pulley_null`.
    """
    sampled = model.rollout(z[:, 0], a, 8, generator)[:, 0, -1]
    ends = {"": sampled, "encoded_": z[:, -1], "mean_": model.rollout(z[:, 0], a)[:, -1]}
    directions = random_directions(z.shape[-1], slices, generator, like=z)
    report: dict[str, float] = {"steps": a.shape[1], "epps_pulley_null": EPPS_PULLEY_NULL_MEAN}
    for name, end in ends.items():
        report[f"{name}epps_pulley"] = (len(end) * epps_pulley(end @ directions)).mean().item()
        report[f"{name}variance_per_dim"] = end.var(0).mean().item()
    return report


# --  ----------------------------------------------------------------------------------------------
# planning


@dataclass(frozen=True)
class GoalPairs:
    """E start and goal states of one environment, with what an agent sees of the goal."""

    start: np.ndarray  # (E, X) simulator states
    goal: np.ndarray  # (E, X)
    goal_position: np.ndarray  # (E, P)
    goal_observation: np.ndarray  # (E, *O) the goal at rest


def goal_pairs_ahead(
    env: gymnasium.Env,
    episodes: Sequence[Episode],
    *,
    offset: int,
    count: int,
    rng: np.random.Generator,
) -> GoalPairs:
    """One start per held-out episode at a random time, the goal `offset` agent steps later in the
    same episode.
    """
    if count > len(episodes):
        raise ValueError(
            f"{count} goal pairs need as many held-out episodes, got {len(episodes)}; collect more."
        )
    if len(episodes[0].a) < offset:
        raise ValueError(
            f"a goal {offset} steps ahead needs longer episodes than {len(episodes[0].a)} steps."
        )
    times = [int(rng.integers(0, len(e.a) - offset + 1)) for e in episodes[:count]]
    start = np.stack([e.sim_state[t] for e, t in zip(episodes, times)])
    goal = np.stack([e.sim_state[t + offset] for e, t in zip(episodes, times)])
    return _see_goals(env, start, goal)


def goal_pairs_from_resets(env: gymnasium.Env, *, count: int, seed: int) -> GoalPairs:
    """Starts and goals that the world itself draws on reset (its `goal` attribute is a position).

    Args:
        seed: another gives other goals, also the next.
    """
    starts, goals = [], []
    for i in range(count):
        # seed + i would give seeds 1 and 2 the same goals but one.
        env.reset(seed=int(np.random.SeedSequence([seed, i]).generate_state(1)[0]))
        state = env.unwrapped.get_state()
        starts.append(state)
        goals.append(env.unwrapped.goal_state())
    return _see_goals(env, np.stack(starts), np.stack(goals))


def _see_goals(env: gymnasium.Env, start: np.ndarray, goal: np.ndarray) -> GoalPairs:
    positions, observations = [], []
    for state in goal:
        env.unwrapped.set_state(state)
        positions.append(env.unwrapped.position)
        observations.append(env.unwrapped.observe())
    return GoalPairs(start, goal, np.stack(positions), np.stack(observations))


# observations (B, *O) or None, simulator states (B, X) -> actions (B, A)
Policy = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class GoalEpisodes:
    """Outcome of E attempts."""

    distance: np.ndarray  # (E, steps+1) to the goal, in the position's units
    returns: np.ndarray  # (E,) the task's own reward
    seconds_per_step: float  # of deciding, per env; simulation not counted
    actions: np.ndarray  # (E, steps, A)


def attempt_goals(
    envs: Sequence[gymnasium.Env], pairs: GoalPairs, policy: Policy, *, steps: int
) -> GoalEpisodes:
    """Run one attempt per pair, all at once: env i starts in pairs.start[i] and takes `steps` agent
    steps.

    Env i is seeded with i, so that worlds with noise of their own have luck of their own.
    """
    worlds = [env.unwrapped for env in envs]
    for i, (env, world, state) in enumerate(zip(envs, worlds, pairs.start)):
        env.reset(seed=i)
        world.set_state(state)
    observation = np.stack([world.observe() for world in worlds])
    distance = [_distances(worlds, pairs)]
    returns, seconds, actions = np.zeros(len(worlds)), 0.0, []
    for _ in range(steps):
        states = np.stack([world.get_state() for world in worlds])
        since = time.perf_counter()
        a = policy(observation, states)
        seconds += time.perf_counter() - since
        steps_out = [env.step(action) for env, action in zip(envs, a)]
        observation = np.stack([out[0] for out in steps_out])
        returns += [out[1] for out in steps_out]
        distance.append(_distances(worlds, pairs))
        actions.append(a)
    return GoalEpisodes(
        np.stack(distance, 1), returns, seconds / steps / len(worlds), np.stack(actions, 1)
    )


def _distances(worlds: Sequence[Any], pairs: GoalPairs) -> np.ndarray:
    return np.linalg.norm(
        np.stack([world.position for world in worlds]) - pairs.goal_position, axis=-1
    )


# goals (B, D), in latents or in positions -> the cost of reaching them
CostOfGoals = Callable[[Tensor], Cost]


def model_policy(
    model: WorldModel,
    planner: Planner,
    pairs: GoalPairs,
    *,
    horizon: int,
    replan_every: int,
    generator: Generator,
    cost: CostOfGoals = GoalCost,
    kappa: float | None = None,
    **agent: Any,
) -> ModelPolicy:
    """Plan in latent space towards the encoded goal image.

    Args:
        kappa: None plans on the mean path; a number on the paths of all members of an ensemble, at
            mean + kappa * std of their costs (`RiskCost`): a plan through a wall that one member
            believes in is not believed by the others.
        agent: further arguments of `MPCAgent`; with kappa not `rollout`.

    Raises:
        ValueError: for kappa with dynamics that are no ensemble.
    """
    if kappa is not None:
        check_members(model.dynamics)
        of_path = cost

        def cost(goal: Tensor) -> Cost:
            return RiskCost(of_path(goal), kappa=kappa)

        agent["rollout"] = model.dynamics.rollout_members
    with torch.no_grad():
        goal = model.encode(torch.from_numpy(pairs.goal_observation).to(model.device))
    return ModelPolicy(
        MPCAgent(
            model,
            planner,
            cost(goal),
            horizon=horizon,
            replan_every=replan_every,
            generator=generator,
            **agent,
        )
    )


def check_members(dynamics: Any) -> None:
    """Raise a ValueError unless `dynamics`, an instance or a class, are an ensemble, whose members
    can be planned on apart.
    """
    if not hasattr(dynamics, "rollout_members"):
        name = dynamics.__name__ if isinstance(dynamics, type) else type(dynamics).__name__
        raise ValueError(
            f"kappa weighs what an ensemble's members disagree on, and these dynamics are {name}: "
            "set evaluate.kappa=null, or train with dynamics=ensemble, or with refine.steps and "
            "+dynamics@refine.dynamics=ensemble."
        )


class ModelPolicy:
    """An agent as a policy that remembers its plans: `plans` holds (step, means (E, H, A)) of each
    time it planned.
    """

    def __init__(self, agent: MPCAgent):
        self.agent = agent
        self.plans: list[tuple[int, np.ndarray]] = []
        self._steps = 0

    def __call__(self, observation: np.ndarray, states: np.ndarray) -> np.ndarray:
        planned = self.agent.controller.needs_plan
        action = self.agent.act(torch.from_numpy(observation)).cpu().numpy()
        if planned:
            self.plans.append((self._steps, self.agent.plan.mean.cpu().numpy()))
        self._steps += 1
        return action


def oracle_policy(
    env: gymnasium.Env,
    planner: Planner,
    pairs: GoalPairs,
    *,
    horizon: int,
    replan_every: int,
    generator: Generator,
    cost: CostOfGoals = GoalCost,
    particles: int | None = None,
) -> Policy:
    """The same planner and cost, on the true simulator and the true goal position.

    A simulator has no gradient: a planner that needs one is replaced by `CEM`.

    Args:
        particles: outcomes simulated of each plan, in worlds whose `simulate` draws them; see
            `MPCAgent`.
    """
    if getattr(planner, "differentiates", False):
        planner = CEM(
            samples=256, iterations=4, covariance="diagonal", noise_beta=2.0, min_std=0.05
        )
    of_goal = cost(torch.from_numpy(pairs.goal_position).float())
    controller = RecedingHorizon(
        planner,
        horizon=horizon,
        action_dim=env.action_space.shape[0],
        replan_every=replan_every,
        generator=generator,
    )

    def act(observation: np.ndarray, states: np.ndarray) -> np.ndarray:
        def score(a: Tensor) -> Tensor:
            outcomes = {} if particles is None else dict(particles=particles, generator=generator)
            return of_goal(
                torch.as_tensor(env.unwrapped.simulate(states, a.numpy(), **outcomes)), a
            )

        return controller.act(score, len(states)).numpy()

    return act


def random_policy(action_dim: int, rng: np.random.Generator) -> Policy:
    """Uniform actions."""
    return lambda observation, states: rng.uniform(-1, 1, (len(states), action_dim)).astype(
        np.float32
    )


def hold_policy(action_dim: int) -> Policy:
    """Standing still: the zero action; where actions are discrete, the first one all the time."""
    return lambda observation, states: np.zeros((len(states), action_dim), np.float32)


def planning_report(episodes: GoalEpisodes, radius: float) -> dict[str, Any]:
    """Success = within `radius` of the goal at any step after the start."""
    closest = episodes.distance[:, 1:].min(1)
    success = closest <= radius
    low, high = wilson_interval(int(success.sum()), len(success))
    return {
        "success_rate": float(success.mean()),
        "ci95": [low, high],
        "episodes": len(success),
        "return_mean": float(episodes.returns.mean()),
        "closest_distance_mean": float(closest.mean()),
        "start_distance_mean": float(episodes.distance[:, 0].mean()),
        "seconds_per_step": episodes.seconds_per_step,
    }


@dataclass
class Details:
    """What was measured on the way to the figures of `evaluate`, which fills it: for a report's
    curves and films.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # plain and small, for one .npz
    pairs: GoalPairs | None = None
    attempts: GoalEpisodes | None = None  # the model's
    # the model's, see `ModelPolicy`
    plans: list[tuple[int, np.ndarray]] = field(default_factory=list)
    # z -> each true state variable, the MLP probes
    readouts: dict[str, Readout] = field(default_factory=dict)


def check_protocol(
    *,
    goals: str,
    goal_offset: int | None,
    pairs: int,
    steps: int,
    horizon: int,
    replan_every: int,
    kappa: float | None = None,
) -> None:
    """Raise a ValueError for arguments of `evaluate` that can only fail, before anything
    expensive.
    """
    if goals not in ("ahead", "reset"):
        raise ValueError(f"goals must be 'ahead' or 'reset', got {goals!r}.")
    counts = {"pairs": pairs, "steps": steps, "horizon": horizon, "replan_every": replan_every}
    if goals == "ahead":
        counts["goal_offset"] = goal_offset
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number, 1 or more, got {value!r}.")
    number = isinstance(kappa, int | float) and not isinstance(kappa, bool)
    if kappa is not None and not (number and math.isfinite(kappa)):
        raise ValueError(
            f"kappa must be a number, or null to plan on the mean path, got {kappa!r}."
        )
    if replan_every > horizon:
        raise ValueError(
            f"a plan of horizon={horizon} actions cannot last for replan_every={replan_every} of "
            f"them."
        )


def check_equal_length(episodes: Sequence[Episode]) -> None:
    """Raise a ValueError for held-out episodes of different lengths, which no batch of latents can
    hold.
    """
    lengths = sorted({len(e.a) for e in episodes})
    if len(lengths) != 1:
        raise ValueError(
            f"held-out episodes must have one length, and these have {lengths[0]} to {lengths[-1]} "
            "steps: shorten evaluate.length, or keep the env from ending them (terminate: false "
            "for a Gymnasium environment)."
        )


def _check_planner(planner: Planner, action_groups: Sequence[int], env_id: str) -> None:
    """Raise a ValueError for a planner of actions of another kind than the env's."""
    if not isinstance(planner, CategoricalCEM):
        if action_groups:
            raise ValueError(
                f"{env_id} has discrete actions, {type(planner).__name__} plans in a box: use "
                f"planner=categorical."
            )
        return
    if not action_groups:
        raise ValueError(
            f"CategoricalCEM plans one-hot actions; those of {env_id} lie in a box: use CEM or "
            f"ICEM."
        )
    if tuple(planner.groups or (sum(action_groups),)) != tuple(action_groups):
        raise ValueError(
            f"the actions of {env_id} are one-hot vectors of sizes {list(action_groups)}: set "
            f"planner.groups to these, got {planner.groups}."
        )


def evaluate(
    model: WorldModel,
    env_id: str,
    env_kwargs: dict[str, Any],
    episodes: Sequence[Episode],
    planner: Planner,
    *,
    goals: str = "ahead",
    goal_offset: int | None = 12,
    pairs: int = 100,
    steps: int = 25,
    horizon: int = 12,
    replan_every: int = 1,
    kappa: float | None = None,
    oracle: bool = True,
    probe_steps: int = 1500,
    seed: int = 0,
    notify: Callable[[str], None] = lambda message: None,
    details: Details | None = None,
) -> dict[str, Any]:
    """The whole report on a model, as nested plain JSON.

    Args:
        env_id, env_kwargs: the environment that the model was trained on.
        episodes: held-out episodes recorded with their states (`collect_episodes(...,
            record_state=True)`), equally long.
        planner, horizon, replan_every: what acts; the oracle uses the same.
        kappa: see `model_policy`.
        goals: "ahead": the goal is the state `goal_offset` agent steps after the start in the same
            episode; "reset": the start and goal that the world draws.
        pairs: attempts per policy.
        steps: agent steps to reach the goal.
        oracle: also plan on the true simulator.
        probe_steps: gradient steps of each MLP probe.
        seed: of everything random here.
        notify: told what is being measured.
        details: filled with what the figures were made of.
    """
    check_protocol(
        goals=goals,
        goal_offset=goal_offset,
        pairs=pairs,
        steps=steps,
        horizon=horizon,
        replan_every=replan_every,
        kappa=kappa,
    )
    if kappa is not None:
        check_members(model.dynamics)
    see = make_env(env_id, **env_kwargs)
    _check_planner(planner, getattr(see.unwrapped, "action_groups", ()), env_id)
    if goals == "reset" and not hasattr(see.unwrapped, "goal_state"):
        raise ValueError(
            f"{env_id} draws no goals of its own (it has no goal_state): use goals='ahead'."
        )
    check_equal_length(episodes)

    def generator() -> Generator:
        return torch.Generator().manual_seed(seed)

    details = Details() if details is None else details
    stages = Stages(notify)
    stages("prediction")
    z = encode_episodes(model, episodes)
    a = torch.from_numpy(np.stack([e.a for e in episodes])).to(model.device)
    report: dict[str, Any] = {
        "prediction": prediction_report(model, z, a, horizon=horizon, generator=generator()),
        "calibration": calibration_by_horizon(
            model,
            z,
            a,
            horizons=(5, 10),
            particles=64,
            generator=torch.Generator(model.device).manual_seed(seed),
        ),
        "marginal": marginal_report(
            model, z, a, generator=torch.Generator(model.device).manual_seed(seed)
        ),
    }
    reach = report["prediction"]["horizon"]
    report["prediction"]["linear_gaussian"] = linear_gaussian_report(z, a, horizon=reach)
    report["prediction"]["noise_floor"] = noise_floor(
        model, see, episodes, horizon=reach, frame_stack=env_kwargs.get("frame_stack", 1), seed=seed
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
            frame_stack=env_kwargs.get("frame_stack", 1),
            seed=seed,
        )
    stages("representation")
    report["probe"] = probe_report(
        z, episodes, steps=probe_steps, fitted=details.readouts, generator=generator()
    )
    report["gaussianity"] = embedding_report(z.cpu(), generator=generator())
    report["trajectory"] = trajectory_report(z)
    details.arrays.update(gaussianity_curves(z.cpu(), generator=generator()))

    radius = see.unwrapped.success_radius
    if goals == "ahead":
        chosen = goal_pairs_ahead(
            see, episodes, offset=goal_offset, count=pairs, rng=np.random.default_rng(seed)
        )
    else:
        chosen = goal_pairs_from_resets(see, count=pairs, seed=10_000_000 + seed)
    seeing = copies(see, pairs)
    stages("planning with the model")
    plan = dict(horizon=horizon, replan_every=replan_every)
    policy = model_policy(model, planner, chosen, generator=_on(model, seed), kappa=kappa, **plan)
    attempts = attempt_goals(seeing, chosen, policy, steps=steps)
    for env in seeing:
        env.close()
    planning = planning_report(attempts, radius)
    details.pairs, details.attempts, details.plans = chosen, attempts, policy.plans
    outcomes = {"model": attempts}
    # No picture is needed by these; observing the state vector is much cheaper.
    blind = copies(make_env(env_id, **{**env_kwargs, "obs": "state", "frame_stack": 1}), pairs)
    action_dim = model.action_dim
    policies = {
        "random": random_policy(action_dim, np.random.default_rng(seed)),
        "hold": hold_policy(action_dim),
    }
    if oracle:
        policies["oracle"] = oracle_policy(blind[0], planner, chosen, generator=generator(), **plan)
    for name, policy in policies.items():
        stages(f"planning: {name}")
        outcomes[name] = attempt_goals(blind, chosen, policy, steps=steps)
        planning[name] = planning_report(outcomes[name], radius)
    for env in blind:
        env.close()
    if oracle:
        best = planning["oracle"]["success_rate"]
        planning["share_of_oracle"] = planning["success_rate"] / best if best else None
        if best:
            reached = [
                (outcomes[k].distance[:, 1:].min(1) <= radius).astype(float)
                for k in ("model", "oracle")
            ]
            planning["share_of_oracle_ci95"] = [float(end) for end in ratio_interval(*reached)]
    details.arrays |= {
        f"distance_{name}": run.distance.astype(np.float32) for name, run in outcomes.items()
    }
    planning["protocol"] = {
        "goals": goals,
        "goal_offset": goal_offset if goals == "ahead" else None,
        "steps": steps,
        "success_radius": radius,
        "action_repeat": int(env_kwargs.get("action_repeat", 1)),
        **plan,
        "kappa": kappa,
    }
    report["planning"] = planning
    report["timings"] = stages.seconds()
    return report


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


def copies(env: gymnasium.Env, count: int) -> list[gymnasium.Env]:
    """`env` and independent copies of it: many times cheaper than making each, simulators compile
    and open windows once.
    """
    return [env, *(copy.deepcopy(env) for _ in range(count - 1))]


def _on(model: WorldModel, seed: int) -> Generator:
    return torch.Generator(model.device).manual_seed(seed)
