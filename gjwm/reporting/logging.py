"""What a run writes while it goes: metrics.jsonl, and wandb and TensorBoard with the same keys.

The only module that imports wandb and tensorboard, and only when they are used.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gjwm.training.metrics import MetricsFile

log = logging.getLogger(__name__)

MODES = ("offline", "online", "disabled")


class RunLogger(MetricsFile):
    """Scalars of one run to its `MetricsFile`, to wandb and to TensorBoard. A context manager.

    Args:
        path, resume_after: see `MetricsFile`.
        wandb_mode: "offline" (needs no account and no network), "online" or "disabled".
        project, name, config: as wandb takes them.
        tensorboard: also events in `path`/tensorboard, for `tensorboard --logdir runs`.

    Raises:
        ImportError: for tensorboard where it is not installed.
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
        tensorboard: bool = False,
    ):
        check_mode(wandb_mode)
        check_tensorboard(tensorboard)
        super().__init__(path, resume_after=resume_after)
        self._wandb = _Wandb(
            self.folder, wandb_mode, project, name=name, group=name, job="train", config=config
        )
        self._tensorboard: Any = None
        if tensorboard:
            from torch.utils.tensorboard.writer import SummaryWriter

            # a killed run's steps after the state that it goes on from are hidden
            later = None if resume_after is None else resume_after + 1
            folder = str(self.folder / "tensorboard")
            self._tensorboard = SummaryWriter(folder, purge_step=later)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._wandb.ask("finish", exit_code=0 if error[0] is None else 1)
        if self._tensorboard is not None:
            self._tensorboard.close()

    def log(self, metrics: dict[str, float], step: int) -> None:
        super().log(metrics, step)
        self._wandb.ask("log", metrics, step=step)
        if self._tensorboard is not None:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, step)


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
    run = _Wandb(Path(path), wandb_mode, project, name=f"{group} {job}", group=group, job=job)
    row = flatten(results or {}, "evaluation")
    for name, file in (videos or {}).items():
        row[f"videos/{name}"] = run.film(file)
    if row:
        run.ask("log", row)
    run.ask("finish")


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


def check_tensorboard(wanted: bool) -> None:
    """Raise ImportError where TensorBoard is wanted and not installed."""
    if not wanted:
        return
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "logger.tensorboard=true needs tensorboard: pip install 'gjwm[tensorboard]'."
        ) from error


class _Wandb:
    """A wandb run, which nothing depends on: when it fails, that is said once and all goes on."""

    def __init__(self, path: Path, mode: str, project: str, *, job: str, **options: Any):
        self._run: Any = None
        if mode != "disabled":
            options |= dict(mode=mode, project=project, job_type=job, dir=str(path))
            self._run = self._tried(lambda: _init(options))

    def ask(self, method: str, *arguments: Any, **options: Any) -> None:
        """Call a method of the run, if it has not failed."""
        if self._run is not None:
            self._tried(lambda: getattr(self._run, method)(*arguments, **options))

    def film(self, file: Path) -> Any:
        """What wandb makes of a film; None when it has failed."""

        def made() -> Any:
            import wandb

            return wandb.Video(str(file), format=file.suffix.removeprefix("."))

        return None if self._run is None else self._tried(made)

    def _tried(self, what: Callable[[], Any]) -> Any:
        try:
            return what()
        except Exception as error:  # its own, the network's, the disk's
            self._run = None
            said = " ".join(str(error).split()).rstrip(".")
            log.warning(
                f"wandb failed and is left out from here on ({type(error).__name__}: {said}); "
                "metrics.jsonl has everything."
            )
            return None


def _init(options: dict[str, Any]) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb.init(settings={"console": "off"}, **options)
