"""The programs in examples/ run, in their order, and one of them does what it says at full size."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import gjwm
from gjwm.models import ConvEncoder, GaussianDynamics

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def main(path: Path):
    return runpy.run_path(str(path))["main"]()


def test_they_run_in_reading_order_at_small_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GJWM_SMALL", "1")
    _, latents, pendulum, reward, _ = [main(path) for path in EXAMPLES]
    assert latents["effective_rank"] > 0 and len(pendulum) == 5 and reward >= 0


@pytest.mark.slow
def test_a_pendulum_swings_up_from_random_data_and_one_goal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    heights = main(EXAMPLES[2])
    assert np.mean(heights[-30:]) > 0.9  # cosine of the angle from upright


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_read_at_a_glance(path):
    assert len(path.read_text().splitlines()) <= 60


def test_an_exported_model_is_planned_with_without_the_code_that_made_it(tmp_path):
    torch.manual_seed(0)
    dynamics = GaussianDynamics(4, 2, hidden=8, std_hidden=8)
    model = gjwm.WorldModel(ConvEncoder((3, 64, 64), 4, channels=[4, 4], hidden=8), dynamics)
    model.eval().export(tmp_path / "examples-output" / "two-room")
    path = next(path for path in EXAMPLES if "export" in path.stem)
    code = (
        f"import runpy, sys; runpy.run_path({str(path)!r})['main']();"
        "print([m for m in sys.modules if m.startswith(('gjwm.models', 'gjwm.training'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"GJWM_SMALL": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "[]" and "goal after" in done.stdout
