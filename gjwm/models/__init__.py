"""Everything with weights: encoders o -> z, dynamics p(z' | z, a), heads, decoder, and the world
model that holds them."""

from gjwm.models.dynamics import (
    DeterministicDynamics,
    EnsembleDynamics,
    GaussianDynamics,
    LinearGaussianDynamics,
    MixtureDynamics,
    Prediction,
)
from gjwm.models.encoders import ConvEncoder, MLPEncoder
from gjwm.models.heads import RewardHead, StateHead, TerminationHead
from gjwm.models.world_model import WorldModel

__all__ = [
    "ConvEncoder",
    "DeterministicDynamics",
    "EnsembleDynamics",
    "GaussianDynamics",
    "LinearGaussianDynamics",
    "MLPEncoder",
    "MixtureDynamics",
    "Prediction",
    "RewardHead",
    "StateHead",
    "TerminationHead",
    "WorldModel",
]
