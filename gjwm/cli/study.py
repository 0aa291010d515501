"""`gjwm study`: many runs, one table."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from gjwm._core.files import holding
from gjwm._core.machine import cores
from gjwm.cli.config import load_config, split_sweep, with_experiment
from gjwm.study import (
    Job,
    Record,
    Sweep,
    has_joblib,
    read_rows,
    run_local,
    run_slurm,
    settings_of,
    write_study,
)
from gjwm.study.launch import Done


def study_command(cfg: DictConfig, command: str) -> None:
    """Run a grid of settings with several seeds, each run in a process of its own, and write what
    they found together.
    """
    overrides = shlex.split(command)[2:]
    axes, fixed = split_sweep(overrides)
    settings = OmegaConf.to_container(cfg.study, resolve=False)  # interpolations are each run's own
    folder = Path(cfg.run_dir)

    def summarise(records: Sequence[Record]) -> None:
        tune = settings["tune"]
        text = write_study(
            folder,
            records,
            title=cfg.name,
            command=command,
            reference=settings["reference"],
            tuned=None if tune is None else tune["key"],
        )
        print(text)
        print(folder / "study.md")

    if settings["rows"] is not None:
        summarise(read_rows(settings["rows"]))
        return
    settings["grid"] |= axes
    # as many as submitit's arrays run by default
    several = {
        "local": cores() if has_joblib() else 1,
        "slurm": 256,
    }
    if settings["launcher"] not in several:
        raise ValueError(f"study.launcher must be local or slurm, got {settings['launcher']!r}.")
    at_once = several[settings["launcher"]] if settings["jobs"] is None else settings["jobs"]
    if not isinstance(at_once, int) or at_once < 1:
        raise ValueError(f"study.jobs must be null or a whole number, 1 or more, got {at_once!r}.")
    sweep = Sweep(
        name=cfg.name,
        folder=folder,
        compose=lambda given: OmegaConf.to_container(
            load_config(with_experiment("run", given)), resolve=True
        ),
        given=[
            text
            for text in fixed
            if not text.lstrip("+~").startswith(("study=", "study.", "study@"))
        ],
        threads=1 if at_once > 1 and cfg.threads is None else cfg.threads,
        **settings_of(settings),
    )

    def launch(jobs: Sequence[Job], done: Done) -> None:
        if settings["launcher"] == "slurm":
            run_slurm(
                jobs, done, at_once=at_once, folder=folder / "slurm", options=settings["slurm"]
            )
        else:
            run_local(jobs, done, at_once=at_once)

    if not settings["only_summary"]:
        try:
            with holding(folder / "lock"):
                missing = "" if has_joblib() else "; pip install 'gjwm[study]' runs several"
                print(f"{folder}: up to {at_once} at once{missing}")
                sweep.execute(launch, lambda message: print(message, flush=True))
        except BlockingIOError as error:
            raise ValueError(
                f"another study is running in {folder}; wait for it, or look at it with "
                f"study.only_summary=true."
            ) from error
    records = sweep.records()
    summarise(records)
    failed = sum(record.state == "failed" for record in records)
    if failed and not settings["only_summary"]:
        raise RuntimeError(
            f"{failed} of {len(records)} runs failed, {folder / 'study.md'} says why; the same "
            f"command tries them again."
        )
