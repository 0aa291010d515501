"""The report of a run that has not ended: training curves on a page that reloads itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gjwm.reporting.figures import training_figures
from gjwm.reporting.page import REPORT, figure_grid, page, returns_table, save_page, write_report
from gjwm.reporting.run import EVALUATION, read_metrics


class LiveReport:
    """Writes `<folder>/report.html` from the metrics logged so far. A context manager.

    Left by an error, it draws the report of an evaluation that the folder holds, or says where
    training stopped.

    Args:
        folder: the run's.
        name: the page's title.
        steps: gradient steps of the whole training, for the progress bar.
        seconds: between two pages, and until the browser reloads; 0 writes none.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str,
        steps: int,
        seconds: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        if seconds < 0:
            raise ValueError(
                f"a live report is written every so many seconds, 0 for never, got {seconds}."
            )
        self.folder, self.name, self.steps, self.seconds = Path(folder), name, steps, seconds
        self._clock, self._last, self._step = clock, -float("inf"), 0
        self._remarks: tuple[str, ...] = ()

    def __enter__(self) -> LiveReport:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            return
        if self.seconds and (self.folder / EVALUATION).is_file():
            # Nothing may hide the error that brought us here.
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
                write_report(self.folder)
                return
        self._write(f"stopped at step {self._step} of {self.steps}: {error or kind.__name__}")

    def update(self, step: int, remarks: Sequence[str] = ()) -> None:
        """Call after each logged line; most calls do nothing but note the step and the remarks:
        what is wrong with the training so far, a sentence each.
        """
        now, self._step, self._remarks = self._clock(), step, tuple(remarks)
        if now - self._last >= self.seconds:
            self._last = now
            self._write(f"step {step} of {self.steps}", refresh=max(1, round(self.seconds)))

    def finish(
        self,
        step: int,
        hint: str = "`gjwm evaluate` writes the full report here",
        returns: Mapping[str, Any] | None = None,
    ) -> None:
        """The last page, which does not reload; an evaluation may write the full report over it.

        Args:
            returns: what was earned by who acts, see `gjwm.rl.return_report`.
        """
        self._step = step
        earned = returns_table(returns) if returns else ""
        self._write(f"step {step} of {self.steps}, done; {hint}", earned=earned)

    def _wrong(self) -> str:
        lines = "".join(f"<p>{escape(remark)}</p>" for remark in self._remarks)
        return f'<div class="verdict poor" id="remarks">{lines}</div>' if lines else ""

    def _write(self, state: str, refresh: int | None = None, earned: str = "") -> None:
        if not self.seconds:
            return
        # The unfinished log first: an older run's metrics.jsonl may lie beside it.
        curves = figure_grid(*training_figures(read_metrics(self.folder, unfinished=True)))
        done = min(self._step, self.steps)
        body = (
            f'<header><p class="eyebrow">training, {escape(state)}</p><h1>{escape(self.name)}</h1>'
            f'<progress max="{self.steps}" value="{done}"></progress>{self._wrong()}</header>'
            f'{earned}<section id="training"><h2>Curves</h2>{curves}</section>'
        )
        save_page(self.folder / REPORT, page(self.name, body, refresh=refresh))
