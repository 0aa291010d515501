"""How a model is judged: prediction, geometry, probes, calibration, surprise, goals, verdict.

settings      what an evaluation does
prediction    how far ahead latents are explained, beside the baselines of baselines.py
geometry      is the law of z a standard Gaussian (tests in normality.py), and how do latents move
probes        how much of the true state can be read
calibration   do predicted laws hold what they promise
surprise      is what cannot happen noticed
goals         attempts of model, chance and oracle to reach goals
evaluate      all of it, as one report; verdict and intervals say what it means
"""

from gjwm.evaluation.calibration import calibration_report
from gjwm.evaluation.evaluate import Details, evaluate, held_out_episodes
from gjwm.evaluation.geometry import embedding_report
from gjwm.evaluation.settings import Evaluation

__all__ = [
    "Details",
    "Evaluation",
    "calibration_report",
    "embedding_report",
    "evaluate",
    "held_out_episodes",
]
