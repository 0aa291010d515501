"""From a finished run to a model that ships: gjwm/pretrained/NAME.

    python scripts/bundle.py runs/two-room two-room

Writes checkpoint.pt and decoder.pt with matrices in float16 (vectors stay float32: running
variances may lie out of float16's range), and of evaluation.json what a card and `gjwm play` need.
Paths, the run's name, states and settings of other commands are left behind. Where a decoder does
not fit, a smaller one is trained on episodes collected anew.

Both precisions attempt the run's held-out goals, and both rates are printed; the planning figures
that are kept are those of what ships. Nothing is written where float16 does worse than the run's
interval, or where all takes more than 2 MB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gjwm._core.checkpoint import save_tensors
from gjwm.cli.play import protocol
from gjwm.data.collect import collect_dataset
from gjwm.data.dataset import open_windows
from gjwm.evaluation import held_out_episodes
from gjwm.evaluation.evaluate import Task, attempt
from gjwm.evaluation.goals import goal_lanes, planning_report
from gjwm.models.decoder import ConvDecoder, decoder_of, save_decoder
from gjwm.models.pretrained import FOLDER
from gjwm.models.world_model import WorldModel, load_payload
from gjwm.reporting import EVALUATION
from gjwm.training.run import write_json
from gjwm.training.settings import DecodeSettings
from gjwm.training.train import train_decoder

LIMIT = 2_000_000  # bytes of a folder
DECODER_LIMIT = 900_000  # of them, a decoder's


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices of float32 as float16.

    Raises:
        ValueError: for one that float16 cannot hold.
    """
    half = {k: v.half() if v.dtype == torch.float32 and v.ndim > 1 else v for k, v in state.items()}
    for name, value in half.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} has values that float16 cannot hold.")
    return half


def write_halved(source: Path, target: Path) -> None:
    """A checkpoint or a decoder without what its run said of itself."""
    payload = load_payload(source)
    if "extra" in payload:
        payload["extra"] = {}
    save_tensors(payload | {"state": halved(payload["state"])}, target)


def small_decoder(model: WorldModel, seed: int) -> ConvDecoder:
    """A decoder with fewer channels than usual, of episodes like those of the training."""
    origin = model.origin
    episodes = dict(episodes=200, length=origin.length, seed=seed)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        collect_dataset(folder, origin.env_id, origin.env_kwargs, origin.behaviour, **episodes)
        windows = open_windows(folder, storage="memory")
        shape = windows.sample(1, 1).o.shape[2:]  # of a stack of frames
        channels = shape[0] // windows.frame_stack
        decoder = ConvDecoder(model.latent_dim, (channels, *shape[1:]), channels=24)
        settings = DecodeSettings(steps=2000)
        error = train_decoder(decoder, model, windows, settings, generator=seeded(seed))
    print(f"a smaller decoder: squared error {error:.5f} per pixel")
    return decoder.eval()


def seeded(seed: int) -> torch.Generator:
    """A generator with this seed."""
    return torch.Generator().manual_seed(seed)


def planned(models: dict[str, WorldModel], report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each model reaches of the run's held-out goals, the same for all."""
    settings, planner, cost = protocol(report)
    found = {}
    episodes = None
    for name, model in models.items():
        task = Task.of(model)
        goals = task.goals(settings, planner)
        if episodes is None:
            few = replace(settings, episodes=max(settings.pairs, 8))  # the first, as in the run
            episodes = held_out_episodes(task, few)
        made = attempt(model, task, settings, episodes, goals, planner, cost)
        with goal_lanes(task.env_id, task.env_kwargs, 1) as envs:
            found[name] = planning_report(made.attempts, envs.success_radius)
        low, high = found[name]["ci95"]
        print(
            f"{name}: {found[name]['success_rate']:.1%} [{low:.1%}, {high:.1%}] of "
            f"{found[name]['episodes']} goals"
        )
    return found


def reduced(report: dict[str, Any], planning: dict[str, Any]) -> dict[str, Any]:
    """The figures of a card, and the protocol of `gjwm play`."""
    versions = {k: v for k, v in report["versions"].items() if k != "machine"}
    return {
        "prediction": report["prediction"],
        "planning": report["planning"] | planning,
        "version": report["version"],
        "versions": versions,
        "config": {key: report["config"][key] for key in ("evaluate", "planner", "cost")},
    }


def bundle(run: Path, name: str, target: Path) -> None:
    """Write the files of a model that ships into `target`, a folder that is empty.

    Raises:
        ValueError: when float16 does worse, or the files are too large.
    """
    report = json.loads((run / EVALUATION).read_text())
    write_halved(run / "checkpoint.pt", target / "checkpoint.pt")
    model = WorldModel.load(target)
    decoder = decoder_of(run)
    if decoder is not None:
        write_halved(run / "decoder.pt", target / "decoder.pt")
        if (target / "decoder.pt").stat().st_size > DECODER_LIMIT:
            with tempfile.TemporaryDirectory() as folder:
                smaller = Path(folder) / "decoder.pt"
                save_decoder(small_decoder(model, seed=0), smaller)
                write_halved(smaller, target / "decoder.pt")
    found = planned({"float32": WorldModel.load(run), "float16": model}, report)
    if found["float16"]["success_rate"] < found["float32"]["ci95"][0]:
        raise ValueError(f"{name} plans worse in float16; nothing was written.")
    write_json(target / EVALUATION, reduced(report, found["float16"]))
    size = sum(file.stat().st_size for file in target.iterdir())
    if size > LIMIT:
        raise ValueError(f"{name} takes {size / 1e6:.2f} MB of at most 2; nothing was written.")
    print(f"{name}: {size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            bundle(args.run, args.name, Path(folder))
        except (OSError, ValueError) as error:
            raise SystemExit(f"bundle: {error}") from error
        target = FOLDER / args.name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for file in Path(folder).iterdir():
            shutil.copyfile(file, target / file.name)
        print(target)


if __name__ == "__main__":
    main()
