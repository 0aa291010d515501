"""Everything with weights: encoders o -> z, dynamics p(z' | z, a), heads, decoder, and the world
model that holds them."""

from gjwm._core.configured import Configured as Configured
from gjwm.models.dynamics import DeterministicDynamics as DeterministicDynamics
from gjwm.models.dynamics import EnsembleDynamics as EnsembleDynamics
from gjwm.models.dynamics import GaussianDynamics as GaussianDynamics
from gjwm.models.dynamics import LinearGaussianDynamics as LinearGaussianDynamics
from gjwm.models.dynamics import MixtureDynamics as MixtureDynamics
from gjwm.models.dynamics import Prediction as Prediction
from gjwm.models.encoders import ConvEncoder as ConvEncoder
from gjwm.models.encoders import MLPEncoder as MLPEncoder
from gjwm.models.heads import RewardHead as RewardHead
from gjwm.models.heads import StateHead as StateHead
from gjwm.models.heads import TerminationHead as TerminationHead
from gjwm.models.reach import Reach as Reach
from gjwm.models.world_model import WorldModel as WorldModel
