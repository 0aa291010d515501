"""Does a state between two rooms lie on the way? Midpoints in latent space and waypoints of reach.

    python scripts/compare_waypoints.py runs/two-room

For pairs of held-out states in different rooms, each kind names a point between them, and the
nearest encoded state of the others stands for it. `detour` is the length of the way
through the door over that state, as a multiple of the direct way: 1 lies on it. `gap` is the rms
distance of the point to that state, as a multiple of that of ordinary neighbours. One JSON object
per kind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gjwm.evaluation import Evaluation, held_out_episodes
from gjwm.evaluation.evaluate import Task
from gjwm.evaluation.intervals import mean_interval
from gjwm.evaluation.prediction import encode_episodes
from gjwm.models import interpolation
from gjwm.models.world_model import WorldModel

PAIRS = 200


def way(a: Tensor, b: Tensor, door: Tensor, wall: float) -> Tensor:
    """Lengths between positions (..., 2): through the door where the wall is between them."""
    across = (a[..., 0] < wall) != (b[..., 0] < wall)
    over = (a - door).norm(dim=-1) + (door - b).norm(dim=-1)
    return torch.where(across, over, (a - b).norm(dim=-1))


def main(run: Path) -> None:
    model = WorldModel.load(run)
    if model.reach is None:
        raise SystemExit(f"{run} has no reach: train it with reach.steps=1500.")
    episodes = held_out_episodes(Task.of(model), Evaluation(episodes=100, length=100, seed=1))
    with torch.inference_mode():
        z = encode_episodes(model, episodes)[:, ::2].flatten(0, 1)
    state = torch.from_numpy(np.concatenate([e.sim_state[::2] for e in episodes])).float()
    place, wall, door = state[:, :2], state[0, 4].item(), state[0, 4:6]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(z), generator=generator)
    left, right = (rows[side[rows]] for side in (place[:, 0] < wall, place[:, 0] >= wall))
    count = min(PAIRS, len(left), len(right))
    s, g = left[:count], right[:count]
    half, others = torch.tensor([0.5]), torch.cat([left[count:], right[count:]])
    with torch.inference_mode():
        psi = model.reach.embed(z)
        kinds = {
            name: (getattr(interpolation, name)(z[s], z[g], half)[:, 0], z)
            for name in ("linear", "variance_preserving", "slerp")
        }
        for waypoints in (1, 3):
            middle = model.reach.waypoints(z[s], z[g], waypoints)[:, waypoints // 2]
            kinds[f"reach, middle of {waypoints}"] = (middle, psi)
    for name, (points, candidates) in kinds.items():
        gap, nearest = torch.cdist(points, candidates[others]).min(1)
        ordinary = torch.cdist(candidates[s], candidates[others]).amin(1)
        found = place[others[nearest]]
        over = way(place[s], found, door, wall) + way(found, place[g], door, wall)
        detour, low, high = mean_interval((over / way(place[s], place[g], door, wall)).numpy())
        row = {"kind": name, "pairs": count, "detour": detour, "ci95": [low, high]}
        row["gap"] = (gap.mean() / ordinary.mean()).item()
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    for folder in sys.argv[1:]:
        main(Path(folder))
