"""`gjwm COMMAND --help`: the settings of one command with defaults and meaning, as the composed
configuration, the docstrings of what takes them, and the comments of the yaml files say.
"""

from __future__ import annotations

import importlib.resources
import pydoc
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gjwm._core.settings import Settings
from gjwm.cli.arguments import arguments_of
from gjwm.cli.config import groups

_MODEL = ("latent_dim", "encoder", "dynamics", "heads", "discrepancy", "objective")
_TRAINED = ("train", "refine", "reach", "calibrate", "decode")
_RUN = ("name", "run_dir", "seed", "device", "threads")
_WRITTEN = ("logger", "checkpoint", "report")
_COLLECT = ("dataset", "env", "collect", "compress", "resume")
_TRAIN = (*_COLLECT, *_RUN, "storage", *_MODEL, *_TRAINED, *_WRITTEN)
_EVALUATE = (*_RUN, "env", "collect", "evaluate", "planner", "cost", "report", "video", "logger")
_WHOLE = tuple(dict.fromkeys((*_TRAIN, *_EVALUATE)))
# What each command reads of configs/config.yaml.
READS: dict[str, tuple[str, ...]] = {
    "collect": ("seed", *_COLLECT),
    "train": _TRAIN,
    "online": (
        *("env", "collect", "resume", *_RUN, "storage", *_MODEL),
        *("planner", "learner", "online", *_WRITTEN),
    ),
    "evaluate": _EVALUATE,
    "report": ("name", "run_dir"),
    "video": _EVALUATE,
    "run": _WHOLE,
    "study": ("study", *_WHOLE),
}
WIDTH, COLUMN = 100, 34


def help_of(name: str, command: Callable[..., Any], cfg: DictConfig) -> str:
    """What a command does, and every setting that it reads: default of `cfg`, meaning."""
    does = " ".join((command.__doc__ or "").split()).replace("cfg.", "")
    lines = [f"gjwm {name} [key=value ...]", "", *textwrap.wrap(does, WIDTH), ""]
    options = groups()
    for group in ("experiment", "preset") if name != "report" else ():
        lines += _choice(group, options[group])
    for key in READS[name]:
        node = cfg._get_node(key)
        if isinstance(node, DictConfig):
            lines += ["", *_choice(key, options.get(key, []))]
            lines += [line for leaf in _leaves(cfg, key) for line in _row(cfg, leaf)]
        else:
            lines += _row(cfg, key)
    return "\n".join(lines)


def _choice(group: str, options: list[str]) -> list[str]:
    if len(options) < 2:
        return []
    text = f"{group}=NAME chooses from {', '.join(options)}"
    return textwrap.wrap(text, WIDTH, subsequent_indent="    ")


def _leaves(cfg: DictConfig, name: str) -> Iterator[str]:
    """The settings in a group, at any depth."""
    for key in _node(cfg, name):
        leaf = f"{name}.{key}"
        if isinstance(_node(cfg, leaf), DictConfig) and not _node(cfg, leaf)._is_none():
            yield from _leaves(cfg, leaf) if len(_node(cfg, leaf)) else (leaf,)
        elif key != "_target_":
            yield leaf


def _node(cfg: DictConfig, name: str) -> Any:
    node: Any = cfg
    for part in name.split("."):
        node = node._get_node(part)
    return node


def _row(cfg: DictConfig, name: str) -> list[str]:
    left = f"  {name}={_value(cfg, name)}"
    said = textwrap.wrap(meaning_of(cfg, name), WIDTH - COLUMN)
    if len(left) < COLUMN - 1 and said:
        left, said = f"{left:{COLUMN}}{said[0]}", said[1:]
    return [left, *(" " * COLUMN + line for line in said)]


def _value(cfg: DictConfig, name: str) -> str:
    try:
        value = OmegaConf.select(cfg, name, throw_on_missing=True)
    except OmegaConfBaseException:  # env.id of experiment=gym, which the user has to give
        return "???"
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    plain = {None: "null", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else str(value)


def meaning_of(cfg: DictConfig, name: str) -> str:
    """What a setting means; "" where nothing says it.

    A component's arguments are those of a class, which documents them; what a group of settings
    means on the command line its yaml file says best.
    """
    group, _, leaf = name.rpartition(".")
    if group and "_target_" in _node(cfg, group):
        taken_by = pydoc.locate(_node(cfg, group)["_target_"])
    else:
        said = _comments(name.partition(".")[0]).get(name)
        if said:
            return said
        taken_by = {cls.group: cls for cls in _settings_classes(Settings)}.get(group)
    argument = arguments_of(taken_by).get(leaf) if callable(taken_by) else None
    return argument.meaning.removesuffix(".") if argument else ""


def _settings_classes(cls: type[Settings]) -> Iterator[type[Settings]]:
    for below in cls.__subclasses__():
        if below.group:
            yield below
        yield from _settings_classes(below)


def _comments(group: str) -> dict[str, str]:
    """Setting -> its comment in configs/config.yaml or in the files of its group."""
    configs = importlib.resources.files("gjwm.configs")
    found = {}
    for option in groups().get(group, []):
        for name, said in _commented((configs / group / f"{option}.yaml").read_text()):
            found.setdefault(f"{group}.{name}", said)
    return found | dict(_commented((configs / "config.yaml").read_text()))


def _commented(text: str) -> Iterator[tuple[str, str]]:
    """Names in a yaml file and their comments: on the line, or else on the lines above."""
    above: list[str] = []
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        entry = re.match(r"( *)(\w+):(?: .*?)?(?:\s# (.*))?$", line)
        if entry is not None:
            indent = len(entry[1])
            path = [(depth, key) for depth, key in path if depth < indent] + [(indent, entry[2])]
            said = entry[3] or " ".join(above)
            if said:
                yield ".".join(key for _, key in path), said
            above = []
        elif line.lstrip().startswith("#") and path:  # those at the top are the file's
            above.append(line.lstrip("# "))
        else:
            above = []
