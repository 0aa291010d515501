"""A run's folder, runs/<name>/: who may work in it, where an interrupted training goes on, and what
a training leaves there.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from gjwm._core.checkpoint import Checkpoints
from gjwm._core.files import holding, replacing
from gjwm._core.fit import Log
from gjwm.training.metrics import MetricsFile

RETURNS = "returns.json"  # the last file of a run that learns from reward
# Groups of settings that do not change what a training makes.
AFTER_TRAINING = (
    *("evaluate", "planner", "cost", "video", "logger", "threads", "study", "device", "report"),
    *("resume", "storage", "compress", "checkpoint"),
)
LATE = ("refine", "reach")  # stages after the last state of a training
OFFLINE = (*LATE, "decode")  # that only `gjwm train` reads
# groups that only `gjwm online` reads, for which the planner belongs to training
ONLINE = ("online", "learner")


class RunFolderError(ValueError):
    """A run's folder that another training, or another process, is in."""


def changed_training(
    before: Mapping[str, Any], now: Mapping[str, Any], *, online: bool = False
) -> dict[str, tuple[Any, Any]]:
    """Settings by which `now` would have made another training than `before`: {"train.steps": (5,
    7)}, "not set" where there is none.

    Args:
        online: whether it is one of `gjwm online`.
    """
    before, now = (dict(leaves(_decisive(config, online))) for config in (before, now))
    unset = "not set"
    pairs = {k: (before.get(k, unset), now.get(k, unset)) for k in sorted(before.keys() | now)}
    return {key: (old, new) for key, (old, new) in pairs.items() if old != new}


def leaves(config: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    """("train.steps", 5) and so on of a nested configuration; None at its top is left out."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{group}{key}.")
        elif group or value is not None:
            yield f"{group}{key}", value


def _decisive(config: Mapping[str, Any], online: bool) -> dict[str, Any]:
    ignored = {*AFTER_TRAINING, *OFFLINE} - {"planner"} if online else {*AFTER_TRAINING, *ONLINE}
    config = {key: copy.copy(value) for key, value in config.items() if key not in ignored}
    for stage in LATE:
        if not (config.get(stage) or {}).get("steps"):
            config.pop(stage, None)  # it does not happen, however it would have been
    if isinstance(config.get("collect"), dict):
        config["collect"].pop("workers", None)  # episodes do not depend on it
    return config


def require_same_training(
    before: Mapping[str, Any], now: Mapping[str, Any], run: str | Path, *, online: bool = False
) -> None:
    """Refuse settings that would have made another training than the one in `run`; `online` as in
    `changed_training`.

    Raises:
        RunFolderError: naming the settings that differ.
    """
    changed = changed_training(before, now, online=online)
    if changed:
        told = [f"{key} ({old} before, {new} now)" for key, (old, new) in changed.items()]
        more = f" and {len(told) - 3} more" if len(told) > 3 else ""
        raise RunFolderError(
            f"{run} was trained with other settings of {', '.join(told[:3])}{more}; choose another "
            "run folder, or remove it."
        )


def same_evaluation(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether both settings judge a model in the same way."""
    return all(before.get(group) == now.get(group) for group in ("evaluate", "planner", "cost"))


@contextmanager
def sole_process(folder: str | Path) -> Iterator[None]:
    """Keep other trainings out of a run's folder, as two would write over each other."""
    with ExitStack() as stack:
        try:
            stack.enter_context(holding(Path(folder) / "lock"))
        except BlockingIOError as error:
            raise RunFolderError(
                f"another process works in {folder}; wait for it, or choose another run folder."
            ) from error
        yield


Logging = Callable[[int, "int | None"], Any]  # (steps, step to go on after) -> context: a Log


class Run:
    """The folder of one run, and how its training is told.

    Args:
        folder: made when training begins.
        config: all settings, plain; written to config.yaml, and what an interrupted training must
            have been begun with.
        device: that it trains on.
        resume: go on with an interrupted training; refused where there is one otherwise.
        last: the file that is written at the very end: if it is missing, or still what it was
            when the training began, the run was killed before it.
        log_every, checkpoint_every: steps between scalars, and between states.
        command: that asked for it, kept with the model.
        logging: called with (all steps, step to go on after or None) -> a context manager around
            the training that gives what scalars are logged with; None: a `MetricsFile`.

    `remarks` are sentences about how the training goes, and `returns` what was earned at its end,
    by who acts (see `gjwm.rl.return_report`), for those who show it.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Mapping[str, Any],
        *,
        device: str = "cpu",
        resume: bool = False,
        last: str = "checkpoint.pt",
        log_every: int = 25,
        checkpoint_every: int = 250,
        command: str = "",
        logging: Logging | None = None,
    ):
        self.folder, self.config, self.device = Path(folder), dict(config), device
        self.resume, self.last, self.log_every, self.command = resume, last, log_every, command
        self.checkpoints = Checkpoints(self.folder / "state", every=checkpoint_every)
        self._logging = logging
        self.remarks: tuple[str, ...] = ()
        self.returns: Mapping[str, Any] = {}

    def begin(
        self, steps: int, episodes: int, ready: Callable[[int], Any] = lambda episodes: None
    ) -> tuple[int | None, int] | None:
        """Make the folder ready -> (step to go on after or None, episodes to train on), or None if
        all is done.

        Args:
            steps: after which training ends.
            episodes: that the dataset has now.
            ready: called with the episodes before anything is touched, unless all is done; what it
                raises stops the training.

        Raises:
            ValueError: when a training would be lost, or resumed with other settings.
        """
        checkpoints, started = self.checkpoints, self.folder / "state" / "run.json"
        state = checkpoints.latest()
        unfinished = state is not None and (self.folder / "metrics.jsonl.partial").exists()
        if state is not None and self.resume:
            before = _begun(started)
            online, complete = self.last == RETURNS, self._written(before)
            if not online and not complete:
                # These come after the last state, so how may change as long as there is no model.
                for stage in LATE:
                    before["config"][stage] = self.config.get(stage)
            require_same_training(before["config"], self.config, self.folder, online=online)
            if state.step >= steps and not unfinished and complete:
                return None
            kinds = [torch.device(name).type for name in (before["device"], self.device)]
            if kinds[0] != kinds[1]:
                raise ValueError(
                    f"{self.folder} was begun on {kinds[0]}, whose random numbers {kinds[1]} does "
                    f"not have: go on with device={kinds[0]}."
                )
            ready(before["episodes"])
            write_json(started, before)
            return state.step, before["episodes"]
        if unfinished:
            raise ValueError(
                f"{self.folder} holds a training that stopped after step {state.step}: go on with "
                f"resume=true, or remove {checkpoints.folder} to start anew."
            )
        ready(episodes)
        checkpoints.clear()
        started.parent.mkdir(parents=True, exist_ok=True)
        content = {"config": self.config, "episodes": episodes, "device": self.device}
        content["last_before"] = self._digest_of_last()
        write_json(started, content)
        return None, episodes

    def _written(self, before: Mapping[str, Any]) -> bool:
        """Whether the training that `before` describes has written its last file. Its time says
        nothing: a clock may jump, and copies have times of their own.
        """
        now = self._digest_of_last()
        return now is not None and "last_before" in before and now != before["last_before"]

    def _digest_of_last(self) -> str | None:
        file = self.folder / self.last
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None

    @contextmanager
    def logging(self, steps: int, after: int | None) -> Iterator[Log]:
        """What scalars of a training of `steps` steps are logged with; an interrupted one keeps
        those up to step `after`.
        """
        if self._logging is not None:
            with self._logging(steps, after) as log:
                yield log
            return
        with MetricsFile(self.folder, resume_after=after) as metrics:
            yield metrics.log

    def write_config(self) -> None:
        """config.yaml: all settings."""
        with replacing(self.folder / "config.yaml") as partial:
            partial.write_text(yaml.safe_dump(self.config, sort_keys=False, width=100))


def _begun(started: Path) -> dict[str, Any]:
    """What `Run.begin` wrote of a training that it began."""
    try:
        before = json.loads(started.read_text())
        kinds = {name: type(before[name]) for name in ("config", "episodes", "device")}
    except (LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        kinds = {"error": error}
    if kinds != {"config": dict, "episodes": int, "device": str}:
        raise RunFolderError(
            f"{started} does not say how the training began, so that it cannot go on; remove "
            f"{started.parent} to start anew, or choose another run folder."
        )
    return before


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of JSON that is whole or absent."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
