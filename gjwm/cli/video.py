"""`gjwm video`: films of attempts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from gjwm._core.video import check_suffix
from gjwm.cli.config import factory, import_parts
from gjwm.cli.evaluate import evaluation_settings, task_of
from gjwm.models.decoder import decoder_of
from gjwm.models.world_model import WorldModel
from gjwm.reporting.films import film_attempts, goals_video, grid_video
from gjwm.reporting.logging import log_results


def video_command(cfg: DictConfig, command: str) -> None:
    """Write films of attempts into cfg.run_dir/videos: goals*.mp4, some in detail, and grid*.mp4,
    many at once.
    """
    run, settings = Path(cfg.run_dir), evaluation_settings(cfg)
    suffixes = (cfg.video.format,) if isinstance(cfg.video.format, str) else tuple(cfg.video.format)
    for suffix in suffixes:
        check_suffix(f"goals.{suffix}")
    count = max(cfg.video.episodes, cfg.video.grid)
    if count < 1:
        raise ValueError(
            "a video shows video.episodes attempts in detail and video.grid at once, one of them "
            "at least 1, got 0 and 0."
        )
    checkpoint = Path(cfg.video.checkpoint or run / "checkpoint.pt")
    import_parts(cfg)
    model = WorldModel.load(checkpoint, cfg.device)
    decoder = decoder_of(checkpoint.parent, cfg.device)
    seeds = [cfg.evaluate.seed] if cfg.video.seeds is None else list(cfg.video.seeds)
    made = []
    for seed in seeds:
        films = film_attempts(
            model,
            task_of(cfg),
            replace(settings, seed=seed),
            count=count,
            planner=instantiate(cfg.planner),
            cost=factory(cfg.cost, "cost"),
            readout_episodes=cfg.video.readout_episodes,
            workers=cfg.collect.workers,
            notify=_say,
        )
        films = replace(films, decoder=decoder, scale=cfg.video.scale)
        name = "" if cfg.video.seeds is None else f"-seed-{seed}"
        for suffix in suffixes:
            if cfg.video.episodes:
                path = run / "videos" / f"goals{name}.{suffix}"
                _say(f"drawing {path.name}")
                made.append(goals_video(path, films, shown=cfg.video.episodes, fps=cfg.video.fps))
            if cfg.video.grid:
                path = run / "videos" / f"grid{name}.{suffix}"
                _say(f"drawing {path.name}")
                made.append(grid_video(path, films, shown=cfg.video.grid, fps=cfg.video.fps))
    print("\n".join(map(str, made)))
    if cfg.logger.wandb != "disabled":
        log_results(
            run,
            wandb_mode=cfg.logger.wandb,
            project=cfg.logger.project,
            group=cfg.name,
            job="video",
            videos={path.stem: path for path in made},
        )


def _say(message: str) -> None:
    print(message, flush=True)
