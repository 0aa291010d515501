"""Open-loop prediction of encoded latents: how far ahead it explains them, and whether samples
relax to their law."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from gjwm._core import draws
from gjwm.data.dataset import Episode
from gjwm.evaluation.baselines import open_loop_windows, r2_by_horizon
from gjwm.evaluation.calibration import marginal_nats
from gjwm.models.calibration import past_of
from gjwm.models.dynamics import Prediction
from gjwm.models.world_model import WorldModel
from gjwm.objectives import EPPS_PULLEY_NULL_MEAN, epps_pulley, random_directions


@torch.inference_mode()
def encode_episodes(model: WorldModel, episodes: Sequence[Episode], *, chunk: int = 1024) -> Tensor:
    """Latents of equally long episodes -> (E, T+1, D)."""

    def encode(o: Tensor) -> Tensor:
        return torch.cat([model.encode(part.to(model.device)) for part in o.split(chunk)])

    return torch.stack([encode(torch.from_numpy(e.o)) for e in episodes])


@torch.inference_mode()
def prediction_report(
    model: WorldModel,
    z: Tensor,
    a: Tensor,
    *,
    horizon: int = 12,
    distractors: int = 255,
    generator: Generator,
) -> dict[str, Any]:
    """Open-loop prediction of encoded latents.

    Args:
        z, a: latents (E, T+1, D) and actions (E, T, A) of held-out episodes.
        horizon: predictions reach 1..horizon steps.
        distractors: latents of other windows among which the true one must be nearest for rank
            accuracy.

    Returns:
        r2_by_horizon: 1 - squared error / variance, per k, with r2_ci95_by_horizon, its ends (2, H)
            by a bootstrap over episodes; copy_last_r2_by_horizon: the same for "nothing changes";
        rank_accuracy (at `horizon`), rank_accuracy_by_horizon; skill_nats_per_dim: one step,
        against a Gaussian with z's own mean and variance per dimension;
        skill_copy_last_nats_per_dim: a Gaussian around the last latent with the best constant
        variance;
        variance_per_dim: of z (near 0 when collapsed, and R^2 then means nothing).
    """
    horizon = min(horizon, a.shape[1])
    truth, actions, starts = open_loop_windows(z, a, horizon)  # (E, W, H+1, D), (E, W, H, A)
    rolled = [
        model.rollout(z[:, s], actions[:, w], past=past_of(z, a, s)) for w, s in enumerate(starts)
    ]
    predicted = torch.stack(rolled, 1)
    scored = r2_by_horizon(predicted[:, :, 1:], truth[:, :, 1:], z)
    copy = truth[:, :, :1].expand_as(truth[:, :, 1:])
    copied = r2_by_horizon(copy, truth[:, :, 1:], z)
    truth, predicted = truth.flatten(0, 1), predicted.flatten(0, 1)

    def rank_accuracy(k: int) -> float:
        order = draws.permutation(len(truth), generator, device=z.device)[: distractors + 1]
        nearest = torch.cdist(predicted[order, k], truth[order, k]).argmin(1)
        return (nearest == torch.arange(len(order), device=z.device)).float().mean().item()

    ranks = [rank_accuracy(k) for k in range(1, horizon + 1)]
    one_step = model.predict_sequence(z[:, :-1], a)
    nll = -one_step.log_prob(z[:, 1:]).mean() / z.shape[-1]
    moved = (z[:, 1:] - z[:, :-1]).square().mean((0, 1)).clamp(min=1e-12)
    copy_law = Prediction(z[:, :-1], moved.expand_as(z[:, 1:]))
    copy_nll = -copy_law.log_prob(z[:, 1:]).mean() / z.shape[-1]
    marginal = marginal_nats(z[:, 1:])
    return {
        "horizon": horizon,
        "r2_by_horizon": scored["r2"],
        "r2_ci95_by_horizon": scored["ci95"],
        "copy_last_r2_by_horizon": copied["r2"],
        "rank_accuracy": ranks[-1],
        "rank_accuracy_by_horizon": ranks,
        "rank_chance": 1 / min(distractors + 1, len(truth)),
        "skill_nats_per_dim": marginal - nll.item(),
        "skill_copy_last_nats_per_dim": marginal - copy_nll.item(),
        "variance_per_dim": z.flatten(0, 1).var(0).mean().item(),
    }


@torch.inference_mode()
def marginal_report(
    model: WorldModel, z: Tensor, a: Tensor, *, slices: int = 256, generator: Generator
) -> dict[str, float]:
    """Open-loop samples, one per episode, must relax to the law that encoded latents have.

    Args:
        z, a: latents (E, T+1, D) and actions (E, T, A) of held-out episodes; samples run from z_0
            for all T steps, of an ensemble each by a member drawn at random.
        generator: draws the samples, and the slices of the Epps-Pulley statistic.

    Returns:
        steps; epps_pulley and variance_per_dim of the E samples of z_T, of the true z_T
        (`encoded_*`) and variance_per_dim of the mean rollout (`mean_*`, which must be smaller: it
        has lost what cannot be predicted). An ideal Gaussian batch has `epps_pulley_null`.
    """
    # Particles belong to members in turn: as many of each, or the draw would favour some. Several
    # of a single network too, as a calibrated model widens them about their mean.
    particles = model.members * -(-8 // model.members)
    chosen = draws.integers(particles, (len(z),), generator, device=z.device)
    paths = model.rollout(z[:, 0], a, particles, generator)
    sampled = paths[torch.arange(len(z), device=z.device), chosen, -1]
    ends = {"": sampled, "encoded_": z[:, -1], "mean_": model.rollout(z[:, 0], a)[:, -1]}
    directions = random_directions(z.shape[-1], slices, generator, like=z)
    report: dict[str, float] = {"steps": a.shape[1], "epps_pulley_null": EPPS_PULLEY_NULL_MEAN}
    for name, end in ends.items():
        report[f"{name}epps_pulley"] = (len(end) * epps_pulley(end @ directions)).mean().item()
        report[f"{name}variance_per_dim"] = end.var(0).mean().item()
    return report
