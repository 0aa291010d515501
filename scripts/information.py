"""What the latents of trained runs hold, on fresh episodes: of their own future, beyond a standard
Gaussian, and of the true state with few labels.

    python scripts/information.py runs/two-room runs/point-maze

Episodes follow the run's own behaviour and length. Prints `gjwm.evaluation.information_report` of
each run as one JSON object."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from gjwm.evaluation import Evaluation, held_out_episodes, information_report
from gjwm.evaluation.evaluate import Task
from gjwm.evaluation.prediction import encode_episodes
from gjwm.models.world_model import WorldModel


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1, help="of episodes and estimates")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for run in args.runs:
        model = WorldModel.load(run)
        if model.origin is None or model.origin.length is None:
            parser.error(f"{run} does not say which episodes it was trained on; train it again.")
        settings = Evaluation(episodes=args.episodes, length=model.origin.length, seed=args.seed)
        episodes = held_out_episodes(Task.of(model), settings, workers=1)
        z = encode_episodes(model, episodes)
        begin = time.perf_counter()
        report = information_report(z, episodes, generator=torch.Generator().manual_seed(args.seed))
        seconds = round(time.perf_counter() - begin, 1)
        shape = {"episodes": len(z), "latents": z.shape[1], "dimensions": z.shape[2]}
        print(json.dumps({"run": str(run), **shape, "seconds": seconds, **report}), flush=True)


if __name__ == "__main__":
    main()
