"""How a model is judged: prediction, geometry, probes, calibration, surprise, goals, verdict.

settings      what an evaluation does
prediction    how far ahead latents are explained, beside the baselines of baselines.py
geometry      is the law of z a standard Gaussian (tests in normality.py), and how do latents move
probes        how much of the true state can be read
information   what z holds of its future, of entropy, and of the state with few labels
calibration   do predicted laws hold what they promise
surprise      is what cannot happen noticed
goals         attempts of model, chance and oracle to reach goals
evaluate      all of it, as one report; verdict and intervals say what it means
"""

from gjwm.evaluation.calibration import calibration_report
from gjwm.evaluation.evaluate import Details, evaluate, held_out_episodes
from gjwm.evaluation.geometry import embedding_report
from gjwm.evaluation.information import (
    contrastive_information,
    entropy_report,
    gaussian_information,
    information_report,
    label_efficiency,
)
from gjwm.evaluation.settings import Evaluation

__all__ = [
    "Details",
    "Evaluation",
    "calibration_report",
    "contrastive_information",
    "embedding_report",
    "entropy_report",
    "evaluate",
    "gaussian_information",
    "held_out_episodes",
    "information_report",
    "label_efficiency",
]
