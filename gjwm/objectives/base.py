"""What every discrepancy shares: which input it takes, which samples count, and how trajectories
are read.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from gjwm._core import distributed
from gjwm.objectives.target import GaussianTarget, check_choice

ONE_EPISODE = (
    "the cross-trajectory estimator needs windows of at least two episodes, got one episode."
)


class NonFiniteLatentsError(ValueError, FloatingPointError):
    """Latents with NaN or infinite entries, or so large that a discrepancy of them is."""


class Discrepancy(nn.Module):
    """A distance of the law of latents to N(0, Sigma): called with z (N, D) or (B, T, D), it
    returns a scalar.

    Args:
        time: how (B, T, D) is read. "cluster": one pooled law, estimated from pairs of *different*
            trajectories only, which is unbiased under any dependence within one; "per_step": one
            law per time step over the batch, averaged; "pooled": all B * T samples as if they were
            independent.
        target: N(0, Sigma); None is N(0, I).
        distributed: under torch.distributed, take the samples of all processes as one batch. Every
            process then returns the same value; see `gjwm._core.distributed` for gradients.

    Calling it raises ValueError for other shapes, fewer than two samples (of all processes), NaN or
    infinite values, latents whose discrepancy overflows, a mask that leaves nothing, and a
    dimension that is not the target's."""

    times: tuple[str, ...] = ("cluster", "per_step", "pooled")

    def __init__(
        self,
        *,
        time: str = "pooled",
        target: GaussianTarget | None = None,
        distributed: bool = True,
    ):
        super().__init__()
        check_choice(type(self).__name__, "time", time, self.times)
        self.time, self.target, self.distributed = time, target, distributed

    @property
    def synchronize(self) -> bool:
        """Whether samples of other processes belong to the batch."""
        return self.distributed and distributed.world_size() > 1

    def forward(
        self,
        z: Tensor,
        *,
        mask: Tensor | None = None,
        clusters: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Discrepancy of z (N, D) or (B, T, D) -> scalar.

        Args:
            mask: (N,) or (B, T) bool; samples where it is false do not count, and may hold
                anything.
            clusters: (N,) or (B,) ids; samples of rows that share an id are never paired by
                time="cluster". None: all rows of (B, T, D) differ; samples of (N, D) are
                independent.
            generator: draws random slices (on the generator's device), where there are any.
        """
        z = self._admitted(z, mask, clusters)
        # Cosines of large arguments and sums over a batch lose their digits in half precision.
        with torch.autocast(z.device.type, enabled=False):
            z = z if z.dtype == torch.float64 else z.float()
            if self.target is not None:
                z = self.target.whiten(z, mask, synchronize=self.distributed)
            value = self._discrepancy(z, mask, clusters, generator)
        if not value.isfinite():
            raise NonFiniteLatentsError(
                f"{type(self).__name__} is {value.item()} for finite latents as large as "
                f"{z.detach().abs().max().item():.3g} in z of shape {tuple(z.shape)}: normalise "
                "the encoder's output."
            )
        return value

    def _admitted(self, z: Tensor, mask: Tensor | None, clusters: Tensor | None) -> Tensor:
        """z, checked, with 0 where the mask is false."""
        name, shape = type(self).__name__, tuple(z.shape)
        if z.dim() not in (2, 3):
            raise ValueError(f"{name} expected latents z (N, D) or (B, T, D), got shape {shape}.")
        if not shape[-1]:
            raise ValueError(
                f"{name} expected latents of at least one dimension D, got shape {shape}."
            )
        if clusters is not None and clusters.shape != z.shape[:1]:
            raise ValueError(
                f"{name} expected clusters ({shape[0]},), one id per row of z {shape}, got "
                f"{tuple(clusters.shape)}."
            )
        samples = z.shape[:-1].numel()
        if mask is not None:
            if mask.shape != z.shape[:-1] or mask.dtype != torch.bool:
                raise ValueError(
                    f"{name} expected a bool mask {shape[:-1]} for z {shape}, got {mask.dtype} "
                    f"{tuple(mask.shape)}."
                )
            samples = int(mask.sum())
            z = torch.where(mask.unsqueeze(-1), z, 0)
        bad, where = z.numel() - int(z.isfinite().sum()), f"z of shape {shape}"
        if self.synchronize:
            # Every process must raise, or none: one that went on alone would wait for the others
            # for ever.
            samples, bad = distributed.sum_(torch.tensor([samples, bad], device=z.device)).tolist()
            where += f", {distributed.world_size()} processes together"
        if bad:
            raise NonFiniteLatentsError(f"{name} got {bad} NaN or infinite values in {where}.")
        if mask is not None and samples == 0:
            raise ValueError(f"{name} got a mask {shape[:-1]} that leaves no sample of {where}.")
        if samples < 2:
            raise ValueError(
                f"{name} needs at least two samples to see a distribution, got {samples} in "
                f"{where}."
            )
        return z

    def _discrepancy(
        self, z: Tensor, mask: Tensor | None, clusters: Tensor | None, generator: Generator | None
    ) -> Tensor:
        """Of checked, single or double precision, whitened latents."""
        raise NotImplementedError

    def _pairs_clusters(self, z: Tensor, clusters: Tensor | None) -> bool:
        """Whether some samples may not be paired."""
        return self.time == "cluster" and (z.dim() == 3 or clusters is not None)

    def _laws(self, z: Tensor, mask: Tensor | None, synchronize: bool) -> list[tuple[Tensor, int]]:
        """Each law's samples here (n, D), and their number, over all processes if asked: one law
        per time step, or one of all.
        """
        if z.dim() == 3 and self.time == "per_step":
            laws = [z[:, t] if mask is None else z[mask[:, t], t] for t in range(z.shape[1])]
        else:
            laws = [z.reshape(-1, z.shape[-1]) if mask is None else z[mask]]
        counts = torch.tensor([len(x) for x in laws], device=z.device)
        counts = (distributed.sum_(counts) if synchronize else counts).tolist()
        laws = [(x, n) for x, n in zip(laws, counts) if n >= 2]
        if not laws:
            raise ValueError(
                f"{type(self).__name__} found no time step with two samples in z of shape "
                f"{tuple(z.shape)}."
            )
        return laws


class NoRegularizer(Discrepancy):
    """D = 0: alignment alone, which collapses. The control that shows what a discrepancy does."""

    def __init__(self) -> None:
        super().__init__()

    def _discrepancy(
        self, z: Tensor, mask: Tensor | None, clusters: Tensor | None, generator: Generator | None
    ) -> Tensor:
        return 0 * z.sum()  # attached to z's graph
