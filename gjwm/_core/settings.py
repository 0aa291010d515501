"""Settings as frozen dataclasses that check themselves: kinds and bounds stand in annotations.

@dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    group = "train"
    steps: Count = 2000
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from torch import nn


@dataclass(frozen=True)
class Bounds:
    """Where a number may lie; `above` and `below` are not reached themselves. Without an upper end
    it may be infinite; below=math.inf is any finite one.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Whether the number lies within."""
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = {"at least": self.least, "at most": self.most}
        words |= {"above": self.above, "below": self.below}
        ends = {word: end for word, end in words.items() if end not in (None, math.inf)}
        return " and ".join(f"{word} {end}" for word, end in ends.items())


Count = Annotated[int, Bounds(least=1)]
Natural = Annotated[int, Bounds(least=0)]
Positive = Annotated[float, Bounds(above=0)]
NonNegative = Annotated[float, Bounds(least=0)]
Rate = Annotated[float, Bounds(above=0, below=math.inf)]
Fraction = Annotated[float, Bounds(least=0, most=1)]
Factory = Callable[..., Any]  # a class, or a functools.partial of one

_LARGE = 2**63  # what torch and numpy cannot count to
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def check(name: str, value: Any, hint: Any) -> None:
    """Raise a ValueError that names the setting, what was expected and what came, unless `value` is
    of the kind that a type hint says and within its bounds.
    """
    if isinstance(value, Integral) and abs(int(value)) >= _LARGE:
        raise ValueError(f"{name} must be a number below 2^63, got {value!r}.")
    if not _fits(value, hint):
        module = isinstance(value, nn.Module)  # whose repr may be long
        came = f"an instance of {type(value).__name__}" if module else repr(value)
        raise ValueError(f"{name} must be {_expected(hint)}, got {came}.")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, bounds = arguments
        endless = kind is float and isinstance(value, Real) and value == math.inf
        return (endless or _fits(value, kind)) and bounds.holds(value)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is Literal:
        return value in arguments
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    kind = origin or hint
    if kind is Callable:
        return callable(value) and not isinstance(value, nn.Module)
    if not isinstance(value, kind):
        return False
    if kind is Mapping:
        return all(_fits(key, arguments[0]) for key in value) and all(
            _fits(part, arguments[1]) for part in value.values()
        )
    if kind is Sequence:
        return not isinstance(value, str) and all(_fits(part, arguments[0]) for part in value)
    return True


def _expected(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{_expected(arguments[0])}, {arguments[1]}"
    if origin in (Union, UnionType):
        null_first = sorted(arguments, key=lambda option: option is not NoneType)
        return " or ".join(map(_expected, null_first))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if hint is NoneType:
        return "null"
    kind = origin or hint
    if kind is Callable:
        return "a class, or a functools.partial of one"
    if kind is Mapping:
        return f"names, each with {_expected(arguments[1])}"
    if kind is Sequence:
        return f"a list, each {_expected(arguments[0])}"
    return _WORDS.get(kind, f"a {kind.__module__}.{kind.__qualname__}".replace("builtins.", ""))


@cache
def hints_of(cls: type[Settings]) -> dict[str, Any]:
    """Field -> its annotation, bounds included."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings; `group` leads their names in errors, as on the command line.

    Raises:
        ValueError: for a value of another kind than its field's annotation, or out of its bounds.
    """

    group: ClassVar[str] = ""

    def __post_init__(self):
        for name, hint in hints_of(type(self)).items():
            value = getattr(self, name)
            check(f"{self.group}.{name}".lstrip("."), value, hint)
            if isinstance(value, Real) and type(value) not in (bool, int, float):  # numpy's
                plain = int(value) if isinstance(value, Integral) else float(value)
                object.__setattr__(self, name, plain)
