"""`gjwm online`: a task learned from its reward, while acting or from a dataset."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from gjwm import __version__
from gjwm._core.files import replacing
from gjwm.cli.config import env_kwargs, factories, fill, require_same_env
from gjwm.cli.run_folder import check_kept, logging_into, run_of
from gjwm.data.dataset import dataset_info
from gjwm.rl import (
    Exploration,
    LearnerSettings,
    OnlineSettings,
    Oracle,
    RewardRecipe,
    RewardTraining,
)
from gjwm.training.metrics import progress
from gjwm.training.run import RETURNS, write_json


def online_command(cfg: DictConfig, command: str) -> None:
    """Learn from reward into cfg.run_dir: while acting, or from the dataset cfg.online.data, or
    both; with cfg.resume go on.
    """
    run, recipe = Path(cfg.run_dir), reward_recipe(cfg)
    if recipe.online.data is not None:  # replay begins with it even if no updates are made before
        require_same_env(cfg, recipe.online.data)
    check_kept(cfg)
    with RewardTraining(
        cfg.env.id,
        recipe,
        env_kwargs=env_kwargs(cfg),
        device=cfg.device,
        workers=cfg.collect.workers,
        storage=cfg.storage,
        notify=partial(print, flush=True),
    ) as training:
        # Only now is anything in the run's folder touched.
        folder = run_of(cfg, command, last=RETURNS)
        data = recipe.online.data
        stored = 0 if data is None else dataset_info(data)["episodes"]
        begun = folder.begin(training.steps, stored, training.check_memory)
        if begun is None:
            print(f"{run}: already trained, nothing to resume")
            return
        after, episodes = begun
        _train(cfg, command, training, after, episodes)


def _train(
    cfg: DictConfig, command: str, training: RewardTraining, after: int | None, episodes: int
) -> None:
    """Train and write the run's files; `after` is where a kept state stands."""
    run, total = Path(cfg.run_dir), training.steps
    resolved = OmegaConf.to_container(cfg, resolve=True)
    with logging_into(cfg, total, after) as (logger, live), progress(total, desc="online") as bar:
        shown: dict[str, float] = {}

        def log(scalars: dict[str, float], step: int) -> None:
            logger.log(scalars, step)
            live.update(step)
            shown.update(scalars)
            bar.report(step, loss=shown.get("loss", math.nan), earned=shown.get("evaluate/return"))

        seconds = training.run(run, episodes=episodes, log=log)
        returns = {actor: training.returns(actor) for actor in training.actors}
        # Nothing that takes long or can fail is left: now what there was of an earlier run of this
        # name goes.
        training.finish()
        details = {"seconds": seconds, "threads": torch.get_num_threads(), "command": command}
        training.model.save(
            run / "checkpoint.pt", version=__version__, config=resolved, training=details
        )
        with replacing(run / "config.yaml") as partial_file:
            OmegaConf.save(OmegaConf.create(resolved), partial_file)
        live.finish(total, f"{RETURNS} has what was earned")
    # Last, and after the log is whole: a run without it is not done.
    write_json(run / RETURNS, {"version": __version__, "command": command, "returns": returns})
    for name, row in returns.items():
        low, high = row["ci95"]
        print(
            f"{name:8s} return {row['return_mean']:.1f} [{low:.1f}, {high:.1f}] of "
            f"{row['episodes']} episodes, {1e3 * row['seconds_per_step']:.1f} ms per step"
        )
    print(f"{run}: checkpoint.pt, returns.csv, returns.json, metrics.jsonl")


def reward_recipe(cfg: DictConfig) -> RewardRecipe:
    """What the configuration says about learning from reward.

    Raises:
        ValueError: for a name or a kind that is wrong, or settings that do not go together.
    """
    online = OmegaConf.to_container(cfg.online, resolve=True)
    exploration = fill(Exploration, online["exploration"], "online.exploration")
    return RewardRecipe(
        latent_dim=cfg.latent_dim,
        **factories(cfg),
        objective=OmegaConf.to_container(cfg.objective, resolve=True),
        planner=instantiate(cfg.planner),
        learner=fill(LearnerSettings, cfg.learner, "learner"),
        online=fill(
            OnlineSettings,
            online,
            "online",
            exploration=exploration,
            oracle=_oracle(online["oracle"]),
        ),
        seed=cfg.seed,
    )


def _oracle(settings: Any) -> Oracle | None:
    if not settings:
        return None
    planner = settings.get("planner") if isinstance(settings, dict) else None
    if planner is None:
        raise ValueError(
            "online.oracle needs a planner, such as that of configs/experiment/suite_offline.yaml."
        )
    return fill(Oracle, settings, "online.oracle", planner=instantiate(planner))
