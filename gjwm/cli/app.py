"""`gjwm COMMAND key=value ...`: from a command line to an exit status.

The commands are modules of `gjwm.cli`. Each but `data` and `play` gets `configs/config.yaml`,
composed with the overrides, and works in one folder, runs/<name>/, with the resolved config beside
what it made.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import gymnasium
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from gjwm import __version__
from gjwm._core.stopping import Stopped, listening
from gjwm.cli.collect import collect_command
from gjwm.cli.config import groups, load_config, prepare, split_sweep, with_experiment
from gjwm.cli.data import USAGE as DATA_USAGE
from gjwm.cli.data import data_command
from gjwm.cli.evaluate import evaluate_command, report_command
from gjwm.cli.help import help_of
from gjwm.cli.online import online_command
from gjwm.cli.play import play_command, play_help
from gjwm.cli.run import run_command
from gjwm.cli.study import study_command
from gjwm.cli.train import train_command
from gjwm.cli.video import video_command
from gjwm.models.pretrained import shipped
from gjwm.training.processes import Processes
from gjwm.training.run import RunFolderError, sole_process
from gjwm.training.settings import ComponentError

COMMANDS: dict[str, Callable[[DictConfig, str], None]] = {
    "collect": collect_command,
    "train": train_command,
    "online": online_command,
    "evaluate": evaluate_command,
    "report": report_command,
    "video": video_command,
    "run": run_command,
    "study": study_command,
}
# those without a configuration: what they do, and their help
PLAIN: dict[str, tuple[Callable[[Sequence[str]], int], Callable[[], str]]] = {
    "play": (play_command, play_help),
    "data": (data_command, lambda: DATA_USAGE),
}


USAGE = f"""usage: gjwm {"|".join(COMMANDS)} [key=value ...]
       gjwm COMMAND --help    its settings, with defaults and meaning
       gjwm play {"|".join(shipped())} [key=value ...]
       gjwm data info|verify|convert DATASET ...

  collect    gather episodes into data/<task>
  train      train a world model on them into runs/<name>
  online     learn a task from its reward while acting: task=walker-walk preset=cpu|gpu
  evaluate   write runs/<name>/evaluation.json and report.html
  report     draw report.html again, from the run's folder alone: run_dir=...
  video      write runs/<name>/videos/goals.mp4 and grid.mp4
  run        collect, train and evaluate, going on with what is there
  study      that for several seeds and any grid of settings: study.seeds=[0,1,2] objective.lam=1,5
  play       plan to a few goals with a small model that is here already, and film it
  data       look into a dataset, check every byte of it, or bring one of another format in

Common overrides: name=...  seed=...  objective.lam=0  logger.wandb=disabled
experiment={"|".join(groups()["experiment"])}
resume=true goes on with a collection or a training that was interrupted"""

# What a user's input or machine can cause; anything else is a defect and keeps its traceback.
USER_ERRORS = (
    ValueError,
    OSError,
    MemoryError,
    FloatingPointError,
    RuntimeError,
    ImportError,
    gymnasium.error.Error,
    HydraException,
    OmegaConfBaseException,
)

HELP = {"-h", "--help"}
FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command -> exit status: 0, 1 after an error told in one sentence, 2 for wrong
    usage.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or (HELP & set(arguments) and arguments[0] not in COMMANDS):
        print(PLAIN[arguments[0]][1]() if arguments and arguments[0] in PLAIN else USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None and arguments[0] not in PLAIN:
        print(
            f"gjwm: unknown command {arguments[0]!r}; choose one of "
            f"{', '.join([*COMMANDS, *PLAIN])}.",
            file=sys.stderr,
        )
        return 2
    processes = Processes.of()
    if processes.size > 1 and command is not train_command:
        if processes.first:
            print(
                f"gjwm {arguments[0]}: torchrun started {processes.size} processes, and only `gjwm "
                "train` shares its work among them; run this one without torchrun.",
                file=sys.stderr,
            )
        return int(processes.first)  # the first's is the failure that torchrun tells of
    if "" not in sys.path:  # an environment or a cost may stand in a file here
        sys.path.append("")  # last: no file here takes the place of an installed module
    try:
        with listening():
            return _run(arguments, command)
    except USER_ERRORS as error:
        if os.environ.get("GJWM_TRACEBACK"):
            raise
        cause = (
            error.__cause__
            if isinstance(error, InstantiationException) and error.__cause__
            else error
        )
        message = " ".join(str(cause).split())  # hydra's come in several lines
        if isinstance(cause, ComponentError) and "unexpected keyword" in message:
            message = f"{message.rstrip('.')}; ~{cause.name}.NAME removes a setting."
        if isinstance(cause, RunFolderError):
            message = f"{message.rstrip('.')}; name=... chooses one."
        if isinstance(cause, OSError) and cause.errno in FULL:
            message = (
                f"{cause.strerror}{f', writing {cause.filename}' if cause.filename else ''}; what "
                f"was there before is whole. Make room, then {_again(arguments)}."
            )
        if (
            isinstance(cause, OSError)
            and cause.errno in UNWRITABLE
            and cause.filename
            and command is not None
        ):
            message = (
                f"{cause.filename}: {cause.strerror}; set dataset=... or run_dir=... to a folder "
                "that can be written."
            )
        message = message or type(cause).__name__
        message += "" if message[-1] in ".?!" else "."  # hydra's are not always sentences
        by = "" if processes.first else f", {processes}"
        print(f"gjwm {arguments[0]}{by}: {message}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"gjwm {arguments[0]}: stopped by {stopped}; {_again(arguments)}.", file=sys.stderr)
        return 128 + stopped.number


def _run(arguments: list[str], command: Callable[[DictConfig, str], None] | None) -> int:
    """`command`, or one without a configuration where there is none -> exit status."""
    name, *words = arguments
    if command is None:
        return PLAIN[name][0](words)
    settings = [text for text in words if text not in HELP]
    if command is study_command:
        settings = split_sweep(settings)[1]
    cfg = load_config(with_experiment(name, settings))
    if HELP & set(words):
        print(help_of(name, command, cfg))
        return 0
    prepare(cfg)
    trains = command in (train_command, online_command)
    with sole_process(cfg.run_dir) if trains and Processes.of().first else nullcontext():
        command(cfg, shlex.join(["gjwm", *arguments]))
    return 0


def _again(arguments: Sequence[str]) -> str:
    """What becomes of a command that was stopped."""
    if arguments[0] in ("run", "study") or "resume=true" in arguments:
        return "the same command goes on"
    resumes = arguments[0] in ("collect", "train", "online")
    return f"the same command {'with resume=true goes on' if resumes else 'begins anew'}"
