"""How much latents hold: of their own future, beyond a standard Gaussian, and of the true state.

Three measures. I(z_t; z_{t+k}) in nats, in closed form for a joint Gaussian and, beside it, a
contrastive lower bound that assumes no law (InfoNCE; van den Oord et al., 2018). KL(p(z) || N(0,
I)), the entropy that z lacks to a standard Gaussian. And how well true state variables are read
with 50, 200 and 1,000 labels.

Steps of an episode are not independent, and latents may hold what an episode keeps, such as a
layout. So estimates take one step, or one pair, of each episode and average over draws; and each
information has a form `within` episodes, to which what an episode keeps adds nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.special import digamma, gammaln
from torch import Generator, Tensor, nn

from gjwm._core import draws
from gjwm._core.fit import Optimiser, fit
from gjwm._core.settings import Count, check
from gjwm.data.dataset import Episode
from gjwm.evaluation.calibration import report_generator
from gjwm.evaluation.probes import (
    Readout,
    knn_readout,
    linear_readout,
    r2_score,
    seeded_mlp,
    varying_states,
)
from gjwm.models.layers import BatchedLinear, mlp

LAGS = (1, 2, 4, 8, 16, 32)
LABELS = (50, 200, 1000)
DRAWS = 32  # of one step of each episode
FEWEST_EPISODES = 8
PER_DIRECTION = 3  # episodes for each direction of z whose information is measured
DEAD = 1e-6  # variance, over the largest, below which a direction is rounding
CERTAIN = 1e-6  # floor of 1 - rho^2: no direction holds more than 6.9 nats
SHRINK = (0.0, 0.05, 0.1, 0.2, 0.4, 1.0)  # what a critic's correlations are lowered by
NEIGHBOURS = 3
RESOLUTION = 1e-3  # standard deviations below which neighbours count as no nearer
REFERENCES = 16  # Gaussian batches beside which an entropy is read
MOST_ROWS = 2000  # of a nearest-neighbour estimate, whose cost is their square
NORMAL_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)  # nats of N(0, 1)
CUBE_NEGENTROPY = NORMAL_ENTROPY - 0.5 * math.log(12)  # of a uniform law, per dimension: 0.176

# regularisation among which validation chooses
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
NEIGHBOUR_COUNTS = (1, 2, 4, 8, 16)
MLP_STEPS = (0, 100, 400)  # 0: the labels' mean
MLP_WIDTH, MLP_BATCH = 64, 64
SCORED = 2000  # steps that readings are scored on


def information_report(
    z: Tensor, episodes: Sequence[Episode], *, generator: Generator | None = None
) -> dict[str, Any]:
    """All of this module, on held-out episodes.

    Args:
        z: latents (E, T+1, D) of the episodes, which were recorded with their true states.
        generator: None: one seeded alike for every report.

    Returns:
        "time": lags, those of `LAGS` that fit, gaussian (`gaussian_information`) and bound
        (`contrastive_information`), and the three within_*, within episodes; "entropy":
        `entropy_report`; "labels": `label_efficiency` at the counts of `LABELS` that half of
        the steps allow.

    Raises:
        ValueError: as those do.
    """
    generator = report_generator(generator)
    z = _latents(z)
    counts = [n for n in LABELS if n <= len(z) // 2 * z.shape[1]]
    over_time: dict[str, Any] = {}
    for name, within in {"": False, "within_": True}.items():
        lags = [k for k in LAGS if (4 if within else 2) * k <= z.shape[1]]
        over_time[f"{name}lags"] = lags
        closed = gaussian_information(z, lags, within=within, generator=generator)
        bound = contrastive_information(z, lags, within=within, generator=generator)
        over_time |= {f"{name}gaussian": closed, f"{name}bound": bound}
    return {
        "time": over_time,
        "entropy": entropy_report(z, generator=generator),
        "labels": label_efficiency(z, episodes, labels=counts, generator=generator),
    }


def _latents(z: Tensor) -> Tensor:
    """Latents (E, T, D) in double precision on the CPU, checked."""
    if z.dim() != 3 or z.shape[1] < 2 or len(z) < FEWEST_EPISODES:
        raise ValueError(
            f"information is measured on latents (E, T, D) of at least {FEWEST_EPISODES} episodes "
            f"of 2 steps, got {tuple(z.shape)}."
        )
    bad = z.numel() - int(z.isfinite().sum())
    if bad:
        raise ValueError(
            f"information needs finite latents, got {bad} NaN or infinite values in "
            f"{tuple(z.shape)}."
        )
    return z.detach().double().cpu()


def _check_lags(z: Tensor, lags: Sequence[int], within: bool) -> None:
    for k in lags:
        check("a lag", k, Count)
        least = (4 if within else 2) * k
        if least > z.shape[1]:
            raise ValueError(
                f"a lag of {k} steps{' within episodes' * within} needs episodes of at least "
                f"{least} latents, got {z.shape[1]}; use shorter lags or longer episodes."
            )


# -- the future, in closed form --------------------------------------------------------------------


def gaussian_information(
    z: Tensor,
    lags: Sequence[int] = LAGS,
    *,
    within: bool = False,
    generator: Generator | None = None,
) -> dict[str, Any]:
    """I(z_t; z_{t+k}) of the joint Gaussian with the covariances that pairs have.

    -1/2 sum log(1 - rho_i^2), rho the canonical correlations. One pair of each episode, averaged
    over 32 draws. From n + 1 independent Gaussian pairs the sum is too large by a number that
    depends on n and D alone, whatever rho is (`wishart_bias`): it is taken off, so that no
    information measures 0 on the mean.

    It bounds the information of another law neither way. Latents that bend a few variables into
    many directions have them counted many times, and what correlations do not see is missed.

    Args:
        z: latents (E, T, D) of E >= 8 episodes.
        lags: k in steps, at most T / 2, and T / 4 within episodes.
        within: of z_t - z_s with z_{t+k} - z_{s+k}, s half an episode from t, in which what an
            episode keeps cancels. In z = u + w, u kept, their canonical correlations are those of
            w as far as w has forgotten in half an episode less k; what lasts longer counts as
            kept. (Of an AR(0.9), 61 latents long, it is 97, 91 and 70% at lags 1, 4 and 8.)

    Returns:
        for each lag nats, standard_error (over episodes), directions: how many were measured, those
        that vary, and with fewer than 3 D episodes the E / 3 leading ones, which hold no more than
        all; certain: how many correlations are 1 up to rounding, for which 6.9 nats are counted.

    Raises:
        ValueError: for other shapes, NaN, or lags that do not fit.

    Examples:
        >>> z = torch.randn(400, 8, 2, generator=torch.Generator().manual_seed(0))
        >>> abs(gaussian_information(z, [1])["nats"][0]) < 0.02
        True
    """
    z, generator = _latents(z), report_generator(generator)
    _check_lags(z, lags, within)
    found = [_gaussian(*_pairs(z, k, within, generator)) for k in lags]
    names = "nats", "standard_error", "directions", "certain"
    return {name: [lag[i] for lag in found] for i, name in enumerate(names)}


def _pairs(
    z: Tensor, k: int, within: bool, generator: Generator, count: int = DRAWS
) -> tuple[Tensor, Tensor]:
    """One pair k steps apart of each episode, or its difference to another: -> (R, E, D) each."""
    starts, episode = z.shape[1] - k, torch.arange(len(z))
    t = draws.integers(starts, (count, len(z)), generator, device="cpu")
    if not within:
        return z[episode, t], z[episode, t + k]
    s = (t + starts // 2) % starts
    return z[episode, t] - z[episode, s], z[episode, t + k] - z[episode, s + k]


def _gaussian(x: Tensor, y: Tensor) -> tuple[float, float, int, float]:
    """Pairs (R, N, D) -> nats, standard error over N, directions, correlations of 1."""
    x, y, n = x - x.mean((0, 1)), y - y.mean((0, 1)), x.shape[1] - 1
    axes = _whitening(torch.cat([x, y]).flatten(0, 1))
    d = min(int(axes.any(0).sum()), (n + 1) // PER_DIRECTION)
    if d == 0:  # nothing varies
        return 0.0, 0.0, 0, 0.0
    x, y = (v @ axes[:, len(axes) - d :] for v in (x, y))
    x, y = (v - v.mean(1, keepdim=True) for v in (x, y))
    # Where one draw has no variance along a direction, rounding keeps the factor regular.
    ours, theirs = (torch.linalg.cholesky(v.mT @ v / n + 1e-12 * torch.eye(d)) for v in (x, y))
    x = torch.linalg.solve_triangular(ours.mT, x, upper=True, left=False)
    y = torch.linalg.solve_triangular(theirs.mT, y, upper=True, left=False)
    left, rho, right = torch.linalg.svd(y.mT @ x / n)
    rest = (1 - rho.square()).clamp(min=CERTAIN)
    nats = -0.5 * rest.log().sum(-1) - wishart_bias(d, n)
    # The influence of a pair on the estimate is its log-ratio's departure from the mean.
    u, v, rho = x @ right.mT, y @ left, rho[:, None]
    departure = (rho * u * v - rho.square() * (u.square() + v.square()) / 2) / rest[:, None]
    error = departure.sum(-1).mean(0).std() / math.sqrt(n + 1)
    certain = (rest < 2 * CERTAIN).sum(-1).double().mean()
    return nats.mean().item(), error.item(), d, certain.item()


def wishart_bias(d: int, n: int) -> float:
    """How much -1/2 sum log(1 - rho_i^2) of sample canonical correlations exceeds its true value
    on the mean, for n + 1 independent Gaussian pairs of dimension d, n >= 2 d.

    It is half of log det S_x + log det S_y - log det S_xy, and log det of a Wishart matrix has a
    mean that depends on its true covariance only by that one's log det.

    Examples:
        >>> round(wishart_bias(32, 199), 3), round(wishart_bias(1, 10_000) * 20_000, 2)
        (3.082, 1.0)
    """
    one, both = (
        digamma((n - np.arange(size)) / 2).sum() + size * math.log(2 / n) for size in (d, 2 * d)
    )
    return float(one - both / 2)


# -- the future, by a bound ------------------------------------------------------------------------


def contrastive_information(
    z: Tensor,
    lags: Sequence[int] = LAGS,
    *,
    within: bool = False,
    steps: int = 200,
    generator: Generator | None = None,
) -> dict[str, Any]:
    """A lower bound on I(z_t; z_{t+k}) that assumes no law: which of N later latents, each of
    another episode, belongs to z_t (InfoNCE)?

    The critic is the Gaussian log-ratio, its correlations lowered, plus a product of two small
    networks. 3/8 of the episodes fit it, 1/8 choose how far correlations are lowered and when the
    networks stop, and the other half is what the bound is taken on. The bound is at most log N, N
    half of the episodes: none that assumes nothing can say much more (McAllester & Stratos, 2020),
    so between the ceiling and the Gaussian figure nothing is known. Several steps of an episode
    among the N would lift the ceiling, and it would be no bound: they are not independent.

    Args:
        z: latents (E, T, D) of E >= 8 episodes.
        lags: k in steps, at most T / 2, and T / 4 within episodes.
        within: as in `gaussian_information`, of the same differences. Without it, to know the
            episode is enough; with it only what an episode keeps and adds cancels, and a critic may
            still tell episodes by how much they vary.
        steps: of the networks' training.

    Returns:
        for each lag nats, standard_error (over episodes; a bound may fall below 0 by as much),
        gaussian_critic_nats (the same bound without the networks: what they gain on it is no
        Gaussian's); ceiling_nats, log N.

    Raises:
        ValueError: for other shapes, NaN, or lags that do not fit.
    """
    z, generator = _latents(z), report_generator(generator)
    _check_lags(z, lags, within)
    check("contrastive_information's steps", steps, Count)
    bounds = [_bound(z, k, within, steps, generator) for k in lags]
    names = "nats", "standard_error", "gaussian_critic_nats"
    report: dict[str, Any] = {name: [bound[i] for bound in bounds] for i, name in enumerate(names)}
    return report | {"ceiling_nats": math.log(len(z) - len(z) // 2)}


def _bound(
    z: Tensor, k: int, within: bool, steps: int, generator: Generator
) -> tuple[float, float, float]:
    """-> nats, standard error, nats of the Gaussian critic."""
    half = len(z) // 2
    parts = z[: half * 3 // 4], z[half * 3 // 4 : half], z[half:]
    fitted, chosen, judged = (_pairs(part, k, within, generator) for part in parts)
    candidates = [(_Critic(*fitted, lowered, generator), lowered) for lowered in SHRINK]
    # of equals the more cautious one: a single episode to choose by tells nothing apart
    critic, _ = max(candidates, key=lambda one: (one[0].nats(*chosen).mean().item(), one[1]))
    plain = critic.nats(*judged).mean().item()
    critic.learn(lambda: _pairs(parts[0], k, within, generator, 1), chosen, steps)
    nats = critic.nats(*judged).mean(0)  # of each episode
    return nats.mean().item(), nats.std().item() / math.sqrt(len(nats)), plain


class _Critic(nn.Module):
    """Scores of pairs: a Gaussian log-ratio, less what depends on the first end alone, plus a
    product of networks that starts at 0.
    """

    def __init__(self, x: Tensor, y: Tensor, lowered: float, generator: Generator):
        super().__init__()
        x, y = x.flatten(0, 1), y.flatten(0, 1)
        self.means = x.mean(0), y.mean(0)
        x, y = x - self.means[0], y - self.means[1]
        ours, theirs = (_whitening(v) for v in (x, y))
        left, rho, right = torch.linalg.svd((y @ theirs).T @ (x @ ours) / len(x))
        self.maps = ours @ right.T, theirs @ left
        self.rho = (rho - lowered).clamp(0, 0.999).float()
        d = x.shape[1]
        self.now, self.later = (seeded_mlp([d, 64, 16], generator) for _ in range(2))
        self.learned = False
        last = self.later[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Pairs (R, N, D) -> scores (R, N, N) of each first end with each later one."""
        u, v = (((w - m) @ a).float() for w, m, a in zip((x, y), self.means, self.maps))
        rest = 1 - self.rho.square()
        own = (v.square() * (self.rho.square() / rest)).sum(-1) / 2
        scores = (u * (self.rho / rest)) @ v.mT - own[..., None, :]
        return scores + self.now(u) @ self.later(v).mT if self.learned else scores

    @torch.no_grad()
    def nats(self, x: Tensor, y: Tensor) -> Tensor:
        """The bound's terms (R, N)."""
        return _terms(self(x, y))

    def learn(
        self,
        pairs: Callable[[], tuple[Tensor, Tensor]],
        chosen: tuple[Tensor, Tensor],
        steps: int,
    ) -> None:
        """Train the networks, and keep those with the best bound on `chosen`; none, if that is."""
        best = self.nats(*chosen).mean().item()
        state, self.learned = None, True

        def judge(scalars: dict[str, float], step: int) -> None:
            nonlocal best, state
            nats = self.nats(*chosen).mean().item()
            if nats > best:
                best = nats
                state = {name: value.clone() for name, value in self.state_dict().items()}

        with torch.enable_grad():
            fit(
                [self],
                lambda step: {"loss": -_terms(self(*pairs())).mean()},
                Optimiser(lr=3e-3, weight_decay=1e-2, warmup=None),
                steps=steps,
                log=judge,
                log_every=10,
            )
        self.learned = state is not None
        if state is not None:
            self.load_state_dict(state)


def _terms(scores: Tensor) -> Tensor:
    """log of what the right one's share of all is, over 1 / N: (..., N, N) -> (..., N)."""
    own = scores.diagonal(dim1=-2, dim2=-1)
    return own - scores.logsumexp(-1) + math.log(scores.shape[-1])


def _whitening(x: Tensor) -> Tensor:
    """A root (D, D) of the inverse covariance of centred rows (N, D), in columns by rising
    variance; those of directions without variance, the first, are 0.
    """
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    alive = values > max(DEAD * values[-1].item(), 1e-12)
    return vectors * torch.where(alive, values, torch.inf).rsqrt()


# -- entropy ---------------------------------------------------------------------------------------


def entropy_report(z: Tensor, *, generator: Generator | None = None) -> dict[str, Any]:
    """KL(p(z) || N(0, I)) in nats: the entropy that z lacks to a standard Gaussian, at its second
    moments.

    KL = 1/2 (tr S + |m|^2 - D - log det S) + J. The first part is of a Gaussian with z's mean m
    and covariance S, corrected for the number of samples (exactly, if z is Gaussian). J >= 0, the
    negentropy of z, is what shape adds: the nearest-neighbour estimate of Kozachenko and Leonenko
    (1987) on whitened samples, less what Gaussian samples of the same N and D give. In many
    dimensions neighbours are too far away to see a shape, and J comes out near 0 whatever z is: the
    share that is found of a cube's known negentropy at this N and D says so. The sum of J over
    single whitened coordinates needs no such neighbours; it is a lower bound on J, as whitened
    coordinates are uncorrelated, and blind to what couples them.

    Args:
        z: (N, D) independent samples, or (E, T, D) trajectories, of which one random step each is
            taken and the figures are averaged over 8 draws.

    Returns:
        samples: N or E, at most 2,000; repeated: the share of them with three others in the same
        place, up to 0.001 standard deviations, such as against a wall (KL is then infinite, and
        the estimate that of this resolution); gaussian_nats; negentropy_nats and
        marginal_negentropy_nats (the lower bound), each with *_reference_std, the spread of its
        estimate for Gaussian samples; negentropy_recovered: the share found of a cube's; kl_nats:
        gaussian_nats and the larger of the two, both of which rather fall short. Where z lies on a
        surface of fewer dimensions KL is infinite, and the estimate grows with the samples. None
        where the covariance has no inverse, or the samples are fewer than D + 2.

    Raises:
        ValueError: for other shapes, NaN or infinite values, or fewer than 8 samples.
    """
    if z.dim() not in (2, 3) or len(z) < FEWEST_EPISODES:
        raise ValueError(
            f"an entropy is measured on samples (N, D) or trajectories (E, T, D), at least "
            f"{FEWEST_EPISODES} of them, got {tuple(z.shape)}."
        )
    draw_count = 8 if z.dim() == 3 else 1
    z = z if z.dim() == 3 else z[:, None].expand(-1, 2, -1)
    z, generator = _latents(z)[:MOST_ROWS], report_generator(generator)
    n, _, d = z.shape
    report: dict[str, Any] = {
        "samples": n,
        "repeated": None,
        **dict.fromkeys(("gaussian_nats", "negentropy_nats", "negentropy_reference_std")),
        **dict.fromkeys(("negentropy_recovered", "marginal_negentropy_nats")),
        **dict.fromkeys(("marginal_negentropy_reference_std", "kl_nats")),
    }
    values = torch.linalg.eigvalsh(z.flatten(0, 1).T.cov().reshape(d, d))
    if n < d + 2 or values[0] <= 1e-12 * values[-1]:
        return report
    gaussian, shapes, repeated = [], [], []
    for _ in range(draw_count):
        step = draws.integers(z.shape[1], (n,), generator, device="cpu")
        sample = z[torch.arange(n), step]
        gaussian.append(_gaussian_kl(sample))
        *shape, repeats = _negentropies(sample)
        shapes.append(shape)
        repeated.append(repeats)
    standard = [
        _negentropies(torch.randn(n, d, generator=generator, dtype=z.dtype))[:2]
        for _ in range(REFERENCES)
    ]
    cubes = [
        _negentropies(torch.rand(n, d, generator=generator, dtype=z.dtype))[:2]
        for _ in range(REFERENCES)
    ]
    usual, spread = np.mean(standard, 0), np.std(standard, 0, ddof=1)
    joint, marginal = (float(x) for x in np.mean(shapes, 0) - usual)
    recovered = float((np.mean(cubes, 0) - usual)[0] / (d * CUBE_NEGENTROPY))
    second_moments = float(np.mean(gaussian))
    return report | {
        "repeated": float(np.mean(repeated)),
        "gaussian_nats": second_moments,
        "negentropy_nats": joint,
        "negentropy_reference_std": float(spread[0]),
        "negentropy_recovered": recovered,
        "marginal_negentropy_nats": marginal,
        "marginal_negentropy_reference_std": float(spread[1]),
        "kl_nats": second_moments + max(joint, marginal),
    }


def _gaussian_kl(x: Tensor) -> float:
    """Samples (N, D) -> KL to N(0, I) of the Gaussian with their moments, without the bias that
    Gaussian samples have.
    """
    n, d = len(x) - 1, x.shape[1]
    mean = x.mean(0)
    cov = (x - mean).T @ (x - mean) / n
    trace = cov.trace().item()
    log_det = torch.linalg.slogdet(cov)[1].item()
    log_det -= float(digamma((n - np.arange(d)) / 2).sum()) + d * math.log(2 / n)
    return 0.5 * (trace + mean.square().sum().item() - trace / len(x) - d - log_det)


def _negentropies(x: Tensor) -> tuple[float, float, float]:
    """Of samples (N, D): together, and the sum over whitened coordinates, both biased; the share of
    samples that are repeated.
    """
    d = x.shape[1]
    x = x - x.mean(0)
    # The symmetric root stays near the latents' own axes.
    values, vectors = torch.linalg.eigh(x.T @ x / (len(x) - 1))
    x = x @ (vectors * values.rsqrt()) @ vectors.T
    near = _neighbour_distance(x)
    together = d * NORMAL_ENTROPY - _entropy(near.clamp(min=RESOLUTION), d).item()
    alone = _entropy(_marginal_distances(x).clamp(min=RESOLUTION), 1).sum().item()
    return together, d * NORMAL_ENTROPY - alone, (near < RESOLUTION).double().mean().item()


def entropy(x: Tensor) -> float:
    """Differential entropy of independent samples (N, D), N > 3, in nats, by distances to the third
    nearest neighbour (Kozachenko & Leonenko, 1987). Biased where D is not small.

    Examples:
        >>> x = torch.rand(1000, 1, generator=torch.Generator().manual_seed(0)).double()
        >>> abs(entropy(x)) < 0.05  # log of the side of a unit cube
        True
    """
    return _entropy(_neighbour_distance(x), x.shape[1]).item()


def _entropy(distance: Tensor, d: int) -> Tensor:
    """From distances (N, ...) to the neighbours of samples in d dimensions -> (...)."""
    ball = d / 2 * math.log(math.pi) - gammaln(d / 2 + 1)
    constant = digamma(len(distance)) - digamma(NEIGHBOURS) + ball
    return float(constant) + d * distance.clamp(min=1e-12).log().mean(0)


def _neighbour_distance(x: Tensor) -> Tensor:
    """(N, D) -> (N)."""
    # not by inner products, which lose small distances
    apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.kthvalue(NEIGHBOURS + 1, dim=1).values  # the nearest is itself


def _marginal_distances(x: Tensor) -> Tensor:
    """The same along each column, (N, D) -> (N, D): neighbours on a line are next in order."""
    n, k = len(x), NEIGHBOURS
    padded = nn.functional.pad(x.sort(0).values.T, (k, k), value=torch.inf).T
    others = [padded[k + shift : k + shift + n] for shift in range(-k, k + 1) if shift]
    return (torch.stack(others) - padded[k : k + n]).abs().kthvalue(k, dim=0).values


# -- labels ----------------------------------------------------------------------------------------


def label_efficiency(
    z: Tensor,
    episodes: Sequence[Episode],
    *,
    labels: Sequence[int] = LABELS,
    repeats: int = 3,
    generator: Generator | None = None,
) -> dict[str, Any]:
    """How well each true state variable is read from z with few labels.

    Labelled steps are drawn from the first half of the episodes, and reading is scored on 2,000
    steps of the other half. A ridge, a number of neighbours, and the MLP's steps (0: the mean) are
    chosen for each variable by validation among the same labels: five parts by episode, of which
    two judge the MLP.

    Args:
        z: latents (E, T, D) of the episodes, which were recorded with their true states.
        labels: how many.
        repeats: draws of labels, over which figures are averaged.

    Returns:
        labels, and under "variables" for each that varies and each probe (linear, knn, mlp): r2, at
        each number of labels; r2_std over draws; bits: 1/2 log2 1 / (1 - R^2), summed over the
        variable's components, an R^2 below 0 counting as 0. That is the Gaussian capacity of the
        readout: a lower bound on the bits of the variable that z holds where its components are
        independent and Gaussian, and of other independent ones less their negentropy (a uniform
        one: 0.25 bits). What dependent components share is counted more than once.

    Raises:
        ValueError: for other shapes, NaN, episodes without true states that vary, or more labels
            than half of the steps.
    """
    z, generator = _latents(z), report_generator(generator)
    states = varying_states(episodes)
    if not states or len(z) != len(episodes) or next(iter(states.values())).shape[1] != z.shape[1]:
        raise ValueError(
            f"label_efficiency expects latents of episodes with true states that vary, got latents "
            f"{tuple(z.shape)} of {len(episodes)} episodes with {sorted(states) or 'none'}."
        )
    check("label_efficiency's repeats", repeats, Count)
    half, length = len(z) // 2, z.shape[1]
    sizes = [y.shape[-1] for y in states.values()]
    y = torch.cat(list(states.values()), -1)
    scored = draws.permutation((len(z) - half) * length, generator, device="cpu")[:SCORED]
    x_test, y_test = (rows[half:].flatten(0, 1)[scored] for rows in (z, y))
    x, y = (rows[:half].flatten(0, 1) for rows in (z, y))
    rows = {name: {kind: [] for kind in _PROBES} for name in states}  # [label][repeat] of (r2, bit)
    for count in labels:
        check("a number of labels", count, Count)
        if not 5 <= count <= len(x):
            raise ValueError(
                f"{count} labels were asked for; 5 to {len(x)} (the steps of half of the episodes) "
                "can be drawn."
            )
        drawn = []
        for _ in range(repeats):
            at = draws.permutation(len(x), generator, device="cpu")[:count]
            drawn.append((x[at], y[at], _folds(at // length)))
        for kind, probe in _PROBES.items():
            for name in states:
                rows[name][kind].append([])
            for read in _validated(*probe, drawn, sizes, generator):
                estimates = read(x_test).split(sizes, -1)
                for name, guess, truth in zip(states, estimates, y_test.split(sizes, -1)):
                    rows[name][kind][-1].append((r2_score(guess, truth), _bits(guess, truth)))
    return {
        "labels": list(labels),
        "variables": {
            name: {kind: _averaged(found) for kind, found in kinds.items()}
            for name, kinds in rows.items()
        },
    }


def _averaged(found: list[list[tuple[float, float]]]) -> dict[str, list[float]]:
    """(r2, bits) for each number of labels and draw of them -> their means and r2's spread."""
    r2, bits = np.moveaxis(np.asarray(found), -1, 0)
    spread = r2.std(1, ddof=1) if r2.shape[1] > 1 else np.zeros(len(r2))
    return {"r2": r2.mean(1).tolist(), "r2_std": spread.tolist(), "bits": bits.mean(1).tolist()}


def _bits(estimate: Tensor, target: Tensor) -> float:
    """The Gaussian capacity of a readout of (N, P), summed over components that vary."""
    error = (estimate - target).square().mean(0)
    variance = target.var(0, correction=0)
    varies = variance > 1e-12
    rest = (error[varies] / variance[varies]).clamp(1e-12, 1)
    return -0.5 * rest.log2().sum().item()


def _folds(episode: Tensor, parts: int = 5) -> list[tuple[Tensor, Tensor]]:
    """Rows to fit and to judge on, (train, rest) each; rows of one episode stay together."""
    present, index = episode.unique(return_inverse=True)
    if len(present) < parts:  # too few episodes to keep apart
        index = torch.arange(len(episode))
    folds = [index % parts == part for part in range(parts)]
    return [((~judged).nonzero()[:, 0], judged.nonzero()[:, 0]) for judged in folds]


Labelled = tuple[Tensor, Tensor]  # x (N, D), y (N, P)
Fit = Callable[[Sequence[Labelled], float, Generator], list[Readout]]  # by an option


def _validated(
    readouts: Fit,
    grid: Sequence[float],
    parts: int,
    drawn: Sequence[tuple[Tensor, Tensor, Sequence[tuple[Tensor, Tensor]]]],
    sizes: Sequence[int],
    generator: Generator,
) -> list[Readout]:
    """For each draw (x, y, folds) a readout of all variables, each by the option with the least
    error on the first `parts` folds.
    """
    sets = [(x[fitted], y[fitted]) for x, y, folds in drawn for fitted, _ in folds[:parts]]
    sets += [(x, y) for x, y, _ in drawn]
    found = [readouts(sets, option, generator) for option in grid]
    chosen = []
    for i, (x, y, folds) in enumerate(drawn):
        errors = torch.zeros(len(grid), len(sizes), dtype=torch.float64)
        for row, column in itertools.product(range(len(grid)), range(parts)):
            judged = folds[column][1]
            wrong = found[row][i * parts + column](x[judged]) - y[judged]
            errors[row] += torch.stack([v.square().sum() for v in wrong.split(sizes, -1)])
        whole = [one[len(sets) - len(drawn) + i] for one in found]
        chosen.append(_spliced(whole, errors.argmin(0).tolist(), sizes))
    return chosen


def _spliced(readouts: Sequence[Readout], best: Sequence[int], sizes: Sequence[int]) -> Readout:
    """Variable i as `readouts[best[i]]` reads it."""

    def read(z: Tensor) -> Tensor:
        estimates = {row: readouts[row](z).split(sizes, -1) for row in set(best)}
        return torch.cat([estimates[row][column] for column, row in enumerate(best)], -1)

    return read


def _linear(sets: Sequence[Labelled], ridge: float, _: Generator) -> list[Readout]:
    return [linear_readout(x, y, ridge=ridge) for x, y in sets]


def _knn(sets: Sequence[Labelled], k: float, _: Generator) -> list[Readout]:
    return [knn_readout(x, y, k=int(k)) for x, y in sets]


def _mlps(sets: Sequence[Labelled], steps: float, generator: Generator) -> list[Readout]:
    """A small `mlp_readout` for each set, trained side by side."""
    means = [y.mean(0) for _, y in sets]
    if not steps:
        return [lambda z, mean=mean: mean.expand(len(z), -1) for mean in means]
    scales = [(x.mean(0), x.std(0).clamp(min=1e-6)) for x, _ in sets]
    spreads = [y.std(0).clamp(min=1e-9) for _, y in sets]
    inputs = [((x - m) / s).float() for (x, _), (m, s) in zip(sets, scales)]
    targets = [((y - m) / s).float() for (_, y), m, s in zip(sets, means, spreads)]
    with torch.random.fork_rng(devices=[]):  # first weights come from the generator below
        widths = [inputs[0].shape[1], MLP_WIDTH, MLP_WIDTH, targets[0].shape[1]]
        net = mlp(widths, linear=partial(BatchedLinear, len(sets)))
    layers = [layer for layer in net if isinstance(layer, BatchedLinear)]
    for layer in layers:
        nn.init.normal_(layer.weight, 0, math.sqrt(2 / layer.weight.shape[1]), generator)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)

    def loss(step: int) -> dict[str, Tensor]:
        rows = [draws.integers(len(x), (MLP_BATCH,), generator, device="cpu") for x in inputs]
        x, y = (torch.stack([v[r] for v, r in zip(all_, rows)]) for all_ in (inputs, targets))
        return {"loss": (net(x) - y).square().mean((1, 2)).sum()}

    with torch.enable_grad():
        fit([net], loss, Optimiser(lr=3e-3, warmup=None), steps=int(steps))

    @torch.no_grad()
    def read(z: Tensor, i: int) -> Tensor:
        mean, scale = scales[i]
        h = ((z - mean) / scale).float()
        for layer in net:
            if isinstance(layer, BatchedLinear) and layer.bias is not None:
                h = h @ layer.weight[i] + layer.bias[i]
            else:
                h = layer(h)
        return h.double() * spreads[i] + means[i]

    return [partial(read, i=i) for i in range(len(sets))]


# kind -> readouts by an option, options, folds that choose among them
_PROBES: dict[str, tuple[Fit, Sequence[float], int]] = {
    "linear": (_linear, RIDGES, 5),
    "knn": (_knn, NEIGHBOUR_COUNTS, 5),
    "mlp": (_mlps, MLP_STEPS, 2),
}
