"""What an episode keeps, such as a maze's layout: an objective around the objective."""

from __future__ import annotations

import copy
import math

import torch
from torch import Generator, Tensor, nn

from gjwm.objectives.losses import weighted_sum
from gjwm.objectives.objective import JointEmbeddingObjective, judge
from gjwm.objectives.target import check_choice


class EpisodeObjective(nn.Module):
    """A `JointEmbeddingObjective` that compares two windows of one episode.

    What is constant within an episode but differs between them (a layout, a colour) costs no
    alignment and can make as Gaussian a marginal as anything, so that latents that show nothing
    else satisfy the objective. Two things help, together or apart: D of contrasts, in which it is
    nothing, and latents of its own. Batches must hold two windows of their episodes.

    Args:
        objective: of the moving latents.
        law: what its D is applied to. "marginal": the encoded latents. "within": contrasts
            (z_i - z_j) / sqrt(2) of windows i, j of one episode, which are N(0, I) when the latents
            of each episode are and the windows are independent. Where a latent of variance 1 keeps
            the correlation r over the lag between them, its contrast has variance 1 - r: two
            windows that start anywhere in the same 50 steps have 0.82, 0.68 and 0.49 at correlation
            times of 5, 10 and 20. D asks for 1 all the same and so works against slow latents.
        static_dim: S, the last S latents are for what is constant within an episode. Their matched
            pairs are the two windows, whatever their steps, and a copy of D makes their law
            Gaussian. The dynamics must keep as many, see `gjwm.models.dynamics.with_static`. Take
            it several times the number of constant factors.
        static_weight: weight of the static latents' alignment.
    """

    def __init__(
        self,
        objective: JointEmbeddingObjective,
        *,
        law: str = "marginal",
        static_dim: int = 0,
        static_weight: float = 4.0,
    ):
        super().__init__()
        check_choice("EpisodeObjective", "law", law, ("marginal", "within"))
        if not (isinstance(static_dim, int) and static_dim >= 0 and 0 <= static_weight < math.inf):
            raise ValueError(
                "EpisodeObjective expects a whole static_dim >= 0 and static_weight >= 0, got "
                f"{static_dim} and {static_weight}."
            )
        self.objective, self.law = objective, law
        self.static_dim, self.static_weight = static_dim, static_weight
        if static_dim:
            if getattr(objective.discrepancy, "target", None) is not None:
                raise ValueError(
                    "static latents are matched to N(0, I) of their own dimension: use a "
                    "discrepancy without a target, or static_dim=0."
                )
            # A copy: what a discrepancy keeps between calls (subspaces, running moments) is of one
            # space.
            self.static_discrepancy = copy.deepcopy(objective.discrepancy)

    @property
    def weights(self) -> dict[str, float]:
        """How much each of the losses counts."""
        if not self.static_dim:
            return self.objective.weights
        static = {"static_alignment": self.static_weight, "static_discrepancy": self.objective.lam}
        return self.objective.weights | static

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
        """Losses of one batch; arguments as `JointEmbeddingObjective.forward`, with clusters.

        Returns:
            its scalars, of the moving latents, and with static latents "static_alignment" and
            "static_discrepancy", which are part of "loss" too.

        Raises:
            ValueError: also for batches without two windows of one episode, and when no latents
                are left to move.
        """
        moves = z.shape[-1] - self.static_dim
        moving, static = slice(moves), slice(moves, None)
        if moves <= 0:
            raise ValueError(
                f"static_dim={self.static_dim} leaves none of {z.shape[-1]} latents to move; make "
                f"it smaller."
            )
        contrasts, pair_mask, pair_ids = within_episodes(z, clusters, mask)
        samples = dict(z=z[..., moving], mask=mask, clusters=clusters)
        if self.law == "within":
            samples = dict(z=contrasts[..., moving], mask=pair_mask, clusters=pair_ids)
        losses = self.objective.combine(
            self.objective.alignment(z_hat[..., moving], z_next[..., moving], mask),
            judge(self.objective.discrepancy, **samples, generator=generator),
        )
        if not self.static_dim:
            return losses
        apart = contrasts[..., static] if pair_mask is None else contrasts[pair_mask][:, static]
        if not len(apart):
            raise ValueError(
                f"the mask {tuple(mask.shape)} leaves no latent with its match in another window "
                f"of its episode."
            )
        # |z_i - z_j|^2, as contrasts are divided by sqrt(2)
        losses["static_alignment"] = 2 * apart.square().mean()
        samples = dict(z=z[..., static], mask=mask, clusters=clusters)
        losses["static_discrepancy"] = judge(
            self.static_discrepancy, **samples, generator=generator
        )
        return losses | {"loss": weighted_sum(losses, self.weights)}


def make_objective(
    discrepancy: nn.Module,
    lam: float = 5.0,
    *,
    detach_target: bool = False,
    law: str = "marginal",
    static_dim: int = 0,
    static_weight: float = 4.0,
) -> JointEmbeddingObjective | EpisodeObjective:
    """The objective of these settings; see the two classes.

    Raises:
        ValueError: for a discrepancy that is no module, such as what a factory without a return
            makes.
    """
    if not isinstance(discrepancy, nn.Module):
        raise ValueError(
            "a discrepancy is a module of latents such as SIGReg(), and its factory returned "
            f"{discrepancy!r}; NoRegularizer is none at all."
        )
    objective = JointEmbeddingObjective(discrepancy, lam, detach_target=detach_target)
    around = EpisodeObjective(
        objective, law=law, static_dim=static_dim, static_weight=static_weight
    )
    return around if static_dim or law != "marginal" else objective


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
