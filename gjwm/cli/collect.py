"""`gjwm collect`: episodes into a dataset."""

from __future__ import annotations

from omegaconf import DictConfig

from gjwm.cli.config import behaviour_settings, env_kwargs
from gjwm.data.collect import collect_dataset, sole_collector


def collect_command(cfg: DictConfig, command: str) -> None:
    """Collect episodes into cfg.dataset, extending what is there; with cfg.resume only those that
    are missing.
    """
    if not cfg.resume:
        _collect(cfg, cfg.collect.episodes)
        return
    with sole_collector(cfg.dataset) as info:
        there = 0 if info is None else info["episodes"]
        if there >= cfg.collect.episodes:
            print(f"{cfg.dataset}: holds {there} episodes, none are missing")
        else:
            _collect(cfg, cfg.collect.episodes - there)


def _collect(cfg: DictConfig, episodes: int) -> None:
    result = collect_dataset(
        cfg.dataset,
        cfg.env.id,
        env_kwargs(cfg),
        behaviour_settings(cfg),
        episodes=episodes,
        length=cfg.collect.length,
        seed=cfg.seed,
        workers=cfg.collect.workers,
        compress=cfg.compress,
    )
    repeat = cfg.env.get("action_repeat", 1)
    print(
        f"{cfg.dataset}: {result['episodes']} episodes, {result['frames']} frames in "
        f"{result['seconds']:.1f} s ({result['frames_per_second']:.0f} frames/s, "
        f"{repeat * result['frames_per_second']:.0f} env steps/s)"
    )
    seen = result["coverage"]
    print(
        f"coverage: {seen['cells']} cells of {seen['of']} visited, as even as "
        f"{seen['effective_cells']:.1f} cells visited alike"
    )
