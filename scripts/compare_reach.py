"""What plans should be judged by: latent distance, a contrastive critic, or a joint Gaussian, on
frozen latents of trained runs.

    python scripts/compare_reach.py runs/two-room/seed-0 --costs latent critic reach --horizons 4 8

Every kind is fitted to the latents of the run's dataset with the same pairs, steps and widths, and
plans for the same fresh goals. Prints one JSON object per kind and horizon: success, milliseconds
per step and environment, seconds of fitting; on held-out episodes the contrastive bound in nats and
the reliability of "reached"; of Gaussians the information in nats."""

from __future__ import annotations

import argparse
import json
import math
import time
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from gjwm._core.fit import Optimiser, fit
from gjwm.data.dataset import read_episodes
from gjwm.evaluation import Evaluation
from gjwm.evaluation.evaluate import Task, attempt, held_out_episodes
from gjwm.evaluation.goals import goal_lanes, planning_report
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

# kind -> (power of the distance, or None for the log-ratio; what psi learns from)
GAUSSIANS = {
    "reach": (3.0, None),
    "reach-power-1": (1.0, None),
    "reach-power-2": (2.0, None),
    "reach-power-4": (4.0, None),
    "log-ratio": (None, None),
    "moments": (3.0, lambda: JointEmbeddingObjective(GaussianKL(), 2.0)),
    "moments-log-ratio": (None, lambda: JointEmbeddingObjective(GaussianKL(), 2.0)),
    "sigreg": (3.0, lambda: JointEmbeddingObjective(SIGReg(64), 2.0)),
    "sigreg-log-ratio": (None, lambda: JointEmbeddingObjective(SIGReg(64), 2.0)),
    "wasserstein": (3.0, lambda: JointEmbeddingObjective(SlicedWasserstein(64), 2.0)),
    "information+sigreg": (
        3.0,
        lambda: JointEmbeddingObjective(SIGReg(64), 2.0, align="joint"),
    ),
}
HELD_OUT_EPISODES = 100


class RatioCost(GoalCost):
    """`ReachCost` with minus a log-ratio per dimension in the place of its distance."""

    def __init__(self, goal: Tensor, ratio, dim: int, *, latent: float):
        super().__init__(goal)
        self.ratio, self.dim, self.latent = ratio, dim, latent

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        way = -self.ratio(z[..., 1:, :], self.goal[:, None, None]).mean(-1) / self.dim
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


@torch.no_grad()
def bound(ratio, pairs: Pairs) -> float:
    """The contrastive lower bound on the information of pairs, at most log 1024 nats."""
    now, later = pairs.draw(1024, torch.Generator().manual_seed(1))
    scores = ratio(now[:, None], later[None])
    return (scores.diag() - scores.logsumexp(1)).mean().item() + math.log(len(now))


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
    held_out = Pairs(latents[-HELD_OUT_EPISODES:], model.latent_dim, args.lag)
    task = Task.of(model)
    for kind in args.costs:
        torch.manual_seed(args.fit_seed)
        generator = torch.Generator().manual_seed(args.fit_seed)
        begin, report = time.perf_counter(), {"run": str(run), "kind": kind}
        if kind == "latent":
            cost = GoalCost
        elif kind == "critic":
            critic = Critic(model.latent_dim, args.dim)
            pairs = Pairs(train, model.latent_dim, args.lag)
            critic.learn(pairs, args.steps, generator)
            cost = partial(RatioCost, ratio=critic, dim=args.dim, latent=args.latent)
            report["bound"] = bound(critic, held_out)
            report["reliability"] = reliability(critic, held_out, known=False)
        else:
            power, objective = GAUSSIANS[kind]
            reach = Reach(model.latent_dim, args.dim, args.lag, power=power or 1.0)
            reach.fit(
                train,
                objective=None if objective is None else objective(),
                steps=args.steps,
                generator=generator,
            )
            report |= {"dim": args.dim, "information": reach.information().item()}
            report |= {"rho": [round(x, 3) for x in reach.rho.tolist()]}
            report["bound"] = bound(reach.log_ratio, held_out)
            report["reliability"] = reliability(reach.log_ratio, held_out, known=True)
            cost = (
                partial(RatioCost, ratio=reach.log_ratio, dim=args.dim, latent=args.latent)
                if power is None
                else partial(ReachCost, reach=reach, latent=args.latent)
            )
        report["fit_seconds"] = time.perf_counter() - begin
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
                iterations=4,
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
    names = ["latent", "critic", *GAUSSIANS]
    parser.add_argument("--costs", nargs="+", choices=names, default=["latent", "critic", "reach"])
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
    args = parser.parse_args()
    torch.set_num_threads(1)
    for run in args.runs:
        main(run, args)
