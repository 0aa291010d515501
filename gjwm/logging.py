"""What a run writes while it goes: metrics.jsonl, wandb with the same keys, and a progress bar.

The only module that imports wandb.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

MODES = ("offline", "online", "disabled")


class RunLogger:
    """Scalars of one run to `<path>/metrics.jsonl` and to wandb. A context manager.

    Args:
        path: the run's folder. Lines go to metrics.jsonl.partial, which becomes metrics.jsonl when the run ends well: one that
            fails leaves an older run's figures beside its checkpoint.
        wandb_mode: "offline" (needs no account and no network), "online" or "disabled".
        project, name, config: as wandb takes them.
        resume_after: lines up to this step of an interrupted run are kept, and lines are added to them.
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
        if wandb_mode not in MODES:
            raise ValueError(f"logger.wandb must be one of {', '.join(MODES)}, got {wandb_mode!r}.")
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._partial = self.path / "metrics.jsonl.partial"
        kept = "" if resume_after is None else self._lines_until(resume_after)
        self._file = open(self._partial, "w", encoding="utf-8")
        self._file.write(kept)
        self._file.flush()
        self._wandb = None
        if wandb_mode != "disabled":
            os.environ.setdefault("WANDB_SILENT", "true")
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
            import wandb

            self._wandb = wandb.init(
                mode=wandb_mode,
                project=project,
                name=name,
                config=config,
                dir=str(self.path),
                settings={"console": "off"},
            )

    def _lines_until(self, step: int) -> str:
        """Whole lines of the interrupted run up to `step`; a killed process may leave half a line, and later ones."""
        kept = []
        for line in self._partial.read_text(encoding="utf-8").splitlines() if self._partial.exists() else ():
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


class progress(tqdm):
    """A progress bar with loss, frames/s and the time left."""

    def __init__(self, total: int, desc: str):
        super().__init__(total=total, desc=desc, unit="step", mininterval=0.5)

    def report(self, step: int, *, loss: float, frames_per_second: float | None = None) -> None:
        """Move to `step` and show the loss and, when known, frames/s."""
        shown = {"loss": f"{loss:.4f}"}
        if frames_per_second is not None:
            shown["frames/s"] = f"{frames_per_second:.0f}"
        self.set_postfix(shown, refresh=False)
        self.update(step - self.n)
