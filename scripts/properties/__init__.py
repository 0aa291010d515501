"""What must hold whatever comes in, for `scripts/fuzz.py` (many inputs) and tests/test_fuzz.py
(few).

A property draws its input with hypothesis and raises when something else than promised happens:
a wrong result, an error of another kind, an error of more than one sentence. Each module holds one
part; `register` lists its properties."""

from __future__ import annotations

import faulthandler
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import hypothesis
import torch
from hypothesis import HealthCheck, Phase
from hypothesis.strategies import SearchStrategy

PARTS = ("replay", "objectives", "planners", "config", "datasets", "checkpoints")
BATCH = 500  # inputs drawn by one hypothesis run; it remembers them all
HANGS = 120.0  # s for one input


class Property(NamedTuple):
    """A claim about inputs."""

    part: str
    name: str
    drawn: dict[str, SearchStrategy[Any]]
    holds: Callable[..., None]
    share: float  # of its part's inputs
    needs: str = ""  # a package of an extra, without which there is nothing to try


REGISTRY: list[Property] = []


def register(share: float = 1.0, *, needs: str = "", **drawn: SearchStrategy[Any]) -> Callable:
    """List a function of these drawn arguments as a property of its module's part."""

    def listed(holds: Callable[..., None]) -> Callable[..., None]:
        part = holds.__module__.rpartition(".")[2]
        REGISTRY.append(Property(part, holds.__name__, drawn, holds, share, needs))
        return holds

    return listed


def properties(parts: tuple[str, ...] = PARTS) -> list[Property]:
    """All of these parts.

    Raises:
        ValueError: for a part that there is not.
    """
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"there is no part {part}; choose from all, {', '.join(PARTS)}.")
        importlib.import_module(f"properties.{part}")
    return [each for each in REGISTRY if each.part in parts]


def run(
    claim: Property,
    inputs: int,
    seed: int = 0,
    limit: float = HANGS,
    note: Callable[[int, str], None] | None = None,
) -> int:
    """Try that many inputs -> how many were tried.

    Args:
        limit: seconds for one input, after which the process ends with its stack on stderr.
        note: told of every input, before it is tried, its number from 1 on and its text.

    Raises:
        Exception: what the property raised for the smallest input that was found, which hypothesis
            prints.
    """
    tried = 0
    shared = torch.random.get_rng_state()

    def counted(**drawn: Any) -> None:
        nonlocal tried
        tried += 1
        if note is not None:
            note(tried, ", ".join(f"{name}={value!r}" for name, value in drawn.items()))
        faulthandler.dump_traceback_later(limit, exit=True, file=sys.__stderr__)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                warnings.filterwarnings("ignore", module="PIL")
                claim.holds(**drawn)
        finally:
            faulthandler.cancel_dump_traceback_later()

    try:
        while tried < inputs:
            settings = hypothesis.settings(
                max_examples=min(BATCH, inputs - tried),
                database=None,
                deadline=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
                print_blob=False,
            )
            # a run tries an input again only to shrink a failure, so that `tried` grows
            hypothesis.seed(seed + tried)(settings(hypothesis.given(**claim.drawn)(counted)))()
    finally:
        torch.random.set_rng_state(shared)
    return tried


@contextmanager
def refused(*kinds: type[BaseException]) -> Iterator[list[str]]:
    """Errors of these kinds (ValueError) in the block are taken, if they are one sentence -> a list
    of what was said."""
    said: list[str] = []
    try:
        yield said
    except BaseException as error:
        if not isinstance(error, kinds or ValueError):
            raise
        said.append(one_sentence(str(error)))


def one_sentence(text: str) -> str:
    """The text of an error, which must be a line that ends like a sentence.

    Raises:
        AssertionError: for another.
    """
    assert text.strip() and "\n" not in text.strip(), f"not one sentence: {text!r}"
    assert text.rstrip()[-1] in ".?!", f"no end of a sentence: {text!r}"
    assert "Traceback" not in text, text
    return text
