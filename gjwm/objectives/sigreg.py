"""SIGReg: the sliced Epps-Pulley discrepancy of LeJEPA (Balestriero & LeCun, 2025), exact on
trajectories.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from gjwm._core import distributed
from gjwm.objectives.base import Discrepancy
from gjwm.objectives.projections import Clusters, Quadrature, sliced_epps_pulley
from gjwm.objectives.samples import check_slices, random_directions
from gjwm.objectives.target import check_choice


class SIGReg(Discrepancy):
    """Sliced Epps-Pulley discrepancy to N(0, I): the mean of T over random one-dimensional
    projections (LeJEPA).

    Samples within a trajectory are correlated. The plain statistic on all B * T samples then has a
    bias that grows with that correlation, and its gradient pushes consecutive latents apart,
    against the alignment term; `time="cluster"` has none. The value has first derivatives only.

    Args:
        num_slices: random directions per call, drawn afresh each time.
        knots, t_max: quadrature, see `epps_pulley`.
        time: see `Discrepancy`; LeWM has "per_step", eb_jepa "pooled".
        estimator: "u" removes the finite-sample bias of |phi_N|^2 (so 0 means Gaussian; may be
            slightly negative), "v" is the plain statistic. "cluster" is always "u".
        scale: "none", or "n" to multiply by the number of independent samples averaged, over all
            processes (LeJEPA, LeWM). With "n" the effective weight grows with the batch, so "none"
            is the default.
        compile: use kernels that Inductor compiles on first use (tens of seconds, announced and
            cached): several times faster again, and the path that pays off on CUDA.
        **common: target and distributed of `Discrepancy`.
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
        compile: bool = False,
        **common: Any,
    ):
        super().__init__(time=time, **common)
        check_choice("SIGReg", "estimator", estimator, ("u", "v"))
        check_choice("SIGReg", "scale", scale, ("none", "n"))
        check_slices("SIGReg", num_slices)
        self.quadrature = Quadrature(t_max, knots)
        self.num_slices, self.compiled = num_slices, compile
        self.estimator, self.scale = estimator, scale

    @classmethod
    def lewm(cls, **changes) -> SIGReg:
        """The regulariser of LeWM: z (B, T, D), one law per step, N * T summed over 17 knots on [0,
        3], 1024 slices.

        Its weight there is 0.09 beside a mean squared error (`JointEmbeddingObjective.lewm`).
        """
        return cls(
            **{"num_slices": 1024, "t_max": 3.0, "time": "per_step", "estimator": "v", "scale": "n"}
            | changes
        )

    @classmethod
    def lejepa(cls, **changes) -> SIGReg:
        """The regulariser of LeJEPA's minimal example: views z (N, V, D), one law per view, 256
        slices; else as in LeWM.
        """
        return cls.lewm(**{"num_slices": 256} | changes)

    def _discrepancy(
        self, z: Tensor, mask: Tensor | None, clusters: Tensor | None, generator: Generator | None
    ) -> Tensor:
        directions = random_directions(z.shape[-1], self.num_slices, generator, like=z)
        if self.synchronize:
            directions = distributed.broadcast(directions)
        if self._pairs_clusters(z, clusters):
            if z.dim() == 2:
                z, mask = z.unsqueeze(1), None if mask is None else mask.unsqueeze(1)
            layout = Clusters.of(z, mask, clusters, self.synchronize)
            return self._mean(z, directions, layout.independent, layout)
        laws = self._laws(z, mask, self.synchronize)
        return torch.stack([self._mean(x, directions, n) for x, n in laws]).mean()

    def _mean(
        self, z: Tensor, directions: Tensor, independent: int, clusters: Clusters | None = None
    ) -> Tensor:
        """Mean of T over the directions (D, S), of this many independent samples."""
        value = sliced_epps_pulley(
            z,
            directions,
            quadrature=self.quadrature,
            clusters=clusters,
            unbiased=self.estimator == "u",
            compiled=self.compiled,
            synchronize=self.synchronize,
        )
        return value * independent if self.scale == "n" else value
