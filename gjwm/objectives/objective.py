"""The Gaussian joint-embedding objective: alignment + lam * D(p(Z) || N(0, Sigma))."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from gjwm.objectives import distributed
from gjwm.objectives.base import NonFiniteLatentsError, check_choice
from gjwm.objectives.joint import predictive_information
from gjwm.objectives.sigreg import SIGReg

ALIGNMENTS = ("mse", "smooth_l1", "joint")
LAWS = ("marginal", "within")


class JointEmbeddingObjective(nn.Module):
    """L = alignment + lam * D(p(Z) || N(0, I)), and the same of static latents, if any, with an
    alignment of their own.

    The alignment is averaged over samples *and* dimensions (the usual formula sums over dimensions,
    which only rescales lam by 1/D), so with unit-variance latents the mean squared error lies in
    [0, 1] and reads as 1 - R^2.

    Args:
        discrepancy: D, a module z -> scalar; None is `SIGReg()`. Applied to *encoded* latents,
            never to predictions: a predicted mean must have a smaller variance than what it
            predicts. Its `forward` may leave out the keyword arguments `clusters` and `generator`,
            and `mask` where none is given.
        lam: weight of D, independent of the batch size.
        detach_target, detach_prediction: stop the gradient of the alignment into one side. Both off
            by default: D is what prevents collapse. With `detach_prediction` only the encoder of
            the targets learns from the alignment.
        align: "mse" |z_hat - z_next|^2; "smooth_l1"; or "joint", minus the predictive information
            per dimension, which is the joint-Gaussian likelihood once D fixes the marginals
            (`gjwm.objectives.joint`): it weighs every direction by how well it can be predicted,
            and cannot be lowered by shrinking the latents. It needs more samples than dimensions.
        step_weights: weight of each of the T steps, rescaled to mean 1; None weighs them alike.
            Zeros shorten the horizon.
        alignment_weight: weight of the alignment (LeJEPA's 1 - lam).
        ridge: of "joint", see `predictive_information`.
        law: what D is applied to. "marginal": the encoded latents. "within": contrasts (z_i - z_j)
            / sqrt(2) of windows i, j of one episode, which are N(0, I) when the latents of each
            episode are. What is constant within an episode but differs between them (a maze's
            layout, a colour) costs no alignment and can make as Gaussian a marginal as anything, so
            that latents that show nothing else satisfy the objective; in contrasts it is nothing.
            Latents may still carry it, as a shift of each episode's mean or in the shape of its
            cloud.
        static_dim: S, the last S latents are for what is constant within an episode. Their matched
            views are two windows of one episode, however far apart, in place of prediction and
            target, and D is applied to their marginal; alignment and law above are those of the
            other latents. What can be the same all along and yet N(0, I) over episodes is what
            tells episodes apart, with a precision that contrasts do not ask for. The dynamics'
            `static_dim` must be the same. Take it several times the number of constant factors:
            functions of them that are not one to one are as Gaussian as others, and together they
            tell more.
        static_weight: weight of the static latents' alignment (`alignment_weight` is that of the
            others).
    """

    def __init__(
        self,
        discrepancy: nn.Module | None = None,
        lam: float = 5.0,
        *,
        detach_target: bool = False,
        detach_prediction: bool = False,
        align: str = "mse",
        step_weights: Sequence[float] | None = None,
        alignment_weight: float = 1.0,
        ridge: float = 1e-3,
        law: str = "marginal",
        static_dim: int = 0,
        static_weight: float = 4.0,
    ):
        super().__init__()
        if lam < 0 or alignment_weight < 0:
            raise ValueError(
                f"lam weighs a discrepancy and must be >= 0, and so must alignment_weight; got "
                f"{lam} and {alignment_weight}."
            )
        if detach_target and detach_prediction:
            raise ValueError(
                "detach_target and detach_prediction together leave the alignment nothing to "
                "learn; set one."
            )
        check_choice("JointEmbeddingObjective", "align", align, ALIGNMENTS)
        check_choice("JointEmbeddingObjective", "law", law, LAWS)
        if step_weights is not None and (min(step_weights) < 0 or sum(step_weights) <= 0):
            raise ValueError(f"step_weights must be >= 0 and not all 0, got {list(step_weights)}.")
        if not (isinstance(static_dim, int) and static_dim >= 0 and 0 <= static_weight < math.inf):
            raise ValueError(
                "JointEmbeddingObjective expects a whole static_dim >= 0 and static_weight >= 0, "
                f"got {static_dim} and {static_weight}."
            )
        self.static_dim, self.static_weight = static_dim, static_weight
        self.discrepancy, self.lam = SIGReg() if discrepancy is None else discrepancy, lam
        if static_dim:
            if getattr(self.discrepancy, "target", None) is not None:
                raise ValueError(
                    "static latents are matched to N(0, I) of their own dimension: use a "
                    "discrepancy without a target, or static_dim=0."
                )
            # A copy: what a discrepancy keeps between calls (subspaces, running moments) is of one
            # space.
            self.static_discrepancy = copy.deepcopy(self.discrepancy)
        self.detach_target, self.detach_prediction = detach_target, detach_prediction
        self.align, self.ridge, self.alignment_weight, self.law = (
            align,
            ridge,
            alignment_weight,
            law,
        )
        self.step_weights = None if step_weights is None else list(step_weights)

    @property
    def pairs_windows(self) -> bool:
        """Whether a batch must hold two windows of each of its episodes."""
        return self.law == "within" or self.static_dim > 0

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
            clusters: (B,) episode ids, see `SIGReg`; law="within" and static latents need them.

        Returns:
            scalars {"loss", "alignment", "discrepancy"}, and with static latents their
            "static_alignment" and "static_discrepancy".

        Raises:
            ValueError: for shapes that do not fit, NaN or infinite values that count, masks and
                step_weights that leave nothing, no latents beside the static ones, and with
                law="within" or static latents for batches without two windows of one episode.
        """
        if z.shape[-1] != z_next.shape[-1] or not z.shape[-1]:
            raise ValueError(
                "expected latents z and targets z_next of one dimension D >= 1, got "
                f"{tuple(z.shape)} and {tuple(z_next.shape)}."
            )
        if z_hat.shape[-z_next.dim() :] != z_next.shape:
            raise ValueError(
                f"expected predictions (..., {', '.join(map(str, z_next.shape))}) for those "
                f"targets, got {tuple(z_hat.shape)}."
            )
        if self.static_dim >= z.shape[-1]:
            raise ValueError(
                f"static_dim={self.static_dim} leaves none of {z.shape[-1]} latents to move; make "
                f"it smaller."
            )
        law, counts, ids = z, mask, clusters
        if self.pairs_windows:
            contrasts, pair_counts, pair_ids = within_episodes(z, clusters, mask)
            if self.law == "within":
                law, counts, ids = contrasts, pair_counts, pair_ids
        moving = slice(z.shape[-1] - self.static_dim)
        weights = self._weights(z_next, mask)
        losses = self._losses(
            self._alignment(z_hat[..., moving], z_next[..., moving], weights),
            self._judge(
                self.discrepancy, law[..., moving], mask=counts, clusters=ids, generator=generator
            ),
        )
        if not self.static_dim:
            return losses
        static = slice(z.shape[-1] - self.static_dim, None)
        apart = contrasts[..., static] if pair_counts is None else contrasts[pair_counts][:, static]
        if not len(apart):
            raise ValueError(
                f"the mask {tuple(mask.shape)} leaves no latent with its match in another window "
                f"of its episode."
            )
        # |z_i - z_j|^2, as contrasts are divided by sqrt(2)
        losses["static_alignment"] = 2 * apart.square().mean()
        losses["static_discrepancy"] = self._judge(
            self.static_discrepancy,
            z[..., static],
            mask=mask,
            clusters=clusters,
            generator=generator,
        )
        losses["loss"] = losses["loss"] + self.static_weight * losses["static_alignment"]
        if self.lam:
            losses["loss"] = losses["loss"] + self.lam * losses["static_discrepancy"]
        return losses

    def views(self, z: Tensor, *, generator: Generator | None = None) -> dict[str, Tensor]:
        """Losses of augmentations of the same observations, without a predictor (LeJEPA). No
        latents are static here.

        The alignment is the mean squared distance of views to their mean. A discrepancy with
        time="cluster" never pairs two views of one observation; with "per_step" every view has a
        law of its own.

        Args:
            z: (N, V, D), V >= 2 encoded views of each of N observations.
        """
        if z.dim() != 3 or z.shape[1] < 2:
            raise ValueError(
                f"expected at least two views of each observation, z (N, V, D), got "
                f"{tuple(z.shape)}."
            )
        discrepancy = self._judge(self.discrepancy, z, generator=generator)
        centre = z.mean(1, keepdim=True)
        alignment = self._alignment(
            z.transpose(0, 1), centre.transpose(0, 1).expand(z.shape[1], -1, -1), None
        )
        return self._losses(alignment, discrepancy)

    @staticmethod
    def _judge(discrepancy: nn.Module, z: Tensor, **given: Tensor | Generator | None) -> Tensor:
        """D of z with those of the given arguments that it accepts."""
        accepted = inspect.signature(discrepancy.forward).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            if given.get("mask") is not None and "mask" not in accepted:
                raise ValueError(
                    f"{type(discrepancy).__name__}.forward takes no mask, and masked latents must "
                    "not count: give it one, or leave the mask out."
                )
            given = {name: value for name, value in given.items() if name in accepted}
        return discrepancy(z, **{name: value for name, value in given.items() if value is not None})

    def _losses(self, alignment: Tensor, discrepancy: Tensor) -> dict[str, Tensor]:
        loss = alignment if self.alignment_weight == 1 else self.alignment_weight * alignment
        loss = loss + self.lam * discrepancy if self.lam else loss
        return {"loss": loss, "alignment": alignment, "discrepancy": discrepancy}

    def _weights(self, z_next: Tensor, mask: Tensor | None) -> Tensor | None:
        """Weights (B, T) or (1, T) of the targets; None when all count alike."""
        weights = None
        if self.step_weights is not None:
            if z_next.dim() != 3 or z_next.shape[1] != len(self.step_weights):
                raise ValueError(
                    f"step_weights has {len(self.step_weights)} entries, for targets (B, "
                    f"{len(self.step_weights)}, D); got {tuple(z_next.shape)}."
                )
            weights = z_next.new_tensor(self.step_weights)[None]
        if mask is not None:
            if z_next.dim() != 3 or mask.shape != (z_next.shape[0], z_next.shape[1] + 1):
                raise ValueError(
                    f"expected a mask (B, T+1) = {(z_next.shape[0], z_next.shape[1] + 1)} for "
                    f"targets {tuple(z_next.shape)}, got {tuple(mask.shape)}."
                )
            valid = mask.cumprod(1)[:, 1:].to(z_next.dtype)
            if not valid.any():
                raise ValueError(
                    f"the mask {tuple(mask.shape)} leaves no target with everything before it in "
                    f"its window."
                )
            weights = valid if weights is None else valid * weights
            if not weights.sum() > 0:
                raise ValueError(
                    f"the mask {tuple(mask.shape)} leaves only targets whose step_weights "
                    f"{self.step_weights} are 0."
                )
        return weights

    def _alignment(self, z_hat: Tensor, z_next: Tensor, weights: Tensor | None) -> Tensor:
        target = z_next.detach() if self.detach_target else z_next
        z_hat = z_hat.detach() if self.detach_prediction else z_hat
        if weights is not None:
            # What does not count may hold anything, NaN too. Cut before the arithmetic: 0 * NaN
            # would let it into the gradient.
            counts = (weights > 0).expand(z_next.shape[:-1]).unsqueeze(-1)
            z_hat, target = torch.where(counts, z_hat, 0), torch.where(counts, target, 0)
        for name, x in (("z_hat", z_hat), ("z_next", target)):
            bad = x.numel() - int(x.isfinite().sum())
            if bad:
                raise NonFiniteLatentsError(
                    f"the alignment got {bad} NaN or infinite values in {name} of shape "
                    f"{tuple(x.shape)}."
                )
        if self.align == "joint":
            return self._joint(z_hat, target.expand_as(z_hat), weights)
        if self.align == "smooth_l1":
            error = nn.functional.smooth_l1_loss(z_hat, target.expand_as(z_hat), reduction="none")
        else:
            error = (z_hat - target).square()
        if weights is None:
            return error.mean()
        weights = weights.expand(z_next.shape[:-1])
        error = error.mean(-1)
        return (error * weights).sum() / (weights.sum() * error[..., 0, 0].numel())

    def _joint(self, z_hat: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        if weights is not None:
            if self.step_weights is not None and len({w for w in self.step_weights if w > 0}) > 1:
                raise ValueError(
                    "align='joint' counts a step or leaves it out; give step_weights of 0 and 1."
                )
            keep = (weights > 0).expand(z_hat.shape[:-1])
            z_hat, target = z_hat[keep], target[keep]
        d = z_hat.shape[-1]
        with torch.autocast(z_hat.device.type, enabled=False):
            information = predictive_information(
                z_hat.reshape(-1, d),
                target.reshape(-1, d),
                ridge=self.ridge,
                synchronize=getattr(self.discrepancy, "distributed", False)
                and distributed.world_size() > 1,
            )
        return -(information / d).to(z_hat.dtype)


def within_episodes(
    z: Tensor, clusters: Tensor | None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Contrasts (z_i - z_j) / sqrt(2) of the windows of each episode, taken two by two in the order
    they come.

    Args:
        z: (B, T, D).
        clusters: (B,) episode ids. An episode's last window is left over where their number is odd.
        mask: (B, T) bool; a contrast counts where both its sides do.

    Returns:
        (P, T, D), the mask (P, T) or None, and the pairs' episode ids (P,).
    """
    if z.dim() != 3 or clusters is None or clusters.shape != z.shape[:1]:
        raise ValueError(
            "law='within' and static latents compare windows z (B, T, D) of one episode and need "
            f"their episode ids (B,), got {tuple(z.shape)} and "
            f"{None if clusters is None else tuple(clusters.shape)}."
        )
    order = clusters.argsort(stable=True)
    ids = clusters[order]
    # within the episode
    place = torch.arange(len(ids), device=ids.device) - torch.searchsorted(ids, ids)
    first = ((place[:-1] % 2 == 0) & (ids[:-1] == ids[1:])).nonzero()[:, 0]
    if not len(first):
        raise ValueError(
            "law='within' and static latents compare two windows of one episode, and these "
            f"{len(z)} come from as many episodes: draw each batch from half as many "
            "(`train.episodes`)."
        )
    i, j = order[first], order[first + 1]
    return (z[i] - z[j]) / math.sqrt(2), None if mask is None else mask[i] & mask[j], ids[first]
