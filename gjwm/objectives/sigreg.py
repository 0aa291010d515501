"""SIGReg: the sliced Epps-Pulley discrepancy of LeJEPA (Balestriero & LeCun, 2025), exact on
trajectories.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from gjwm.objectives import distributed
from gjwm.objectives.base import Discrepancy, check_choice
from gjwm.objectives.characteristic import Clusters, Quadrature, sliced_epps_pulley
from gjwm.objectives.slices import SLICES, random_directions
from gjwm.objectives.target import GaussianTarget


class SIGReg(Discrepancy):
    """Sliced Epps-Pulley discrepancy to N(0, I): the mean of T over random one-dimensional
    projections (LeJEPA).

    Samples within a trajectory are correlated. The plain statistic on all B * T samples then has a
    bias that grows with that correlation, and its gradient pushes consecutive latents apart,
    against the alignment term. `time="cluster"` estimates |phi|^2 from pairs of *different*
    trajectories only, which is unbiased under any dependence within one.

    Args:
        num_slices: random directions per call, drawn afresh each time.
        knots, t_max: quadrature, see `epps_pulley`.
        time: how (B, T, D) is read. "cluster": one pooled law, unbiased across trajectories;
            "per_step": one law per time step over the batch (LeWM); "pooled": all B * T samples as
            if independent (eb_jepa).
        estimator: "u" removes the finite-sample bias of |phi_N|^2 (so 0 means Gaussian; may be
            slightly negative), "v" is the plain statistic. "cluster" is always "u".
        scale: "none", or "n" to multiply by the number of independent samples averaged, over all
            processes (LeJEPA, LeWM). With "n" the effective weight grows with the batch, so "none"
            is the default.
        slices: "gaussian" directions, or "orthogonal" ones: see `random_directions`.
        compile: use kernels that Inductor compiles on first use (tens of seconds, announced and
            cached): several times faster again, and the path that pays off on CUDA.
        target, distributed: see `Discrepancy`.

    The value has first derivatives only.
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
        slices: str = "gaussian",
        compile: bool = False,
        target: GaussianTarget | None = None,
        distributed: bool = True,
    ):
        super().__init__(time=time, target=target, distributed=distributed)
        check_choice("SIGReg", "estimator", estimator, ("u", "v"))
        check_choice("SIGReg", "scale", scale, ("none", "n"))
        check_choice("SIGReg", "slices", slices, SLICES)
        if num_slices < 1:
            raise ValueError(f"SIGReg needs at least one slice, got num_slices={num_slices}.")
        self.quadrature = Quadrature(t_max, knots)
        self.num_slices, self.slices, self.compiled = num_slices, slices, compile
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
        directions = random_directions(
            z.shape[-1], self.num_slices, generator, like=z, slices=self.slices
        )
        synchronize = self.synchronize
        if synchronize:
            directions = distributed.broadcast(directions)

        def sliced(x: Tensor, layout: Clusters | None = None) -> Tensor:
            return sliced_epps_pulley(
                x,
                directions,
                quadrature=self.quadrature,
                clusters=layout,
                unbiased=self.estimator == "u",
                compiled=self.compiled,
                synchronize=synchronize,
            )

        def scaled(value: Tensor, samples: int) -> Tensor:
            return value * samples if self.scale == "n" else value

        if self.time == "cluster" and (z.dim() == 3 or clusters is not None):
            if z.dim() == 2:
                z, mask = z.unsqueeze(1), None if mask is None else mask.unsqueeze(1)
            layout, independent = _clusters(z, mask, clusters, synchronize)
            return scaled(sliced(z, layout), independent)
        if z.dim() == 3 and self.time == "per_step":
            if mask is None:
                counts = torch.full((z.shape[1],), z.shape[0], device=z.device)
            else:
                counts = mask.sum(0)
            if synchronize:
                counts = distributed.sum_(counts)
            values = [
                scaled(sliced(z[:, t] if mask is None else z[mask[:, t], t]), n)
                for t, n in enumerate(counts.tolist())
                if n >= 2
            ]
            if not values:
                raise ValueError(
                    f"SIGReg found no time step with two samples in z of shape {tuple(z.shape)}."
                )
            return torch.stack(values).mean()
        x = z.reshape(-1, z.shape[-1])
        x = x if mask is None else x[mask.reshape(-1)]
        return scaled(sliced(x), distributed.count(len(x), x.device) if synchronize else len(x))


def _clusters(
    z: Tensor, mask: Tensor | None, clusters: Tensor | None, synchronize: bool
) -> tuple[Clusters, int]:
    """Layout of z (B, T, D), and the number of clusters with samples over all processes."""
    rows, length = z.shape[:2]
    if mask is None:
        counts = torch.full((rows,), length, device=z.device)
    else:
        counts = mask.sum(1)
    index, number = None, rows
    if clusters is not None:
        ids = distributed.gather(clusters) if synchronize else clusters
        unique, index = ids.unique(return_inverse=True)
        number = len(unique)
        if number == len(ids):
            index = None  # every row has a cluster of its own
        else:
            index = torch.searchsorted(unique, clusters)
            counts = counts.new_zeros(number).index_add_(0, index, counts)
    if synchronize and index is not None:
        counts = distributed.sum_(counts)
    sums = torch.stack([counts.sum(), counts.square().sum(), (counts > 0).sum()])
    if synchronize and index is None:
        sums = distributed.sum_(sums)
    samples, same, independent = sums.tolist()
    if independent < 2:
        raise ValueError(
            "the cross-trajectory estimator needs windows of at least two episodes, got one "
            "episode."
        )
    return Clusters(mask, index, number, samples, same), independent
