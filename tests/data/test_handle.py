"""Names of folders."""

from pathlib import Path

import pytest

from gjwm.cli.config import load_config
from gjwm.data.handle import task_of


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
