"""What plans should be judged by, on frozen latents of trained runs: latent distance, a decoded
position, a learned temporal distance, a contrastive critic, or a joint Gaussian.

    python scripts/compare_reach.py runs/two-room/seed-0 --costs latent critic reach --horizons 4 8

Every kind is fitted to the latents of the run's dataset with the same pairs, steps and widths, and
plans for the same fresh goals; models have no members. A discrepancy's weight is the one of
`--weights` with the best contrastive bound on held-out episodes: no success is asked for. Prints
one JSON object per kind and horizon: success, milliseconds per step and environment, seconds of
fitting; on held-out episodes the contrastive bound in nats, the reliability of "reached", and Henze
and Zirkler's statistic of pairs; of Gaussians the information in nats.

A kind may end in -log-ratio, for plans judged by it, in -power-P, for another power of the
distance, or in -waypoints-N, for plans towards the first of N waypoints."""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from gjwm._core.fit import Optimiser, fit
from gjwm.data.dataset import read_episodes
from gjwm.evaluation import Evaluation
from gjwm.evaluation.evaluate import Task, attempt, held_out_episodes
from gjwm.evaluation.goals import goal_lanes, planning_report
from gjwm.evaluation.normality import henze_zirkler
from gjwm.evaluation.prediction import encode_episodes
from gjwm.evaluation.probes import mlp_readout
from gjwm.models import Reach
from gjwm.models.layers import mlp
from gjwm.models.reach import Pairs
from gjwm.models.world_model import WorldModel
from gjwm.objectives import (
    GaussianKL,
    JointEmbeddingObjective,
    SIGReg,
    SlicedWasserstein,
)
from gjwm.planning import CEM, GoalCost, ReachCost
from gjwm.training.train import latents_of

# kind -> what psi learns from beside alignment; "reach" learns from the information alone
DISCREPANCIES: dict[str, Callable[[], nn.Module]] = {
    "moments": GaussianKL,
    "sigreg": partial(SIGReg, 64),
    "wasserstein": partial(SlicedWasserstein, 64),
}
KINDS = re.compile(
    f"latent|position|quasimetric|critic|(reach|{'|'.join(DISCREPANCIES)})"
    r"(-log-ratio|-power-[0-9.]+|-waypoints-[0-9]+)?"
)
HELD_OUT_EPISODES = 100


class RatioCost(GoalCost):
    """`ReachCost` with minus a log-ratio per dimension in the place of its distance."""

    def __init__(self, goal: Tensor, ratio, dim: int, *, latent: float):
        super().__init__(goal)
        self.ratio, self.dim, self.latent = ratio, dim, latent

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        way = -self.ratio(z[..., 1:, :], self.goal[:, None, None]).mean(-1) / self.dim
        return way + self.latent * super().__call__(z, a)


class WaypointCost(GoalCost):
    """`ReachCost` towards the first of `count` waypoints between where a plan begins and the goal,
    which moves on as plans do."""

    def __init__(self, goal: Tensor, reach: Reach, *, count: int, latent: float):
        super().__init__(goal)
        self.reach, self.count, self.latent = reach, count, latent

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        first = self.reach.waypoints(z[:, :1, 0], self.goal[:, None], self.count)[..., :1, :]
        apart = (self.reach.embed(z[..., 1:, :]) - first) @ self.reach.metric.T
        way = apart.square().sum(-1).mean(-1)
        return way + self.latent * super().__call__(z, a)


class Critic(nn.Module):
    """InfoNCE: log-ratio up to a constant = -|phi(z) - chi(goal)|^2."""

    def __init__(self, latent_dim: int, dim: int):
        super().__init__()
        self.phi, self.chi = mlp([latent_dim, 128, 128, dim]), mlp([latent_dim, 128, 128, dim])

    def forward(self, z: Tensor, goal: Tensor) -> Tensor:
        return -(self.phi(z) - self.chi(goal)).square().sum(-1)

    def learn(self, pairs: Pairs, steps: int, generator: torch.Generator) -> None:
        def loss(step: int) -> dict[str, Tensor]:
            now, later = pairs.draw(512, generator)
            x, y = self.phi(now), self.chi(later)
            scores = -torch.cdist(x, y).square()
            match = torch.arange(len(x))
            both = nn.functional.cross_entropy(scores, match)
            return {"loss": both + nn.functional.cross_entropy(scores.T, match)}

        optimiser = Optimiser(lr=2e-3, weight_decay=1e-4, clip=1.0, warmup=0.1)
        fit([self], loss, optimiser, steps=steps)


class Quasimetric(nn.Module):
    """Steps from s to g, learned as in QRL (Wang et al., 2023): as large as may be between states
    at random, at most 1 between successive ones. A metric residual network (Liu et al., 2023)."""

    def __init__(self, latent_dim: int, dim: int):
        super().__init__()
        self.symmetric = mlp([latent_dim, 128, 128, dim])
        self.directed = mlp([latent_dim, 128, 128, dim])
        self.price = nn.Parameter(torch.zeros(()))  # log of the constraint's multiplier

    def forward(self, z: Tensor, goal: Tensor) -> Tensor:
        there = (self.symmetric(z) - self.symmetric(goal)).square().mean(-1).add(1e-9).sqrt()
        return there + (self.directed(z) - self.directed(goal)).relu().amax(-1)

    def learn(self, steps_apart: Pairs, steps: int, generator: torch.Generator) -> None:
        def loss(step: int) -> dict[str, Tensor]:
            now, later = steps_apart.draw(512, generator)
            step_too_long = (self(now, later) - 1).relu().square().mean() - 0.25**2
            far = self(now, later[torch.randperm(len(later), generator=generator)])
            spread = nn.functional.softplus(50 - far, beta=0.1).mean()
            price = self.price.exp()
            rise = price.detach() * step_too_long - price * step_too_long.detach()
            return {"loss": spread + rise}

        fit([self], loss, Optimiser(lr=2e-3, clip=1.0, warmup=0.1), steps=steps)


@torch.no_grad()
def bound(ratio, pairs: Pairs) -> float:
    """The contrastive lower bound on the information of pairs, at most log 1024 nats."""
    now, later = pairs.draw(1024, torch.Generator().manual_seed(1))
    scores = ratio(now[:, None], later[None])
    return (scores.diag() - scores.logsumexp(1)).mean().item() + math.log(len(now))


@torch.no_grad()
def pairs_normality(now_of: Callable, later_of: Callable, pairs: Pairs) -> float:
    """Henze and Zirkler's statistic of 2,000 pairs of features; Gaussian pairs have about 1."""
    now, later = pairs.draw(2000, torch.Generator().manual_seed(3))
    return henze_zirkler(torch.cat([now_of(now), later_of(later)], -1))["henze_zirkler"]


@torch.no_grad()
def reliability(ratio, pairs: Pairs, known: bool) -> float:
    """Expected calibration error of p(reached) = sigmoid(log-ratio) on as many pairs of one
    episode, a lag apart, as of shuffled states. A log-ratio that is known up to a constant gets the
    one that makes it a ratio on the mean."""
    now, later = pairs.draw(10_000, torch.Generator().manual_seed(2))
    scores = torch.cat([ratio(now, later), ratio(now, later.roll(1, 0))]).double()
    if not known:
        scores = scores - scores[len(now) :].logsumexp(0) + math.log(len(now))
    p, truth = scores.sigmoid(), torch.arange(len(scores)) < len(now)
    bins = (p * 10).long().clamp(max=9)
    gaps = torch.zeros(10, dtype=p.dtype).index_add_(0, bins, p - truth.double())
    return (gaps.abs().sum() / len(p)).item()


class DistanceCost(GoalCost):
    """`GoalCost` with another distance; the mean over the plan alone, and a share of latents."""

    def __init__(self, goal: Tensor, between: Callable, *, latent: float):
        super().__init__(goal)
        self.between, self.latent = between, latent

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        way = self.between(z[..., 1:, :], self.goal[:, None, None]).mean(-1)
        return way + self.latent * super().__call__(z, a)


def gaussian(kind: str, train: Sequence[Tensor], held_out: Pairs, args: argparse.Namespace):
    """-> (a fitted Reach and what to report of it): of several weights the one whose closed form
    has the best contrastive bound on held-out pairs."""
    best: tuple[Reach | None, dict[str, Any]] = None, {"bound": -math.inf}
    bounds = {}
    for weight in [None] if kind == "reach" else args.weights:
        torch.manual_seed(args.fit_seed)
        begin = time.perf_counter()
        reach = Reach(train[0].shape[1], args.dim, args.lag).fit(
            train,
            objective=None
            if weight is None
            else JointEmbeddingObjective(DISCREPANCIES[kind](), weight),
            steps=args.steps,
            generator=torch.Generator().manual_seed(args.fit_seed),
        )
        report = {
            "fit_seconds": time.perf_counter() - begin,
            "weight": weight,
            "information": reach.information().item(),
            "rho": [round(x, 3) for x in reach.rho.tolist()],
            "bound": bound(reach.log_ratio, held_out),
            "reliability": reliability(reach.log_ratio, held_out, known=True),
            "henze_zirkler": pairs_normality(reach.embed, reach.embed, held_out),
        }
        bounds[weight] = report["bound"]
        if best[0] is None or report["bound"] > best[1]["bound"]:
            best = reach, report
    return best[0], best[1] | ({"bounds": bounds} if len(bounds) > 1 else {})


def cost_of(kind: str, model: WorldModel, train: Sequence[Tensor], held_out: Pairs, task, args):
    """-> (goals -> a cost, what to report of it)."""
    if kind == "latent":
        return GoalCost, {}
    begin = time.perf_counter()
    generator = torch.Generator().manual_seed(args.fit_seed)
    torch.manual_seed(args.fit_seed)
    if kind == "position":  # read by a probe that has seen true positions, which a user has not
        settings = Evaluation(episodes=200, seed=args.fit_seed + 1000, length=60)
        episodes = held_out_episodes(task, settings)
        z = encode_episodes(model, episodes).flatten(0, 1)
        position = torch.from_numpy(np.concatenate([e.position for e in episodes])).float()
        read = mlp_readout(z, position, generator=generator)

        def distance(z: Tensor, goal: Tensor) -> Tensor:
            both = [read(x.reshape(-1, x.shape[-1])).float() for x in (z, goal)]
            scale = position.var(0)
            here, there = both[0].view(*z.shape[:-1], -1), both[1].view(*goal.shape[:-1], -1)
            return ((here - there).square() / scale).mean(-1)

        cost = type("PositionCost", (GoalCost,), {"distance": staticmethod(distance)})
        return cost, {"fit_seconds": time.perf_counter() - begin}
    if kind == "quasimetric":
        metric = Quasimetric(model.latent_dim, args.dim)
        metric.learn(Pairs(train, model.latent_dim, 1), args.steps, generator)
        metric.requires_grad_(False)
        now, later = Pairs(train, model.latent_dim, args.lag).draw(4096, generator)
        typical = metric(now, later.roll(1, 0)).mean()  # as of reach: 1 between states at random
        cost = partial(
            DistanceCost, between=lambda z, goal: metric(z, goal) / typical, latent=args.latent
        )
        return cost, {"fit_seconds": time.perf_counter() - begin, "steps_apart": typical.item()}
    if kind == "critic":
        critic = Critic(model.latent_dim, args.dim)
        critic.learn(Pairs(train, model.latent_dim, args.lag), args.steps, generator)
        critic.requires_grad_(False)
        seconds = time.perf_counter() - begin
        return partial(RatioCost, ratio=critic, dim=args.dim, latent=args.latent), {
            "fit_seconds": seconds,
            "bound": bound(critic, held_out),
            "reliability": reliability(critic, held_out, known=False),
            "henze_zirkler": pairs_normality(critic.phi, critic.chi, held_out),
        }
    learns_from, _, power = kind.partition("-power-")
    learns_from, _, waypoints = learns_from.partition("-waypoints-")
    by_ratio = learns_from.endswith("-log-ratio")
    reach, report = gaussian(learns_from.removesuffix("-log-ratio"), train, held_out, args)
    if waypoints:
        count = int(waypoints)
        return partial(WaypointCost, reach=reach, count=count, latent=args.latent), report
    if by_ratio:
        ratio = partial(RatioCost, ratio=reach.log_ratio, dim=args.dim, latent=args.latent)
        return ratio, report
    if power:
        reach.power = float(power)
        reach.set_matrix((reach.left * reach.rho) @ reach.right.T)
    return partial(ReachCost, reach=reach, latent=args.latent), report


def main(run: Path, args: argparse.Namespace) -> None:
    cfg, model = OmegaConf.load(run / "config.yaml"), WorldModel.load(run)
    settings = OmegaConf.to_container(cfg.evaluate, resolve=True) | dict(
        pairs=max(args.goals, 1), seed=args.seed, oracle=False
    )
    replan_every = args.replan_every or settings["replan_every"]
    latents = list(
        latents_of(model, islice(read_episodes(args.dataset or Path(cfg.dataset)), args.episodes))
    )
    train = latents[:-HELD_OUT_EPISODES]
    if not train:
        raise SystemExit(f"{HELD_OUT_EPISODES} episodes are held out, and there are {len(latents)}")
    held_out = Pairs(latents[-HELD_OUT_EPISODES:], model.latent_dim, args.lag)
    task = Task.of(model)
    for kind in args.costs:
        cost, about = cost_of(kind, model, train, held_out, task, args)
        report = {"run": str(run), "kind": kind, "dim": args.dim, **about}
        if not args.goals:
            print(json.dumps(report), flush=True)
            continue
        for horizon in args.horizons:
            evaluation = Evaluation(
                **settings | dict(horizon=horizon, replan_every=min(replan_every, horizon))
            )
            goals = settings["goals"] or "ahead"
            episodes = [] if goals == "reset" else held_out_episodes(task, evaluation)
            planner = CEM(
                samples=args.samples,
                iterations=args.iterations,
                elites=max(3, args.samples // 10),
                noise_beta=2.0,
                min_std=0.05,
                covariance="diagonal",
                memory=0.1,
                repeat=args.repeat,
            )
            made = attempt(model, task, evaluation, episodes, goals, planner, cost)
            with goal_lanes(task.env_id, task.env_kwargs, 1) as envs:
                planned = planning_report(made.attempts, envs.success_radius)
            report |= {
                "horizon": horizon,
                "success": planned["success_rate"],
                "ms_per_step": round(1e3 * planned["seconds_per_step"], 1),
            }
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    kinds = ", ".join(["latent", "position", "quasimetric", "critic", "reach", *DISCREPANCIES])
    parser.add_argument("--costs", nargs="+", default=["latent", "critic", "reach"], help=kinds)
    parser.add_argument("--weights", nargs="+", type=float, default=[0.06, 0.25, 1.0])
    parser.add_argument("--horizons", nargs="+", type=int, default=[8])
    parser.add_argument("--goals", type=int, default=100, help="0: fit and measure alone")
    parser.add_argument("--seed", type=int, default=200, help="of goals")
    parser.add_argument("--dataset", type=Path, help="to fit to; else the run's own")
    parser.add_argument("--fit-seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=1500)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--lag", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--latent", type=float, default=0.1, help="weight of latent distance")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--replan-every", type=int)
    parser.add_argument("--iterations", type=int, default=4)
    args = parser.parse_args()
    for kind in args.costs:
        if not KINDS.fullmatch(kind):
            parser.error(f"--costs expects {kinds}, with an ending or not, got {kind}")
    torch.set_num_threads(1)
    for run in args.runs:
        main(run, args)
