"""Probabilistic latent dynamics p(z' | z, a): one interface, a distribution as the answer, batched rollouts.

prediction.py   the laws: diagonal, low-rank and full Gaussians, mixtures, ensembles
base.py         rollouts, forecasts and the pieces of training that all dynamics share
memory.py       GRU and causal transformer, for state that one latent does not show
gaussian.py     DeterministicDynamics, GaussianDynamics
ensemble.py     EnsembleDynamics
mixture.py      MixtureDynamics
linear.py       LinearGaussianDynamics
"""

from gjwm.dynamics.base import Dynamics, Past
from gjwm.dynamics.ensemble import EnsembleDynamics
from gjwm.dynamics.gaussian import DeterministicDynamics, GaussianDynamics
from gjwm.dynamics.linear import LinearGaussianDynamics
from gjwm.dynamics.mixture import MixtureDynamics
from gjwm.dynamics.prediction import (
    EnsemblePrediction,
    FullPrediction,
    LowRankPrediction,
    MixturePrediction,
    Prediction,
    TailedPrediction,
    beta_nll,
    gaussian_crps,
)

__all__ = [
    "DeterministicDynamics",
    "Dynamics",
    "EnsembleDynamics",
    "EnsemblePrediction",
    "FullPrediction",
    "GaussianDynamics",
    "LinearGaussianDynamics",
    "LowRankPrediction",
    "MixtureDynamics",
    "MixturePrediction",
    "Past",
    "Prediction",
    "TailedPrediction",
    "beta_nll",
    "gaussian_crps",
]
