"""What a class or a function takes: names, kinds, defaults and meanings, as its signature and its
docstring say. `--help` and the checks of components read them here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints


class Argument(NamedTuple):
    """One argument; `hint` is Any where nothing is said."""

    hint: Any
    default: Any
    meaning: str

    @property
    def optional(self) -> bool:
        """Whether it has a default."""
        return self.default is not inspect.Parameter.empty


def arguments_of(made_by: Callable[..., Any]) -> dict[str, Argument]:
    """The arguments of a class, or of a function or classmethod, that can be named; where **rest is
    passed on to the next class, that one's as well.
    """
    found: dict[str, Argument] = {}
    for callable_, documented in _owners(made_by):
        parameters = list(inspect.signature(callable_).parameters.values())
        hints, meanings = _hints(callable_, documented), _meanings(documented)
        for p in parameters:
            if p.name == "self" or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL, p.POSITIONAL_ONLY):
                continue
            known = found.get(p.name, Argument(Any, p.default, ""))
            hint = known.hint if known.hint is not Any else hints.get(p.name, Any)
            meaning = known.meaning or meanings.get(p.name, "")
            found[p.name] = Argument(hint, known.default, meaning)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _owners(made_by: Any) -> list[tuple[Any, Any]]:
    """(what is called, what documents it), the next classes last."""
    if isinstance(made_by, type):
        return [(owner.__init__, owner) for owner in made_by.__mro__ if "__init__" in vars(owner)]
    owner = getattr(made_by, "__self__", None)  # a classmethod passes **rest on to its class
    rest = _owners(owner) if isinstance(owner, type) else []
    return [(made_by, made_by), *rest]


def _hints(callable_: Any, documented: Any) -> dict[str, Any]:
    source = documented if is_dataclass(documented) else callable_
    try:
        return get_type_hints(source, include_extras=True)
    except NameError:  # imported for type checkers alone
        return {}


def _meanings(documented: Any) -> dict[str, str]:
    """Names of a docstring's Args and what is said of them."""
    meanings: dict[str, str] = {}
    lines = inspect.cleandoc(documented.__doc__ or "").splitlines()
    if "Args:" not in lines:
        return {}
    names: list[str] = []
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith("    "):
            break  # the next section
        entry = re.fullmatch(r" {4}([\w*]+(?:, [\w*]+)*): (.*)", line)
        if entry:
            names = entry[1].replace("*", "").split(", ")
            meanings |= dict.fromkeys(names, entry[2].strip())
        elif names and line.strip():
            more = f"{meanings[names[0]]} {line.strip()}"
            meanings |= dict.fromkeys(names, more)
    return meanings


def plain(hint: Any) -> bool:
    """Whether a hint is of what a configuration holds: numbers, text, lists of them."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return plain(arguments[0])
    if origin in (Union, UnionType):
        return all(map(plain, arguments))
    if origin is Sequence:
        return plain(arguments[0])
    return origin is Literal or hint in (int, float, bool, str, NoneType)
