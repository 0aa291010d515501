"""Do states between two others lie on the way between them? Waypoints by reach beside straight
lines and arcs of latents, over two-room and mazes.

    python scripts/waypoints.py runs/two-room runs/maze-spiral --out docs/assets/waypoints.png

A waypoint is the encoded place nearest to what a path gives: in latents, or by `Reach.distance`.
Its detour is the way from start to goal by it: 1 lies on the way, and what lies behind a wall is
far away. Along a corridor everything lies on the way; so leaps count too, from one waypoint to the
next along the shortest way: the longest, and all together. All are shares of the direct way. Prints
one JSON object per run and path.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from level_lines import CELLS, SIDE, encoded_places
from scipy.sparse import lil_matrix
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from gjwm.models.interpolation import linear, slerp

COUNT = 7  # waypoints of a way
STEPS = torch.arange(1, COUNT + 1) / (COUNT + 1)  # shares of the way from start to goal


def ways(walls: np.ndarray) -> np.ndarray:
    """Lengths of the shortest ways between free places, in cells: (N, N) of all cells. Diagonal
    steps do not cut corners.
    """
    free, index = ~walls, np.arange(CELLS * CELLS).reshape(CELLS, CELLS)
    block = [index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]]  # 2 x 2 places
    open_block = np.all([free.ravel()[corner] for corner in block], 0)
    edges = [(index[:, :-1], index[:, 1:], 1.0), (index[:-1], index[1:], 1.0)]
    edges += [(block[0][open_block], block[3][open_block], math.sqrt(2))]
    edges += [(block[1][open_block], block[2][open_block], math.sqrt(2))]
    graph = lil_matrix((CELLS * CELLS, CELLS * CELLS))
    for a, b, length in edges:
        both = free.ravel()[a] & free.ravel()[b]
        graph[a[both], b[both]] = length
    return dijkstra(graph.tocsr(), directed=False)


def paths(reach) -> dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable]]:
    """Name -> (start, goal (B, D) -> waypoints (B, COUNT, K), what places are compared in)."""

    def slow(features: Tensor) -> Tensor:  # differences are `Reach.distance`
        return features @ reach.metric.T

    def place(z: Tensor) -> Tensor:
        return slow(reach.embed(z))

    return {
        "line of latents": (lambda s, g: linear(s, g, STEPS), lambda z: z),
        "arc of latents": (lambda s, g: slerp(s, g, STEPS), lambda z: z),
        "line of ψ": (lambda s, g: slow(linear(reach.embed(s), reach.embed(g), STEPS)), place),
        "waypoints": (lambda s, g: slow(reach.waypoints(s, g, COUNT)), place),
    }


@torch.inference_mode()
def judge(folder: Path, pairs: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """-> walls, and of the pair with the longest way its waypoints by each path between
    its ends, (COUNT + 2, 2).
    """
    model, walls, z = encoded_places(folder)
    table, free = ways(walls), np.flatnonzero(~walls)
    rng = np.random.default_rng(seed)
    starts, goals = rng.choice(free, (2, 50 * pairs))
    direct = table[starts, goals]
    far = np.flatnonzero(np.isfinite(direct) & (direct > np.median(direct)))[:pairs]
    starts, goals, direct = starts[far], goals[far], direct[far]
    z, shown = z.flatten(0, 1), {}
    for name, (path, space) in paths(model.reach).items():
        found = path(z[starts], z[goals])
        nearest = free[torch.cdist(found.flatten(0, 1), space(z[free])).argmin(-1).numpy()]
        nearest = nearest.reshape(-1, COUNT)
        gone = table[starts[:, None], nearest] / direct[:, None]
        detour = gone + table[nearest, goals[:, None]] / direct[:, None]
        way = np.concatenate([starts[:, None], nearest, goals[:, None]], 1)
        leaps = table[way[:, :-1], way[:, 1:]] / direct[:, None]
        report = {
            "run": str(folder),
            "path": name,
            "pairs": len(far),
            "detour": round(float(detour.mean()), 3),
            "detour_quantile_90": round(float(np.quantile(detour, 0.9)), 3),
            "longest_leap": round(float(leaps.max(1).mean()), 3),
            "all_leaps": round(float(leaps.sum(1).mean()), 3),
        }
        print(json.dumps(report), flush=True)
        farthest = way[direct.argmax()]
        shown[name] = np.stack([SIDE[farthest % CELLS], SIDE[farthest // CELLS]], 1)
    return walls, shown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="docs/assets/waypoints.png")
    args = parser.parse_args()
    judged = [judge(folder, args.pairs, args.seed) for folder in args.runs]
    size = (12, 3.1 * len(judged))
    figure, axes = plt.subplots(len(judged), 4, figsize=size, squeeze=False)
    for row, (walls, shown) in zip(axes, judged, strict=True):
        for axis, (name, way) in zip(row, shown.items(), strict=True):
            axis.imshow(~walls, extent=(0, 1, 1, 0), cmap="gray", vmin=-1, vmax=1)
            axis.plot(*way.T, "-", color="tab:blue", linewidth=0.8)
            axis.scatter(*way[1:-1].T, c=np.arange(COUNT), cmap="viridis_r", zorder=3)
            axis.plot(*way[0], "s", *way[-1], "*", color="red", markersize=9)
            axis.set(title=name, xticks=[], yticks=[], aspect="equal")
    figure.tight_layout()
    figure.savefig(args.out, dpi=80)
    print(args.out)


if __name__ == "__main__":
    main()
