"""Probabilistic latent dynamics p(z' | z, a): one interface, a distribution as the answer, batched
rollouts.

prediction.py   the laws: diagonal, low-rank and full Gaussians, mixtures, ensembles
base.py         rollouts, forecasts and the pieces of training that all dynamics share
memory.py       GRU and causal transformer, for state that one latent does not show
gaussian.py     DeterministicDynamics, GaussianDynamics
ensemble.py     EnsembleDynamics
mixture.py      MixtureDynamics
linear.py       LinearGaussianDynamics
"""

from gjwm.models.dynamics.base import Dynamics as Dynamics
from gjwm.models.dynamics.base import Past as Past
from gjwm.models.dynamics.ensemble import EnsembleDynamics as EnsembleDynamics
from gjwm.models.dynamics.gaussian import DeterministicDynamics as DeterministicDynamics
from gjwm.models.dynamics.gaussian import GaussianDynamics as GaussianDynamics
from gjwm.models.dynamics.linear import LinearGaussianDynamics as LinearGaussianDynamics
from gjwm.models.dynamics.mixture import MixtureDynamics as MixtureDynamics
from gjwm.models.dynamics.prediction import EnsemblePrediction as EnsemblePrediction
from gjwm.models.dynamics.prediction import FullPrediction as FullPrediction
from gjwm.models.dynamics.prediction import LowRankPrediction as LowRankPrediction
from gjwm.models.dynamics.prediction import MixturePrediction as MixturePrediction
from gjwm.models.dynamics.prediction import Prediction as Prediction
from gjwm.models.dynamics.prediction import TailedPrediction as TailedPrediction
from gjwm.models.dynamics.prediction import beta_nll as beta_nll
from gjwm.models.dynamics.prediction import gaussian_crps as gaussian_crps
