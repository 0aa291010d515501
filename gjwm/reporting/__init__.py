"""What a run's folder says, on one page: `write_report` draws report.html, `judge` says whether the model is good and why."""

from gjwm.report.live import LiveReport
from gjwm.report.page import write_report
from gjwm.report.run import ARRAYS, EVALUATION, GALLERY, load_run, save_arrays
from gjwm.report.verdict import Verdict, judge

__all__ = [
    "ARRAYS",
    "EVALUATION",
    "GALLERY",
    "LiveReport",
    "Verdict",
    "judge",
    "load_run",
    "save_arrays",
    "write_report",
]
