"""Where do models send the dot at the forking road? Shares of probability per branch, and a picture.

    gjwm collect experiment=fork && gjwm train experiment=fork
    python scripts/compare_branches.py runs/fork data/fork docs/assets/fork.png

The run's encoder stays as it is; each kind of dynamics is fitted to its latents. Positions are read from latents by a
`StateHead`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageDraw
from torch import Tensor

from gjwm.behaviours import behaviour_from_weights
from gjwm.calibration import calibration_report, concatenate, forecast_windows
from gjwm.cli import CALIBRATION, HELD_OUT
from gjwm.collect import collect_episodes, make_env
from gjwm.dataset import read_episodes
from gjwm.dynamics import DeterministicDynamics, Dynamics, EnsembleDynamics, GaussianDynamics, MixtureDynamics
from gjwm.evaluate import encode_episodes
from gjwm.heads import StateHead
from gjwm.train import train_dynamics, train_state_head
from gjwm.world_model import WorldModel

KINDS = {
    "deterministic": DeterministicDynamics,
    "gaussian": GaussianDynamics,
    "ensemble": EnsembleDynamics,
    "mixture": MixtureDynamics,
}


def main(run: Path, data: Path, picture: Path | None) -> None:
    torch.set_num_threads(1)
    cfg = OmegaConf.load(run / "config.yaml")
    trained = WorldModel.load(run / "checkpoint.pt")
    env_kwargs = OmegaConf.to_container(cfg.env, resolve=True)
    env_id = env_kwargs.pop("id")
    behaviour = behaviour_from_weights(OmegaConf.to_container(cfg.collect.behaviour))

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(cfg.seed)

    def fresh(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        episodes = list(
            collect_episodes(
                env_id, env_kwargs, behaviour, episodes=count, length=40, seed=seed, workers=0, record_state=True
            )
        )
        a, position = (torch.from_numpy(np.stack([getattr(e, x) for e in episodes])).float() for x in ("a", "position"))
        return encode_episodes(trained, episodes).clone(), a, position

    recorded = list(read_episodes(data))
    z, a = encode_episodes(trained, recorded).clone(), torch.from_numpy(np.stack([e.a for e in recorded]))
    z_held, a_held, position_held = fresh(300, CALIBRATION + cfg.seed)
    z_test, a_test, position = fresh(400, HELD_OUT + 1)
    torch.manual_seed(cfg.seed)
    head = StateHead(z.shape[-1], 2)
    train_state_head(head, z_held.flatten(0, 1), position_held.flatten(0, 1), generator=generator())
    fitted: dict[str, Dynamics] = {}
    for kind, build in KINDS.items():
        torch.manual_seed(cfg.seed)
        dynamics = fitted[kind] = build(z.shape[-1], a.shape[-1])
        train_dynamics(dynamics, z, a, steps=2000, generator=generator())
        model = WorldModel(trained.encoder, dynamics).eval()
        model.calibrate(z_held, a_held, horizon=10, generator=generator())
        report: dict = {"run": str(run), "kind": kind, "seed": cfg.seed}
        with torch.no_grad():
            report["horizon_1"] = _short(
                calibration_report(model.predict_sequence(z_test[:, :-1], a_test), z_test[:, 1:])
            )
            windows = forecast_windows(model, z_test, a_test, horizon=10, generator=generator())
            law, truth = concatenate([law for law, _ in windows]), torch.cat([truth for _, truth in windows])
            for k in (5, 10):
                report[f"horizon_{k}"] = _short(calibration_report(law[:, k - 1], truth[:, k - 1]))
            for steps in (3, 6):
                report[f"branches_{steps}"] = branches(model, head, z_test, a_test, position, steps, generator())
        print(json.dumps(report), flush=True)
    if picture is not None:
        draw(picture, make_env(env_id, **env_kwargs), trained, fitted, head, generator())


def _short(report: dict) -> dict[str, float]:
    names = ("nll", "crps", "energy_score", "coverage_50", "coverage_80", "coverage_90", "coverage_95", "ece")
    return {name: round(report[name], 4) for name in names}


def branches(
    model: WorldModel, head: StateHead, z: Tensor, a: Tensor, position: Tensor, steps: int, generator: torch.Generator
) -> dict[str, float]:
    """Shares of particles on either branch, from starts before the fork that in truth ended well on a branch."""
    starts = range(a.shape[1] - steps)
    z0, before = (torch.cat([x[:, s] for s in starts]) for x in (z, position))
    after = torch.cat([position[:, s + steps] for s in starts])
    actions = torch.cat([a[:, s : s + steps] for s in starts])
    use = ((before[:, 1] - 0.5).abs() < 1e-3) & ((after[:, 1] - 0.5).abs() > 0.15)
    z0, actions, after = z0[use], actions[use], after[use]
    y = head(model.rollout(z0, actions, 64, generator)[:, :, -1])[..., 1] - 0.5
    mean = head(model.rollout(z0, actions)[:, -1])[:, 1] - 0.5
    return {
        "starts": len(z0),
        "true_up": (after[:, 1] < 0.5).float().mean().item(),
        "up": (y < -0.1).float().mean().item(),
        "down": (y > 0.1).float().mean().item(),
        "between": (y.abs() <= 0.1).float().mean().item(),
        "mean_path_between": (mean.abs() <= 0.1).float().mean().item(),
    }


@torch.no_grad()
def draw(
    path: Path, env, trained: WorldModel, fitted: dict[str, Dynamics], head: StateHead, generator: torch.Generator
) -> None:
    """Side by side: 60 true futures, and 60 particles of three models with their mean path, after 7 full steps forward."""
    steps, count, scale, start = 7, 60, 4, np.array([0.3, 0.0])
    env.reset(seed=0, options={"state": start})
    background = env.unwrapped.observe()
    z0 = trained.encode(torch.from_numpy(background)[None])
    futures = []
    for _ in range(count):
        env.unwrapped.set_state(start)
        futures.append([env.unwrapped.position])
        for _ in range(steps):
            env.step(np.ones(1, np.float32))
            futures[-1].append(env.unwrapped.position)
    panels = {"what happens": (np.array(futures), None)}
    for kind in ("deterministic", "gaussian", "mixture"):
        a = torch.ones(1, steps, 1)
        particles = head(fitted[kind].rollout(z0, a, count, generator))[0].numpy()
        panels[kind] = (particles, head(fitted[kind].rollout(z0, a))[0].numpy())
    side = background.shape[-1] * scale
    sheet = Image.new("RGB", (len(panels) * (side + 4) - 4, side + 16), "white")
    for i, (name, (points, mean)) in enumerate(panels.items()):
        image = Image.fromarray(np.moveaxis(background, 0, -1)).resize((side, side), Image.Resampling.BILINEAR)
        pen = ImageDraw.Draw(image)
        for x, y in points[:, 1:].reshape(-1, 2) * side:
            pen.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=(40, 90, 200))
        if mean is not None:
            pen.line([tuple(p) for p in mean * side], fill=(222, 44, 40), width=2)
        sheet.paste(image, (i * (side + 4), 16))
        caption = name if mean is None else f"{name}: particles, mean path"
        ImageDraw.Draw(sheet).text((i * (side + 4) + 4, 2), caption, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
