"""Examples in docstrings of pure functions are true."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "gjwm.evaluation.intervals",
        "gjwm.models.interpolation",
        "gjwm.objectives.epps_pulley",
        "gjwm.objectives.samples",
    ],
)
def test_docstring_examples_are_true(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted and not result.failed
