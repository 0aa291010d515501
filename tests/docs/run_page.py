"""Runs a page of the documentation, block by block, in the current folder.

Conventions, all invisible on the page:
    <!-- test: run
    code -->                          code that runs at this point
    <!-- test: replace "a" by "b" --> in the next block, such as a smaller number of episodes
    <!-- test: skip, because ... -->  the next block does not run
Replacements may name SIZES (of a `Recipe`) and QUICK (an `Evaluation`), which take seconds, and
SMALL behind a `gjwm` command, which then runs with such sizes and does not only compose.

Python blocks share one namespace. A block with a caption is a file: it is written, or appended
where the caption ends in "(append)". In shell blocks `pytest ...` runs and `gjwm ...` must compose.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from omegaconf import OmegaConf

STEP = re.compile(
    r"^<!-- test: (?P<note>.*?)-->$|^```(?P<kind>[^\n]*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
CAPTION = re.compile(r"\A:caption: (?P<path>\S+)(?P<append> \(append\))?\n\n?")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(kind, body) of each block that runs, replacements made; kind "run" for hidden code."""
    found, replacements, skip = [], [], False
    for step in STEP.finditer(page.read_text()):
        note, kind, body = step["note"], step["kind"], step["body"]
        if note is not None:
            word, _, rest = note.partition("\n" if note.startswith("run") else " ")
            if word.strip() == "run":
                found.append(("run", rest))
            elif word == "replace":
                replacements.append(re.fullmatch(r'"(.*)" by "(.*)"', rest.strip()).groups())
            elif word.strip(" ,") == "skip":
                skip = True
            else:
                raise ValueError(f"{page.name}: unknown note {note!r}.")
            continue
        for old, new in replacements:
            if old not in body:
                raise ValueError(f"{page.name}: {old!r} is not in the block {body[:80]!r}.")
            body = body.replace(old, new)
        if not skip:
            found.append((kind.strip(), body))
        replacements, skip = [], False
    return found


def command_lines(shell: str) -> list[list[str]]:
    """The commands of a shell block, split as a shell does, comments left out."""
    lines = [shlex.split(line, comments=True) for line in shell.splitlines()]
    return [line for line in lines if line]


def check_command(command: str, overrides: list[str]) -> None:
    """A `gjwm` command exists, and its settings compose."""
    from gjwm.cli.app import COMMANDS, PLAIN
    from gjwm.cli.config import load_config, split_sweep, with_experiment

    if command not in {*COMMANDS, *PLAIN}:
        raise ValueError(f"there is no command gjwm {command}.")
    if command in COMMANDS:
        axes, fixed = split_sweep(overrides)
        if axes and command != "study":
            raise ValueError(f"gjwm {command} takes no list of values: {axes}.")
        load_config(with_experiment(command, fixed))


SMALL = [
    *("collect.episodes=8", "collect.length=20", "collect.workers=0", "logger.wandb=disabled"),
    *("train.steps=4", "train.batch=8", "refine.steps=0", "decode.steps=0", "threads=1"),
    *("calibrate.episodes=0", "evaluate.episodes=8", "evaluate.length=20", "evaluate.pairs=2"),
    *("evaluate.steps=4", "evaluate.horizon=4", "evaluate.replan_every=2", "planner.samples=16"),
    *("reach.steps=2", "reach.batch=8"),
    *("evaluate.probe_steps=5", "report.worst=0", "report.typical=0", "planner.elites=4"),
]


def small(names: dict, body: str) -> None:
    """Put SIZES and QUICK into the namespace when a block uses them."""
    if "SIZES" in body:
        from gjwm.training import recipe

        names["SIZES"] = {
            "train": recipe.TrainSettings(steps=4, batch=8),
            "refine": recipe.RefineSettings(steps=0),
            "calibrate": recipe.CalibrateSettings(episodes=0),
            "decode": recipe.DecodeSettings(steps=0),
        }
    if "QUICK" in body:
        from gjwm.evaluation import Evaluation

        sizes = dict(episodes=8, length=12, pairs=2, steps=4, horizon=4, goal_offset=4)
        names["QUICK"] = Evaluation(**sizes, probe_steps=5)


def run(page: Path) -> dict:
    """Run all blocks of a page; returns the namespace that they leave."""
    names = {"__name__": "__main__"}
    for kind, body in blocks(page):
        small(names, body)
        file = CAPTION.match(body) if kind.startswith("{code-block}") else None
        if file:
            path, text = Path(file["path"]), body[file.end() :]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text((path.read_text() + "\n" if file["append"] else "") + text)
        elif kind in ("python", "run"):
            exec(compile(body, f"{page.name}", "exec"), names)
        elif kind == "yaml":
            OmegaConf.create(body)
        elif kind == "bash":
            for program, *arguments in command_lines(body):
                if program == "gjwm" and arguments[-1] == "SMALL":
                    main = "import gjwm.cli.app as app; raise SystemExit(app.main())"
                    command = [sys.executable, "-c", main, *arguments[:-1], *SMALL]
                    subprocess.run(command, check=True)  # sees what the page has changed
                elif program == "gjwm":
                    check_command(arguments[0], arguments[1:])
                elif program == "pytest":
                    command = [sys.executable, "-m", "pytest", "-q", *arguments]
                    subprocess.run(command, check=True)
    return names


if __name__ == "__main__":
    run(Path(sys.argv[1]))
