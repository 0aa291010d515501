"""What a training writes and shows while it goes: metrics.jsonl, and a progress bar."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

from tqdm import tqdm

from gjwm._core.files import replacing


class MetricsFile:
    """Scalars of one run, a line of JSON per step, in `<folder>/metrics.jsonl`. A context manager.

    Lines go to metrics.jsonl.partial, which becomes metrics.jsonl when the run ends well: one that
    fails leaves an older run's figures beside its checkpoint.

    Args:
        folder: the run's.
        resume_after: lines up to this step of an interrupted run are kept, and lines are added to
            them.
    """

    def __init__(self, folder: str | Path, *, resume_after: int | None = None):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._partial = self.folder / "metrics.jsonl.partial"
        kept = "" if resume_after is None else self._lines_until(resume_after)
        # killed here, the lines of before are all there still
        with replacing(self._partial) as fresh:
            fresh.write_text(kept, encoding="utf-8")
        self._file = open(self._partial, "a", encoding="utf-8")

    def _lines_until(self, step: int) -> str:
        """Whole lines of the interrupted run up to `step`; a killed process may leave half a line,
        and later ones.
        """
        kept = []
        # A run that had ended its log and is gone on with has no unfinished one.
        source = self._partial if self._partial.exists() else self.folder / "metrics.jsonl"
        for line in source.read_text(encoding="utf-8").splitlines() if source.exists() else ():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except ValueError:
                break
        return "".join(kept)

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        if error[0] is None:
            self._partial.replace(self.folder / "metrics.jsonl")

    def log(self, metrics: dict[str, float], step: int) -> None:
        """One line, flushed; NaN and infinity become null, which JSON can hold."""
        row = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()


class progress(tqdm):
    """A progress bar with loss, frames/s and the time left."""

    def __init__(self, total: int, desc: str, *, silent: bool = False):
        super().__init__(total=total, desc=desc, unit="step", mininterval=0.5, disable=silent)
        self._drawn = -math.inf

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

    def doing(self, step: int, what: str) -> None:
        """Move to `step` and say what is done there, twice a second at most."""
        self.set_postfix_str(what, refresh=False)
        if step > self.n:
            self.update(step - self.n)
        elif time.monotonic() - self._drawn >= 0.5:  # tqdm draws no bar that stays
            self._drawn = time.monotonic()
            self.refresh()
