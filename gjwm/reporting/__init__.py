"""What a run's folder says, on one page: `write_report` draws report.html."""

from gjwm.reporting.live import LiveReport
from gjwm.reporting.page import write_report
from gjwm.reporting.run import ARRAYS, EVALUATION, GALLERY, load_run, save_arrays

__all__ = [
    "ARRAYS",
    "EVALUATION",
    "GALLERY",
    "LiveReport",
    "load_run",
    "save_arrays",
    "write_report",
]
