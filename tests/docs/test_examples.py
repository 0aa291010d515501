"""The programs in examples/ run, in their order, and one of them does what it says at full size."""

import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def main(path: Path):
    return runpy.run_path(str(path))["main"]()


def test_they_run_in_reading_order_at_small_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GJWM_SMALL", "1")
    _, latents, pendulum, reward = [main(path) for path in EXAMPLES]
    assert latents["effective_rank"] > 0 and len(pendulum) == 5 and reward >= 0


@pytest.mark.slow
def test_a_pendulum_swings_up_from_random_data_and_one_goal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    heights = main(EXAMPLES[2])
    assert np.mean(heights[-30:]) > 0.9  # cosine of the angle from upright


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_read_at_a_glance(path):
    assert len(path.read_text().splitlines()) <= 60
