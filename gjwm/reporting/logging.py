"""What a run writes while it goes: metrics.jsonl, wandb with the same keys, and a progress bar.

The only module that imports wandb.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gjwm._core.files import replacing

MODES = ("offline", "online", "disabled")


class RunLogger:
    """Scalars of one run to `<path>/metrics.jsonl` and to wandb. A context manager.

    Args:
        path: the run's folder. Lines go to metrics.jsonl.partial, which becomes metrics.jsonl when
            the run ends well: one that fails leaves an older run's figures beside its checkpoint.
        wandb_mode: "offline" (needs no account and no network), "online" or "disabled".
        project, name, config: as wandb takes them.
        resume_after: lines up to this step of an interrupted run are kept, and lines are added to
            them.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        wandb_mode: str = "offline",
        project: str = "gjwm",
        name: str | None = None,
        config: dict[str, Any] | None = None,
        resume_after: int | None = None,
    ):
        check_mode(wandb_mode)
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._partial = self.path / "metrics.jsonl.partial"
        kept = "" if resume_after is None else self._lines_until(resume_after)
        with replacing(self._partial) as fresh:  # a kill here leaves all earlier lines
            fresh.write_text(kept, encoding="utf-8")
        self._file = open(self._partial, "a", encoding="utf-8")
        self._wandb = None
        if wandb_mode != "disabled":
            self._wandb = _wandb_run(
                self.path, wandb_mode, project, name=name, group=name, job="train", config=config
            )

    def _lines_until(self, step: int) -> str:
        """Whole lines of the interrupted run up to `step`; a killed process may leave half a line,
        and later ones.
        """
        kept = []
        # A run that had ended its log and is continued has no unfinished one.
        source = self._partial if self._partial.exists() else self.path / "metrics.jsonl"
        for line in source.read_text(encoding="utf-8").splitlines() if source.exists() else ():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except ValueError:
                break
        return "".join(kept)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        if error[0] is None:
            self._partial.replace(self.path / "metrics.jsonl")
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error[0] is None else 1)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """One line of JSON, flushed; NaN and infinity become null, which JSON can hold."""
        row = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(metrics, step=step)


def log_results(
    path: str | Path,
    *,
    wandb_mode: str = "offline",
    project: str = "gjwm",
    group: str | None = None,
    job: str = "evaluate",
    results: Mapping[str, Any] | None = None,
    videos: Mapping[str, Path] | None = None,
) -> None:
    """Results of a trained run, as a wandb run of its own in the same group as the training.

    Args:
        path: the run's folder.
        results: nested; see `flatten`.
        videos: name -> .mp4 or .gif, logged as "videos/<name>".
    """
    check_mode(wandb_mode)
    if wandb_mode == "disabled":
        return
    import wandb

    run = _wandb_run(Path(path), wandb_mode, project, name=f"{group} {job}", group=group, job=job)
    row = flatten(results or {}, "evaluation")
    for name, file in (videos or {}).items():
        row[f"videos/{name}"] = wandb.Video(str(file), format=file.suffix.removeprefix("."))
    if row:
        run.log(row)
    run.finish()


def flatten(results: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The finite numbers of a nested report by their path, such as
    "evaluation/prediction/rank_accuracy"; lists and the configuration are left out.
    """
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping) and key != "config":
            flat |= flatten(value, f"{prefix}/{key}")
        elif isinstance(value, int | float) and type(value) is not bool and math.isfinite(value):
            flat[f"{prefix}/{key}"] = value
    return flat


def check_mode(wandb_mode: str) -> None:
    """Raise ValueError for an unknown way to use wandb."""
    if wandb_mode not in MODES:
        raise ValueError(f"logger.wandb must be one of {', '.join(MODES)}, got {wandb_mode!r}.")


def _wandb_run(path: Path, mode: str, project: str, *, job: str, **options: Any) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb.init(
        mode=mode,
        project=project,
        job_type=job,
        dir=str(path),
        settings={"console": "off"},
        **options,
    )


class progress(tqdm):
    """A progress bar with loss, frames/s and the time left."""

    def __init__(self, total: int, desc: str):
        super().__init__(total=total, desc=desc, unit="step", mininterval=0.5)

    def report(
        self,
        step: int,
        *,
        loss: float,
        frames_per_second: float | None = None,
        earned: float | None = None,
    ) -> None:
        """Move to `step` and show the loss and, when known, frames/s and the last return."""
        shown = {"loss": f"{loss:.4f}"}
        if frames_per_second is not None:
            shown["frames/s"] = f"{frames_per_second:.0f}"
        if earned is not None:
            shown["return"] = f"{earned:.1f}"
        self.set_postfix(shown, refresh=False)
        self.update(step - self.n)
