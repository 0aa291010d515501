"""The settings of a training, by stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Annotated, Any, Literal

from gjwm._core.settings import (
    Bounds,
    Count,
    Factory,
    Natural,
    NonNegative,
    Positive,
    Rate,
    Settings,
)
from gjwm.models.dynamics import Dynamics, GaussianDynamics
from gjwm.objectives import SIGReg


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings(Settings):
    """The arguments of `gjwm.objectives.JointEmbeddingObjective` beside its discrepancy."""

    group = "objective"
    lam: NonNegative = 5.0
    detach_target: bool = False
    law: Literal["marginal", "within"] = "marginal"
    slow_dim: Natural = 0
    slow_weight: NonNegative = 0.8


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    """The joint training of encoder and dynamics: AdamW on a one-cycle schedule.

    Args:
        steps: gradient steps.
        batch, length: windows per step, and T of each: the open-loop horizon.
        episodes: draw each batch from this many episodes only, as an objective needs that compares
            two windows of one episode (half of `batch` makes pairs). None: from all windows.
        lr, weight_decay, clip, warmup: peak learning rate, AdamW's decay, gradient norm, share of
            steps spent warming up.
    """

    group = "train"
    steps: Count = 2000
    batch: Annotated[int, Bounds(least=2)] = 64
    length: Count = 5
    episodes: Count | None = None
    lr: Rate = 2e-3
    weight_decay: NonNegative = 1e-4
    clip: Positive = 1.0
    warmup: Annotated[float, Bounds(least=0, below=1)] = 0.1


@dataclass(frozen=True, kw_only=True)
class RefineSettings(Settings):
    """The dynamics alone, after the joint training, on latents that change no more.

    Args:
        steps: 0 leaves the dynamics as they are.
        dynamics: makes others, trained from the start; None goes on with the same.
        batch, length, lr, weight_decay, clip: as in `TrainSettings`.
    """

    group = "refine"
    steps: Natural = 2000
    batch: Count = 256
    length: Count = 5
    lr: Rate = 2e-3
    weight_decay: NonNegative = 1e-4
    clip: Positive = 1.0
    dynamics: Factory | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.dynamics is not None and not self.steps:
            raise ValueError(
                "refine.dynamics would never be trained, as refine.steps is 0: set "
                "refine.steps=10000, say, or refine.dynamics=null."
            )


@dataclass(frozen=True, kw_only=True)
class ReachSettings(Settings):
    """The joint Gaussian of now and later, on latents that change no more: `gjwm.models.Reach`.

    Args:
        steps: 0: none.
        dim, horizon: K, and the mean lag in steps.
        batch, lr: pairs per step, peak learning rate.
    """

    group = "reach"
    steps: Natural = 0
    dim: Count = 16
    horizon: Count = 16
    batch: Count = 512
    lr: Rate = 2e-3


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings(Settings):
    """How predicted spreads are corrected after training, on episodes it never saw.

    Args:
        episodes: that are collected for it; 0: none, and nothing is corrected.
        length: of these episodes; None: as long as those of the dataset.
        horizon: steps ahead that get a factor of their own.
        particles: of each forecast.
    """

    group = "calibrate"
    episodes: Natural = 200
    length: Count | None = None
    horizon: Count = 12
    particles: Count = 64


@dataclass(frozen=True, kw_only=True)
class DecodeSettings(Settings):
    """The decoder, latent to picture, for films: Adam on a one-cycle schedule; 0 steps: none."""

    group = "decode"
    steps: Natural = 600
    batch: Count = 64
    lr: Rate = 2e-3


@dataclass(frozen=True, kw_only=True)
class ModelRecipe(Settings):
    """What a model is made of, and its objective.

    Components are factories: classes, or `functools.partial` of them.

    Args:
        latent_dim: D, the numbers that a latent has.
        encoder: called with (observation_shape=, latent_dim=); None: a `ConvEncoder` for images, an
            `MLPEncoder` for vectors.
        dynamics, heads: called with (latent_dim=, action_dim=).
        discrepancy: called without arguments.
        seed: of first weights and of all that is drawn in training.
    """

    latent_dim: Count = 32
    encoder: Factory | None = None
    dynamics: Factory = GaussianDynamics
    heads: Mapping[str, Factory] = field(default_factory=dict)
    discrepancy: Factory = SIGReg
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    seed: Natural = 0

    def __post_init__(self):
        super().__post_init__()
        if self.objective.slow_dim >= self.latent_dim:
            raise ValueError(
                f"objective.slow_dim={self.objective.slow_dim} must be below "
                f"latent_dim={self.latent_dim}, or no latents are left to the rest."
            )

    def make_dynamics(self, name: str, factory: Factory, action_dim: int) -> Dynamics:
        """Dynamics of this recipe's latents; `name` is that of the setting."""
        return made(name, factory, latent_dim=self.latent_dim, action_dim=action_dim)

    def plain(self) -> dict[str, Any]:
        """All settings as plain data, factories by the names of their classes."""
        return plain(self)


@dataclass(frozen=True, kw_only=True)
class Recipe(ModelRecipe):
    """Everything that decides which model a dataset becomes. Its defaults learn dm_control's
    reacher from 64x64 pixels.
    """

    train: TrainSettings = field(default_factory=TrainSettings)
    refine: RefineSettings = field(default_factory=RefineSettings)
    reach: ReachSettings = field(default_factory=ReachSettings)
    calibrate: CalibrateSettings = field(default_factory=CalibrateSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)


class ComponentError(ValueError):
    """A component that cannot be made as its settings say; `name` is that of the settings."""

    def __init__(self, name: str, reason: object):
        super().__init__(f"{name}: {str(reason).rstrip('.')}.")
        self.name = name


def made(name: str, factory: Factory, **given: Any) -> Any:
    """What a factory makes.

    Raises:
        ComponentError: for arguments that it does not take or that no network can have, or a
            factory that makes nothing.
    """
    try:
        component = factory(**given)
    except (TypeError, RuntimeError) as error:
        raise ComponentError(name, error) from error
    if component is None:
        raise ComponentError(name, "its factory made nothing (None)")
    return component


def plain(value: Any) -> Any:
    """Settings as JSON and YAML hold them."""
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, partial):
        return {**plain(value.func), **plain(value.keywords)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value if not isinstance(value, float) or math.isfinite(value) else str(value)
    if callable(value):
        return {"_target_": f"{value.__module__}.{getattr(value, '__qualname__', repr(value))}"}
    return value.tolist() if hasattr(value, "tolist") else repr(value)
