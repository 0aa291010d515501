"""Planners: cost reached against the known optimum, against other packages' planners, and time over
bare rollouts.

Four questions, one table. *optimum*: how near the optimum on problems whose optimum is known.
*defaults*: the same for planners as they come. *equal budget*: what plan cost at equal samples,
horizon and rounds on one MLP model (D=64, hidden 512, A=2), ours beside the rules of
stable-worldmodel (CEM, iCEM, MPPI) and pytorch_mppi, written here in our words. *time to target*:
the wall time after which a planner has the cost that plain CEM ends with after 512 samples x 8
rounds, on 100 problems of trained two-room and reacher models. All share the model, the horizon,
the rollout code and the thread count, and start cold (a warm start would help everyone).

Trained models are read from runs/two-room and runs/reacher-easy, where `gjwm train` leaves them;
where one is missing, a model on state vectors is collected and trained first, and a line says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.linalg import solve_discrete_are
from scipy.optimize import lsq_linear
from torch import Generator, Tensor

from benchmarks import seconds
from gjwm.data.behaviours import Coloured, behaviour_from_weights
from gjwm.data.collect import collect_episodes, make_env
from gjwm.data.replay import ReplayBuffer
from gjwm.models.dynamics import GaussianDynamics
from gjwm.models.encoders import MLPEncoder
from gjwm.models.world_model import WorldModel
from gjwm.objectives import JointEmbeddingObjective, SIGReg
from gjwm.planning import (
    CEM,
    ICEM,
    MPPI,
    GradientPlanner,
    Plan,
    Planner,
    RandomShooting,
    Score,
)
from gjwm.planning.agent import MPCAgent
from gjwm.planning.costs import GoalCost
from gjwm.training.settings import TrainSettings
from gjwm.training.train import train

Row = dict[str, Any]

# -- known optima ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """B problems with a known least cost."""

    name: str
    score: Score
    optimum: Tensor  # (B,)
    horizon: int
    action_dim: int
    bound: float  # actions lie in [-bound, bound]
    smooth: bool = True  # whether the score has a gradient that leads somewhere

    def ratio(self, plan: Plan) -> float:
        """Worst cost over optimum among the B problems; 1 is perfect."""
        return (plan.cost / self.optimum).max().item()

    def solve(self, planner: Planner, seed: int = 0) -> Plan:
        """A plan from a cold start."""
        start = torch.zeros(len(self.optimum), self.horizon, self.action_dim)
        return planner.plan(self.score, start, generator=torch.Generator().manual_seed(seed))


def bowl(envs: int = 4, horizon: int = 8, action_dim: int = 2, seed: int = 0) -> Problem:
    """|a - t|^2 with some of t outside the bounds: the optimum is the squared distance of t to the
    box.
    """
    target = (
        3 * torch.rand(envs, horizon, action_dim, generator=torch.Generator().manual_seed(seed))
        - 1.5
    )
    optimum = (target.abs() - 1).clamp(min=0).square().sum((-2, -1))
    return Problem(
        "quadratic bowl",
        lambda a: (a - target[:, None]).square().sum((-2, -1)),
        optimum,
        horizon,
        action_dim,
        1.0,
    )


def lqr(envs: int = 4, horizon: int = 15, seed: int = 0) -> Problem:
    """A double integrator in the plane with quadratic cost; the terminal weight is the Riccati
    solution P.

    With P at the end, the finite-horizon optimum is that of the infinite horizon, x0' P x0.
    """
    A = torch.kron(torch.eye(2), torch.tensor([[1.0, 0.2], [0.0, 1.0]]))
    A[1, 3] = 0.05  # the axes are coupled
    B = torch.kron(torch.eye(2), torch.tensor([[0.02], [0.2]]))
    Q, R = torch.diag(torch.tensor([1.0, 0.1, 1.0, 0.1])), 0.1 * torch.eye(2)
    P = torch.from_numpy(solve_discrete_are(*(x.double().numpy() for x in (A, B, Q, R)))).float()
    x0 = torch.randn(envs, 4, generator=torch.Generator().manual_seed(seed)) * 0.3
    bound = 3.0  # wide enough for the optimum to be inside

    def score(a: Tensor) -> Tensor:
        x, cost = x0[:, None].expand(-1, a.shape[1], -1), 0.0
        for u in a.unbind(2):
            cost = cost + ((x @ Q) * x).sum(-1) + ((u @ R) * u).sum(-1)
            x = x @ A.T + u @ B.T
        return cost + ((x @ P) * x).sum(-1)

    return Problem("LQR, Riccati optimum", score, ((x0 @ P) * x0).sum(-1), horizon, 2, bound)


def random_lqr(envs: int = 20, horizon: int = 12, seed: int = 0) -> Problem:
    """x' = A x + B u of 4 states and 2 actions within [-1, 1], sum_h |x_h|^2 + 0.1 |u_h|^2, x_H
    included; problem i is drawn by seed + i.

    A has spectral radius 1 and x_0 lies so far out that bounds are active. As bounded least squares
    in u the problem is convex; an active-set method solves it in double precision."""
    weight, drawn, optimum = 0.1, [], []
    for i in range(envs):
        rng = np.random.default_rng(seed + i)
        A, B, x = rng.normal(size=(4, 4)), rng.normal(size=(4, 2)), 4 * rng.normal(size=4)
        A /= np.abs(np.linalg.eigvals(A)).max()
        drawn.append((A, B, x))
        # x_1 .. x_H = offset + effect @ u
        effect, offset = np.zeros((horizon, 4, horizon, 2)), np.zeros((horizon, 4))
        for h in range(horizon):
            if h:
                effect[h] = np.einsum("ij,jkl->ikl", A, effect[h - 1])
            effect[h, :, h] = B
            offset[h] = A @ (offset[h - 1] if h else x)
        size = 2 * horizon
        rows = np.vstack([effect.reshape(-1, size), np.sqrt(weight) * np.eye(size)])
        wanted = np.concatenate([-offset.reshape(-1), np.zeros(size)])
        best = lsq_linear(rows, wanted, (-1, 1), method="bvls", tol=1e-13)
        optimum.append(x @ x + 2 * best.cost)  # its cost is half the sum of squares
    A, B, x0 = (torch.from_numpy(np.stack(part)).float() for part in zip(*drawn, strict=True))

    def score(a: Tensor) -> Tensor:
        x = x0[:, None].expand(-1, a.shape[1], -1)
        cost = x.square().sum(-1)
        for u in a.unbind(2):
            x = x @ A.mT + u @ B.mT
            cost = cost + x.square().sum(-1) + weight * u.square().sum(-1)
        return cost

    return Problem("random LQR", score, torch.tensor(optimum).float(), horizon, 2, 1.0)


def maze(horizon: int = 10) -> Problem:
    """Around a wall from (-1, 0) to (1, 0) with least effort: sum_h |a_h|^2 + 100 |x_H - goal|^2.

    The wall x = 0 is open for y >= 1 and, a longer way round, for y <= -2. A path of length l in H
    steps costs at least l^2 / H, and the shortest one that ends at distance d from the goal is L -
    d long, L = 2 sqrt(2) around the upper end: the optimum is L^2 / (H + 1 / 100). Around the lower
    end it is 2.5 times that."""
    weight = 100.0
    goal, start = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])

    def score(a: Tensor) -> Tensor:
        path = torch.cat([start.expand(*a.shape[:2], 1, 2), start + a.cumsum(2)], 2)
        (x, y), (x1, y1) = path[:, :, :-1].unbind(-1), path[:, :, 1:].unbind(-1)
        crosses = (x < 0) != (x1 < 0)
        run = torch.where(crosses, x1 - x, 1.0)
        y_cross = y - x / run * (y1 - y)
        hits = crosses & (y_cross < 1) & (y_cross > -2)
        cost = a.square().sum((-2, -1)) + weight * (path[:, :, -1] - goal).square().sum(-1)
        return torch.where(hits.any(-1), torch.inf, cost)

    return Problem(
        "maze, two ways round",
        score,
        torch.tensor([8 / (horizon + 1 / weight)]),
        horizon,
        2,
        0.6,
        False,
    )


def precise_planners(bound: float) -> dict[str, Planner]:
    """Every planner, set to find an optimum rather than to be quick."""
    box = dict(low=-bound, high=bound)
    sampling = dict(
        samples=512,
        iterations=40,
        noise_beta=1.0,
        min_std=1e-3,
        covariance="full",
        memory=0.3,
        **box,
    )
    return {
        "CEM": CEM(elites=64, **sampling),
        "ICEM": ICEM(elites=64, decay=1.02, **sampling),
        "MPPI": MPPI(elites=128, **sampling),
        "GradientPlanner": GradientPlanner(starts=16, iterations=300, lr=0.1, survivors=4, **box),
    }


def optimum_rows(quick: bool) -> list[Row]:
    """Cost over optimum on the problems with a known one."""
    rows = []
    for problem in (bowl(),) if quick else (bowl(), lqr(), maze()):
        for name, planner in precise_planners(problem.bound).items():
            if getattr(planner, "differentiates", False) and not problem.smooth:
                continue
            since = time.perf_counter()
            plans = [problem.solve(planner, seed) for seed in range(1 if quick else 5)]
            rows.append(
                row(
                    "optimum",
                    problem.name,
                    name,
                    rollouts=plans[0].evaluations,
                    excess_percent=100 * (max(map(problem.ratio, plans)) - 1),
                    ms=1e3 * (time.perf_counter() - since) / len(plans),
                )
            )
    return rows


def default_rows(quick: bool) -> list[Row]:
    """Every planner as it comes on random bounded LQRs: excess over the optimum, worst and mean
    over problems and planner seeds, and the time to plan for all of them as one batch.
    """
    problem, seeds = random_lqr(2 if quick else 20), range(1 if quick else 5)
    rows = []
    for planner in (CEM(), ICEM(), MPPI(), GradientPlanner()):
        since = time.perf_counter()
        plans = [problem.solve(planner, seed) for seed in seeds]
        seconds = (time.perf_counter() - since) / len(plans)
        excess = 100 * (torch.stack([plan.cost for plan in plans]) / problem.optimum - 1)
        rows.append(
            row(
                "defaults",
                problem.name,
                type(planner).__name__,
                rollouts=plans[0].evaluations,
                excess_percent=excess.max().item(),
                mean_excess_percent=excess.mean().item(),
                ms=1e3 * seconds,
            )
        )
    return rows


def row(part: str, case: str, planner: str, **figures: float | None) -> Row:
    """One line. excess_percent: of cost over the optimum, or over plain CEM; time_ratio: to bare
    rollouts, or to plain CEM.
    """
    columns = (
        "rollouts",
        "excess_percent",
        "mean_excess_percent",
        "ms",
        "time_ratio",
        "spread_percent",
        "reached",
    )
    return {"part": part, "case": case, "planner": planner, **dict.fromkeys(columns), **figures}


# -- other packages' rules -------------------------------------------------------------------------


class Plain:
    """What other packages' planners share: a fixed number of rounds, bounds [-1, 1], and the last
    mean as the plan, here judged by the better of it and the best last sample, in their favour.
    """

    def __init__(self, *, samples: int = 512, iterations: int = 8, elites: int = 30):
        self.samples, self.iterations, self.elites = samples, iterations, elites

    def plan(self, score: Score, mean: Tensor, *, generator: Generator | None = None) -> Plan:
        std, kept = torch.ones_like(mean), self.first(mean)
        for _ in range(self.iterations):
            noise = torch.randn(len(mean), self.samples, *mean.shape[1:], generator=generator)
            candidates = (mean[:, None] + std[:, None] * self.colour(noise)).clamp(-1, 1)
            candidates[:, : kept.shape[1]] = kept
            cost, index = score(candidates).topk(self.elites, dim=1, largest=False)
            candidates = torch.take_along_dim(candidates, index[..., None, None], 1)
            mean, std = self.refit(mean, std, candidates, cost)
            kept = self.keep(mean, candidates)
        last = torch.cat([mean[:, None], candidates[:, :1]], 1)
        cost, index = score(last).min(1)
        return Plan(last[torch.arange(len(mean)), index], std, cost)

    def first(self, mean: Tensor) -> Tensor:
        return mean[:, None].clamp(-1, 1)

    def colour(self, noise: Tensor) -> Tensor:
        return noise


class PlainCEM(Plain):
    """stable-worldmodel's CEM: white noise of std 1, mean and std refitted to the elites."""

    def refit(self, mean: Tensor, std: Tensor, elite: Tensor, cost: Tensor) -> tuple[Tensor, ...]:
        return elite.mean(1), elite.std(1)

    def keep(self, mean: Tensor, elite: Tensor) -> Tensor:
        return self.first(mean)


class PlainICEM(Plain):
    """stable-worldmodel's iCEM: 1/f^2 noise, five elites kept from round to round, momentum 0.1."""

    def colour(self, noise: Tensor) -> Tensor:
        horizon = noise.shape[2]
        frequency = torch.fft.rfftfreq(horizon).clamp(min=1 / horizon)[:, None]
        coloured = torch.fft.irfft(torch.fft.rfft(noise, dim=2) / frequency, n=horizon, dim=2)
        return coloured / coloured.std()

    def refit(self, mean: Tensor, std: Tensor, elite: Tensor, cost: Tensor) -> tuple[Tensor, ...]:
        return 0.1 * mean + 0.9 * elite.mean(1), 0.1 * std + 0.9 * elite.std(1)

    def keep(self, mean: Tensor, elite: Tensor) -> Tensor:
        return elite[:, :5]


class PlainMPPI(Plain):
    """pytorch_mppi (Williams et al., 2017): white noise of fixed std, softmax of cost over all
    samples. stable-worldmodel's takes the softmax over the elites.
    """

    temperature = 0.5

    def first(self, mean: Tensor) -> Tensor:
        return mean[:, :0, None]  # nothing is kept

    def refit(self, mean: Tensor, std: Tensor, elite: Tensor, cost: Tensor) -> tuple[Tensor, ...]:
        weight = torch.softmax(-(cost - cost[:, :1]) / self.temperature, 1)
        return (weight[..., None, None] * elite).sum(1), std

    def keep(self, mean: Tensor, elite: Tensor) -> Tensor:
        return self.first(mean)


# -- one MLP model, equal budgets ------------------------------------------------------------------


def reference_model(latent_dim: int = 64, hidden: int = 512) -> WorldModel:
    """Untrained MLP dynamics of the size that comparisons of planners use; A = 2."""
    torch.manual_seed(0)
    dynamics = GaussianDynamics(latent_dim, 2, hidden=hidden)
    return WorldModel(MLPEncoder((4,), latent_dim, hidden=(16,)), dynamics).eval()


def goal_score(model: WorldModel, z0: Tensor, goal: Tensor) -> Score:
    """The score that an agent plans with, on the model's own rollout."""
    agent = MPCAgent(model, CEM(), GoalCost(goal), horizon=1)
    return lambda a: agent._score(z0, a, None)


def equal_budget_rows(quick: bool) -> list[Row]:
    """Cost at equal samples, horizon and rounds, and time over the same rollouts without a
    planner.
    """
    samples, iterations, horizon = (64, 2, 4) if quick else (512, 8, 12)
    problems, repeats = (2, 1) if quick else (10, 5)
    model, generator = reference_model(), torch.Generator().manual_seed(0)
    budget = dict(samples=samples, iterations=iterations)
    planners = {
        "plain CEM (stable-worldmodel)": PlainCEM(**budget),
        "plain iCEM (stable-worldmodel)": PlainICEM(**budget),
        "plain MPPI (pytorch_mppi)": PlainMPPI(elites=samples, **budget),
        "plain MPPI (stable-worldmodel)": PlainMPPI(elites=30, **budget),
        "CEM": CEM(**FEW_ROUNDS["CEM"] | budget),
        "ICEM": ICEM(**FEW_ROUNDS["ICEM"] | budget | {"decay": 1.0, "elites": 30}),
        "MPPI": MPPI(**FEW_ROUNDS["MPPI"] | budget | {"elites": 60}),
    }
    with torch.no_grad():
        z0 = torch.randn(problems, 64, generator=generator)
        ahead = torch.rand(problems, horizon, 2, generator=generator) * 2 - 1
        scores = [
            goal_score(model, z0[i : i + 1], model.rollout(z0[i : i + 1], ahead[i : i + 1])[:, -1])
            for i in range(problems)
        ]
        start = torch.zeros(1, horizon, 2)
        candidates = torch.rand(1, samples, horizon, 2, generator=generator) * 2 - 1

        def bare() -> None:
            for _ in range(iterations):
                scores[0](candidates)

        cost = {
            name: [
                planner.plan(s, start, generator=_seeded(i)).cost.item()
                for i, s in enumerate(scores)
            ]
            for name, planner in planners.items()
        }
        calls: dict[str, Callable[[], Any]] = {"bare rollouts": bare}
        for name, planner in planners.items():
            calls[name] = partial(_plan, planner, scores[0], start)
        times = seconds(calls, repeats)
    reference = np.mean(cost["plain CEM (stable-worldmodel)"])
    case = f"{samples} x {iterations}, H={horizon}, D=64, hidden 512"
    return [
        row(
            "equal budget",
            case,
            name,
            rollouts=samples * iterations,
            excess_percent=100 * (float(np.mean(cost[name]) / reference) - 1)
            if name in cost
            else None,
            ms=1e3 * spent.median,
            time_ratio=spent.over(times["bare rollouts"]),
            spread_percent=spent.spread_percent,
        )
        for name, spent in times.items()
    ]


def _plan(planner: Planner, score: Score, start: Tensor) -> Plan:
    return planner.plan(score, start, generator=_seeded(0))


def _seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


# -- time to target --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A model with start and goal latents (n, D) of problems it has not seen."""

    name: str
    model: WorldModel
    z0: Tensor
    goal: Tensor
    horizon: int


class Reached(Exception):
    """Raised by a score to end a planner's search: the target is reached."""


def seconds_to_target(
    planner: Planner, score: Score, start: Tensor, target: float, seed: int
) -> float | None:
    """Wall time until some candidate costs at most `target` (a round's costs are seen at its end);
    None if never.
    """

    def watched(a: Tensor) -> Tensor:
        cost = score(a)
        if cost.detach().min().item() <= target:
            raise Reached
        return cost

    since = time.perf_counter()
    try:
        planner.plan(watched, start, generator=_seeded(seed))
    except Reached:
        return time.perf_counter() - since
    return None


# What an agent that replans often uses, as in configs/planner; the classes' defaults look for the
# optimum instead.
FEW_ROUNDS: dict[str, dict[str, Any]] = {
    "CEM": dict(
        samples=256,
        iterations=4,
        elites=24,
        noise_beta=2.0,
        min_std=0.05,
        covariance="diagonal",
        memory=0.1,
    ),
    "ICEM": dict(samples=128, iterations=6, elites=16, noise_beta=2.0, min_std=0.01, decay=1.1),
    "MPPI": dict(samples=128, iterations=6, elites=24, min_std=0.01),
    "RandomShooting": dict(noise_beta=2.0),
    "GradientPlanner": dict(iterations=20),
}


def quick_planners() -> dict[str, Planner]:
    """Every planner, with enough rounds that it is the target and not the settings that ends it."""
    return {
        "plain CEM": PlainCEM(),
        "plain iCEM": PlainICEM(),
        "CEM": CEM(**FEW_ROUNDS["CEM"] | {"iterations": 16}),
        "ICEM": ICEM(**FEW_ROUNDS["ICEM"] | {"iterations": 24, "decay": 1.05}),
        "MPPI": MPPI(**FEW_ROUNDS["MPPI"] | {"iterations": 24}),
        "RandomShooting": RandomShooting(**FEW_ROUNDS["RandomShooting"] | {"samples": 4096}),
        "GradientPlanner": GradientPlanner(**FEW_ROUNDS["GradientPlanner"] | {"iterations": 40}),
    }


def time_to_target_rows(trained: Trained, *, problems: int) -> list[Row]:
    """Time until plain CEM's final cost is reached: median over problems, as a share of plain CEM's
    whole wall time.
    """
    planners = quick_planners()
    times: dict[str, list[float]] = {name: [] for name in planners}
    reached: dict[str, int] = dict.fromkeys(planners, 0)
    start = torch.zeros(1, trained.horizon, trained.model.action_dim)
    with torch.no_grad():
        for i in range(-1, min(problems, len(trained.z0))):  # the first one warms up
            k = max(i, 0)
            score = goal_score(trained.model, trained.z0[k : k + 1], trained.goal[k : k + 1])
            since = time.perf_counter()
            target = PlainCEM().plan(score, start, generator=_seeded(k)).cost.item()
            whole = time.perf_counter() - since
            for name, planner in planners.items():
                if name == "plain CEM":
                    seconds = whole
                else:
                    seconds = seconds_to_target(planner, score, start, target, 1000 + k)
                if i >= 0:
                    times[name].append(math.inf if seconds is None else seconds / whole)
                    reached[name] += seconds is not None
            if i >= 0:
                times.setdefault("whole", []).append(whole)
    whole = median(times.pop("whole"))
    count = len(times["plain CEM"])
    return [
        row(
            "time to target",
            f"{trained.name}, H={trained.horizon}",
            name,
            ms=1e3 * whole * median(t) if math.isfinite(median(t)) else None,
            time_ratio=median(t) if math.isfinite(median(t)) else None,
            reached=reached[name] / count,
        )
        for name, t in times.items()
    ]


def trained_models(quick: bool, runs: Path = Path("runs")) -> list[Trained]:
    """Two-room and reacher, from runs/ or trained on state vectors here."""
    both = behaviour_from_weights({"scripted": 0.5, "coloured": 0.5})
    two_room, reacher = dict(goal="other-room", terminate_on_goal=False), dict(action_repeat=2)
    worlds = (
        ("two-room", "gjwm/two-room-v0", two_room, both, 24),
        ("reacher-easy", "gjwm/reacher-easy-v0", reacher, Coloured(), 12),
    )
    trained = []
    for name, env_id, kwargs, behaviour, horizon in worlds:
        path = runs / name / "checkpoint.pt"
        if path.is_file() and not quick:
            model = WorldModel.load(path)
            kwargs = {**kwargs, **observation_of(model)}
            if "size" in kwargs and name == "reacher-easy":
                kwargs["hidden"] = ["target"]
        else:
            print(f"no {path}: a model of {name} on state vectors is trained first.", flush=True)
            kwargs = {**kwargs, "obs": "state"}
            count, steps = (8, 20) if quick else (400, 2000)
            settings = TrainSettings(steps=steps)
            model = state_model(env_id, kwargs, behaviour, count=count, settings=settings)
        count, length = (8, 30) if quick else (100, 60)
        sizes = dict(episodes=count, length=length, seed=2_000_000, workers=0)
        episodes = collect_episodes(env_id, kwargs, behaviour, **sizes)
        with torch.no_grad():
            z = torch.stack([model.encode(torch.from_numpy(e.o)) for e in episodes])
        trained.append(Trained(name, model, z[:, 0], z[:, min(horizon, length)], horizon))
    return trained


def observation_of(model: WorldModel | None) -> dict[str, Any]:
    """The environment's arguments for what a model sees; without a model, the state."""
    shape = () if model is None else model.encoder.observation_shape
    if len(shape) != 3:
        return dict(obs="state")
    return dict(obs="pixels", size=shape[1], frame_stack=shape[0] // 3)


def state_model(
    env_id: str,
    kwargs: dict[str, Any],
    behaviour: Any,
    *,
    count: int,
    settings: TrainSettings,
    latent_dim: int = 16,
    **dynamics: Any,
) -> WorldModel:
    """A world model of state vectors, from `count` episodes of a behaviour."""
    env = make_env(env_id, **kwargs)
    buffer = ReplayBuffer(61 * count, env.observation_space, env.action_space)
    sizes = dict(episodes=count, length=60, seed=0, workers=0)
    for episode in collect_episodes(env_id, kwargs, behaviour, **sizes):
        buffer.add_episode(*episode[:5])
    torch.manual_seed(0)
    model = WorldModel(
        MLPEncoder(env.observation_space.shape, latent_dim),
        GaussianDynamics(latent_dim, env.action_space.shape[0], **dynamics),
    )
    objective = JointEmbeddingObjective(SIGReg())
    train(model, objective, buffer, settings, generator=_seeded(0))
    env.close()
    return model


def run(*, quick: bool = False) -> list[Row]:
    """Rows: part, case, planner, rollouts, excess_percent, mean_excess_percent, ms, time_ratio,
    spread_percent, reached; see the module.
    """
    rows = optimum_rows(quick) + default_rows(quick) + equal_budget_rows(quick)
    for trained in trained_models(quick):
        rows += time_to_target_rows(trained, problems=1 if quick else 100)
    return rows
