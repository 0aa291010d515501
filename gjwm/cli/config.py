"""What the commands share of hydra: configs/config.yaml composed with overrides, and plain
arguments made of it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString, Transformer
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from gjwm._core.machine import cores
from gjwm.data.behaviours import Behaviour, behaviour_from_weights
from gjwm.models.dynamics import Dynamics, with_static

# Seeds end where held-out episodes begin, so that these never meet training data; those that
# calibrate the model's predictions start elsewhere again, so that evaluation never sees them.
HELD_OUT = 1_000_000
CALIBRATION = 2_000_000


def with_experiment(command: str, overrides: Sequence[str]) -> list[str]:
    """The overrides, led by the experiment that a command starts from where they name none.

    An env.id that is not one of gjwm's starts from experiment=gym: the default experiment's
    settings are a task's own."""
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


# Keyword arguments that commands pass themselves: no settings.
OWN = {
    *(
        "log",
        "log_every",
        "generator",
        "prefetch",
        "checkpoints",
        "checkpoint_every",
    ),  # of training
    *("offset", "evaluate", "exploration", "notify", "details", "model", "objective"),
}


def keyword_arguments(
    group: str,
    settings: DictConfig,
    function: Callable,
    *,
    own: Collection[str] = OWN,
    besides: Collection[str] = (),
) -> dict[str, Any]:
    """A config group as the keyword arguments of `function`, with wrong names and kinds told in one
    sentence.

    Args:
        own: keyword arguments that are no settings.
        besides: other settings of the group, to be named with them.

    Raises:
        ValueError: for a name that `function` does not take, or no number where its default is one
            (null where it may be None).
    """
    options = OmegaConf.to_container(settings, resolve=True)
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in own
    }
    for name, value in options.items():
        if name not in parameters:
            raise ValueError(
                f"there is no setting {group}.{name}; choose from "
                f"{', '.join([*parameters, *besides])}."
            )
        default = parameters[name].default
        if isinstance(default, bool) or not isinstance(default, int | float):
            continue
        whole = isinstance(default, int)
        right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if value is None and "None" in str(parameters[name].annotation):
            continue
        if not (right and math.isfinite(value)):
            raise ValueError(f"{group}.{name} must be a {'whole ' * whole}number, got {value!r}.")
    return options


def dynamics_class(cfg: DictConfig) -> type:
    """The dynamics that a training ends with: those of refine.dynamics, checked before, where it
    refines others.
    """
    return get_class(
        (cfg.dynamics if cfg.refine.dynamics is None else cfg.refine.dynamics)._target_
    )


def check_refine_dynamics(cfg: DictConfig) -> None:
    """Raise a ValueError unless refine.dynamics, if any, can take the place of those that the
    encoder is trained with.
    """
    others = cfg.refine.dynamics
    if others is None:
        return
    if not isinstance(others, DictConfig) or "_target_" not in others:
        raise ValueError(
            "refine.dynamics must be null or the settings of dynamics, such as "
            f"+dynamics@refine.dynamics=ensemble, got {others!r}."
        )
    if not cfg.refine.steps:
        raise ValueError(
            "refine.dynamics would never be trained, as refine.steps is 0: set "
            "refine.steps=10000, say, or refine.dynamics=null."
        )
    with torch.random.fork_rng(devices=[]):  # the weights of what is trained are drawn later
        try:
            made = instantiate(others, action_dim=1)  # in its own sizes, not the recipe's
        except InstantiationException as error:
            told = " ".join(str(error.__cause__ or error).split())
            raise ValueError(
                f"refine.dynamics: {told}; ~refine.dynamics.NAME removes a setting."
            ) from error
    if made.latent_dim != cfg.latent_dim:
        raise ValueError(
            f"refine.dynamics has latent_dim {made.latent_dim} and the latents {cfg.latent_dim}: "
            f"set refine.dynamics.latent_dim={cfg.latent_dim}."
        )


def dynamics_of(cfg: DictConfig, settings: DictConfig, action_dim: int) -> Dynamics:
    """Dynamics of these settings, of whose latents the last objective.static_dim stay."""
    make = partial(instantiate, settings)
    return with_static(make, cfg.latent_dim, action_dim, cfg.objective.static_dim)


def env_kwargs(cfg: DictConfig) -> dict[str, Any]:
    """What cfg.env says besides its id: the keyword arguments of `gymnasium.make`."""
    kwargs = OmegaConf.to_container(cfg.env, resolve=True)
    kwargs.pop("id")
    return kwargs


def behaviour_of(cfg: DictConfig) -> Behaviour:
    """cfg.collect.behaviour: a name alone, or weights and arguments by name."""
    settings = OmegaConf.to_container(cfg.collect, resolve=True)["behaviour"]
    return behaviour_from_weights(settings)


def heads_of(cfg: DictConfig, action_dim: int) -> dict[str, torch.nn.Module]:
    """The heads that were asked for; a preset's sizes of others have no _target_."""
    return {
        name: instantiate(head, action_dim=action_dim)
        for name, head in cfg.heads.items()
        if "_target_" in head
    }


def residence_of(cfg: DictConfig) -> str:
    """Where windows and replay live: beside the model on a GPU if they fit, else in main memory."""
    return "auto" if cfg.device.startswith("cuda") else "cpu"
