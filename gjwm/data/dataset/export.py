"""Datasets of this package written as those of others, for their tools: Minari's HDF5.

Written with h5py alone. What is rescaled when others' data come in (actions in [-1, 1]) stays as it
is, so that a dataset that is written and read again is the same."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from gjwm._core.files import replacing, require_room
from gjwm.data.dataset.metadata import layout
from gjwm.data.dataset.reader import dataset_info, read_episodes
from gjwm.data.dataset.shard import ROOM
from gjwm.data.replay import box_fields

_OVERHEAD = 2**14  # bytes of an episode's group and its arrays' headers, and more
_STEP = 16  # of a step's reward and how it ended, and more


def write_minari(source: str | Path, target: str | Path) -> dict[str, Any]:
    """Write the dataset at `source` as a Minari dataset in HDF5: `target/data/main_data.hdf5` and
    `metadata.json` beside it. Move the folder to ~/.minari/datasets/<id> and load it by that id.

    Returns:
        {"to", "episodes", "steps"}.

    Raises:
        FileNotFoundError, ValueError: for a source that cannot be read, or a target that is there.
        OSError: when the file cannot be written whole, as on a full disk.
    """
    target = Path(target)
    # empty folders may be those of a disk that was full
    if target.is_file() or any(not path.is_dir() for path in target.rglob("*")):
        raise ValueError(f"{target} exists and is not empty; convert into a new folder.")
    info = dataset_info(source)
    space, action_space, _ = layout(info)
    folder = target / "data"
    folder.mkdir(parents=True, exist_ok=True)
    frame, action = (
        sum(box.dtype.itemsize * math.prod(box.shape) for box in box_fields(one).values())
        for one in (space, action_space)
    )
    steps, episodes = info["steps"], info["episodes"]
    size = ROOM + episodes * (_OVERHEAD + frame) + steps * (frame + action + _STEP)
    with replacing(folder / "main_data.hdf5") as partial:
        require_room(partial, size)
        with h5py.File(partial, "w", track_order=True) as file:
            for number, episode in enumerate(read_episodes(source)):
                group = file.create_group(f"episode_{number}")
                group.attrs["id"], group.attrs["total_steps"] = number, len(episode.a)
                named = episode.o if isinstance(episode.o, dict) else {"": episode.o}
                for name, values in named.items():
                    group[f"observations/{name}" if name else "observations"] = values
                group["actions"], group["rewards"] = episode.a, episode.r
                group["terminations"], group["truncations"] = episode.terminated, episode.truncated
    metadata = {
        "dataset_id": target.name,
        "total_episodes": info["episodes"],
        "total_steps": info["steps"],
        "data_format": "hdf5",
        "minari_version": "0.5.3",  # whose layout this is
        "observation_space": json.dumps(_described(space)),
        "action_space": json.dumps(_described(action_space)),
    }
    with suppress(gymnasium.error.Error):  # data of no environment have another kind of name
        spec = EnvSpec(info["env_id"], entry_point="", kwargs=dict(info["env_kwargs"]))
        metadata["env_spec"] = spec.to_json()
    with replacing(folder / "metadata.json") as partial:
        partial.write_text(json.dumps(metadata, indent=1) + "\n")
    return {"to": "minari", "episodes": info["episodes"], "steps": info["steps"]}


def _described(space: spaces.Space) -> dict[str, Any]:
    """A space as Minari's `serialize_space` gives it: every bound, infinite ones as JSON's
    extension that Python reads."""
    if isinstance(space, spaces.Dict):
        parts = {name: _described(box) for name, box in space.spaces.items()}
        return {"type": "Dict", "subspaces": parts}
    assert isinstance(space, spaces.Box) and space.dtype is not None
    bounds = {"low": np.asarray(space.low).tolist(), "high": np.asarray(space.high).tolist()}
    return {"type": "Box", "dtype": space.dtype.name, "shape": list(space.shape), **bounds}
