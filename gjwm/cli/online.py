"""`gjwm online`: a task learned from its reward, while acting or from a dataset."""

from __future__ import annotations

from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gjwm.cli.config import env_kwargs, factories, factory, fill
from gjwm.cli.run_folder import run_of
from gjwm.rl import Exploration, LearnerSettings, OnlineSettings, Oracle, RewardRecipe, learn
from gjwm.training.run import RETURNS
from gjwm.training.settings import ObjectiveSettings


def online_command(cfg: DictConfig, command: str) -> None:
    """Learn from reward into cfg.run_dir: while acting, or from the dataset cfg.online.data, or
    both; with cfg.resume go on.
    """
    recipe = reward_recipe(cfg)
    learn(
        cfg.env.id,
        recipe,
        run=run_of(cfg, command, last=RETURNS),
        device=cfg.device,
        workers=cfg.collect.workers,
        storage=cfg.storage,
        notify=partial(print, flush=True),
        **env_kwargs(cfg),
    )
    print(f"{cfg.run_dir}: checkpoint.pt, returns.csv, returns.json, metrics.jsonl")


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
        objective=fill(ObjectiveSettings, cfg.objective, "objective"),
        planner=factory(cfg.planner, "planner"),
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
    return fill(
        Oracle, settings, "online.oracle", planner=factory(planner, "online.oracle.planner")
    )
