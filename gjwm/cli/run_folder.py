"""A command's run folder, runs/<name>/, as `gjwm.training.run.Run` with the config's log and live
report.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gjwm._core.fit import Log
from gjwm.reporting import LiveReport
from gjwm.reporting.logging import RunLogger, check_tensorboard
from gjwm.training.run import RETURNS, Run


def run_of(cfg: DictConfig, command: str, **options: Any) -> Run:
    """cfg.run_dir; `options` as `Run` takes them."""
    check_tensorboard(cfg.logger.tensorboard)

    @contextmanager
    def logging(steps: int, after: int | None) -> Iterator[Log]:
        with logging_into(cfg, steps, after) as (logger, live):

            def log(scalars: dict[str, float], step: int) -> None:
                logger.log(scalars, step)
                live.update(step, run.remarks)

            yield log
            if options.get("last") == RETURNS:
                live.finish(steps, f"{RETURNS} has each return", run.returns)
            else:
                live.finish(steps)

    run = Run(
        cfg.run_dir,
        OmegaConf.to_container(cfg, resolve=True),
        device=cfg.device,
        resume=cfg.resume,
        log_every=cfg.logger.every,
        checkpoint_every=cfg.checkpoint.every,
        command=command,
        logging=logging,
        **options,
    )
    return run


@contextmanager
def logging_into(
    cfg: DictConfig, steps: int, after: int | None
) -> Iterator[tuple[RunLogger, LiveReport]]:
    """The run's log, kept up to step `after` of an interrupted run, and its live report of `steps`
    steps.
    """
    with (
        LiveReport(cfg.run_dir, name=cfg.name, steps=steps, seconds=cfg.report.every) as live,
        RunLogger(
            cfg.run_dir,
            wandb_mode=cfg.logger.wandb,
            project=cfg.logger.project,
            name=cfg.name,
            config=OmegaConf.to_container(cfg, resolve=True),
            resume_after=after,
            tensorboard=cfg.logger.tensorboard,
        ) as logger,
    ):
        yield logger, live
