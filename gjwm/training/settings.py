"""The settings of a training, by stage. Each class checks what it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any

from gjwm.models.dynamics import Dynamics, GaussianDynamics, with_static
from gjwm.objectives import SIGReg

Factory = Callable[..., Any]  # a class, or a functools.partial of one


def _require(name: str, right: bool, expected: str, **given: Any) -> None:
    if not right:
        values = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise ValueError(f"{name} expects {expected}, got {values}.")


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """The arguments of `gjwm.objectives.JointEmbeddingObjective` beside its discrepancy."""

    lam: float = 5.0
    detach_target: bool = False
    law: str = "marginal"
    static_dim: int = 0
    static_weight: float = 4.0

    def __post_init__(self):
        _require(
            "the objective",
            self.lam >= 0 and self.law in ("marginal", "within") and self.static_dim >= 0,
            "lam >= 0, law marginal or within and static_dim >= 0",
            lam=self.lam,
            law=self.law,
            static_dim=self.static_dim,
        )


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The joint training of encoder and dynamics: AdamW on a one-cycle schedule.

    Args:
        steps: gradient steps.
        batch, length: windows per step, and T of each: the open-loop horizon.
        episodes: draw each batch from this many episodes only, as an objective needs that compares
            two windows of one episode (half of `batch` makes pairs). None: from all windows.
        lr, weight_decay, clip, warmup: peak learning rate, AdamW's decay, gradient norm, share of
            steps spent warming up.
    """

    steps: int = 2000
    batch: int = 64
    length: int = 5
    episodes: int | None = None
    lr: float = 2e-3
    weight_decay: float = 1e-4
    clip: float = 1.0
    warmup: float = 0.1

    def __post_init__(self):
        _require(
            "training",
            self.steps >= 1 and self.batch >= 2 and self.length >= 1,
            "steps >= 1, batch >= 2 and length >= 1",
            steps=self.steps,
            batch=self.batch,
            length=self.length,
        )
        _require(
            "training",
            self.episodes is None or self.episodes >= 1,
            "episodes >= 1, or None for all windows",
            episodes=self.episodes,
        )
        _require(
            "training",
            self.lr > 0 and self.clip > 0 and self.weight_decay >= 0 and 0 <= self.warmup < 1,
            "lr and clip > 0, weight_decay >= 0 and warmup from 0 to below 1",
            lr=self.lr,
            clip=self.clip,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
        )


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """The dynamics alone, after the joint training, on latents that change no more.

    Args:
        steps: 0 leaves the dynamics as they are.
        dynamics: makes others, trained from the start; None goes on with the same.
        batch, length, lr, weight_decay, clip: as in `TrainSettings`.
    """

    steps: int = 2000
    batch: int = 256
    length: int = 5
    lr: float = 2e-3
    weight_decay: float = 1e-4
    clip: float = 1.0
    dynamics: Factory | None = None

    def __post_init__(self):
        sizes = dict(steps=self.steps, batch=self.batch, length=self.length)
        rates = dict(lr=self.lr, clip=self.clip, weight_decay=self.weight_decay)
        _require(
            "refining",
            self.steps >= 0
            and min(self.batch, self.length) >= 1
            and self.lr > 0
            and self.clip > 0
            and self.weight_decay >= 0,
            "steps >= 0, batch and length >= 1, lr and clip > 0 and weight_decay >= 0",
            **sizes,
            **rates,
        )
        if self.dynamics is not None and not self.steps:
            raise ValueError(
                "refine.dynamics would never be trained, as refine.steps is 0: set "
                "refine.steps=10000, say, or refine.dynamics=null."
            )


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """How predicted spreads are corrected after training, on episodes it never saw.

    Args:
        episodes: that are collected for it; 0: none, and nothing is corrected.
        length: of these episodes; None: as long as those of the dataset.
        horizon: steps ahead that get a factor of their own.
        particles: of each forecast.
    """

    episodes: int = 200
    length: int | None = None
    horizon: int = 12
    particles: int = 64

    def __post_init__(self):
        _require(
            "calibration",
            self.horizon >= 1
            and self.episodes >= 0
            and self.particles >= 1
            and (self.length is None or self.length >= 1),
            "calibrate.horizon >= 1, calibrate.episodes >= 0, calibrate.particles >= 1 and "
            "calibrate.length >= 1 or null",
            length=self.length,
            horizon=self.horizon,
            episodes=self.episodes,
            particles=self.particles,
        )


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """The decoder, latent to picture, for films: Adam on a one-cycle schedule; 0 steps: none."""

    steps: int = 600
    batch: int = 64
    lr: float = 2e-3

    def __post_init__(self):
        _require(
            "the decoder",
            self.steps >= 0 and self.batch >= 1 and self.lr > 0,
            "decode.steps >= 0, decode.batch >= 1 and decode.lr > 0",
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
        )


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """What a model is made of, and its objective.

    Components are factories: classes, or `functools.partial` of them.

    Args:
        latent_dim: D.
        encoder: called with (observation_shape=, latent_dim=); None: a `ConvEncoder` for images, an
            `MLPEncoder` for vectors.
        dynamics, heads: called with (latent_dim=, action_dim=).
        discrepancy: called without arguments.
        seed: of first weights and of all that is drawn in training.
    """

    latent_dim: int = 32
    encoder: Factory | None = None
    dynamics: Factory = GaussianDynamics
    heads: Mapping[str, Factory] = field(default_factory=dict)
    discrepancy: Factory = SIGReg
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    seed: int = 0

    def __post_init__(self):
        _require(
            "a recipe",
            type(self.latent_dim) is int and self.latent_dim >= 1,
            "a whole latent_dim >= 1",
            latent_dim=self.latent_dim,
        )

    def make_dynamics(self, name: str, factory: Factory, action_dim: int) -> Dynamics:
        """Dynamics of this recipe's latents; `name` is that of the setting."""
        return with_static(
            partial(made, name, factory), self.latent_dim, action_dim, self.objective.static_dim
        )

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
    calibrate: CalibrateSettings = field(default_factory=CalibrateSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)


def made(name: str, factory: Factory, **given: Any) -> Any:
    """What a factory makes; arguments that it does not take are named with the setting's `name`."""
    try:
        return factory(**given)
    except TypeError as error:
        raise ValueError(f"{name}: {error}; ~{name}.NAME removes a setting.") from error


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
    return repr(value)
