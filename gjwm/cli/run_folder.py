"""A run's folder, runs/<name>/: who may work in it, where an interrupted training goes on, its log
and its decoder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from gjwm._core.files import holding, replacing
from gjwm.data.dataset import STORAGES, dataset_info
from gjwm.models.decoder import ConvDecoder
from gjwm.models.world_model import load_payload
from gjwm.reporting import LiveReport
from gjwm.reporting.logging import RunLogger, check_mode
from gjwm.training.checkpoint import Checkpoints
from gjwm.training.settings import require_same_training

RETURNS = "returns.json"


@contextmanager
def alone(run_dir: str) -> Iterator[None]:
    """Keep other trainings out of a run's folder, as two would write over each other."""
    with ExitStack() as stack:
        try:
            stack.enter_context(holding(Path(run_dir) / "lock"))
        except BlockingIOError as error:
            raise ValueError(
                f"another process works in {run_dir}; wait for it, or choose another name=..."
            ) from error
        yield


def begin(
    cfg: DictConfig,
    run: Path,
    checkpoints: Checkpoints,
    steps: int,
    last: str,
    ready: Callable[[int], None] = lambda episodes: None,
) -> tuple[int | None, int] | None:
    """Make the run's folder ready -> (step to go on after or None, episodes to train on), or None
    if all is done.

    Args:
        steps: after which training ends.
        last: the file that is written at the very end: if the last state is newer, the run was
            killed before it.
        ready: called with the episodes before anything is touched, unless all is done; what it
            raises stops the command.

    Raises:
        ValueError: when a training would be lost, or resumed with other settings.
    """
    found, started = checkpoints.latest(), run / "state" / "run.json"
    unfinished = found is not None and (run / "metrics.jsonl.partial").exists()
    if found is not None and cfg.resume:
        before = json.loads(started.read_text())
        online = last == RETURNS
        if not online and not _newer(run / last, checkpoints):
            # The dynamics are refined after the last state, so how may change as long as there is
            # no model.
            before["config"]["refine"] = OmegaConf.to_container(cfg.refine, resolve=True)
        require_same_training(
            before["config"], OmegaConf.to_container(cfg, resolve=True), run, online=online
        )
        if found.step >= steps and not unfinished and _newer(run / last, checkpoints):
            return None
        kinds = [torch.device(name).type for name in (before["config"]["device"], cfg.device)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{run} was begun on {kinds[0]}, whose random numbers {kinds[1]} does not have: go "
                f"on with device={kinds[0]}."
            )
        ready(before["episodes"])
        write_json(started, before)
        return found.step, before["episodes"]
    if unfinished:
        raise ValueError(
            f"{run} holds a training that stopped after step {found.step}: go on with resume=true, "
            f"or remove {checkpoints.folder} to start anew."
        )
    dataset = cfg.online.data if last == RETURNS else cfg.dataset
    episodes = 0 if dataset is None else dataset_info(dataset)["episodes"]
    ready(episodes)
    checkpoints.clear()
    started.parent.mkdir(parents=True, exist_ok=True)
    write_json(started, {"config": OmegaConf.to_container(cfg, resolve=True), "episodes": episodes})
    return None, episodes


def _newer(file: Path, checkpoints: Checkpoints) -> bool:
    """Whether a file is there and was written after all states."""
    states = max(path.stat().st_mtime_ns for path in checkpoints.folder.glob("state-*.pt"))
    return file.is_file() and file.stat().st_mtime_ns >= states


def check_kept(cfg: DictConfig) -> None:
    """Settings that are first used when a run's folder has been touched."""
    if cfg.storage not in STORAGES:
        raise ValueError(f"storage must be one of {', '.join(STORAGES)}, got {cfg.storage!r}.")
    check_mode(cfg.logger.wandb)


def require_same_env(cfg: DictConfig, dataset: str) -> None:
    """Refuse data of another world: nothing later would notice."""
    info = dataset_info(dataset)
    made = {"id": info["env_id"], **info["env_kwargs"]}
    wanted = OmegaConf.to_container(cfg.env, resolve=True)
    different = sorted(
        key for key in made.keys() | wanted.keys() if made.get(key) != wanted.get(key)
    )
    if different:
        raise ValueError(
            f"{dataset} was collected with "
            + ", ".join(
                f"env.{key}={made.get(key)!r} and not {wanted.get(key)!r}" for key in different
            )
            + "; pass the same settings, or another dataset=..."
        )


@contextmanager
def logging_into(
    cfg: DictConfig, steps: int, after: int | None
) -> Iterator[tuple[RunLogger, LiveReport]]:
    """The run's log, kept up to step `after` of an interrupted run, and its live report of `steps`
    steps.
    """
    run = Path(cfg.run_dir)
    with (
        LiveReport(run, name=cfg.name, steps=steps, seconds=cfg.report.every) as live,
        RunLogger(
            run,
            wandb_mode=cfg.logger.wandb,
            project=cfg.logger.project,
            name=cfg.name,
            config=OmegaConf.to_container(cfg, resolve=True),
            resume_after=after,
        ) as logger,
    ):
        yield logger, live


def save_decoder(decoder: ConvDecoder, path: Path) -> None:
    """Write a decoder's keyword arguments and weights, atomically."""
    with replacing(path) as partial:
        torch.save({"format": 1, "config": decoder.config, "state": decoder.state_dict()}, partial)


def load_decoder(path: Path, device: str = "cpu") -> ConvDecoder:
    """The decoder written by `save_decoder`, in evaluation mode."""
    payload = load_payload(path, device)
    decoder = ConvDecoder(**payload["config"])
    decoder.load_state_dict(payload["state"])
    return decoder.to(device).eval()


def decoder_of(run: Path, device: str) -> ConvDecoder | None:
    """The run's decoder, which a run on state vectors or with train.decoder_steps=0 does not
    have.
    """
    path = run / "decoder.pt"
    return load_decoder(path, device) if path.is_file() else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of JSON that is whole or absent."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
