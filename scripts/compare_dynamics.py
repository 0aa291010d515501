"""Fit every kind of dynamics to the latents of trained runs and compare them on held-out episodes.

    python scripts/compare_dynamics.py runs/two-room/seed-0 data/two-room-seed-0 [deterministic
    gaussian ...]

The run's encoder stays as it is. Calibration episodes and test episodes have seeds of their own.
Prints one JSON object per kind."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from gjwm.data.behaviours import behaviour_from_weights
from gjwm.data.collect import collect_episodes
from gjwm.data.dataset import read_episodes
from gjwm.data.handle import CALIBRATION, HELD_OUT
from gjwm.evaluation.calibration import calibration_report
from gjwm.evaluation.prediction import encode_episodes, marginal_report, prediction_report
from gjwm.evaluation.surprise import violation_report
from gjwm.models.calibration import forecast_windows
from gjwm.models.dynamics import (
    DeterministicDynamics,
    EnsembleDynamics,
    EnsemblePrediction,
    GaussianDynamics,
    LinearGaussianDynamics,
    MixtureDynamics,
)
from gjwm.models.world_model import WorldModel
from gjwm.training.settings import RefineSettings
from gjwm.training.train import latent_windows, refine

KINDS = {
    "deterministic": lambda d, a: DeterministicDynamics(d, a),
    "gaussian": lambda d, a: GaussianDynamics(d, a),
    "gaussian_low_rank": lambda d, a: GaussianDynamics(d, a, covariance="low_rank"),
    "gaussian_full": lambda d, a: GaussianDynamics(d, a, covariance="full"),
    "ensemble": lambda d, a: EnsembleDynamics(d, a),
    "mixture": lambda d, a: MixtureDynamics(d, a),
    "linear": lambda d, a: LinearGaussianDynamics(d, a, forget=1.0),
}
HORIZON = 12


def main(run: Path, data: Path, kinds: list[str]) -> None:
    torch.set_num_threads(1)
    cfg = OmegaConf.load(run / "config.yaml")
    trained = WorldModel.load(run / "checkpoint.pt")
    env_kwargs = OmegaConf.to_container(cfg.env, resolve=True)
    env_id = env_kwargs.pop("id")
    behaviour = behaviour_from_weights(OmegaConf.to_container(cfg.collect.behaviour))

    def encoded(episodes) -> tuple[Tensor, Tensor]:
        latents, actions = [], []
        for episode in episodes:
            latents.append(encode_episodes(trained, [episode])[0].clone())
            actions.append(torch.from_numpy(episode.a.copy()))
        return torch.stack(latents), torch.stack(actions)

    def fresh(seed: int):
        return collect_episodes(
            env_id, env_kwargs, behaviour, episodes=200, length=cfg.evaluate.length, seed=seed
        )

    z, a = encoded(itertools.islice(read_episodes(data), 800))
    held_out = encoded(fresh(CALIBRATION + cfg.seed))
    test = list(fresh(HELD_OUT + 1))
    z_test, a_test = encoded(test)
    for kind in kinds:
        torch.manual_seed(cfg.seed)

        def generator() -> torch.Generator:
            return torch.Generator().manual_seed(cfg.seed)

        dynamics = KINDS[kind](z.shape[-1], a.shape[-1])
        refine(
            dynamics,
            latent_windows(z, a),
            RefineSettings(steps=1200, batch=64, length=5),
            generator=generator(),
        )
        model = WorldModel(trained.encoder, dynamics).eval()
        model.calibrate(*held_out, horizon=HORIZON, generator=generator())
        prediction = prediction_report(
            model, z_test, a_test, horizon=HORIZON, generator=generator()
        )
        report = {
            "run": str(run),
            "kind": kind,
            "seed": cfg.seed,
            "r2_by_horizon": prediction["r2_by_horizon"],
        }
        report["temperature"], report["tail"] = (
            model.calibration.temperature.tolist(),
            model.calibration.tail.item(),
        )
        with torch.no_grad():
            one_step = model.predict_sequence(z_test[:, :-1], a_test)
            report["horizon_1"] = calibration_report(one_step, z_test[:, 1:])
            law, truth = forecast_windows(
                model, z_test, a_test, horizon=HORIZON, generator=generator()
            )
            for k in (5, 10):
                report[f"horizon_{k}"] = calibration_report(law[:, k - 1], truth[:, k - 1])
            if isinstance(one_step, EnsemblePrediction):
                error = (z_test[:, 1:] - one_step.mean).square().mean(-1).flatten()
                report["rank_correlation_with_error"] = {
                    part: _rank_correlation(getattr(one_step, part).mean(-1).flatten(), error)
                    for part in ("epistemic", "aleatoric")
                }
        report["marginal"] = marginal_report(model, z_test, a_test, generator=generator())
        report["surprise"] = violation_report(
            model,
            test,
            observation_space=gymnasium.spaces.Box(0, 255, test[0].o.shape[1:], np.uint8),
            frame_stack=env_kwargs.get("frame_stack", 1),
            seed=cfg.seed,
        )
        print(json.dumps(report), flush=True)


def _rank_correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's."""
    return torch.corrcoef(torch.stack([v.argsort().argsort().double() for v in (x, y)]))[
        0, 1
    ].item()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or list(KINDS))
