"""Modules that remember how they were built, so that a file with weights can build them again.

A file names classes and never decides what is imported: a name is looked up among the classes that
exist, those of this package and those that the program has defined or imported.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

# Where this package defines classes that files name; these are imported when a name is looked up.
OWN = ("gjwm.models.world_model", "gjwm.models.decoder", "gjwm.rl.actor_critic")
_CLASSES: dict[str, type[Configured]] = {}  # "module:qualname" -> the class defined last


class Configured:
    """Base of classes whose `config` holds their constructor's arguments, defaults included. Files
    may name its subclasses, once they are defined.

    `type(x)(**x.config)` builds another one like x. Where a constructor passes `**rest` on to the
    next class, that class's arguments count as well. Sequences become lists, so that a file can
    hold the config."""

    config: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _CLASSES[_name(cls)] = cls

    def __new__(cls, *args: Any, **kwargs: Any) -> Configured:
        instance = super().__new__(cls)
        try:
            given = inspect.signature(cls.__init__).bind_partial(None, *args, **kwargs)
        except TypeError:  # the constructor itself says what is wrong
            return instance
        rest = {p.name for p in given.signature.parameters.values() if p.kind is p.VAR_KEYWORD}
        named = {name: value for name, value in given.arguments.items() if name not in rest}
        passed_on = (given.arguments.get(name, {}) for name in rest)
        config = _defaults(cls) | named | {k: v for more in passed_on for k, v in more.items()}
        config.pop(next(iter(given.signature.parameters)))  # self
        instance.__dict__["config"] = {name: _plain(value) for name, value in config.items()}
        return instance


def _defaults(cls: type) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for owner in cls.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = inspect.signature(owner.__init__).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty} | defaults
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return defaults


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return value


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def describe(module: nn.Module) -> dict[str, Any]:
    """Class and arguments of a `Configured` module as plain data, modules among them described
    likewise.

    Raises:
        ValueError: for a module that is not `Configured`: no file could name its class.
    """
    if not isinstance(module, Configured):
        raise ValueError(
            f"{_name(type(module))} cannot be saved with a model, as a file could not name it: "
            "derive it from gjwm.models.Configured."
        )
    arguments = {
        name: describe(value) if isinstance(value, nn.Module) else value
        for name, value in module.config.items()
    }
    return {"class": _name(type(module)), "config": arguments}


def rebuild(description: Mapping[str, Any], source: object) -> nn.Module:
    """The module that `describe` described, with fresh weights; `source` is named in errors.

    Nothing is imported for it but this package's own classes.

    Raises:
        ValueError: for a class that is not there, or refuses its arguments.
    """
    cls = _find(description["class"], source)
    arguments = {
        name: rebuild(value, source) if isinstance(value, Mapping) and "class" in value else value
        for name, value in description["config"].items()
    }
    try:
        return cls(**arguments)
    except Exception as error:  # arguments of a file are as good as any: each class fails its way
        raise ValueError(
            f"{source} has arguments that {description['class']} refuses: {error}"
        ) from error


def _find(name: Any, source: object) -> type[nn.Module]:
    if not isinstance(name, str):
        raise ValueError(f"{source} names a class by {name!r}; expected 'module:Class'.")
    if name not in _CLASSES:
        for module in OWN:
            importlib.import_module(module)
    cls = _CLASSES.get(name)
    if cls is not None and issubclass(cls, nn.Module):
        return cls
    module = name.partition(":")[0]
    if module.partition(".")[0] == "gjwm":
        raise ValueError(f"{source} names {name}, a class that this version of gjwm does not have.")
    raise ValueError(
        f"{source} names {name}, which is no class of gjwm, and no Configured module of that name "
        f"was imported: if it is yours, import {module} first (a command imports what its own "
        "settings name, such as dynamics=...)."
    )


def load_weights(module: nn.Module, weights: Mapping[str, Any], source: object) -> None:
    """`module.load_state_dict(weights)`; `source` is named in errors.

    Raises:
        ValueError: one sentence, for tensors that are missing, unknown, or of another shape.
    """
    own = module.state_dict()
    wrong = [
        f"{name} is {_shape(weights[name])} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and _shape(weights[name]) != tuple(own[name].shape)
    ]
    for fault, names in (
        ("lacks weights of the model that it describes", [n for n in own if n not in weights]),
        ("has weights that its model does not", [str(n) for n in weights if n not in own]),
        ("has weights of another shape than its model's", wrong),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"{source} {fault}: {', '.join(names[:3])}{more}.")
    module.load_state_dict(weights)


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
