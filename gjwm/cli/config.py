"""What the commands share of hydra: configs/config.yaml composed with overrides, and the typed
settings and plain objects made of it.
"""

from __future__ import annotations

import difflib
import importlib.resources
import inspect
import pydoc
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeVar

import torch
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString, Transformer
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from gjwm._core.files import inside
from gjwm._core.machine import check_device, cores, most_threads
from gjwm._core.settings import Bounds, Count, Natural, NonNegative, check
from gjwm.cli.arguments import Argument, arguments_of, plain
from gjwm.data.behaviours import Behaviour, behaviour_from_weights
from gjwm.data.dataset import STORAGES
from gjwm.data.handle import HELD_OUT, Dataset, task_of
from gjwm.reporting.logging import MODES
from gjwm.rl.settings import Oracle
from gjwm.training.processes import on_this_machine
from gjwm.training.recipe import (
    CalibrateSettings,
    DecodeSettings,
    ObjectiveSettings,
    ReachSettings,
    Recipe,
    RefineSettings,
    TrainSettings,
)
from gjwm.training.settings import made

Made = TypeVar("Made")
# Groups whose settings are the arguments of something.
COMPONENTS = ("env", "encoder", "dynamics", "discrepancy", "planner", "cost", "heads")


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
    OmegaConf.register_new_resolver("task_of", task_of, replace=True)
    with initialize_config_module("gjwm.configs", version_base="1.3"):
        for text in overrides:
            _require_choice(text)
        try:
            cfg = compose("config", overrides=list(overrides))
            if any(text.startswith("+") for text in overrides):
                # what experiments and other groups bring along are settings as well
                brought = [text for text in overrides if _group_chosen(text)]
                _check_added(cfg, compose("config", overrides=brought))
            return cfg
        except MissingConfigException as error:
            group, _, option = (error.missing_cfg_file or "").partition("/")
            options = groups().get(group)
            if options is None:
                raise
            said = f"{group} has no option {option!r}; {_nearest(option, options)}"
            raise ValueError(said) from error
        except ConfigCompositionException as error:
            there = re.search(r"An item is already at '([^']+)'", str(error))
            if there is not None:
                said = f"{there[1]} is a setting already; set it as {there[1]}=..., without the +."
                raise ValueError(said) from error
            unknown = re.match(r"Could not (?:override|delete from config\.) '([^']+)'", str(error))
            if unknown is None:
                raise
            choices = [text for text in overrides if _chosen(text) in {*groups()} - {unknown[1]}]
            names = list(_names(compose("config", overrides=choices)))
            name = unknown[1]
            if name in names:  # what is unknown is within {foo: 1}
                given = (_parsed(text) for text in overrides if _chosen(text) == name)
                inside = [x for each in given for x in _inside(each.value(), f"{name}.")]
                name = next((x for x in inside if x not in names), name)
            raise ValueError(no_setting(name, names)) from error


def _parsed(text: str) -> Any:
    """A command line's word as hydra reads it.

    Raises:
        ValueError: for what is no NAME=VALUE.
    """
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        if "=" not in text:
            said = f"expected NAME=VALUE, got {text!r}."
        elif not text.isascii() and '"' not in text and "'" not in text:
            name, _, value = text.partition("=")
            said = (
                f"{text!r} holds letters beyond ASCII, which stand in quotes; in the shell: "
                f"'{name}=\"{value}\"'."
            )
        else:
            said = (
                f"the value of {text!r} cannot be read; in the shell quote twice what holds "
                "brackets, commas or spaces as text: 'name=\"a, b\"'."
            )
        raise ValueError(said) from error


def _inside(value: Any, before: str) -> Iterator[str]:
    """The names that a value such as {lr: 1} sets, each group before what is in it."""
    for key, part in value.items() if isinstance(value, Mapping) else ():
        yield f"{before}{key}"
        yield from _inside(part, f"{before}{key}.")


def _require_choice(text: str) -> None:
    """Refuse train=3, where train is a group of settings."""
    parsed, options = _parsed(text), groups()
    name = parsed.get_key_element().lstrip("+~")
    if not name.partition("@")[0]:
        raise ValueError(f"expected NAME=VALUE, got {text!r}.")
    if parsed.is_sweep_override():
        raise ValueError(
            f"{text!r} gives several values, which only `gjwm study` takes; a list is {name}=[1,2]."
        )
    value = parsed.value()
    chosen = value if isinstance(value, list) else [value]
    if name in options and not (all(isinstance(x, str) for x in chosen) or parsed.is_delete()):
        raise ValueError(
            f"{name} is a group of settings: {name}.KEY=VALUE sets one, {name}=NAME chooses from "
            f"{', '.join(options[name])}; got {text!r}."
        )


def groups() -> dict[str, list[str]]:
    """The groups of configs/ and the options of each."""
    folders = importlib.resources.files("gjwm.configs").iterdir()
    return {
        folder.name: sorted(
            file.name.removesuffix(".yaml")
            for file in folder.iterdir()
            if file.name.endswith(".yaml")
        )
        for folder in folders
        if folder.is_dir()
    }


def _chosen(override: str) -> str:
    """The name that an override sets, or its group in +dynamics@refine.dynamics=ensemble."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _group_chosen(override: str) -> bool:
    """Whether it chooses from a group, as +preset=gpu does, for that group's own place."""
    return override.lstrip("+").partition("=")[0] in groups()


# Names below these are the user's own, or an environment's arguments.
_FREE = ("env", "collect.behaviour", "study.grid", "study.overrides", "study.where", "study.tune")
_FREE += ("study.slurm",)


def _check_added(cfg: DictConfig, known: DictConfig) -> None:
    """Refuse what +NAME=VALUE added to the settings `known` where nothing takes it."""
    names = [*_names(known), *(f"online.oracle.{field.name}" for field in fields(Oracle))]

    def check_group(group: DictConfig, before: str) -> None:
        takes = _takes(group)
        own = [f"{before}{key}" for key, argument in (takes or {}).items() if argument.optional]
        for key in group:
            name, node = f"{before}{key}", group._get_node(key)
            inside = isinstance(node, DictConfig) and not node._is_none()
            if name in _FREE or key == "_target_":
                continue
            if "_target_" in group:
                fine = takes is None or key in takes or name in names
            else:
                # a head of one's own is a component
                head = before == "heads." and inside and "_target_" in node
                fine = name in names or head
            if not fine:
                name = next(_names(node, f"{name}."), name) if inside else name
                raise ValueError(no_setting(name, [*names, *own], added=True))
            if inside and "_target_" not in group:
                check_group(node, f"{name}.")

    check_group(cfg, "")


def _takes(group: DictConfig) -> dict[str, Argument] | None:
    """The arguments of a component; None where there is none, or where it says not what it takes.

    A function's **rest may go anywhere, a class's and its classmethods' to the class.
    """
    made_by = pydoc.locate(str(group["_target_"])) if "_target_" in group else None
    if not callable(made_by):
        return None
    kinds = {p.kind for p in inspect.signature(made_by).parameters.values()}
    rest = inspect.Parameter.VAR_KEYWORD in kinds
    of_class = isinstance(made_by, type) or isinstance(getattr(made_by, "__self__", None), type)
    return None if rest and not of_class else arguments_of(made_by)


def _names(cfg: DictConfig, before: str = "") -> Iterator[str]:
    """Every setting, with its groups: train.steps."""
    for key in cfg:
        yield f"{before}{key}"
        if isinstance(part := cfg._get_node(key), DictConfig) and not part._is_none():
            yield from _names(part, f"{before}{key}.")


def split_sweep(overrides: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """Axes among overrides, in hydra's multirun grammar (discrepancy=none,sigreg, seed=range(3)),
    and the other overrides.
    """
    axes: dict[str, list[Any]] = {}
    fixed = []
    for text in overrides:
        parsed = _parsed(text)
        if parsed.is_sweep_override():
            values = parsed.sweep_iterator(transformer=Transformer.identity)
            key = "+" * parsed.is_add() + parsed.get_key_element().lstrip("+~")
            axes[key] = [
                value.text if isinstance(value, QuotedString) else value for value in values
            ]
        else:
            fixed.append(text)
    return axes, fixed


_Seed = Annotated[int, Bounds(least=0, below=HELD_OUT)]
# Settings that belong to no dataclass.
_KINDS = {
    "seed": _Seed,
    "evaluate.seed": _Seed,
    "threads": Annotated[int, Bounds(least=1, most=1024)] | None,
    "run_dir": str,
    "dataset": str,
    "resume": bool,
    "compress": bool,
    "storage": Literal[STORAGES],
    "logger.wandb": Literal[MODES],
    "logger.tensorboard": bool,
    "logger.project": str,
    "logger.every": Count,
    "collect.episodes": Count,
    "collect.length": Count,
    "collect.workers": Natural | None,
    "checkpoint.every": Count,
    "report.worst": Natural,
    "report.typical": Natural,
    "report.every": NonNegative,
    "video.checkpoint": str | None,
    "video.seeds": Sequence[_Seed] | None,
    "video.format": str | Sequence[str],
    "video.episodes": Natural,
    "video.grid": Natural,
    "video.readout_episodes": Natural,
    "video.fps": Count,
    "video.scale": Count,
}


def prepare(cfg: DictConfig) -> None:
    """Check what no dataclass of settings holds, then set threads and the seed of new networks'
    weights.
    """
    for name, hint in _KINDS.items():
        group = name.rpartition(".")[0]
        if group:
            _group_of(cfg, group)
        check(name, OmegaConf.select(cfg, name), hint)
    if not str("" if cfg.name is None else cfg.name).strip():
        raise ValueError("name must not be empty: a run lies in runs/<name>.")
    cfg.name = str(cfg.name)  # 5 is a name too
    for name in ("run_dir", "dataset"):  # "" would be the current folder
        if not cfg[name].strip():
            raise ValueError(f"{name} must name a folder, got {cfg[name]!r}.")
    try:
        inside("runs", cfg.name)
    except ValueError as error:
        raise ValueError(
            f"name={cfg.name} does not name a folder within runs; run_dir=... may be any folder."
        ) from error
    for name, settings in components(cfg):
        _check_component(name, settings)
    # also of commands that do not plan: what cannot be is told before the first of them works
    for name in ("planner", "online.oracle.planner"):
        if OmegaConf.select(cfg, f"{name}._target_") is not None:
            made(name, factory(OmegaConf.select(cfg, name), name))
    # torchrun says OMP_NUM_THREADS=1 where the user says nothing
    several = on_this_machine()
    most = most_threads() if several == 1 else max(1, cores() // several)
    torch.set_num_threads(cfg.threads or most)
    check_device(str(cfg.device))
    if str(cfg.device).startswith("cuda"):
        # what "auto" means to a replay buffer
        torch.cuda.set_device(torch.device(cfg.device).index or 0)
    # weights of new networks; everything else has a generator of its own
    torch.manual_seed(cfg.seed)


def _group_of(cfg: DictConfig, name: str) -> DictConfig:
    settings = cfg._get_node(name)
    if not isinstance(settings, DictConfig):
        raise ValueError(f"{name} is a group of settings, {name}.KEY=VALUE, got {settings!r}.")
    return settings


def components(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """The name and the settings of everything that has a `_target_`."""

    def walk(name: str, settings: Any) -> Iterator[tuple[str, DictConfig]]:
        if not isinstance(settings, DictConfig) or settings._is_none() or settings._is_missing():
            return
        if "_target_" in settings:
            yield name, settings
        for key in settings:
            if isinstance(settings._get_node(key), DictConfig):
                yield from walk(f"{name}.{key}", settings._get_node(key))

    for group in (*COMPONENTS, "refine", "online"):
        yield from walk(group, cfg._get_node(group))


def _check_component(name: str, settings: DictConfig) -> None:
    """Refuse what cannot be imported, and values of other kinds than its arguments."""
    target = settings["_target_"]
    try:
        taken_by = pydoc.locate(str(target))  # hydra would log why before it raises
    except pydoc.ErrorDuringImport as error:
        raise ValueError(f"{name}._target_={target} cannot be imported: {error}.") from error
    if not callable(taken_by):
        raise ValueError(f"{name}._target_={target} cannot be imported: there is no such class.")
    takes = arguments_of(taken_by)
    values = OmegaConf.to_container(settings, resolve=True)
    assert isinstance(values, dict)
    for key, value in values.items():
        if key in takes and plain(takes[key].hint):
            check(f"{name}.{key}", value, takes[key].hint)


def fill(cls: type[Made], settings: Mapping[str, Any], name: str, **given: Any) -> Made:
    """A dataclass of settings from a group of a config.

    Args:
        name: of the group, for messages.
        given: fields that are made already, in place of those of `settings`.

    Raises:
        ValueError: for a name that the class does not have, or a value that it refuses.
    """
    if isinstance(settings, DictConfig):
        settings = OmegaConf.to_container(settings, resolve=True)
    if not isinstance(settings, Mapping):
        raise ValueError(f"{name} is a group of settings, {name}.KEY=VALUE, got {settings!r}.")
    names = [f"{name}.{field.name}" for field in fields(cls)]
    for key in settings:
        if f"{name}.{key}" not in names:
            raise ValueError(no_setting(f"{name}.{key}", names))
    return cls(**{**settings, **given})


def no_setting(name: str, names: Sequence[str], added: bool = False) -> str:
    """A sentence about a name that is not among `names`, with the nearest or those of its group;
    `added`: it was given with a +.
    """
    group, _, leaf = name.rpartition(".")
    names = [other for other in names if not other.endswith("._target_")]
    siblings = {other.rpartition(".")[2]: other for other in names if _group(other) == group}
    if not siblings:  # nor is there its group
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
        if close:
            return f"there is no setting {name}; did you mean {close[0]}?"
        if group not in names:
            return no_setting(group, names, added)
        if group in groups():  # such as heads, of which none was chosen
            options = ", ".join(groups()[group])
            return f"there is no setting {name}; {group}=NAME chooses from {options}."
        return f"there is no setting {name}; {group} is one and holds none."
    said = f"there is no setting {name}; {_nearest(leaf, siblings, f'{group}.' if group else '')}"
    component = group.removeprefix("refine.").partition(".")[0] in COMPONENTS
    if said.endswith("?") or not component or added:
        return said
    # what takes more arguments than its config names
    return f"{said[:-1]}; +{name}=... adds an argument."


def _nearest(name: str, names: Iterable[str], before: str = "") -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return f"did you mean {before}{close[0]}?" if close else f"choose from {', '.join(names)}."


def _group(name: str) -> str:
    return name.rpartition(".")[0]


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


def import_parts(cfg: DictConfig) -> None:
    """Import the classes that the command's settings name: a checkpoint, which imports nothing, may
    then name them too.
    """
    factories(cfg)
    if cfg.refine.dynamics is not None:
        factory(cfg.refine.dynamics, "refine.dynamics")


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
        reach=fill(ReachSettings, cfg.reach, "reach"),
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
