"""The Gaussian joint-embedding objective: alignment + lam * D(p(Z) || N(0, I)), and the discrepancies D.

Everything here sees tensors only. A discrepancy is an `nn.Module` from latents z (N, D) or (B, T, D) to a scalar that is
small when the law of z is a standard Gaussian; `JointEmbeddingObjective` adds it to the alignment of predicted and encoded
latents. The Epps-Pulley statistic follows Epps & Pulley (1983) and LeJEPA (Balestriero & LeCun, 2025), where its average
over random projections is called SIGReg.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

W0 = math.sqrt(2 * math.pi)  # integral of the weight exp(-t^2/2)

# Under H0 (N independent standard normals) N * T has this mean and this 95% point; T itself is never 0 on a finite sample.
EPPS_PULLEY_NULL_MEAN = W0 * (1 - 1 / math.sqrt(3))
EPPS_PULLEY_NULL_95 = 2.94


class _EmpiricalCF(torch.autograd.Function):
    """phi_k(g, s) = mean_l exp(i k dt x[g, l, s]) for k = 0..knots-1, with x (G, L, S) -> complex (K, G, S).

    The knots are evenly spaced, so exp(i k dt x) is the k-th power of one rotation: one sine and cosine per sample and
    slice instead of one per knot. The backward pass runs the rotation again, so nothing of size G * L * S * K is stored.
    """

    @staticmethod
    def forward(ctx, x: Tensor, dt: float, knots: int) -> Tensor:
        rotation = torch.polar(torch.ones_like(x), dt * x)
        ctx.save_for_backward(rotation)
        ctx.dt = dt
        phi = rotation.new_ones(knots, x.shape[0], x.shape[2])
        power = rotation.clone()
        for k in range(1, knots):
            phi[k] = power.mean(1)
            if k < knots - 1:
                power.mul_(rotation)
        return phi

    @staticmethod
    def backward(ctx, grad: Tensor):
        (rotation,) = ctx.saved_tensors
        # d/dx of Re and Im of exp(i t x), contracted with the incoming gradient: -t Im(conj(grad) exp(i t x)).
        # Horner's scheme over the powers: sum_k c_k r^k = r (c_1 + r (c_2 + ...)).
        knots, length = grad.shape[0], rotation.shape[1]
        t = torch.arange(knots, dtype=rotation.real.dtype, device=grad.device) * (ctx.dt / length)
        c = (grad.conj() * t[:, None, None]).resolve_conj().unsqueeze(2)  # (K, G, 1, S)
        total = c[-1] * rotation
        for k in range(knots - 2, 0, -1):
            total.add_(c[k]).mul_(rotation)
        return -total.imag, None, None


def _quadrature(t_max: float, knots: int, like: Tensor) -> tuple[Tensor, Tensor, float]:
    """Knots' weights and the Gaussian's characteristic function at t = linspace(0, t_max, knots).

    The integrand is even, so the trapezoid on [0, t_max] counts twice.
    """
    if knots < 2 or t_max <= 0:
        raise ValueError(f"expected knots >= 2 and t_max > 0 for the quadrature, got knots={knots} and t_max={t_max}.")
    t = torch.linspace(0, t_max, knots, dtype=like.dtype, device=like.device)
    dt = t_max / (knots - 1)
    weight = torch.full_like(t, 2 * dt)
    weight[0] = weight[-1] = dt
    phi = torch.exp(-t.square() / 2)
    return weight * phi, phi, dt


def epps_pulley(x: Tensor, *, t_max: float = 5.0, knots: int = 17) -> Tensor:
    """T = integral |phi_N(t) - exp(-t^2/2)|^2 exp(-t^2/2) dt by the trapezoid rule.

    Args:
        x: projected samples (..., N, S): N samples of S separate slices.
        t_max: the integral is cut at +-t_max; 5 agrees with the closed form to 2e-6 (LeJEPA's code uses 3).
        knots: quadrature points on [0, t_max].

    Returns:
        (..., S), without the factor N that some codes include. For N(0, 1) samples E[N T] = 1.059426.
    """
    flat = x.reshape(-1, *x.shape[-2:])
    weight, phi, dt = _quadrature(t_max, knots, flat)
    cf = _EmpiricalCF.apply(flat, dt, knots)  # (K, G, S)
    error = (cf.real - phi[:, None, None]).square() + cf.imag.square()
    return (weight[:, None, None] * error).sum(0).reshape(*x.shape[:-2], x.shape[-1])


def epps_pulley_exact(x: Tensor) -> Tensor:
    """The same statistic in closed form on the whole line, O(N^2): (..., N, S) -> (..., S).

    T = W0 [mean_ij exp(-(x_i - x_j)^2 / 2) - sqrt(2) mean_i exp(-x_i^2 / 4) + 1 / sqrt(3)] with W0 = sqrt(2 pi).
    """
    pairs = (x.unsqueeze(-2) - x.unsqueeze(-3)).square()
    return W0 * (
        torch.exp(-pairs / 2).mean((-3, -2)) - math.sqrt(2) * torch.exp(-x.square() / 4).mean(-2) + 1 / math.sqrt(3)
    )


def _check_latents(z: Tensor, name: str) -> None:
    if z.dim() not in (2, 3):
        raise ValueError(f"{name} expected latents z (N, D) or (B, T, D), got shape {tuple(z.shape)}.")
    if z.shape[:-1].numel() < 2:
        raise ValueError(f"{name} needs at least two samples to see a distribution, got z of shape {tuple(z.shape)}.")


class SIGReg(nn.Module):
    """Sliced Epps-Pulley discrepancy to N(0, I): the mean of T over random one-dimensional projections (LeJEPA).

    Samples within a trajectory are correlated. The plain statistic on all B * T samples then has a bias that grows with
    that correlation, and its gradient pushes consecutive latents apart, against the alignment term. `time="cluster"`
    estimates |phi|^2 from pairs of *different* trajectories only, which is unbiased under any dependence within one.

    Args:
        num_slices: random directions per call, drawn afresh each time.
        knots, t_max: quadrature, see `epps_pulley`.
        time: how (B, T, D) is read. "cluster": one pooled law, unbiased across trajectories; "per_step": one law per time
            step over the batch (LeWM); "pooled": all B * T samples as if independent (eb_jepa).
        estimator: "u" removes the finite-sample bias of |phi_N|^2 (so 0 means Gaussian; may be slightly negative),
            "v" is the plain statistic. "cluster" is always "u".
        scale: "none", or "n" to multiply by the number of samples averaged (LeJEPA, LeWM). With "n" the effective weight
            grows with the batch, so "none" is the default.
    """

    def __init__(
        self,
        num_slices: int = 256,
        knots: int = 17,
        t_max: float = 5.0,
        *,
        time: str = "cluster",
        estimator: str = "u",
        scale: str = "none",
    ):
        super().__init__()
        for name, value, allowed in (
            ("time", time, ("cluster", "per_step", "pooled")),
            ("estimator", estimator, ("u", "v")),
            ("scale", scale, ("none", "n")),
        ):
            if value not in allowed:
                raise ValueError(f"SIGReg's {name} must be one of {', '.join(allowed)}, got {value!r}.")
        if num_slices < 1:
            raise ValueError(f"SIGReg needs at least one slice, got num_slices={num_slices}.")
        self.num_slices, self.knots, self.t_max = num_slices, knots, t_max
        self.time, self.estimator, self.scale = time, estimator, scale

    def forward(self, z: Tensor, *, clusters: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """Discrepancy of z (N, D) or (B, T, D) -> scalar.

        Args:
            clusters: (B,) ids; windows cut from one episode share an id and are never paired. None: all rows differ.
            generator: draws the slices (on the generator's device).

        Raises:
            ValueError: for other shapes, or when all rows belong to one cluster.
        """
        _check_latents(z, "SIGReg")
        with torch.autocast(
            z.device.type, enabled=False
        ):  # cos and sin of |t x| up to 15 lose their digits in bfloat16
            z = z if z.dtype == torch.float64 else z.float()
            x = z @ random_directions(z.shape[-1], self.num_slices, generator, like=z)
            statistic, samples = self._statistic(x, clusters)
        return statistic.mean() * (samples if self.scale == "n" else 1)

    def _statistic(self, x: Tensor, clusters: Tensor | None) -> tuple[Tensor, int]:
        weight, phi, dt = _quadrature(self.t_max, self.knots, x)
        if self.time == "cluster" and (x.dim() == 3 or clusters is not None):
            groups = x if x.dim() == 3 else x.unsqueeze(1)  # (B, T, S): one empirical CF per trajectory
            cf = _EmpiricalCF.apply(groups, dt, self.knots)
            mean, square, samples = cf.mean(1), _cross_cluster_square(cf, clusters), x.shape[0]
        else:
            if x.dim() == 3 and self.time == "per_step":
                groups = x.transpose(0, 1)  # (T, B, S)
            else:
                groups = x.reshape(1, -1, x.shape[-1])
            samples = groups.shape[1]
            mean = _EmpiricalCF.apply(groups, dt, self.knots)
            square = mean.real.square() + mean.imag.square()
            if self.estimator == "u":
                square = (samples * square - 1) / (samples - 1)
        shape = (-1,) + (1,) * (mean.dim() - 1)
        phi, weight = phi.view(shape), weight.view(shape)
        return (weight * (square - 2 * phi * mean.real + phi.square())).sum(0), samples


def _cross_cluster_square(cf: Tensor, clusters: Tensor | None) -> Tensor:
    """Unbiased |E phi|^2 from pairs of rows in different clusters: cf complex (K, B, S) -> (K, S)."""
    rows = cf.shape[1]
    total = cf.sum(1)
    if clusters is None:
        within, pairs = cf.real.square() + cf.imag.square(), rows * rows - rows
    else:
        if clusters.shape != (rows,):
            raise ValueError(f"expected clusters ({rows},), one id per trajectory, got {tuple(clusters.shape)}.")
        _, index, counts = clusters.unique(return_inverse=True, return_counts=True)
        if len(counts) < 2:
            raise ValueError("the cross-trajectory estimator needs windows of at least two episodes, got one episode.")
        sums = torch.zeros(cf.shape[0], len(counts), cf.shape[2], dtype=cf.dtype, device=cf.device)
        sums = sums.index_add(1, index, cf)
        within, pairs = sums.real.square() + sums.imag.square(), rows * rows - counts.square().sum()
    return (total.real.square() + total.imag.square() - within.sum(1)) / pairs


def random_directions(dim: int, count: int, generator: Generator | None, *, like: Tensor) -> Tensor:
    """`count` directions, uniform on the unit sphere of R^dim, as the columns of a (dim, count) matrix."""
    device = generator.device if generator is not None else like.device
    directions = torch.randn(dim, count, generator=generator, device=device, dtype=like.dtype).to(like.device)
    return directions / directions.norm(dim=0, keepdim=True)


class VICReg(nn.Module):
    """Variance and covariance terms of VICReg (Bardes et al., 2022): the first two moments only, no mean, no shape.

    D = std_weight * mean_j max(0, margin - sqrt(S_jj + 1e-4)) + cov_weight * (1/D) sum_{i != j} S_ij^2, S the covariance
    of all samples. The default ratio 25 : 1 is the paper's.
    """

    def __init__(self, *, std_weight: float = 1.0, cov_weight: float = 0.04, std_margin: float = 1.0):
        super().__init__()
        self.std_weight, self.cov_weight, self.std_margin = std_weight, cov_weight, std_margin

    def forward(self, z: Tensor, *, clusters: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """Discrepancy of z (N, D) or (B, T, D) -> scalar; `clusters` and `generator` are accepted and not needed."""
        _check_latents(z, "VICReg")
        with torch.autocast(z.device.type, enabled=False):
            z = z.reshape(-1, z.shape[-1])
            z = z if z.dtype == torch.float64 else z.float()
            z = z - z.mean(0)
            covariance = z.T @ z / (len(z) - 1)
            variance = covariance.diagonal()
            std = (self.std_margin - (variance + 1e-4).sqrt()).clamp(min=0).mean()
            off_diagonal = (covariance.square().sum() - variance.square().sum()) / z.shape[-1]
            return self.std_weight * std + self.cov_weight * off_diagonal


class NoRegularizer(nn.Module):
    """D = 0: alignment alone, which collapses. The control that shows what a discrepancy does."""

    def forward(self, z: Tensor, *, clusters: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """z (N, D) or (B, T, D) -> 0, attached to z's graph."""
        _check_latents(z, "NoRegularizer")
        return 0 * z.sum()


class JointEmbeddingObjective(nn.Module):
    """L = mean |z_hat - z_next|^2 + lam * D(p(Z) || N(0, I)).

    The alignment is averaged over samples *and* dimensions (the usual formula sums over dimensions, which only rescales
    lam by 1/D), so with unit-variance latents it lies in [0, 1] and reads as 1 - R^2.

    Args:
        discrepancy: D, a module z -> scalar. Applied to *encoded* latents, never to predictions: a predicted mean must have
            a smaller variance than what it predicts.
        lam: weight of D, independent of the batch size.
        detach_target: stop the gradient into z_next. Off by default: D is what prevents collapse.
    """

    def __init__(self, discrepancy: nn.Module, lam: float = 5.0, *, detach_target: bool = False):
        super().__init__()
        if lam < 0:
            raise ValueError(f"lam weighs a discrepancy and must be >= 0, got {lam}.")
        self.discrepancy, self.lam, self.detach_target = discrepancy, lam, detach_target

    def forward(
        self,
        z_hat: Tensor,
        z_next: Tensor,
        z: Tensor,
        *,
        clusters: Tensor | None = None,
        generator: Generator | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            z_hat: predicted latents (..., B, T, D); leading axes hold several predictions of the same target.
            z_next: encoded latents that they predict (B, T, D).
            z: all encoded latents (B, T+1, D), whose law is matched to N(0, I).
            clusters: (B,) episode ids, see `SIGReg`.

        Returns:
            scalars {"loss", "alignment", "discrepancy"}.
        """
        if z_hat.shape[-z_next.dim() :] != z_next.shape:
            raise ValueError(
                f"expected predictions (..., {', '.join(map(str, z_next.shape))}) for those targets, "
                f"got {tuple(z_hat.shape)}."
            )
        target = z_next.detach() if self.detach_target else z_next
        alignment = (z_hat - target).square().mean()
        discrepancy = self.discrepancy(z, clusters=clusters, generator=generator)
        loss = alignment + self.lam * discrepancy if self.lam else alignment
        return {"loss": loss, "alignment": alignment, "discrepancy": discrepancy}
