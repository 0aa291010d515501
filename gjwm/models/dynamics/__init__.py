"""Probabilistic latent dynamics p(z' | z, a): one interface, a distribution as the answer, batched
rollouts.

prediction.py   the laws: diagonal, low-rank and full Gaussians, mixtures, ensembles
base.py         rollouts, forecasts and the pieces of training that all dynamics share
memory.py       GRU and causal transformer, for state that one latent does not show
gaussian.py     DeterministicDynamics, GaussianDynamics
ensemble.py     EnsembleDynamics
mixture.py      MixtureDynamics
linear.py       LinearGaussianDynamics
static.py       StaticLatents, around any of them: latents that an episode keeps
"""

from gjwm.models.dynamics.base import Dynamics, Past
from gjwm.models.dynamics.ensemble import EnsembleDynamics
from gjwm.models.dynamics.gaussian import DeterministicDynamics, GaussianDynamics
from gjwm.models.dynamics.linear import LinearGaussianDynamics
from gjwm.models.dynamics.mixture import MixtureDynamics
from gjwm.models.dynamics.prediction import (
    EnsemblePrediction,
    FullPrediction,
    LowRankPrediction,
    MixturePrediction,
    Prediction,
    TailedPrediction,
    beta_nll,
    gaussian_crps,
)
from gjwm.models.dynamics.static import StaticLatents, with_static

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
    "StaticLatents",
    "TailedPrediction",
    "beta_nll",
    "gaussian_crps",
    "with_static",
]
