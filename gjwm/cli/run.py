"""`gjwm run`: collect, train and evaluate, as far as that is not done."""

from __future__ import annotations

import json
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from gjwm._core.files import holding
from gjwm.cli.collect import collect_command
from gjwm.cli.config import factory, recipe_of
from gjwm.cli.evaluate import evaluate_command, evaluation_settings, task_of
from gjwm.cli.train import train_command
from gjwm.evaluation.goals import check_cost
from gjwm.reporting import EVALUATION
from gjwm.training.recipe import check_refined
from gjwm.training.run import require_same_training, same_evaluation


def run_command(cfg: DictConfig, command: str) -> None:
    """Collect, train and evaluate into cfg.run_dir; what is there is gone on with, and what is done
    is not done again.

    One process at a time works on a run: another waits, and then finds it done.
    """
    # What would fail after collecting or training is told now.
    recipe = recipe_of(cfg)
    check_refined(recipe)
    task_of(cfg).goals(evaluation_settings(cfg), instantiate(cfg.planner))
    cost = factory(cfg.cost, "cost")
    check_cost(cost, recipe.latent_dim, recipe.reach.steps > 0)
    cfg.resume = True
    run, now = Path(cfg.run_dir), OmegaConf.to_container(cfg, resolve=True)
    with holding(run / "lock", wait=True):
        trained = (run / "checkpoint.pt").is_file() and not (run / "metrics.jsonl.partial").exists()
        if trained:
            require_same_training(
                OmegaConf.to_container(OmegaConf.load(run / "config.yaml")), now, run
            )
        collect_command(cfg, command)
        if not trained:
            train_command(cfg, command)
        before = (
            json.loads((run / EVALUATION).read_text())["config"]
            if (run / EVALUATION).is_file()
            else None
        )
        if not trained or before is None or not same_evaluation(before, now):
            evaluate_command(cfg, command)
        else:
            print(f"{run}: already evaluated")
