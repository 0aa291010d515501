"""Gaussianity inside random subspaces only (Sub-JEPA, arXiv 2605.09241): a relaxation of the full
constraint.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn

from gjwm.objectives.base import Discrepancy
from gjwm.objectives.sigreg import SIGReg


class Subspaces(Discrepancy):
    """The mean of `base` over frozen subspaces: z -> P_k z with P_k (d, D) of orthonormal rows.

    Independent subspaces need not span R^D evenly; the directions that they leave out are free.
    That is the relaxation.

    Args:
        base: discrepancy inside each subspace; None is `SIGReg()`. Its `time`, `target` and
            `distributed` apply. A shrunk or learned target would see the coordinates of all
            subspaces as one law's, and is refused.
        dim: d of each subspace; at most D. Sub-JEPA has 6 at D = 192.
        count: number of subspaces; None is D // dim, at least 1.
        seed: draws the subspaces, on first use, once and for all, and alike on every process.
    """

    def __init__(
        self,
        base: nn.Module | None = None,
        *,
        dim: int = 6,
        count: int | None = None,
        seed: int = 0,
    ):
        base = SIGReg() if base is None else base
        super().__init__(distributed=getattr(base, "distributed", False))
        if dim < 1 or (count is not None and count < 1):
            raise ValueError(
                f"Subspaces needs dim >= 1 and count >= 1, got dim={dim} and count={count}."
            )
        kind = getattr(getattr(base, "target", None), "kind", None)
        if kind in ("shrunk", "learned"):
            raise ValueError(
                f"Subspaces cannot use a base with a {kind} target: subspaces of different bases "
                "would share one covariance; use an isotropic target."
            )
        self.base = base
        self.dim, self.count, self.seed = dim, count, seed
        self.register_buffer("projections", None)  # (count, D, d)

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args) -> None:
        saved = state_dict.get(prefix + "projections")
        if self.projections is None and saved is not None:
            self.projections = torch.empty_like(saved)  # filled by what follows
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _draw(self, z: Tensor) -> Tensor:
        total = z.shape[-1]
        if self.projections is None:
            dim = min(self.dim, total)
            count = self.count or max(1, total // dim)
            g = torch.Generator().manual_seed(self.seed)
            vectors = torch.randn(count, total, dim, generator=g, dtype=torch.float64)
            self.projections = torch.linalg.qr(vectors)[0].to(z.device)
        if self.projections.shape[1] != total:
            raise ValueError(
                f"these subspaces lie in R^{self.projections.shape[1]}, got latents of shape "
                f"{tuple(z.shape)}; use one Subspaces per latent dimension."
            )
        return self.projections.to(z)

    def _discrepancy(
        self, z: Tensor, mask: Tensor | None, clusters: Tensor | None, generator: Generator | None
    ) -> Tensor:
        values = [
            self.base(z @ p, mask=mask, clusters=clusters, generator=generator)
            for p in self._draw(z)
        ]
        return torch.stack(values).mean()
