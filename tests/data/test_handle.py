"""Names of folders, and scripts that collect."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gjwm.cli.config import load_config
from gjwm.data.collect import sole_collector
from gjwm.data.handle import Dataset, collect, task_of


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("gjwm/two-room-v0", "two-room-v0"),
        ("corridor:Corridor-v0", "Corridor-v0"),
        ("Pendulum-v1", "Pendulum-v1"),
    ],
)
def test_a_folder_is_named_after_the_id_without_its_module(env_id, name):
    assert task_of(env_id) == name
    cfg = load_config(["experiment=gym", f"env.id='{env_id}'"])
    assert Path(cfg.dataset) == Path("data", name) and Path(cfg.run_dir) == Path("runs", name)


def test_a_collection_that_failed_at_once_does_not_bind_the_next(tmp_path):
    common = dict(episodes=1, length=3, workers=0, path=tmp_path / "d")
    with pytest.raises(RuntimeError, match="episode 0 of Pendulum-v1 failed"):
        collect("Pendulum-v1", behaviour="scripted", **common)
    data = collect("MountainCarContinuous-v0", behaviour="uniform", action_repeat=2, **common)
    assert len(data) == 1 and Dataset.open(data.path) == replace(data, workers=None)


@pytest.mark.parametrize(
    ("name", "value"), [("episodes", "8"), ("episodes", 2.5), ("length", "a"), ("workers", -1)]
)
def test_amounts_are_checked_before_anything_is_made(tmp_path, name, value):
    amounts = {"episodes": 1, name: value}
    with pytest.raises(ValueError, match=f"^{name} must be .*a whole number, .* got {value!r}"):
        collect("Pendulum-v1", path=tmp_path / "d", **amounts)
    assert not any(tmp_path.iterdir())


def test_amounts_may_be_numbers_of_numpy(tmp_path):
    one, length = np.int64(1), np.int32(3)
    data = collect("Pendulum-v1", episodes=one, length=length, seed=one, workers=0, path=tmp_path)
    assert data.lengths() == [3]


def test_a_folder_with_a_slash_at_its_end_has_its_lock_beside_it(tmp_path):
    with sole_collector(f"{tmp_path}/d/") as info:
        assert info is None and [p.name for p in tmp_path.iterdir()] == ["d.lock"]


CORRIDOR = """
import gymnasium as gym
import numpy as np

class Corridor(gym.Env):
    observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}

gym.register("Corridor-v0", entry_point="corridor:Corridor")
"""
COLLECT = """
import gjwm
gjwm.collect("{}", episodes=1, length=3, workers=1, path="d")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "module"),
    [("Pendulum-v1", ""), ("corridor:Corridor-v0", CORRIDOR)],
)
def test_a_script_that_lacks_its_guard_ends_with_a_reason(tmp_path, env_id, module):
    (tmp_path / "corridor.py").write_text(module)
    (tmp_path / "script.py").write_text(COLLECT.format(env_id))
    ran = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert ran.returncode == 1
    assert "gjwm.collect was called again in a worker process" in ran.stderr  # the worker's
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: a worker process died (exit code 1)")
    assert 'the script lacks `if __name__ == "__main__":`' in last
