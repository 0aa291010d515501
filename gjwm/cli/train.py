"""`gjwm train`: a world model from a dataset, calibrated, and a decoder for its pictures."""

from __future__ import annotations

from omegaconf import DictConfig

from gjwm.cli.config import dataset_of, recipe_of
from gjwm.cli.run_folder import run_of
from gjwm.training.processes import Processes
from gjwm.training.recipe import train


def train_command(cfg: DictConfig, command: str) -> None:
    """Train a world model on cfg.dataset into cfg.run_dir; with cfg.resume go on. Processes of
    torchrun share the work, and the first alone writes.
    """
    recipe, data = recipe_of(cfg), dataset_of(cfg)
    train(
        data,
        recipe,
        run=run_of(cfg, command),
        device=cfg.device,
        threads=cfg.threads,
        storage=cfg.storage,
        notify=lambda message: print(message, flush=True),
    )
    if Processes.of().first:
        print(f"{cfg.run_dir}: checkpoint.pt, metrics.jsonl")
