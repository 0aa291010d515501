"""The report of a run that has not ended: training curves on a page that reloads itself. The local
view, without an account.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from html import escape
from pathlib import Path

from gjwm.reporting.figures import training_figures
from gjwm.reporting.page import REPORT, figure_grid, page, save_page, write_report
from gjwm.reporting.run import EVALUATION, read_metrics


class LiveReport:
    """Writes `<folder>/report.html` from the metrics logged so far, at most every `seconds`. A
    context manager.

    Left by an error, it draws the full report of the evaluation that the folder already holds
    again, or says where training stopped.

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

    def __enter__(self) -> LiveReport:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if not self.seconds or kind is None:
            return
        if (self.folder / EVALUATION).is_file():
            with contextlib.suppress(
                FileNotFoundError, ValueError, KeyError
            ):  # the error that brought us here is told
                write_report(self.folder)
                return
        self._write(f"stopped at step {self._step} of {self.steps}: {error or kind.__name__}", None)

    def update(self, step: int) -> None:
        """Call after each logged line; most calls do nothing."""
        now, self._step = self._clock(), step
        if self.seconds and now - self._last >= self.seconds:
            self._last = now
            self._write(f"step {step} of {self.steps}", max(1, round(self.seconds)))

    def finish(self, step: int, told: str = "`gjwm evaluate` writes the full report here") -> None:
        """The last page, which no longer reloads; an evaluation may then write the full report over
        it.
        """
        self._step = step
        if self.seconds:
            self._write(f"step {step} of {self.steps}, done; {told}", None)

    def _write(self, told: str, refresh: int | None) -> None:
        # The unfinished log first: an older run's metrics.jsonl may lie beside it.
        metrics = read_metrics(self.folder, unfinished=True)
        head = (
            f'<header><p class="eyebrow">training, {escape(told)}</p><h1>{escape(self.name)}</h1>'
            f'<progress max="{self.steps}" '
            f'value="{min(self._step, self.steps)}"></progress></header>'
        )
        curves = figure_grid(training_figures(metrics))
        save_page(
            self.folder / REPORT,
            page(
                f"{self.name}: training",
                f'{head}<section id="training"><h2>So far</h2>{curves}</section>',
                refresh=refresh,
            ),
        )
