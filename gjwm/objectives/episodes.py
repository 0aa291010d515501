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
    else satisfy the objective. And of what moves, fast things that are easy to predict can fill
    all latents. Two things help, together or apart: D of contrasts, in which constants are nothing,
    and latents that are pulled towards what changes least. Batches must hold two windows of their
    episodes.

    Args:
        objective: of all latents; its D is of those that are not slow.
        law: what its D is applied to. "marginal": the encoded latents. "within": contrasts
            (z_i - z_j) / sqrt(2) of windows i, j of one episode, which are N(0, I) when the latents
            of each episode are and the windows are independent. Where a latent of variance 1 keeps
            the correlation r over the lag between them, its contrast has variance 1 - r: two
            windows that start anywhere in the same 50 steps have 0.82, 0.68 and 0.49 at correlation
            times of 5, 10 and 20. D asks for 1 all the same and so works against slow latents.
        slow_dim: S, the last S latents are for what changes least within an episode. Beside the
            alignment, which counts them as it counts the others, they are pulled together between
            the two windows, whatever their steps, and a copy of D makes their law Gaussian. What
            never changes comes first, then what changes least: take S several times the number of
            such factors. Dynamics predict them as all latents.
        slow_weight: weight of that pull.
    """

    def __init__(
        self,
        objective: JointEmbeddingObjective,
        *,
        law: str = "marginal",
        slow_dim: int = 0,
        slow_weight: float = 0.8,
    ):
        super().__init__()
        check_choice("EpisodeObjective", "law", law, ("marginal", "within"))
        if not (isinstance(slow_dim, int) and slow_dim >= 0 and 0 <= slow_weight < math.inf):
            raise ValueError(
                "EpisodeObjective expects a whole slow_dim >= 0 and slow_weight >= 0, got "
                f"{slow_dim} and {slow_weight}."
            )
        self.objective, self.law = objective, law
        self.slow_dim, self.slow_weight = slow_dim, slow_weight
        if slow_dim:
            if getattr(objective.discrepancy, "target", None) is not None:
                raise ValueError(
                    "slow latents are matched to N(0, I) of their own dimension: use a "
                    "discrepancy without a target, or slow_dim=0."
                )
            # A copy: what a discrepancy keeps between calls (subspaces, running moments) is of one
            # space.
            self.slow_discrepancy = copy.deepcopy(objective.discrepancy)

    @property
    def weights(self) -> dict[str, float]:
        """How much each of the losses counts."""
        if not self.slow_dim:
            return self.objective.weights
        slow = {"slow_alignment": self.slow_weight, "slow_discrepancy": self.objective.lam}
        return self.objective.weights | slow

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
            its scalars, and with slow latents "slow_alignment" and "slow_discrepancy", which are
            part of "loss" too.

        Raises:
            ValueError: also for batches without two windows of one episode, and when all latents
                would be slow.
        """
        others = z.shape[-1] - self.slow_dim
        if others <= 0:
            raise ValueError(
                f"slow_dim={self.slow_dim} leaves none of {z.shape[-1]} latents to the rest; make "
                f"it smaller."
            )
        contrasts, pair_mask, pair_ids = within_episodes(z, clusters, mask)
        samples = dict(z=z[..., :others], mask=mask, clusters=clusters)
        if self.law == "within":
            samples = dict(z=contrasts[..., :others], mask=pair_mask, clusters=pair_ids)
        losses = self.objective.combine(
            self.objective.alignment(z_hat, z_next, mask),
            judge(self.objective.discrepancy, **samples, generator=generator),
        )
        if not self.slow_dim:
            return losses
        apart = contrasts if pair_mask is None else contrasts[pair_mask]
        if not len(apart):
            raise ValueError(
                f"the mask {tuple(mask.shape)} leaves no latent with its match in another window "
                f"of its episode."
            )
        # |z_i - z_j|^2, as contrasts are divided by sqrt(2)
        losses["slow_alignment"] = 2 * apart[..., others:].square().mean()
        samples = dict(z=z[..., others:], mask=mask, clusters=clusters)
        losses["slow_discrepancy"] = judge(self.slow_discrepancy, **samples, generator=generator)
        return losses | {"loss": weighted_sum(losses, self.weights)}


def make_objective(
    discrepancy: nn.Module,
    lam: float = 5.0,
    *,
    detach_target: bool = False,
    law: str = "marginal",
    slow_dim: int = 0,
    slow_weight: float = 0.8,
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
    around = EpisodeObjective(objective, law=law, slow_dim=slow_dim, slow_weight=slow_weight)
    return around if slow_dim or law != "marginal" else objective


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
        (P, T, D) in single precision at least, the mask (P, T) or None, and the pairs' episode ids
        (P,).
    """
    if z.dim() != 3 or clusters is None or clusters.shape != z.shape[:1]:
        raise ValueError(
            "law='within' and slow latents compare windows z (B, T, D) of one episode and need "
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
            "law='within' and slow latents compare two windows of one episode, and these "
            f"{len(z)} come from as many episodes: draw each batch from half as many "
            "(`train.episodes`)."
        )
    i, j = order[first], order[first + 1]
    z = z if z.dtype == torch.float64 else z.float()  # differences and their squares can overflow
    return (z[i] - z[j]) / math.sqrt(2), None if mask is None else mask[i] & mask[j], ids[first]
