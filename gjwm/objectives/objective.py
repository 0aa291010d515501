"""The Gaussian joint-embedding objective: alignment + lam * D(p(Z) || N(0, Sigma))."""

from __future__ import annotations

import inspect

import torch
from einops import rearrange
from torch import Generator, Tensor, nn

from gjwm.objectives.base import NonFiniteLatentsError
from gjwm.objectives.information import predictive_information
from gjwm.objectives.losses import weighted_sum
from gjwm.objectives.sigreg import SIGReg
from gjwm.objectives.target import check_choice


class JointEmbeddingObjective(nn.Module):
    """L = alignment_weight * alignment + lam * D(p(Z) || N(0, I)).

    The alignment is averaged over samples *and* dimensions (the usual formula sums over dimensions,
    which only rescales lam by 1/D), so with unit-variance latents the mean squared error lies in
    [0, 1] and reads as 1 - R^2.

    Args:
        discrepancy: D, a module z -> scalar; None is `SIGReg()`. Applied to *encoded* latents,
            never to predictions: a predicted mean must have a smaller variance than what it
            predicts. Its `forward` may leave out the keyword arguments `clusters` and `generator`,
            and `mask` where none is given.
        lam: weight of D, independent of the batch size.
        detach_target: stop the gradient of the alignment into the targets. Off by default: D is
            what prevents collapse.
        align: "mse" |z_hat - z_next|^2; or "joint", minus the predictive information
            per dimension, which is the joint-Gaussian likelihood once D fixes the marginals
            (`gjwm.objectives.information`): it weighs directions by how predictable they are,
            and cannot be lowered by shrinking the latents. It needs more samples than dimensions.
        alignment_weight: weight of the alignment (LeJEPA's 1 - lam).
    """

    def __init__(
        self,
        discrepancy: nn.Module | None = None,
        lam: float = 5.0,
        *,
        detach_target: bool = False,
        align: str = "mse",
        alignment_weight: float = 1.0,
    ):
        super().__init__()
        for name, weight in (("lam", lam), ("alignment_weight", alignment_weight)):
            if not isinstance(weight, int | float) or not weight >= 0:
                raise ValueError(
                    f"JointEmbeddingObjective expects a number {name} >= 0, got {weight!r}."
                )
        check_choice("JointEmbeddingObjective", "align", align, ("mse", "joint"))
        self.discrepancy, self.lam = SIGReg() if discrepancy is None else discrepancy, lam
        self.detach_target, self.align = detach_target, align
        self.alignment_weight = alignment_weight

    @property
    def weights(self) -> dict[str, float]:
        """How much each of the losses counts."""
        return {"alignment": self.alignment_weight, "discrepancy": self.lam}

    @classmethod
    def lewm(cls, **changes) -> JointEmbeddingObjective:
        """LeWM: mean squared error over batch, time and dimensions + 0.09 * `SIGReg.lewm()`."""
        return cls(**{"discrepancy": SIGReg.lewm(), "lam": 0.09} | changes)

    @classmethod
    def lejepa(cls, lam: float = 0.02, **changes) -> JointEmbeddingObjective:
        """LeJEPA's minimal example, for `views`: (1 - lam) * invariance + lam *
        `SIGReg.lejepa()`.
        """
        return cls(
            **{"discrepancy": SIGReg.lejepa(), "lam": lam, "alignment_weight": 1 - lam} | changes
        )

    def forward(
        self,
        z_hat: Tensor,
        z_next: Tensor,
        z: Tensor,
        *,
        mask: Tensor | None = None,
        clusters: Tensor | None = None,
        generator: Generator | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            z_hat: predicted latents (..., B, T, D); leading axes hold several predictions of the
                same target.
            z_next: encoded latents that they predict (B, T, D).
            z: all encoded latents (B, T+1, D), whose law is matched to N(0, I).
            mask: (B, T+1) bool, the latents that count; a target counts where it and all before it
                in its window do.
            clusters: (B,) episode ids, see `SIGReg`.

        Returns:
            scalars {"loss", "alignment", "discrepancy"}.

        Raises:
            ValueError: for shapes that do not fit, NaN or infinite values that count, and masks
                that leave nothing.
        """
        alignment = self.alignment(z_hat, z_next, mask)
        discrepancy = judge(self.discrepancy, z, mask=mask, clusters=clusters, generator=generator)
        return self.combine(alignment, discrepancy)

    def combine(self, alignment: Tensor, discrepancy: Tensor) -> dict[str, Tensor]:
        """The two terms and their weighted sum, "loss"."""
        losses = {"alignment": alignment, "discrepancy": discrepancy}
        return {"loss": weighted_sum(losses, self.weights), **losses}

    def alignment(self, z_hat: Tensor, z_next: Tensor, mask: Tensor | None = None) -> Tensor:
        """How far predictions lie from their targets; arguments as `forward`."""
        if z_hat.shape[-z_next.dim() :] != z_next.shape or not z_next.shape[-1]:
            raise ValueError(
                f"expected predictions (..., {', '.join(map(str, z_next.shape))}) for those "
                f"targets of one dimension D >= 1, got {tuple(z_hat.shape)}."
            )
        if not z_hat.numel():
            raise ValueError(
                f"the alignment needs at least one prediction, got z_hat of shape "
                f"{tuple(z_hat.shape)}."
            )
        target = z_next.detach() if self.detach_target else z_next
        counts = None if mask is None else _targets_that_count(z_next, mask)
        if counts is not None:
            # What does not count may hold anything, NaN too. Cut before the arithmetic: 0 * NaN
            # would let it into the gradient.
            z_hat = torch.where(counts[..., None], z_hat, 0)
            target = torch.where(counts[..., None], target, 0)
        for name, x in (("z_hat", z_hat), ("z_next", target)):
            bad = x.numel() - int(x.isfinite().sum())
            if bad:
                raise NonFiniteLatentsError(
                    f"the alignment got {bad} NaN or infinite values in {name} of shape "
                    f"{tuple(x.shape)}."
                )
        if self.align == "joint":
            return self._joint(z_hat, target.expand_as(z_hat), counts)
        # squares of half precision overflow at 256
        z_hat, target = (x if x.dtype == torch.float64 else x.float() for x in (z_hat, target))
        error = (z_hat - target).square()
        if counts is None:
            return error.mean()
        error, weights = error.mean(-1), counts.to(error.dtype)
        return (error * weights).sum() / (weights.sum() * error[..., 0, 0].numel())

    def _joint(self, z_hat: Tensor, target: Tensor, counts: Tensor | None) -> Tensor:
        if counts is not None:
            keep = counts.expand(z_hat.shape[:-1])
            z_hat, target = z_hat[keep], target[keep]
        z_hat, target = z_hat.flatten(0, -2), target.flatten(0, -2)
        synchronize = getattr(self.discrepancy, "synchronize", False)
        with torch.autocast(z_hat.device.type, enabled=False):
            information = predictive_information(z_hat, target, synchronize=synchronize)
        return -(information / z_hat.shape[-1]).to(z_hat.dtype)

    def views(self, z: Tensor, *, generator: Generator | None = None) -> dict[str, Tensor]:
        """Losses of V >= 2 encoded views of each of N observations, z (N, V, D), without a
        predictor (LeJEPA): the alignment is the mean squared distance of views to their mean.
        """
        if z.dim() != 3 or z.shape[1] < 2:
            raise ValueError(
                f"expected at least two views of each observation, z (N, V, D), got "
                f"{tuple(z.shape)}."
            )
        discrepancy = judge(self.discrepancy, z, generator=generator)
        centre = z.mean(1, keepdim=True).expand_as(z)
        alignment = self.alignment(*(rearrange(x, "n v d -> v n d") for x in (z, centre)))
        return self.combine(alignment, discrepancy)


def judge(discrepancy: nn.Module, z: Tensor, **given: Tensor | Generator | None) -> Tensor:
    """D of z with those of mask, clusters and generator that its `forward` accepts."""
    accepted = inspect.signature(discrepancy.forward).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        if given.get("mask") is not None and "mask" not in accepted:
            raise ValueError(
                f"{type(discrepancy).__name__}.forward takes no mask, and masked latents must "
                "not count: give it one, or leave the mask out."
            )
        given = {name: value for name, value in given.items() if name in accepted}
    return discrepancy(z, **{name: value for name, value in given.items() if value is not None})


def _targets_that_count(z_next: Tensor, mask: Tensor) -> Tensor:
    """(B, T) bool: targets (B, T, D) that count, and all before them in their window too."""
    if z_next.dim() != 3 or mask.shape != (z_next.shape[0], z_next.shape[1] + 1):
        raise ValueError(
            f"expected a mask (B, T+1) = {(z_next.shape[0], z_next.shape[1] + 1)} for "
            f"targets {tuple(z_next.shape)}, got {tuple(mask.shape)}."
        )
    valid = mask.cumprod(1)[:, 1:].bool()
    if not valid.any():
        raise ValueError(
            f"the mask {tuple(mask.shape)} leaves no target with everything before it in "
            f"its window."
        )
    return valid
