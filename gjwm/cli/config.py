"""What the commands share of hydra: configs/config.yaml composed with overrides, and the typed
settings and plain objects made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString, Transformer
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from gjwm._core.machine import cores
from gjwm.data.behaviours import Behaviour, behaviour_from_weights
from gjwm.data.handle import CALIBRATION, HELD_OUT, Dataset
from gjwm.training.recipe import (
    CalibrateSettings,
    DecodeSettings,
    ObjectiveSettings,
    Recipe,
    RefineSettings,
    TrainSettings,
)

__all__ = ["CALIBRATION", "HELD_OUT"]

Settings = TypeVar("Settings")


def with_experiment(command: str, overrides: Sequence[str]) -> list[str]:
    """The overrides, led by the experiment that a command starts from where they name none.

    An env.id that is not one of gjwm's starts from experiment=gym: the default experiment's
    settings are a task's own.
    """
    if any(text.startswith("experiment=") for text in overrides):
        return list(overrides)
    ids = [text.partition("=")[2] for text in overrides if text.startswith("env.id=")]
    foreign = bool(ids) and not ids[-1].startswith("gjwm/")
    online = command == "online"
    experiment = ("gym_online" if foreign else "suite") if online else "gym" if foreign else None
    return [*([] if experiment is None else [f"experiment={experiment}"]), *overrides]


def load_config(overrides: Sequence[str] = ()) -> DictConfig:
    """configs/config.yaml with hydra overrides such as "experiment=two_room" or
    "train.steps=100".
    """
    with initialize_config_module("gjwm.configs", version_base="1.3"):
        return compose("config", overrides=list(overrides))


def split_sweep(overrides: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """Axes among overrides, in hydra's multirun grammar (discrepancy=none,sigreg, seed=range(3)),
    and the other overrides.
    """
    axes: dict[str, list[Any]] = {}
    fixed = []
    for text in overrides:
        parsed = OverridesParser.create().parse_override(text)
        if parsed.is_sweep_override():
            values = parsed.sweep_iterator(transformer=Transformer.identity)
            key = "+" * parsed.is_add() + parsed.get_key_element().lstrip("+~")
            axes[key] = [
                value.text if isinstance(value, QuotedString) else value for value in values
            ]
        else:
            fixed.append(text)
    return axes, fixed


def prepare(cfg: DictConfig) -> None:
    """Check what every command reads (seeds, threads, device), then set threads and the seed of new
    networks' weights.
    """
    for name, seed in (("seed", cfg.seed), ("evaluate.seed", cfg.evaluate.seed)):
        if not isinstance(seed, int) or not 0 <= seed < HELD_OUT:
            raise ValueError(
                f"{name} must be a whole number from 0 to {HELD_OUT - 1}, got {seed!r}."
            )
    threads = cfg.threads or cores()
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads must be null or a whole number, 1 or more, got {threads!r}.")
    torch.set_num_threads(threads)
    _check_device(str(cfg.device))
    if str(cfg.device).startswith("cuda"):
        # what "auto" means to a replay buffer
        torch.cuda.set_device(torch.device(cfg.device).index or 0)
    # weights of new networks; everything else has a generator of its own
    torch.manual_seed(cfg.seed)


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={name} was asked for and this machine has no CUDA device; use device=cpu."
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name!r}.")


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def fill(cls: type[Settings], settings: Mapping[str, Any], name: str, **given: Any) -> Settings:
    """A dataclass of settings from a group of a config.

    Args:
        name: of the group, for messages.
        given: fields that are made already, in place of those of `settings`.

    Raises:
        ValueError: for a name that the class does not have, or a value of another kind than its
            field's: a whole number, a number, true or false, text, or null where it may be None.
    """
    if isinstance(settings, DictConfig):
        settings = OmegaConf.to_container(settings, resolve=True)
    if not isinstance(settings, Mapping):
        raise ValueError(f"{name} is a group of settings, {name}.KEY=VALUE, got {settings!r}.")
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)]
    for key, value in settings.items():
        if key not in names:
            raise ValueError(f"there is no setting {name}.{key}; choose from {', '.join(names)}.")
        if key in given:
            continue
        hint = hints[key]
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if not all(option in _KINDS or option is NoneType for option in options):
            continue  # what the class checks itself
        if not any(_is(value, option) for option in options):
            expected = " or ".join("null" if o is NoneType else _KINDS[o] for o in options)
            raise ValueError(f"{name}.{key} must be {expected}, got {value!r}.")
    return cls(**{**settings, **given})


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def factory(settings: Mapping[str, Any], name: str) -> Callable[..., Any]:
    """What makes a component: its class with the arguments of a config group.

    Raises:
        ValueError: for what is no component's settings.
    """
    if not isinstance(settings, Mapping | DictConfig) or "_target_" not in settings:
        raise ValueError(
            f"{name} must be the settings of a component, such as +dynamics@refine.dynamics="
            f"ensemble, got {settings!r}."
        )
    return instantiate(settings, _partial_=True, _convert_="all")


def factories(cfg: DictConfig) -> dict[str, Any]:
    """What makes the components of a model and of its objective."""
    return {
        "encoder": factory(cfg.encoder, "encoder"),
        "dynamics": factory(cfg.dynamics, "dynamics"),
        # a preset's sizes of heads that were not asked for have no _target_
        "heads": {
            name: factory(head, f"heads.{name}")
            for name, head in cfg.heads.items()
            if "_target_" in head
        },
        "discrepancy": factory(cfg.discrepancy, "discrepancy"),
    }


def recipe_of(cfg: DictConfig) -> Recipe:
    """The recipe that a config describes."""
    refine = OmegaConf.create(OmegaConf.to_container(cfg.refine, resolve=True))
    dynamics = refine.dynamics
    return Recipe(
        latent_dim=cfg.latent_dim,
        **factories(cfg),
        objective=fill(ObjectiveSettings, cfg.objective, "objective"),
        train=fill(TrainSettings, cfg.train, "train"),
        refine=fill(
            RefineSettings,
            refine,
            "refine",
            dynamics=None if dynamics is None else factory(dynamics, "refine.dynamics"),
        ),
        calibrate=fill(CalibrateSettings, cfg.calibrate, "calibrate"),
        decode=fill(DecodeSettings, cfg.decode, "decode"),
        seed=cfg.seed,
    )


def env_kwargs(cfg: DictConfig) -> dict[str, Any]:
    """What cfg.env says besides its id: the keyword arguments of `gymnasium.make`."""
    kwargs = OmegaConf.to_container(cfg.env, resolve=True)
    kwargs.pop("id")
    return kwargs


def behaviour_settings(cfg: DictConfig) -> dict[str, Any]:
    """cfg.collect.behaviour: weights and arguments by name."""
    settings = OmegaConf.to_container(cfg.collect, resolve=True)["behaviour"]
    return {settings: 1.0} if isinstance(settings, str) else settings


def behaviour_of(cfg: DictConfig) -> Behaviour:
    """What cfg.collect.behaviour describes."""
    return behaviour_from_weights(behaviour_settings(cfg))


def dataset_of(cfg: DictConfig) -> Dataset:
    """The dataset cfg.dataset, refused where it is one of another world: nothing later would
    notice.
    """
    require_same_env(cfg, cfg.dataset)
    return Dataset.open(cfg.dataset, behaviour=behaviour_settings(cfg), workers=cfg.collect.workers)


def require_same_env(cfg: DictConfig, dataset: str) -> None:
    """Raise ValueError for data of another world than cfg.env."""
    Dataset.open(dataset).require_env(cfg.env.id, env_kwargs(cfg))
