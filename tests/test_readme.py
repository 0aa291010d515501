"""The README tells the truth: its snippet runs and does what it says, its commands exist."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from gjwm.cli.app import COMMANDS
from gjwm.cli.config import load_config, split_sweep, with_experiment
from gjwm.data.collect import make_env

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_snippet_is_short_and_swings_a_pendulum_up(tmp_path, monkeypatch):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippet.strip().splitlines()) < 20
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    exec(snippet, names)
    agent, env = names["agent"], make_env("Pendulum-v1")
    o, _ = env.reset(seed=0)
    heights = []
    for _ in range(120):
        o, *_ = env.step(agent.act(torch.from_numpy(o)[None])[0].numpy())
        heights.append(o[0])
    assert np.mean(heights[-30:]) > 0.9  # cosine of the angle from upright


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = "\n".join(
    block
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
)
COMMAND_LINES = re.findall(r"^gjwm (\w+) ?(.*?)(?:#.*)?$", SHELL, re.MULTILINE)


@pytest.mark.parametrize(("command", "overrides"), COMMAND_LINES)
def test_a_command_line_is_one_the_package_takes(command, overrides):
    assert command in {*COMMANDS, "data", "benchmark"}
    if command in COMMANDS:
        axes, fixed = split_sweep(shlex.split(overrides))
        assert not axes or command == "study"
        load_config(with_experiment(command, fixed))


def test_links_and_pictures_exist():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets and all((ROOT / target).exists() for target in targets)
