"""metadata.json of a dataset: what was played, and which shards hold it. Replaced as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gymnasium import spaces

from gjwm._core.files import inside, replacing
from gjwm.data.dataset.shard import FORMAT, Shard
from gjwm.data.replay import box_fields, rebuild_space, stacked_fields

FILE = "metadata.json"
# What all episodes of a dataset have in common.
SPACES = ("observation_space", "action_space")
HEADER = ("env_id", "env_kwargs", *SPACES, "frame_stack", "record_state")
_KINDS = {"env_id": str, "env_kwargs": dict, "frame_stack": int, "record_state": bool}
_KINDS |= {"renderer": str, "compress": bool, "versions": dict, "episodes": int, "steps": int}
_KINDS |= {"shards": list}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """metadata.json of the folder `path`, plain JSON.

    Raises:
        FileNotFoundError, ValueError: when there is no dataset, or the file is damaged.
    """
    file = Path(path) / FILE
    if not file.is_file():
        if file.parent.is_dir() and any(file.parent.glob("shard-*.*")):
            raise ValueError(
                f"{path} holds shards and no metadata.json; restore that file, or convert the "
                "shards one by one."
            )
        raise FileNotFoundError(
            f"no dataset at {path} (it has no metadata.json); collect one with `gjwm collect`."
        )
    again = "restore it or collect the dataset again"
    try:
        info = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); {again}.") from error
    kind = info.get("format") if isinstance(info, dict) else type(info).__name__
    if kind != FORMAT:
        raise ValueError(
            f"{file} has dataset format {kind!r}, this version reads {FORMAT}; collect it again."
        )
    needed = (*HEADER, "versions", "episodes", "steps", "shards")
    if missing := [name for name in needed if name not in info]:
        raise ValueError(f"{file} lacks {', '.join(missing)}; {again}.")
    shards = info["shards"] if isinstance(info["shards"], list) else [info["shards"]]
    for name in (entry.get("file") if isinstance(entry, dict) else entry for entry in shards):
        try:
            inside(path, name)
        except ValueError as error:
            raise ValueError(
                f"{file} lists the shard {name!r}, which is no file within its folder; {again}."
            ) from error
    if said := wrong_kind(info):
        raise ValueError(f"{file} has {said}; {again}.")
    for name in ("episodes", "steps"):
        counts = [entry.get(name) for entry in shards]
        if not all(type(n) is int and n > 0 for n in counts) or sum(counts) != info[name]:
            raise ValueError(
                f"{file} counts {info[name]} {name} in all and {counts} in its shards; {again}."
            )
    try:
        space, action_space, frame_stack = layout(info)
        stacked_fields(box_fields(space), frame_stack)
        if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
            raise ValueError(f"the action space is {action_space}, no Box (A,).")
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {str(error).rstrip('.')}; {again}.") from error
    return info


def wrong_kind(info: Mapping[str, Any]) -> str:
    """The first value that is of another kind than a dataset's of that name, in words, or ""."""
    for name, kind in _KINDS.items():
        if type(info.get(name, kind())) is not kind:
            return f"{name}={info[name]!r}, no {kind.__name__}"
    return ""


def write_metadata(path: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Put `info` on disk, whole or not at all, and return it."""
    with replacing(path / FILE) as partial:
        partial.write_text(json.dumps(info, indent=1, allow_nan=False) + "\n")
    return info


def list_shard(path: Path, info: dict[str, Any], file: Path) -> dict[str, Any]:
    """The metadata with one shard more, on disk."""
    with Shard(file) as shard:
        if shard.first_episode != info["episodes"]:
            raise ValueError(
                f"{file} begins with episode {shard.first_episode}, metadata.json knows "
                f"{info['episodes']} episodes; it belongs to another dataset: move it away."
            )
        entry = {"file": file.name, "episodes": shard.episodes, "steps": shard.steps}
    counts = {name: info[name] + entry[name] for name in ("episodes", "steps")}
    return write_metadata(path, info | counts | {"shards": [*info["shards"], entry]})


def layout(info: Mapping[str, Any]) -> tuple[spaces.Space, Any, int]:
    """Observation space, action space and frame stack."""
    space, action_space = (rebuild_space(info[name]) for name in SPACES)
    return space, action_space, info["frame_stack"]


def package_versions() -> dict[str, str]:
    """What is installed while a dataset is started."""
    versions = {}
    for package in ("gjwm", "torch", "numpy", "gymnasium", "mujoco", "dm-control"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
