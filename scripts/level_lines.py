"""Level lines of latent distance and of reach from one goal, over the worlds that models come from:
two-room and mazes, whose states begin with a position.

    python scripts/level_lines.py runs/two-room runs/maze-spiral --out docs/assets/reach.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch

from gjwm.data.acting import as_array, make_vec
from gjwm.models.world_model import WorldModel

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CELLS = 48
SIDE = (np.arange(CELLS) + 0.5) / CELLS


def encoded_places(folder: Path) -> tuple[WorldModel, np.ndarray, torch.Tensor]:
    """-> the model, walls (CELLS, CELLS), and latents (CELLS, CELLS, D) of the world at rest at
    each place; those of walls are NaN."""
    model = WorldModel.load(folder)
    if model.reach is None:
        raise SystemExit(f"{folder} has no reach: train it with reach.steps=1500.")
    envs = make_vec(model.origin.env_id, CELLS * CELLS, workers=0, **model.origin.env_kwargs)
    envs.reset(seed=0)
    states = torch.as_tensor(envs.get_state()[:1]).repeat(CELLS * CELLS, 1)
    side = torch.from_numpy(SIDE).float()
    states[:, :2] = torch.cartesian_prod(side, side).flip(-1)  # row by row, x within a row
    free = envs.unwrapped._worlds.valid(tuple(states.unbind(-1)))
    states[~free] = states[free][0].clone()
    envs.set_state(states)
    o = torch.from_numpy(as_array(envs.observe()))
    with torch.inference_mode():
        z = torch.cat([model.encode(part) for part in o.split(256)])
        z = z.masked_fill(~free[:, None], torch.nan)
    return model, (~free).view(CELLS, CELLS).numpy(), z.unflatten(0, (CELLS, CELLS))


def levels(folder: Path, goal: tuple[float, float]) -> tuple[np.ndarray, list[np.ndarray]]:
    """-> walls (CELLS, CELLS), and of the same shape latent distance and reach from the goal."""
    model, walls, z = encoded_places(folder)
    column, row = (min(int(x * CELLS), CELLS - 1) for x in goal)
    if walls[row, column]:
        raise SystemExit(f"the goal {goal} lies in a wall of {folder}.")
    with torch.inference_mode():
        latent = (z - z[row, column]).square().mean(-1)
        reach = model.reach.distance(z, z[row, column])
    return walls, [latent.numpy(), reach.numpy()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--goals", nargs="*", default=[], help="x,y for each run")
    parser.add_argument("--out", default="docs/assets/reach.png")
    args = parser.parse_args()
    rows = len(args.runs)
    figure, axes = plt.subplots(rows, 2, figsize=(6.4, 3.2 * rows), squeeze=False)
    for row, folder in enumerate(args.runs):
        text = args.goals[row] if row < len(args.goals) else "0.8,0.2"
        goal = tuple(float(x) for x in text.split(","))
        walls, fields = levels(folder, goal)
        for axis, field, name in zip(axes[row], fields, ("latent distance", "reach"), strict=True):
            shown = np.ma.masked_where(walls, field)
            ends = np.quantile(field[~walls], np.linspace(0, 1, 14))
            axis.contourf(SIDE, SIDE, shown, levels=np.unique(ends), cmap="viridis_r")
            axis.imshow(
                np.where(walls, 0.3, np.nan),
                extent=(0, 1, 1, 0),  # y grows downwards
                origin="upper",
                cmap="gray",
                vmin=0,
                vmax=1,
            )
            axis.plot(*goal, marker="*", color="red", markersize=12)
            axis.set(title=name, xticks=[], yticks=[], aspect="equal")
    figure.tight_layout()
    figure.savefig(args.out, dpi=80)
    print(args.out)


if __name__ == "__main__":
    main()
