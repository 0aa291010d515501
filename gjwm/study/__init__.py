"""Sweeps over any grid of settings: which runs there are, running them, and what they found
together. See docs/study.md.
"""

from gjwm.study.grid import Cell, expand, written
from gjwm.study.launch import Job, Outcome, has_joblib, run_local, run_slurm
from gjwm.study.page import write_study
from gjwm.study.ranking import ranking
from gjwm.study.summary import Record
from gjwm.study.sweep import Sweep, settings_of
from gjwm.study.tuning import best

__all__ = [
    "Cell",
    "Job",
    "Outcome",
    "Record",
    "Sweep",
    "best",
    "expand",
    "has_joblib",
    "ranking",
    "run_local",
    "run_slurm",
    "settings_of",
    "write_study",
    "written",
]
