"""Where do models send the dot at the forking road? Shares of probability per branch, and a
picture.

    python scripts/compare_branches.py state SEED [picture.png]             # latents are the
    standardised position gjwm collect experiment=fork && gjwm train experiment=fork python
    scripts/compare_branches.py runs/fork data/fork [picture.png]    # latents of a trained encoder,
    from pixels

Each kind of dynamics is fitted to the latents, which stay as they are. In the first form nothing
but the law is tested; in the second, positions are read from latents by a `StateHead`. The truth
that shares are compared with is the simulator's, played from the same states under the same
actions. Prints one JSON object per kind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageDraw
from torch import Tensor, nn

from gjwm.data.behaviours import behaviour_from_weights
from gjwm.data.collect import collect_episodes, make_env
from gjwm.data.dataset import read_episodes
from gjwm.data.handle import CALIBRATION, HELD_OUT
from gjwm.envs.fork import GAP, JUNCTION, START_X, place
from gjwm.evaluation.calibration import calibration_report
from gjwm.evaluation.prediction import encode_episodes
from gjwm.models.calibration import forecast_windows
from gjwm.models.dynamics import DeterministicDynamics, Dynamics, GaussianDynamics, MixtureDynamics
from gjwm.models.heads import StateHead
from gjwm.models.world_model import WorldModel
from gjwm.training.settings import RefineSettings
from gjwm.training.train import latent_windows, refine, train_state_head

KINDS = {
    "deterministic": DeterministicDynamics,
    "gaussian": GaussianDynamics,
    "mixture": MixtureDynamics,
}

BEHAVIOUR = {"coloured": 1.0}
UP = 0.3
EPISODES = 1500  # that laws of the state learn from; a trained run brings its own
STEPS = 3000  # of fitting each law
# progress beyond the junction at which a branch is told from the middle, and from the other
PAST_FORK = 0.2


class Standardised(nn.Module):
    """The dot's position, standardised: an encoder that shows the state and nothing else, and its
    inverse.
    """

    latent_dim, config = 2, {}

    def __init__(self, position: Tensor):
        super().__init__()
        self.register_buffer("mean", position.mean((0, 1)))
        self.register_buffer("std", position.std((0, 1)))

    def forward(self, o: Tensor) -> Tensor:
        return (o - self.mean) / self.std

    def position(self, z: Tensor) -> Tensor:
        """(..., 2) -> (..., 2) world units."""
        return z * self.std + self.mean


def fork_episodes(count: int, seed: int, **env_kwargs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Observations (E, T+1, *O), actions (E, T, 1), positions (E, T+1, 2) and simulator states (E,
    T+1, 3).
    """
    episodes = collect_episodes(
        "gjwm/fork-v0",
        {"up_probability": UP, **env_kwargs},
        behaviour_from_weights(BEHAVIOUR),
        episodes=count,
        length=40,
        seed=seed,
        workers=0,
        record_state=True,
    )
    columns = zip(*((e.o, e.a, e.position, e.sim_state) for e in episodes))
    return tuple(torch.from_numpy(np.stack(x)) for x in columns)


def from_state(seed: int, picture: Path | None) -> None:
    """Dynamics of the position itself."""
    o, a, *_ = fork_episodes(EPISODES, seed, obs="state")
    encoder = Standardised(o)
    compare("state", seed, encoder, encoder.position, encoder(o), a, dict(obs="state"), picture)


def from_run(run: Path, data: Path, picture: Path | None) -> None:
    """Dynamics of a trained encoder's latents."""
    seed = OmegaConf.load(run / "config.yaml").seed
    trained = WorldModel.load(run / "checkpoint.pt")
    recorded = list(read_episodes(data))
    z, a = (
        encode_episodes(trained, recorded).clone(),
        torch.from_numpy(np.stack([e.a for e in recorded])),
    )
    o, _, position, _ = fork_episodes(300, CALIBRATION + seed)
    torch.manual_seed(seed)
    head = StateHead(z.shape[-1], 2)
    with torch.no_grad():
        z_head = torch.cat([trained.encode(part) for part in o.flatten(0, 1).split(1024)])
    train_state_head(
        head, z_head, position.flatten(0, 1), generator=torch.Generator().manual_seed(seed)
    )
    compare(str(run), seed, trained.encoder, head, z, a, {}, picture)


def compare(
    name: str,
    seed: int,
    encoder: nn.Module,
    read: Callable[[Tensor], Tensor],
    z: Tensor,
    a: Tensor,
    env_kwargs: dict,
    picture: Path | None,
) -> None:
    """Fit each kind to latents z (E, T+1, D) under actions a (E, T, 1); `read` tells positions from
    latents.
    """

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def encoded(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        o, a, _, state = fork_episodes(count, seed, **env_kwargs)
        with torch.no_grad():
            return torch.stack([encoder(episode) for episode in o]), a, state

    z_held, a_held, _ = encoded(300, CALIBRATION + seed)
    z_test, a_test, state = encoded(400, HELD_OUT + 100 + seed)
    fitted: dict[str, Dynamics] = {}
    for kind, build in KINDS.items():
        torch.manual_seed(seed)
        dynamics = fitted[kind] = build(z.shape[-1], a.shape[-1], min_std=0.01)
        refine(
            dynamics,
            latent_windows(z, a),
            RefineSettings(steps=STEPS, batch=64, length=5),
            generator=generator(),
        )
        model = WorldModel(encoder, dynamics).eval()
        model.calibrate(z_held, a_held, horizon=10, generator=generator())
        report: dict = {"run": name, "kind": kind, "seed": seed}
        with torch.no_grad():
            report["horizon_1"] = _short(
                calibration_report(model.predict_sequence(z_test[:, :-1], a_test), z_test[:, 1:])
            )
            law, truth = forecast_windows(model, z_test, a_test, horizon=10, generator=generator())
            for k in (5, 10):
                report[f"horizon_{k}"] = _short(calibration_report(law[:, k - 1], truth[:, k - 1]))
            for steps in (3, 6):
                report[f"branches_{steps}"] = branches(
                    model, read, z_test, a_test, state, steps, generator()
                )
        print(json.dumps(report), flush=True)
    if picture is not None:
        draw(picture, encoder, env_kwargs, fitted, read, generator())


def _short(report: dict) -> dict[str, float]:
    names = (
        "nll",
        "crps",
        "energy_score",
        "coverage_50",
        "coverage_80",
        "coverage_90",
        "coverage_95",
        "ece",
    )
    return {name: round(report[name], 4) for name in names}


def branches(
    model: WorldModel,
    read: Callable[[Tensor], Tensor],
    z: Tensor,
    a: Tensor,
    state: Tensor,
    steps: int,
    generator: torch.Generator,
) -> dict[str, float]:
    """Shares of particles above, below and between, and of the simulator's own futures from the
    same starts.

    Starts lie before the junction and, without noise, their actions end `PAST_FORK` beyond it. They
    are chosen by that and not by what happened, which would be to look at the answer."""
    z0, before, actions = [], [], []
    for s in range(a.shape[1] - steps + 1):
        progress = state[:, s, 0]
        for h in range(steps):
            progress = (progress + 0.08 * a[:, s + h, 0]).clamp(0, 1)
        use = (state[:, s, 0] <= JUNCTION) & (progress > JUNCTION + PAST_FORK)
        z0.append(z[use, s])
        before.append(state[use, s])
        actions.append(a[use, s : s + steps])
    z0, before, actions = torch.cat(z0), torch.cat(before), torch.cat(actions)
    truth = simulate(before.numpy(), actions.numpy(), copies=16)
    mean = read(model.rollout(z0, actions)[:, -1])
    particles = read(model.rollout(z0, actions, 64, generator)[:, :, -1])
    return {
        "starts": len(z0),
        **{f"true_{name}": share for name, share in _shares(truth[:, :, -1]).items()},
        **_shares(particles.numpy()),
        "mean_path_between": _shares(mean.numpy())["between"],
    }


def _shares(position: np.ndarray) -> dict[str, float]:
    """Of positions (..., 2): on the upper or lower branch, that is further from the middle than
    half of the way to the branch at that x; or between."""
    x, y = position[..., 0], position[..., 1] - 0.5
    away = (place(((x - START_X) / 0.8).clip(JUNCTION, 1), 1)[..., 1] - 0.5).clip(GAP)
    up, down = (y < -away / 2).mean().item(), (y > away / 2).mean().item()
    return {"up": round(up, 4), "down": round(down, 4), "between": round(1 - up - down, 4)}


def simulate(start: np.ndarray, actions: np.ndarray, *, copies: int) -> np.ndarray:
    """True futures from states (N, 3) under actions (N, H, 1) -> positions (N, copies, H+1, 2)."""
    env = make_env(
        "gjwm/fork-v0", up_probability=UP, obs="state", max_episode_steps=actions.shape[1] + 1
    )
    env.reset(seed=0)
    world, futures = env.unwrapped, []
    for state, plan in zip(start, actions):
        for _ in range(copies):
            world.set_state(state)
            futures.append([world.position])
            for action in plan:
                world.step(action)
                futures[-1].append(world.position)
    return np.array(futures).reshape(len(start), copies, -1, 2)


@torch.no_grad()
def draw(
    path: Path,
    encoder: nn.Module,
    env_kwargs: dict,
    fitted: dict[str, Dynamics],
    read: Callable[[Tensor], Tensor],
    generator: torch.Generator,
) -> None:
    """Side by side: 60 true futures, and 60 particles of three models with their mean path, after 7
    full steps forward.
    """
    steps, count, scale, start = 7, 60, 4, np.array([0.25, 0.0, 0.0])
    env = make_env("gjwm/fork-v0", up_probability=UP, render_mode="rgb_array", **env_kwargs)
    observation, _ = env.reset(seed=0, options={"state": start})
    background = np.moveaxis(env.render(), -1, 0)
    z0 = encoder(torch.from_numpy(observation)[None])
    futures = simulate(start[None], np.ones((1, steps, 1), np.float32), copies=count)[0]
    panels = {"what happens": (futures, None)}
    for kind in ("deterministic", "gaussian", "mixture"):
        a = torch.ones(1, steps, 1)
        particles = read(fitted[kind].rollout(z0, a, count, generator))[0].numpy()
        panels[kind] = (particles, read(fitted[kind].rollout(z0, a))[0].numpy())
    side = background.shape[-1] * scale
    sheet = Image.new("RGB", (len(panels) * (side + 4) - 4, side + 16), "white")
    for i, (name, (points, mean)) in enumerate(panels.items()):
        image = Image.fromarray(np.moveaxis(background, 0, -1)).resize(
            (side, side), Image.Resampling.BILINEAR
        )
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
    torch.set_num_threads(1)
    picture_path = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    if sys.argv[1] == "state":
        from_state(int(sys.argv[2]), picture_path)
    else:
        from_run(Path(sys.argv[1]), Path(sys.argv[2]), picture_path)
