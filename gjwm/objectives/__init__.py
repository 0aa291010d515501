"""The Gaussian joint-embedding objective: alignment + lam * D(p(Z) || N(0, Sigma)), and the
discrepancies D.

Everything here sees tensors only. A discrepancy is an `nn.Module` from latents z (N, D) or (B, T,
D) to a scalar that is small when the law of z is the target Gaussian; `JointEmbeddingObjective`
adds it to the alignment of predicted and encoded latents."""

from gjwm.objectives.base import Discrepancy as Discrepancy
from gjwm.objectives.base import NonFiniteLatentsError as NonFiniteLatentsError
from gjwm.objectives.base import NoRegularizer as NoRegularizer
from gjwm.objectives.episodes import EpisodeObjective as EpisodeObjective
from gjwm.objectives.episodes import make_objective as make_objective
from gjwm.objectives.epps_pulley import EPPS_PULLEY_NULL_95 as EPPS_PULLEY_NULL_95
from gjwm.objectives.epps_pulley import EPPS_PULLEY_NULL_MEAN as EPPS_PULLEY_NULL_MEAN
from gjwm.objectives.epps_pulley import W0 as W0
from gjwm.objectives.epps_pulley import epps_pulley as epps_pulley
from gjwm.objectives.epps_pulley import epps_pulley_exact as epps_pulley_exact
from gjwm.objectives.information import predictive_information as predictive_information
from gjwm.objectives.moments import GaussianKL as GaussianKL
from gjwm.objectives.moments import VICReg as VICReg
from gjwm.objectives.objective import JointEmbeddingObjective as JointEmbeddingObjective
from gjwm.objectives.samples import BHEP as BHEP
from gjwm.objectives.samples import SlicedEnergy as SlicedEnergy
from gjwm.objectives.samples import SlicedWasserstein as SlicedWasserstein
from gjwm.objectives.samples import bhep as bhep
from gjwm.objectives.samples import energy_1d as energy_1d
from gjwm.objectives.samples import random_directions as random_directions
from gjwm.objectives.samples import wasserstein_1d as wasserstein_1d
from gjwm.objectives.sigreg import SIGReg as SIGReg
from gjwm.objectives.subspaces import Subspaces as Subspaces
from gjwm.objectives.target import GaussianTarget as GaussianTarget
