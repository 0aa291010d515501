"""The law N(0, Sigma) that latents are matched to.

Minimising D(p || N(0, Sigma)) over a *free* Sigma tests only the shape of p: a collapsed encoder
with a collapsed Sigma costs nothing. So every Sigma here has trace D and eigenvalues bounded below,
and a free one cannot be built. For prediction Sigma = I loses nothing, as any fixed invertible map
can be absorbed by encoder and predictor; Sigma sets the metric of alignment and goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gjwm._core import distributed


def check_choice(owner: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise a ValueError that names the choices unless `value` is one of them."""
    if value not in allowed:
        raise ValueError(f"{owner}'s {name} must be one of {', '.join(allowed)}, got {value!r}.")


class GaussianTarget(nn.Module):
    """N(0, Sigma) with tr Sigma = D and eigenvalues >= min_eig.

    Args:
        kind: "isotropic": Sigma = I. "diagonal": fixed `variances`, rescaled to mean 1, after which
            none may lie below min_eig. "shrunk": (1 - a) S + a I, where S is a detached running
            covariance of the latents rescaled to trace D and a = min_eig: near-isotropic, as far as
            the data ask for it. "learned": U diag(l) U^T with l = min_eig + (1 - min_eig) * D *
            softmax: put `parameters()` in the optimizer (`gjwm.training.train.train` does).
        dim: D, needed by "learned" only; the others read it from what they see.
        variances: of "diagonal", D positive numbers.
        min_eig: floor of the eigenvalues, in (0, 1]; 1 makes "shrunk" and "learned" isotropic.
        momentum: of "shrunk"'s running covariance, per training step.
    """

    def __init__(
        self,
        kind: str = "isotropic",
        *,
        dim: int | None = None,
        variances: Sequence[float] | None = None,
        min_eig: float = 0.5,
        momentum: float = 0.01,
    ):
        super().__init__()
        kinds = ("isotropic", "diagonal", "shrunk", "learned")
        check_choice("GaussianTarget", "kind", kind, kinds)
        if not 0 < min_eig <= 1:
            raise ValueError(
                f"GaussianTarget needs a floor 0 < min_eig <= 1, got {min_eig}: with a free "
                "covariance a collapsed encoder would match a collapsed target at no cost."
            )
        self.kind, self.min_eig, self.momentum, self.dim = kind, min_eig, momentum, dim
        if kind == "diagonal":
            given = torch.tensor([] if variances is None else list(variances), dtype=torch.float64)
            if not len(given) or not (given > 0).all() or dim not in (None, len(given)):
                raise ValueError(
                    f"GaussianTarget(kind='diagonal') expected {dim or 'D'} positive variances, "
                    f"got {variances}."
                )
            values = given / given.mean()
            least = int(values.argmin())
            if values[least] < min_eig * (1 - 1e-9):
                raise ValueError(
                    f"variance {given[least]:.3g} of dimension {least} is {values[least]:.3g} once "
                    f"their mean is 1, below the floor min_eig={min_eig}: raise it or lower "
                    "min_eig."
                )
            self.dim = len(values)
            self.register_buffer("variances", values)
        elif kind == "learned":
            if dim is None:
                raise ValueError(
                    "GaussianTarget(kind='learned') needs dim, the latent dimension, for its "
                    "parameters."
                )
            self.log_share = nn.Parameter(torch.zeros(dim))
            self.turn = nn.Parameter(torch.zeros(dim, dim))
        elif kind == "shrunk":
            self.register_buffer(
                "running", None if dim is None else torch.eye(dim, dtype=torch.float64)
            )

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args) -> None:
        saved = state_dict.get(prefix + "running")
        if self.kind == "shrunk" and self.running is None and saved is not None:
            self.running, self.dim = torch.empty_like(saved), len(saved)  # filled by what follows
        super()._load_from_state_dict(state_dict, prefix, *args)

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (D,) and eigenvectors (D, D) as columns, in float64; differentiable where
        learned.

        Raises:
            ValueError: while the dimension is unknown.
        """
        if self.dim is None:
            raise ValueError(
                "this GaussianTarget has not seen latents yet and was built without dim."
            )
        if self.kind == "learned":
            share = self.log_share.double().softmax(0)
            generator = self.turn.double()
            values = self.min_eig + (1 - self.min_eig) * self.dim * share
            return values, torch.linalg.matrix_exp(generator - generator.T)
        if self.kind == "shrunk":
            values, vectors = torch.linalg.eigh(self.running)
            values = values.clamp(min=0)
            return (1 - self.min_eig) * values * (self.dim / values.sum()) + self.min_eig, vectors
        device = self.variances.device if self.kind == "diagonal" else None
        vectors = torch.eye(self.dim, dtype=torch.float64, device=device)
        return (self.variances if self.kind == "diagonal" else vectors.diagonal()), vectors

    def whiten(self, z: Tensor, mask: Tensor | None = None, *, synchronize: bool = True) -> Tensor:
        """Sigma^{-1/2} z for z (..., D): a standard Gaussian exactly when z is N(0, Sigma).

        In training mode "shrunk" first moves its running covariance towards that of z, where `mask`
        (...) is true, over the samples of all processes unless `synchronize` is false.

        Raises:
            ValueError: when D is not the target's.
        """
        if self.dim is None:
            self.dim = z.shape[-1]
            if self.kind == "shrunk":
                self.running = torch.eye(self.dim, dtype=torch.float64, device=z.device)
        if z.shape[-1] != self.dim:
            raise ValueError(
                f"the target is a Gaussian in {self.dim} dimensions, got latents {tuple(z.shape)}."
            )
        if self.kind == "isotropic":
            return z
        if self.kind == "diagonal":
            return z * self.variances.rsqrt().to(z)
        if self.kind == "shrunk" and self.training:
            self.running = self.running.to(z.device)  # a loaded one may be elsewhere
            self._follow(z.detach() if mask is None else z.detach()[mask], synchronize)
        values, vectors = self.eigen()
        return z @ ((vectors * values.rsqrt()) @ vectors.T).to(z)

    @torch.no_grad()
    def _follow(self, z: Tensor, synchronize: bool) -> None:
        flat = z.reshape(-1, self.dim).double()
        sums = torch.cat(
            [flat.T @ flat, flat.sum(0)[None], flat.new_full((1, self.dim), len(flat))]
        )
        if synchronize and distributed.world_size() > 1:
            sums = distributed.sum_(sums)
        n = sums[-1, 0]
        mean = sums[-2] / n
        covariance = sums[:-2] / n - mean[:, None] * mean
        trace = covariance.trace()
        if trace > 0:  # a fully collapsed batch says nothing about shape
            self.running.lerp_(covariance * (self.dim / trace), self.momentum)
