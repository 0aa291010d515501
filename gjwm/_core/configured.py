"""Modules that remember how they were built, so that a file with weights can build them again."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


class Configured:
    """Base of classes whose `config` holds their constructor's arguments, defaults included.

    `type(x)(**x.config)` builds another one like x. Where a constructor passes `**rest` on to the
    next class, that class's arguments count as well. Sequences become lists, so that a file can
    hold the config."""

    config: dict[str, Any]

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


def describe(module: nn.Module) -> dict[str, Any]:
    """Class and arguments of a `Configured` module as plain data, modules among them described
    likewise."""
    arguments = {
        name: describe(value) if isinstance(value, nn.Module) else value
        for name, value in module.config.items()
    }
    return {
        "class": f"{type(module).__module__}:{type(module).__qualname__}",
        "config": arguments,
    }


def rebuild(description: Mapping[str, Any], source: object) -> nn.Module:
    """The module that `describe` described, with fresh weights; `source` is named in errors.

    Raises:
        ValueError: for a class that cannot be imported, is no module, or refuses its arguments.
    """
    module, _, name = description["class"].partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{source} needs {description['class']}, which cannot be imported: {error}."
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ValueError(f"{source} names {description['class']}, which is not a torch module.")
    arguments = {
        name: rebuild(value, source) if isinstance(value, Mapping) and "class" in value else value
        for name, value in description["config"].items()
    }
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(
            f"{source} has arguments that {description['class']} refuses: {error}"
        ) from error
