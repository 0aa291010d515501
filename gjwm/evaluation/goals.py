"""Attempts to reach goals: which pairs of start and goal, who acts, and what became of it.

Success is measured on the simulator's true position, never on a latent distance."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from gjwm.data.acting import Actor, Moment, as_array, goal_distance, make_vec, play
from gjwm.data.dataset import Episode
from gjwm.evaluation.intervals import wilson_interval
from gjwm.models.world_model import WorldModel
from gjwm.planning import ICEM, CategoricalCEM, Planner
from gjwm.planning.agent import MPCAgent
from gjwm.planning.controller import RecedingHorizon
from gjwm.planning.costs import Cost, GoalCost, ReachCost

# goals (B, D), in latents or in positions -> the cost of reaching them; with an argument `reach`
# it gets the model's
CostOfGoals = Callable[..., Cost]


@dataclass(frozen=True)
class GoalPairs:
    """E start and goal states of one environment, with what an agent sees of the goal."""

    start: np.ndarray  # (E, X) simulator states
    goal: np.ndarray  # (E, X)
    goal_position: np.ndarray  # (E, P)
    goal_observation: np.ndarray  # (E, *O) the goal at rest


def goal_pairs_ahead(
    envs: Any, episodes: Sequence[Episode], *, offset: int, rng: np.random.Generator
) -> GoalPairs:
    """One start per lane, at a random time of a held-out episode; the goal is `offset` agent steps
    later in the same episode.
    """
    count = envs.num_envs
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
    return _see_goals(envs, start, goal)


def goal_pairs_from_resets(envs: Any, *, seed: int) -> GoalPairs:
    """Starts and goals that the world itself draws on reset (its `goal` attribute is a position),
    one per lane.

    Args:
        seed: another gives other goals, also the next.
    """
    # seed + i would give seeds 1 and 2 the same goals but one.
    seeds = [
        int(np.random.SeedSequence([seed, i]).generate_state(1)[0]) for i in range(envs.num_envs)
    ]
    envs.reset(seed=seeds)
    return _see_goals(envs, as_array(envs.get_state()), as_array(envs.goal_state()))


def _see_goals(envs: Any, start: np.ndarray, goal: np.ndarray) -> GoalPairs:
    envs.set_state(goal)
    return GoalPairs(start, goal, as_array(envs.position), as_array(envs.observe()))


@dataclass(frozen=True)
class GoalEpisodes:
    """Outcome of E attempts."""

    distance: np.ndarray  # (E, steps+1) to the goal, by `gjwm.envs.common.goal_distance`
    returns: np.ndarray  # (E,) the task's own reward
    seconds_per_step: float  # of deciding, per env; simulation not counted
    actions: np.ndarray  # (E, steps, A)

    def reached(self, radius: float) -> np.ndarray:
        """(E,) whether within `radius` of the goal at any step after the start."""
        return self.distance[:, 1:].min(1) <= radius


def attempt_goals(envs: Any, pairs: GoalPairs, actor: Actor, *, steps: int) -> GoalEpisodes:
    """One attempt of `steps` agent steps per pair, all at once; lane i is seeded with i. An episode
    that ends goes on, where its world does.
    """
    envs.autoreset = False
    envs.reset(seed=0)
    envs.set_state(pairs.start)
    o = as_array(envs.observe())

    def distances() -> np.ndarray:
        return goal_distance(envs, as_array(envs.position), pairs.goal_position)

    distance, returns, seconds, actions = [distances()], np.zeros(len(o)), 0.0, []
    for step in play(envs, actor, o, steps):
        distance.append(distances())
        returns += step.r
        seconds += step.seconds
        actions.append(step.a)
    return GoalEpisodes(
        np.stack(distance, 1), returns, seconds / steps / len(o), np.stack(actions, 1)
    )


def planning_report(attempts: GoalEpisodes, radius: float) -> dict[str, Any]:
    """Success = within `radius` of the goal at any step after the start."""
    success = attempts.reached(radius)
    low, high = wilson_interval(int(success.sum()), len(success))
    return {
        "success_rate": float(success.mean()),
        "ci95": [low, high],
        "episodes": len(success),
        "return_mean": float(attempts.returns.mean()),
        "closest_distance_mean": float(attempts.distance[:, 1:].min(1).mean()),
        "start_distance_mean": float(attempts.distance[:, 0].mean()),
        "seconds_per_step": attempts.seconds_per_step,
    }


class RememberedPlans:
    """An agent whose `plans` are (step, means (E, H, A)) of each time it planned."""

    def __init__(self, agent: MPCAgent):
        self.agent = agent
        self.plans: list[tuple[int, np.ndarray]] = []

    def act(self, o: Any, info: Moment) -> Tensor:
        plans_now = self.agent.controller.needs_plan
        action = self.agent.act(o, info)
        if plans_now:
            self.plans.append((info.step, as_array(self.agent.plan.mean)))
        return action

    def reset(self, mask: Any = None) -> None:
        self.agent.reset(mask)


def check_cost(cost: CostOfGoals, latent_dim: int, reach: bool = True) -> None:
    """Raise ValueError for what does not make a cost from goals (B, latent_dim), such as a finished
    cost, or asks for a reach where there is none.
    """
    asks = asks_for_reach(cost)
    try:
        inspect.signature(cost).bind(None, **({"reach": None} if asks else {}))
    except TypeError as error:
        raise ValueError(
            "cost must be called with goals (B, D) and return a cost: a class such as GoalCost, or "
            f"a function, got {cost!r}: {error}."
        ) from error
    if asks and not reach:
        raise ValueError(
            "this cost asks for a reach and the model has none: train it with reach.steps=1500, or "
            "Recipe(reach=ReachSettings(steps=1500))."
        )
    if not asks:
        cost(torch.zeros(1, latent_dim))  # what does not fit these latents is told now


def asks_for_reach(cost: CostOfGoals) -> bool:
    """Whether a cost of goals has an argument `reach` that nobody has given yet."""
    reach = inspect.signature(cost).parameters.get("reach")
    return reach is not None and reach.default is reach.empty


def usual_cost(model: WorldModel) -> CostOfGoals:
    """`ReachCost` of a model that has a reach, else `GoalCost`."""
    return GoalCost if model.reach is None else ReachCost


def cost_towards(goal: Tensor, cost: CostOfGoals, model: WorldModel) -> Cost:
    """The cost of reaching latents (B, D) of a model."""
    check_cost(cost, model.latent_dim, model.reach is not None)
    return cost(goal, reach=model.reach) if asks_for_reach(cost) else cost(goal)


def model_actor(
    model: WorldModel,
    planner: Planner,
    pairs: GoalPairs,
    *,
    cost: CostOfGoals = GoalCost,
    **options: Any,
) -> RememberedPlans:
    """Plans in latent space towards the goals as they are seen; `options` of `MPCAgent`."""
    with torch.inference_mode():
        goal = model.encode(torch.from_numpy(pairs.goal_observation).to(model.device))
    return RememberedPlans(MPCAgent(model, planner, cost_towards(goal, cost, model), **options))


def simulator_planner(planner: Planner, horizon: int, action_dim: int) -> Planner:
    """A search for the true simulator, whose rollouts are costly: iCEM with three candidates per
    number to find, as good as a CEM at a tenth of its rollouts (docs/planning.md).

    Bounds and action blocks are those of `planner`; one of discrete actions is taken as it is.
    """
    if isinstance(planner, CategoricalCEM):
        return planner
    box = {k: getattr(planner, k) for k in ("low", "high", "repeat") if hasattr(planner, k)}
    numbers = -(-horizon // box.get("repeat", 1)) * action_dim
    samples = min(max(3 * numbers, 32), 256)
    return ICEM(
        samples=samples,
        iterations=4,
        elites=max(3, samples // 6),
        noise_beta=2.0,
        min_std=0.05,
        covariance="diagonal",
        decay=1.25,
        **box,
    )


class WayCost(GoalCost):
    """`GoalCost` of the length of the way in place of the straight line.

    Args:
        goal: positions (B, P).
        way: positions (B, N, [P',] H, P) -> the length of the way to the goal (B, N, [P',] H).
    """

    def __init__(self, goal: Tensor, way: Callable[[Tensor], Tensor]):
        super().__init__(goal)
        self.way = way

    def distance(self, z: Tensor, goal: Tensor) -> Tensor:
        return self.way(z).square() / z.shape[-1]


class _SolvedLanes:
    """Costs of plans on the true simulator, for which a lane is simulated no more once a plan comes
    within half the success radius of its goal: other plans then cost more than that one. Of lanes
    solved beforehand, the plan is to stand still.
    """

    def __init__(
        self,
        envs: Any,
        goal: Tensor,
        cost: CostOfGoals | None,
        outcomes: Mapping[str, Any],
        solved: Tensor,
    ):
        self.envs, self.goal, self.cost, self.outcomes = envs, goal, cost, outcomes
        self.states = as_array(envs.get_state())
        self.solved = solved  # (B,)
        self.plan: Tensor | None = None  # (B, H, A), and its cost (B,), where solved
        self.plan_cost = torch.zeros(len(goal))

    def costs(self, a: Tensor) -> Tensor:
        """(B, N, H, A) -> (B, N)."""
        if self.plan is None:
            self.plan = torch.zeros_like(a[:, 0])
        costs = self.plan_cost[:, None] + (a - self.plan[:, None]).square().mean((-2, -1))
        lanes = (~self.solved).nonzero()[:, 0]
        if len(lanes):
            goal, a = self.goal[lanes], a[lanes]
            paths = self.envs.simulate(self.states[lanes.numpy()], a.numpy(), **self.outcomes)
            paths = torch.as_tensor(paths)
            cost = self._cost(self.states[lanes.numpy()], goal)
            costs[lanes] = cost(paths, a)
            if not self.outcomes:
                self._keep_solutions(lanes, a, costs[lanes], paths, goal)
        return costs

    def _cost(self, states: np.ndarray, goal: Tensor) -> Cost:
        if self.cost is not None:
            return self.cost(goal)
        if not hasattr(self.envs, "way_length"):
            return GoalCost(goal)

        def way(places: Tensor) -> Tensor:  # as arrays, wherever the worlds lie
            return torch.as_tensor(self.envs.way_length(states, places.numpy(), goal.numpy()))

        return WayCost(goal, way)

    def _keep_solutions(
        self, lanes: Tensor, a: Tensor, costs: Tensor, paths: Tensor, goal: Tensor
    ) -> None:
        distance = goal_distance(self.envs, as_array(paths), as_array(goal[:, None, None]))
        there = torch.from_numpy(distance.min(-1) <= self.envs.success_radius / 2)  # (B, N)
        cost, best = costs.masked_fill(~there, float("inf")).min(1)
        rows = there.any(1).nonzero()[:, 0]
        self.solved[lanes[rows]] = True
        self.plan[lanes[rows]] = a[rows, best[rows]]
        self.plan_cost[lanes[rows]] = cost[rows]


class OracleActor:
    """A planner and a cost on the true simulator and true positions. It searches no further where a
    plan, first the rest of the last one, comes within half the success radius of the goal. Where
    the goal has been reached it simulates nothing and takes the zero action.

    Args:
        goal_position: (B, P).
        planner: must not need gradients, which simulators lack; see `simulator_planner`.
        horizon, replan_every, generator: see `gjwm.planning.RecedingHorizon`.
        cost: of reaching goals, which are positions. None: the distance by the environments'
            `way_length`, past all walls, where they have one, else the straight line.
        outcomes: further arguments of the environments' `simulate`, such as `particles` where
            worlds have noise; every plan is then searched anew, until the goal is reached.
    """

    def __init__(
        self,
        goal_position: np.ndarray,
        planner: Planner,
        *,
        horizon: int,
        replan_every: int,
        generator: Generator,
        cost: CostOfGoals | None = None,
        outcomes: Mapping[str, Any] | None = None,
    ):
        self.goal_position, self.cost, self.planner = goal_position, cost, planner
        self.goal = torch.from_numpy(goal_position).float()
        self.options = dict(horizon=horizon, replan_every=replan_every, generator=generator)
        self.outcomes = dict(outcomes or {})
        self.controller: RecedingHorizon | None = None
        self.begun = np.zeros(len(goal_position), bool)  # the start does not count as reached
        self.reached = np.zeros(len(goal_position), bool)

    def act(self, o: Any, info: Moment) -> Tensor:
        envs = info.envs
        if self.controller is None:
            action_dim = envs.single_action_space.shape[0]
            self.controller = RecedingHorizon(self.planner, action_dim=action_dim, **self.options)
        distance = goal_distance(envs, as_array(envs.position), self.goal_position)
        self.reached |= self.begun & (distance <= envs.success_radius)
        self.begun[:] = True
        costs, reached = None, torch.from_numpy(self.reached)
        if self.controller.needs_plan:
            search = _SolvedLanes(envs, self.goal, self.cost, self.outcomes, reached.clone())
            rest = self.controller.state_dict()["mean"]
            if rest is not None:
                search.costs(rest[:, None])
            costs = search.costs
        action = self.controller.act(costs, envs.num_envs)
        return action.masked_fill(reached.to(action.device)[:, None], 0.0)

    def reset(self, mask: Any = None) -> None:
        if self.controller is not None:
            self.controller.reset(mask)
        lanes = slice(None) if mask is None else as_array(mask).astype(bool)
        self.begun[lanes] = self.reached[lanes] = False


def check_planner(planner: Planner, action_groups: Sequence[int], env_id: str) -> None:
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


def goal_lanes(env_id: str, env_kwargs: Mapping[str, Any], count: int) -> Any:
    """`count` environments to attempt goals in, in this process: `with goal_lanes(...) as envs`."""
    return closing(make_vec(env_id, count, workers=0, **env_kwargs))
