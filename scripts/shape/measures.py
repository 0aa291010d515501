"""What many trained models are worth: prediction, probes, information, shape, and plans."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.stats import chi2
from torch import Generator, Tensor

from shape.arms import covariance, directions, shape_statistic, whitening
from shape.training import Data, Frozen
from shape.worlds import ACTIONS, World

LABELS = (50, 200, 1000)
SAMPLES, ITERATIONS, ELITES, REPLAN = 64, 3, 8, 2


def data_of(world: World, seeds: list[int], episodes: int, device: torch.device) -> Data:
    """Episodes of each seed, by a generator of its own."""
    parts = []
    for seed in seeds:
        generator = torch.Generator(device).manual_seed(seed)
        states, actions = world.episodes(episodes, generator)
        parts.append((world.observe(states), actions, world.features(states)))
    return Data(*(torch.stack(part) for part in zip(*parts)))


def _episodes_split(data: Data, start: int, stop: int) -> Data:
    return Data(data.o[:, start:stop], data.a[:, start:stop], data.truth[:, start:stop])


@torch.no_grad()
def measured(
    world: World, model: Frozen, train: Data, held: Data, generator: Generator
) -> dict[str, Tensor]:
    """Measures without plans -> by name (S, A)."""
    out: dict[str, Tensor] = {}
    steps = 10
    fit = _episodes_split(train, 0, min(train.a.shape[1], 200))
    z_fit, z_held = (_latents(model, part) for part in (fit, held))  # (S, A, E, T + 1, D)
    residuals = {}
    for which, part, z in (("fit", fit, z_fit), ("held", held, z_held)):
        starts = range(0, part.a.shape[2] - steps + 1, 5)
        now = torch.cat([z[:, :, :, t] for t in starts], 2)
        for k in range(1, steps + 1):
            a = torch.cat([part.a[:, :, t + k - 1] for t in starts], 1)
            now = model.predict(now, a[:, None])
            if k in (1, steps):
                after = torch.cat([z[:, :, :, t + k] for t in starts], 2)
                residuals[which, k] = now - after, after
    for k in (1, steps):
        error, after = residuals["held", k]
        variance = after.var(2, correction=0).sum(-1).clamp_min(1e-12)
        out[f"r2_{k}"] = 1 - error.square().mean(2).sum(-1) / variance
        mean, transform = whitening(residuals["fit", k][0], 1e-6)
        scaled = (error - mean) @ transform
        mean_0, transform_0 = whitening(residuals["fit", k][1], 1e-6)
        marginal = (after - mean_0) @ transform_0
        gain = (marginal.square() - scaled.square()).mean(2).sum(-1) / 2
        volume = (
            transform.diagonal(dim1=-2, dim2=-1).abs().log()
            - transform_0.diagonal(dim1=-2, dim2=-1).abs().log()
        ).sum(-1)
        out[f"skill_{k}"] = (gain + volume) / error.shape[-1]
        bound = chi2.ppf(0.9, error.shape[-1])
        inside = (scaled.square().sum(-1) < bound).float().mean(2)
        out[f"miscoverage_{k}"] = (inside - 0.9).abs()
    _probes(out, z_fit, fit.truth, z_held, held.truth)
    flat = z_held[:, :, :, ::10].flatten(2, 3)
    _, cov = covariance(flat)
    share = torch.linalg.eigvalsh(cov).clamp_min(0)
    share = share / share.sum(-1, keepdim=True).clamp_min(1e-20)
    out["rank"] = torch.exp(-(share * share.clamp_min(1e-20).log()).sum(-1))
    mean, transform = whitening(flat)
    one = z_held[:, :, :, 20]  # one per episode: independent
    white = (one - mean) @ transform
    slices = directions(white.shape[-1], generator)
    out["nongaussian"] = shape_statistic(white, slices, "gaussian")
    for k in (1, 5, 10):
        out[f"information_{k}"] = _information(z_held, k)
    return out


def _latents(model: Frozen, data: Data) -> Tensor:
    """-> (S, A, E, T + 1, D)."""
    episodes, length = data.o.shape[1:3]
    return model.encode(data.o.flatten(1, 2)).unflatten(2, (episodes, length))


def _probes(out: dict[str, Tensor], z: Tensor, truth: Tensor, z_held: Tensor, held: Tensor) -> None:
    """R2 of the true state by labels: ridge, and the mean of the five nearest."""
    x_all, y_all = z[:, :, :, ::4].flatten(2, 3), truth[:, :, ::4].flatten(1, 2)
    order = torch.randperm(x_all.shape[2], generator=torch.Generator().manual_seed(0))
    order = order.to(x_all.device)
    x_held, y_held = z_held[:, :, :, ::10].flatten(2, 3), held[:, :, ::10].flatten(1, 2)
    total = y_held.var(1, correction=0)[:, None]

    def r2(guess: Tensor) -> Tensor:
        error = (guess - y_held[:, None]).square().mean(2)
        return (1 - error / total).mean(-1)

    scale = x_all.flatten(2).std(-1)[..., None, None].clamp_min(1e-12)
    for labels in LABELS:
        at = order[:labels]
        x, y = x_all[:, :, at] / scale, y_all[:, at][:, None]
        mean, mean_y = x.mean(2, keepdim=True), y.mean(2, keepdim=True)
        centred = x - mean
        eye = torch.eye(x.shape[-1], device=x.device)
        gram = centred.mT @ centred + 1e-2 * labels**0.5 * eye
        beta = torch.linalg.solve(gram, centred.mT @ (y - mean_y))
        out[f"linear_{labels}"] = r2((x_held / scale - mean) @ beta + mean_y)
        near = torch.cdist(x_held / scale, x).topk(5, largest=False).indices  # (S, A, N, 5)
        values = y.expand(-1, x.shape[1], -1, -1)
        picked = torch.gather(
            values[:, :, None].expand(-1, -1, near.shape[2], -1, -1),
            3,
            near[..., None].expand(*near.shape, values.shape[-1]),
        )
        out[f"neighbours_{labels}"] = r2(picked.mean(3))


def _pairs(z: Tensor, lag: int) -> tuple[Tensor, Tensor]:
    return z[:, :, :, :-lag].flatten(2, 3), z[:, :, :, lag:].flatten(2, 3)


def _whitened_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    parts = []
    for part in (x, y):
        mean, transform = whitening(part, 1e-5)
        parts.append((part - mean) @ transform)
    return parts[0], parts[1]


def _information(z: Tensor, lag: int) -> Tensor:
    """I(z_t; z_{t+k}) in nats, as if jointly Gaussian (..., from canonical correlations)."""
    x, y = _whitened_pair(*_pairs(z, lag))
    rho = torch.linalg.svdvals(x.mT @ y / x.shape[2]).clamp_max(1 - 1e-4)
    return -0.5 * torch.log1p(-rho.square()).sum(-1)


class Closeness:
    """log p(g | z) / p(g) of whitened latents whose pairs, geometric lags of mean tau apart, are
    taken as jointly Gaussian."""

    def __init__(self, z: Tensor, tau: float):
        self.mean, self.transform = whitening(z[:, :, :, ::4].flatten(2, 3), 1e-5)
        length = z.shape[3]
        lags = torch.arange(1, length, device=z.device)
        weight = (1 - 1 / tau) ** (lags - 1.0)
        c = 0.0
        for lag, part in zip(lags.tolist(), (weight / weight.sum()).tolist()):
            x, y = (self._white(p) for p in _pairs(z, lag))
            c = c + part * (y.mT @ x) / x.shape[2]
        u, rho, vh = torch.linalg.svd(c)  # type: ignore[arg-type]
        self.u, self.vh, self.rho = u, vh, rho.clamp_max(0.995)

    def _white(self, z: Tensor) -> Tensor:
        return (z - self.mean) @ self.transform

    def __call__(self, z: Tensor, goal: Tensor) -> Tensor:
        """z (S, A, G, N, D), goal (S, A, G, D) -> (S, A, G, N)."""
        shape = z.shape
        x = (self._white(z.flatten(2, 3)) @ self.vh.mT).reshape(shape)
        y = (self._white(goal) @ self.u)[:, :, :, None]
        rho = self.rho[:, :, None, None]
        gain = (rho * x * y - rho.square() * (x.square() + y.square()) / 2) / (1 - rho.square())
        return gain.sum(-1)


Score = Callable[[Tensor], Tensor]  # actions (..., G, N, H, 2) -> cost (..., G, N)


def planned(score: Score, mean: Tensor, generator: Generator) -> Tensor:
    """CEM: mean (*lead, G, H, 2) -> the best elites' mean. All models see the same noise."""
    goals, horizon = mean.shape[-3:-1]
    std = torch.full_like(mean, 0.7)
    for _ in range(ITERATIONS):
        noise = torch.randn(
            goals, SAMPLES, horizon, ACTIONS, generator=generator, device=mean.device
        )
        actions = (mean[..., None, :, :] + std[..., None, :, :] * noise).clamp(-1, 1)
        actions[..., 0, :, :] = mean
        elites = score(actions).topk(ELITES, largest=False).indices
        at = elites[..., None, None].expand(*elites.shape, horizon, ACTIONS)
        best = torch.gather(actions, -3, at)
        mean, std = best.mean(-3), best.std(-3) + 0.05
    return mean


@torch.no_grad()
def attempts(
    world: World,
    start: Tensor,
    goal: Tensor,
    lead: tuple[int, ...],
    horizon: int,
    score_at: Callable[[Tensor], Score],
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """Try goals: start, goal (S, G, X) -> reached (*lead, G) bool, steps taken (censored at the
    budget). `score_at(state)` is the score of plans from states (*lead, G, X)."""
    one = (1,) * (len(lead) - 1)
    state = start.reshape(start.shape[0], *one, *start.shape[1:]).expand(*lead, *start.shape[1:])
    aim = goal.reshape(goal.shape[0], *one, *goal.shape[1:]).expand(*lead, *goal.shape[1:])
    reached = torch.zeros(*state.shape[:-1], dtype=torch.bool, device=state.device)
    taken = torch.full(reached.shape, float(world.protocol.budget), device=state.device)
    mean = torch.zeros(*reached.shape, horizon, ACTIONS, device=state.device)
    for step in range(0, world.protocol.budget, REPLAN):
        mean = planned(score_at(state), mean, generator)
        for k in range(REPLAN):
            state = world.step(state, mean[..., k, :], generator)
            there = world.distance(state, aim) < world.protocol.radius
            taken = torch.where(there & ~reached, float(step + k + 1), taken)
            reached = reached | there
        mean = torch.cat([mean[..., REPLAN:, :], torch.zeros_like(mean[..., :REPLAN, :])], -2)
    return reached, taken


def floors(world: World, start: Tensor, goal: Tensor, generator: Generator) -> dict[str, Tensor]:
    """Success of the oracle (the planner with the true world), of random actions and of none ->
    by name (S,)."""
    lead = (len(start),)

    def oracle(state: Tensor) -> Score:
        def score(actions: Tensor) -> Tensor:
            now = state[..., None, :].expand(*actions.shape[:-2], state.shape[-1])
            for k in range(actions.shape[-2]):
                now = world.step(now, actions[..., k, :])
            return world.way(now, goal[:, :, None].expand_as(now))

        return score

    reached, _ = attempts(world, start, goal, lead, world.protocol.horizon, oracle, generator)
    out = {"oracle": reached.float().mean(-1)}
    for name in ("random", "hold"):
        state, there = start, torch.zeros(start.shape[:-1], dtype=torch.bool, device=start.device)
        action = torch.zeros(*start.shape[:-1], ACTIONS, device=start.device)
        for _ in range(world.protocol.budget):
            if name == "random":
                fresh = torch.randn(action.shape, generator=generator, device=action.device)
                action = (0.7 * action + 0.5 * fresh).clamp(-1, 1)
            state = world.step(state, action, generator)
            there = there | (world.distance(state, goal) < world.protocol.radius)
        out[name] = there.float().mean(-1)
    return out


@torch.no_grad()
def plans(
    world: World,
    model: Frozen,
    train: Data,
    start: Tensor,
    goal: Tensor,
    arms: int,
    generator: Generator,
) -> dict[str, Tensor]:
    """Success of plans by latent distance (whole horizon, and a third of it), and by closed-form
    closeness (a third) -> by name (S, A)."""
    lead = (len(start), arms)
    z_goal = model.encode(world.observe(goal))  # (S, A, G, D)
    short = max(2, world.protocol.horizon // 3)
    fit = _episodes_split(train, 0, min(train.a.shape[1], 200))
    closeness = Closeness(_latents(model, fit), float(world.protocol.offset))

    def distance(z: Tensor) -> Tensor:
        return (z - z_goal[:, :, :, None]).square().sum(-1)

    def unreachable(z: Tensor) -> Tensor:
        return -closeness(z, z_goal)

    def score_at(cost: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Score]:
        def at(state: Tensor) -> Score:
            z = model.encode(world.observe(state))

            def score(actions: Tensor) -> Tensor:
                now = z[..., None, :].expand(*actions.shape[:-2], z.shape[-1]).flatten(2, 3)
                for k in range(actions.shape[-2]):
                    now = model.predict(now, actions[..., k, :].flatten(2, 3))
                value = cost(now.unflatten(2, actions.shape[2:4]))
                return torch.nan_to_num(value, 1e9, 1e9, 1e9)

            return score

        return at

    out = {}
    for name, horizon, cost in (
        ("success", world.protocol.horizon, distance),
        ("short", short, distance),
        ("reach", short, unreachable),
    ):
        reached, taken = attempts(world, start, goal, lead, horizon, score_at(cost), generator)
        out[name] = reached.float().mean(-1)
        out[f"{name}_steps"] = taken.mean(-1)
    return out
