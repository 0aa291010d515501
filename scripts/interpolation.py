"""Paths between two latents, halfway and as pictures: linear, variance-preserving, slerp.

    python scripts/interpolation.py runs/reacher-easy --out docs/assets/interpolation.png

At half of the way of `--pairs` random pairs of encoded latents, from two episodes each, of the
model's dataset: |z|^2 / D, and the rms distance per dimension to the nearest latent of the other
episodes. "latents" are the encoded latents themselves, the ends of the paths. Prints one JSON
object per path. The picture decodes the paths of the pair with the median distance, if the run has
a decoder.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import matplotlib
import numpy as np
import torch

from gjwm.data.dataset import read_episodes
from gjwm.evaluation.prediction import encode_episodes
from gjwm.models.decoder import decoder_of
from gjwm.models.interpolation import linear, slerp, variance_preserving
from gjwm.models.world_model import WorldModel

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PATHS = {"linear": linear, "variance-preserving": variance_preserving, "slerp": slerp}
HALF = torch.tensor([0.5])
COLUMNS = 9


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, help="the dataset; data/<the run's name> if not given")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="docs/assets/interpolation.png")
    args = parser.parse_args()
    model = WorldModel.load(args.run)
    data = args.data or Path("data") / args.run.name
    z = encode_episodes(model, list(itertools.islice(read_episodes(data), args.episodes)))
    count, length, dim = z.shape
    rng = np.random.default_rng(args.seed)
    episodes = np.stack([rng.choice(count, 2, replace=False) for _ in range(args.pairs)])
    steps = rng.integers(length, size=episodes.shape)
    z0, z1 = torch.from_numpy(z.numpy()[episodes, steps]).unbind(1)

    places = {"latents": z0} | {name: path(z0, z1, HALF)[:, 0] for name, path in PATHS.items()}
    for name, place in places.items():
        distance = torch.cdist(place, z.flatten(0, 1)).unflatten(1, (count, length))
        rows = torch.arange(args.pairs)[:, None]
        distance[rows, torch.from_numpy(episodes)] = torch.inf  # those that the path comes from
        nearest = distance.flatten(1).amin(1) / dim**0.5
        report = {
            "run": str(args.run),
            "path": name,
            "squared_norm_per_dim": round(place.square().mean().item(), 3),
            "nearest_latent": round(nearest.square().mean().sqrt().item(), 3),
        }
        print(json.dumps(report), flush=True)

    decoder = decoder_of(args.run)
    if decoder is None:
        return
    t = torch.linspace(0, 1, COLUMNS)
    drawn = (z0 - z1).norm(dim=-1).argsort()[args.pairs // 2]
    ends = z0[drawn], z1[drawn]
    strips = [decoder.image(path(*ends, t))[:, -3:] for path in PATHS.values()]
    pictures = torch.stack(strips).permute(0, 3, 1, 4, 2)  # (rows, h, columns, w, channels)
    pictures = pictures.repeat_interleave(2, 1).repeat_interleave(2, 3)
    pictures[:, -2:], pictures[:, :, :, -2:] = 128, 128  # lines between them
    h, w = pictures.shape[1], pictures.shape[3]
    plt.imsave(args.out, pictures.reshape(len(PATHS) * h, COLUMNS * w, 3).numpy())
    print(args.out)


if __name__ == "__main__":
    main()
