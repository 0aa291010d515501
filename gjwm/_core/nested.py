"""Functions of arrays, for observations that are one array or a dict of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def nested(function: Callable[..., Any], *values: Any) -> Any:
    """function(*values), or of each entry where these are dicts of the same keys."""
    if isinstance(values[0], Mapping):
        return {name: nested(function, *(value[name] for value in values)) for name in values[0]}
    return function(*values)
