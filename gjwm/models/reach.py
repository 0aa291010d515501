"""Reachability from a joint Gaussian of now and later.

A head psi maps latents to whitened features. If (psi(z_t), psi(z_{t+k})), k random, is jointly
Gaussian, its law is one matrix C = E[psi(z_{t+k}) psi(z_t)^T], and reachability, the states on a
way and the information about the future are closed forms of it. With C = U diag(rho) V^T every pair
of coordinates (V^T psi, U^T psi') stands alone, with correlation rho_i. Both ends are taken to have
one law, as in episodes that begin anywhere.

psi maximises that information, -1/2 sum log(1 - rho_i^2) (canonical correlations; Noe and Nueske's
variational principle, VAMP): no rescaling of psi changes it, so nothing else is needed against
collapse. Waypoints from a Gaussian joint: Eysenbach et al., "Inference via Interpolation" (2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from gjwm._core import draws
from gjwm._core.configured import Configured
from gjwm._core.fit import Log, Optimiser, Threads, fit
from gjwm._core.settings import Bounds, Count, Positive, check
from gjwm.models.layers import mlp
from gjwm.objectives import JointEmbeddingObjective, NoRegularizer

MAX_CORRELATION = 0.99  # 1 / (1 - rho^2) of larger ones is noise
MEASURED_PAIRS = 100_000


class Reach(Configured, nn.Module):
    """The joint Gaussian of (psi(z_t), psi(z_{t+k})), k geometric, on latents that change no more.

    Args:
        latent_dim: D.
        dim: K of psi.
        horizon: mean of k in steps, in long episodes: lags end within the episode.
        hidden: widths of psi's hidden layers.
        power: p of `distance`.
    """

    def __init__(
        self,
        latent_dim: int,
        dim: int = 16,
        horizon: int = 16,
        *,
        hidden: Sequence[int] = (128, 128),
        power: float = 3.0,
    ):
        super().__init__()
        for name, value in (("latent_dim", latent_dim), ("dim", dim), ("horizon", horizon)):
            check(f"Reach's {name}", value, Count)
        check("Reach's power", power, Positive)
        self.latent_dim, self.dim, self.horizon, self.power = latent_dim, dim, horizon, power
        self.net = nn.Sequential(
            mlp([latent_dim, *hidden, dim]), nn.BatchNorm1d(dim, eps=1e-8, affine=False)
        )
        # psi(z_t) -> psi(z_{t+k}); only training uses it
        self.predictor = nn.Linear(dim, dim, bias=False)
        # features are whitened over all ends, and C = left diag(rho) right^T
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("whiten", torch.eye(dim))
        self.register_buffer("left", torch.eye(dim))
        self.register_buffer("right", torch.eye(dim))
        self.register_buffer("rho", torch.zeros(dim))
        self.register_buffer("metric", torch.zeros(dim, dim))  # a root of A^p, see `distance`
        self.eval()

    def fit(
        self,
        z: Tensor | Sequence[Tensor],
        *,
        objective: JointEmbeddingObjective | None = None,
        steps: int = 1500,
        batch: int = 512,
        lr: float = 2e-3,
        generator: Generator | None = None,
        log: Log | None = None,
        log_every: int = 25,
        threads: Threads | None = None,
    ) -> Reach:
        """Fit psi, then measure C, both on all episodes.

        C of a tenth of the episodes, held out, would be free of what psi fits too closely; but few
        episodes hold few long ways, and plans by its slow directions failed more often.

        Args:
            z: latents of episodes, (E, T, D), or one (T, D) each.
            objective: of pairs; None is minus the information, without a discrepancy.
            steps, batch, lr: AdamW on a one-cycle schedule; pairs per step.
            generator: draws pairs. First weights come from torch's own.

        Raises:
            ValueError: for other shapes, NaN, episodes of fewer than two steps, or latents in which
                nothing lasts.
        """
        check("Reach.fit's steps", steps, Count)
        check("Reach.fit's batch", batch, Annotated[int, Bounds(least=2)])
        pairs = Pairs(z, self.latent_dim, self.horizon)
        if objective is None:
            objective = JointEmbeddingObjective(NoRegularizer(), 0.0, align="joint")
        objective.to(self.mean.device)

        def loss(step: int) -> dict[str, Tensor]:
            now, later = self.net(torch.cat(pairs.draw(batch, generator))).chunk(2)
            both = torch.stack([now, later], 1)
            return objective(
                self.predictor(now)[:, None], later[:, None], both, generator=generator
            )

        with torch.enable_grad():
            fit(
                [self.net, self.predictor],
                loss,
                Optimiser(lr=lr, weight_decay=1e-4, clip=1.0, warmup=0.1),
                steps=steps,
                log=log,
                log_every=log_every,
                threads=threads,
            )
        self.settle(*pairs.draw(MEASURED_PAIRS, generator))
        return self

    def train(self, mode: bool = True) -> Reach:
        """Stays in evaluation mode: only `fit` changes what it knows."""
        return super().train(False)

    @torch.no_grad()
    def settle(self, z: Tensor, later: Tensor) -> None:
        """Measure C on pairs of latents (N, D), in double precision."""
        now, later = (self.net(x).double() for x in (z, later))
        mean, n = torch.cat([now, later]).mean(0), len(now)
        now, later = now - mean, later - mean
        whiten = _inverse_root((now.T @ now + later.T @ later) / (2 * n))
        self.mean.copy_(mean)
        self.whiten.copy_(whiten)
        self.set_matrix(whiten @ (later.T @ now / n) @ whiten)

    @torch.no_grad()
    def set_matrix(self, c: Tensor) -> None:
        """Take C (K, K) of whitened features; correlations above 0.99 are lowered to it.

        Raises:
            ValueError: when nothing lasts, as C has no positive direction.
        """
        left, rho, right = torch.linalg.svd(c.double())
        rho = rho.clamp(max=MAX_CORRELATION)
        a = (left * (rho / (1 - rho.square()))) @ right
        values, vectors = torch.linalg.eigh((a + a.T) / 2)
        if not values.max() > 1e-9:
            raise ValueError(
                "no direction of these latents lasts for the lags of this Reach: their "
                "correlations are zero, negative, or turn around; choose another horizon."
            )
        weights = values.clamp(min=0) ** self.power
        self.left.copy_(left)
        self.right.copy_(right.T)
        self.rho.copy_(rho)
        self.metric.copy_((weights / (2 * weights.sum())).sqrt()[:, None] * vectors.T)

    @property
    def fitted(self) -> bool:
        """Whether it knows anything yet."""
        return bool(self.rho.any())

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise ValueError("this Reach knows nothing yet: call fit with latents of episodes.")

    def embed(self, z: Tensor) -> Tensor:
        """Whitened features: latents (..., D) -> (..., K)."""
        if z.shape[-1:] != (self.latent_dim,):
            raise ValueError(
                f"Reach was built for latents (..., {self.latent_dim}), got {tuple(z.shape)}."
            )
        features = self.net(z.reshape(-1, self.latent_dim).to(self.mean)) - self.mean
        return (features @ self.whiten).reshape(*z.shape[:-1], self.dim)

    def log_ratio(self, z: Tensor, goal: Tensor) -> Tensor:
        """log p(goal | z) / p(goal): latents (..., D), broadcast -> nats (...)."""
        self._check_fitted()
        return log_ratio(self.embed(z) @ self.right, self.embed(goal) @ self.left, self.rho)

    def distance(self, z: Tensor, goal: Tensor) -> Tensor:
        """How far apart latents are for those who go to and fro, (..., D), broadcast -> (...) >= 0;
        two states at random are 1 apart on the mean.

        (s - g)^T A^p (s - g) of whitened features, A the symmetric part of (I - C C^T)^{-1} C,
        scaled. Where C is symmetric, p = 1 is minus the log-ratio less what depends on one end
        alone (the ratio itself is highest beyond the goal, from where the data drift back to it);
        along slow directions it is the commute-time distance, sum (s - g)^2 / (1 - rho). Many fast
        directions then hide the few slow ones that know the way (von Luxburg et al., "Getting lost
        in space", 2010). A higher power, as of the biharmonic distance (Lipman et al., 2010: p =
        2), lets them speak, whatever K is.
        """
        return ((self.embed(z) - self.embed(goal)) @ self.metric.T).square().sum(-1)

    def waypoints(self, z: Tensor, goal: Tensor, count: int) -> Tensor:
        """The mean of `count` states between z and the goal, each a lag of the fitted law after
        the one before: latents (..., D), broadcast -> whitened features (..., count, K), as
        `embed` gives them, and no latents.

        The states on a way form a Gauss-Markov chain, whose mean between two fixed ends is one
        block-tridiagonal solve.
        """
        check("waypoints' count", count, Count)
        self._check_fitted()
        start, end = torch.broadcast_tensors(self.embed(z), self.embed(goal))
        return bridge(start, end, (self.left * self.rho) @ self.right.T, count)

    def information(self) -> Tensor:
        """I(psi(z_t); psi(z_{t+k})) = -1/2 sum log(1 - rho_i^2) nats, the mean log-ratio of
        pairs.
        """
        self._check_fitted()
        return -0.5 * (1 - self.rho.square()).log().sum()


def log_ratio(x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
    """log p(y | x) / p(y) of canonical coordinates (..., K) with correlations rho (K,) -> (...).

    Examples:
        >>> one, rho = torch.ones(1), torch.tensor([0.8])
        >>> [round(log_ratio(one, y, rho).item(), 4) for y in (one, -one)]
        [0.9553, -3.4892]
    """
    rest = 1 - rho.square()
    quadratic = (rho * x * y - rho.square() * (x.square() + y.square()) / 2) / rest
    return (quadratic - 0.5 * rest.log()).sum(-1)


def bridge(start: Tensor, end: Tensor, c: Tensor, count: int) -> Tensor:
    """The mean of x_1 .. x_n given x_0 and x_{n+1}, where x_{i+1} ~ N(C x_i, I - C C^T): ends
    (..., K), C (K, K) -> (..., n, K).

    Examples:
        >>> ends = torch.tensor([0.0]), torch.tensor([1.0])
        >>> [round(x, 4) for x in bridge(*ends, torch.tensor([[0.5]]), 1).flatten().tolist()]
        [0.4]
    """
    k, c = len(c), c.double()
    eye = torch.eye(k, dtype=c.dtype, device=c.device)
    later = torch.linalg.solve(eye - c @ c.T, c)  # S^-1 C
    middle = torch.linalg.inv(eye - c @ c.T) + c.T @ later
    steps = torch.eye(count, dtype=c.dtype, device=c.device)
    after = torch.ones(count - 1, dtype=c.dtype, device=c.device).diag(-1)  # (i + 1, i)
    coupling = torch.kron(after, later.contiguous())
    precision = torch.kron(steps, middle.contiguous()) - coupling - coupling.T
    pull = torch.zeros(*start.shape[:-1], count, k, dtype=c.dtype, device=c.device)
    pull[..., 0, :] += start.double() @ later.T
    pull[..., -1, :] += end.double() @ later
    solved = torch.linalg.solve(precision, pull.flatten(-2).unsqueeze(-1)).squeeze(-1)
    return solved.unflatten(-1, (count, k)).to(start.dtype)


def _inverse_root(s: Tensor, floor: float = 1e-6) -> Tensor:
    """s^{-1/2} of a covariance; directions without variance are left out."""
    values, vectors = torch.linalg.eigh(s)
    alive = values > floor * values.max()
    return (vectors * torch.where(alive, values, 1).rsqrt() * alive) @ vectors.T


class Pairs:
    """Pairs (z_t, z_{t+k}) of episodes (T, D): t uniform, k geometric among what is left of the
    episode.

    Args:
        z: (E, T, D), or one (T, D) each.
        latent_dim: D.
        horizon: mean of k without an end.

    Raises:
        ValueError: for other shapes, when no episode has two steps, or for NaN.
    """

    def __init__(self, z: Tensor | Sequence[Tensor], latent_dim: int, horizon: int):
        episodes = [torch.as_tensor(episode).detach().float() for episode in z]
        for episode in episodes:
            if episode.dim() != 2 or episode.shape[-1] != latent_dim:
                raise ValueError(
                    f"Reach.fit expects latents of episodes (E, T, {latent_dim}), got "
                    f"{tuple(episode.shape)} for one."
                )
        lengths = [len(episode) for episode in episodes]
        if max(lengths, default=0) < 2:
            raise ValueError(
                f"Reach.fit expects latents of episodes of two steps or more, got {len(lengths)} "
                f"episodes of at most {max(lengths, default=0)}."
            )
        self.rows = torch.cat(episodes)
        if not self.rows.isfinite().all():
            raise ValueError("Reach.fit got NaN or infinite latents.")
        left = torch.cat([torch.arange(n - 1, -1, -1) for n in lengths])
        self.starts = left.nonzero()[:, 0].to(self.rows.device)
        self.left = left.to(self.rows.device)
        self.stay = 1 - 1 / horizon  # probability that the lag goes on

    def draw(self, count: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """-> earlier and later ends, (count, D) each."""
        device = self.rows.device
        t = self.starts[draws.integers(len(self.starts), (count,), generator, device=device)]
        if not self.stay:
            return self.rows[t], self.rows[t + 1]
        most = self.left[t]
        u = draws.uniform((count,), generator, device=device, dtype=torch.float64)
        k = torch.log1p(-u * (1 - self.stay ** most.double())) / math.log(self.stay)
        return self.rows[t], self.rows[t + k.ceil().long().clamp(min=1).minimum(most)]
