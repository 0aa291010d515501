"""What a world model's predictions are measured against: a linear-Gaussian law, and the noise of
the world itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gjwm.data.acting import RecordedActor, play
from gjwm.data.dataset import Episode
from gjwm.evaluation.calibration import marginal_nats
from gjwm.evaluation.intervals import ratio_interval
from gjwm.models.dynamics import LinearGaussianDynamics
from gjwm.models.world_model import WorldModel


def open_loop_windows(z: Tensor, a: Tensor, horizon: int) -> tuple[Tensor, Tensor, list[int]]:
    """Windows half a horizon apart: z (E, T+1, D), a (E, T, A) -> (E, W, H+1, D), (E, W, H, A),
    starts.
    """
    starts = list(range(0, a.shape[1] - horizon + 1, max(1, horizon // 2)))
    return (
        torch.stack([z[:, s : s + horizon + 1] for s in starts], 1),
        torch.stack([a[:, s : s + horizon] for s in starts], 1),
        starts,
    )


def total_variance(z: Tensor) -> float:
    """What a squared error is compared with: the variance of z (E, T+1, D), summed over D."""
    return float(z.flatten(0, 1).var(0).sum().clamp(min=1e-12))


def r2_by_horizon(estimate: Tensor, target: Tensor, z: Tensor) -> dict[str, Any]:
    """R² of latents per step with its 95% interval over episodes.

    Args:
        estimate, target: (E, W, H, D), W windows of each of E episodes.
        z: (E, T+1, D), whose variance an error is compared with.

    Returns:
        r2 (H), ci95 (2, H).
    """
    error = (estimate - target).square().sum(-1).mean(1).double().cpu().numpy()  # (E, H)
    scale = total_variance(z)
    low, high = ratio_interval(error, np.full_like(error, scale))
    return {
        "r2": (1 - error.mean(0) / scale).tolist(),
        "ci95": [(1 - high).tolist(), (1 - low).tolist()],
    }


@torch.inference_mode()
def linear_gaussian_report(z: Tensor, a: Tensor, *, horizon: int) -> dict[str, Any]:
    """The best linear-Gaussian law of the same latents, fitted on the first half of the held-out
    episodes, scored on the rest.

    Args:
        z, a: latents (E, T+1, D) and actions (E, T, A), E >= 2.

    Returns:
        r2_by_horizon and r2_ci95_by_horizon of its mean, open loop; skill_nats_per_dim of its
        one-step law.
    """
    half = len(z) // 2
    law = LinearGaussianDynamics(z.shape[-1], a.shape[-1], forget=1.0).to(z.device)
    law.update(z[:half, :-1], a[:half], z[:half, 1:])
    law.fit().eval()
    truth, actions, _ = open_loop_windows(z[half:], a[half:], horizon)
    lead = truth.shape[:2]
    path = law.rollout(truth[:, :, 0].flatten(0, 1), actions.flatten(0, 1)).unflatten(0, lead)
    scored = r2_by_horizon(path[:, :, 1:], truth[:, :, 1:], z)
    one_step = law.predict(z[half:, :-1], a[half:])
    nll = -one_step.log_prob(z[half:, 1:]).mean().item() / z.shape[-1]
    return {
        "r2_by_horizon": scored["r2"],
        "r2_ci95_by_horizon": scored["ci95"],
        "skill_nats_per_dim": marginal_nats(z[half:, 1:]) - nll,
    }


@torch.inference_mode()
def noise_floor(
    model: WorldModel,
    envs: Any,
    episodes: Sequence[Episode],
    *,
    horizon: int,
    frame_stack: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """The R² of a model that knows the simulator's whole state and every law: recorded futures are
    played again.

    Two futures of one state and one action sequence differ by twice the variance that nothing can
    predict. What the picture hides of the state is no noise here: see the probes.

    Args:
        envs: the model's environments, one per future; seeded anew.
        episodes: held out, recorded with their simulator states; at least as many as `envs`.

    Returns:
        windows; r2_by_horizon, None at the steps whose frame stack still shows the restart;
        deterministic: whether all agree.
    """
    count, length = envs.num_envs, len(episodes[0].a)
    rng = np.random.default_rng(seed)
    starts = [int(rng.integers(0, length - horizon + 1)) for _ in range(count)]
    recorded = [episode.a[s : s + horizon] for episode, s in zip(episodes, starts)]
    latents = torch.stack(
        [model.encode(torch.from_numpy(e.o).to(model.device)) for e in episodes[:count]]
    )
    envs.autoreset = False
    states = np.stack([episode.sim_state[s] for episode, s in zip(episodes, starts)])
    envs.reset(seed=20_000_000 + seed)
    envs.set_state(states)
    o = envs.observe()  # fills the frame stack
    lanes, error = np.arange(count), []
    for k, step in enumerate(play(envs, RecordedActor(np.stack(recorded)), o, horizon), 1):
        again = model.encode(torch.from_numpy(step.following).to(model.device))
        difference = again - latents[lanes, np.add(starts, k)]
        error.append(difference.square().sum(-1).double().cpu().numpy())
    error = np.stack(error, 1)  # (E, H)
    floor = 1 - error.mean(0) / (2 * total_variance(latents))
    known = [None if k < frame_stack - 1 else float(r2) for k, r2 in enumerate(floor, start=1)]
    return {
        "windows": count,
        "r2_by_horizon": known,
        # Encoding in another batch, or rounding in a saved state, moves a latent by much less than
        # this.
        "deterministic": all(r2 is None or r2 > 1 - 1e-4 for r2 in known),
    }
