"""Whether two resolved configurations ask for the same training, and for the same evaluation: what
need not be done again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Groups that do not change what training makes.
AFTER_TRAINING = (
    *("evaluate", "planner", "video", "logger", "threads", "study", "device", "report"),
    *("resume", "storage", "compress", "checkpoint"),
)
OFFLINE = ("refine",)  # that only `gjwm train` reads
# groups that only `gjwm online` reads, for which the planner belongs to training
ONLINE = (
    "online",
    "learner",
)


def changed_training(
    before: Mapping[str, Any], now: Mapping[str, Any], *, online: bool = False
) -> list[str]:
    """Names of the groups by which `now` would have made another training than `before`.

    Args:
        online: whether it is one of `gjwm online`.
    """
    before, now = _decisive(before, online), _decisive(now, online)
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))


def _decisive(config: Mapping[str, Any], online: bool) -> dict[str, Any]:
    ignored = {*AFTER_TRAINING, *OFFLINE} - {"planner"} if online else {*AFTER_TRAINING, *ONLINE}
    config = {key: copy.copy(value) for key, value in config.items() if key not in ignored}
    if not (config.get("refine") or {}).get("steps"):
        config.pop("refine", None)  # nothing is refined, however it would have been
    if isinstance(config.get("collect"), dict):
        config["collect"].pop("workers", None)  # episodes do not depend on it
    return config


def require_same_training(
    before: Mapping[str, Any], now: Mapping[str, Any], run: str | Path, *, online: bool = False
) -> None:
    """Refuse settings that would have made another training than the one in `run`; `online` as in
    `changed_training`.

    Raises:
        ValueError: naming the groups that differ.
    """
    changed = changed_training(before, now, online=online)
    if changed:
        raise ValueError(
            f"{run} was trained with other settings of {', '.join(changed)}; choose another "
            f"name=..., or remove the folder."
        )


def same_evaluation(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether both judge a model in the same way."""
    return all(before.get(group) == now.get(group) for group in ("evaluate", "planner"))
