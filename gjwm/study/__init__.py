"""Sweeps over any grid of settings: which runs there are, running them, and what they showed
together. See docs/study.md.
"""

from gjwm.study.grid import Cell, expand, written
from gjwm.study.launch import Job, Outcome, has_joblib, run_local, run_slurm
from gjwm.study.page import write_study
from gjwm.study.rows import read_rows
from gjwm.study.summary import Record, figures_of, ranking
from gjwm.study.sweep import Sweep, Tune, best, settings_of

__all__ = [
    "Cell",
    "Job",
    "Outcome",
    "Record",
    "Sweep",
    "Tune",
    "best",
    "expand",
    "figures_of",
    "has_joblib",
    "ranking",
    "read_rows",
    "run_local",
    "run_slurm",
    "settings_of",
    "write_study",
    "written",
]
