"""`gjwm COMMAND --help` lists what a command reads, and completion knows it."""

import ast
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gjwm._core.settings import Natural, Settings
from gjwm.cli.app import COMMANDS, main
from gjwm.cli.arguments import arguments_of
from gjwm.cli.config import load_config, with_experiment
from gjwm.cli.help import READS, meaning_of
from gjwm.planning import ICEM, RiskCost

ROOT = Path(__file__).parents[2]
FUNCTIONS = {
    node.name: node
    for path in (ROOT / "gjwm" / "cli").glob("*.py")
    if path.name != "app.py"
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.FunctionDef)
}


def settings(cfg, before=""):
    """Every setting of a configuration but the classes of its components."""
    for key in cfg:
        name = f"{before}{key}"
        if hasattr(cfg._get_node(key), "items") and not cfg._get_node(key)._is_none():
            yield from settings(cfg._get_node(key), f"{name}.")
        elif key != "_target_":
            yield name


def read_by(command):
    """What a command's function, and those of `gjwm.cli` that it calls, read of `cfg`."""
    # import_parts looks at a model's parts for their classes alone: their settings change nothing
    found, seen, waiting = set(), {"import_parts"}, [f"{command}_command"]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in FUNCTIONS:
            continue
        seen.add(name)
        for node in ast.walk(FUNCTIONS[name]):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "cfg":
                found.add(node.attr)
            if isinstance(node, ast.Name):
                waiting.append(node.id)
    return found - {"get", "items"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_setting_of_the_command_with_its_default_and_its_meaning(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"gjwm {command} ") and max(map(len, text.splitlines())) <= 100
    cfg = load_config(with_experiment(command, []))
    listed = set(re.findall(r"^  ([a-z_][\w.]*)=", text, re.MULTILINE))
    names = {name for name in settings(cfg) if name.partition(".")[0] in READS[command]}
    assert names <= listed
    assert [name for name in names if not meaning_of(cfg, name)] == []
    if command == "train":
        assert "  train.steps=2000                gradient steps\n" in text
        assert "  refine.dynamics=null " in text and "dynamics=NAME chooses from determ" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_leaves_out_nothing_that_the_command_reads(command):
    found = read_by(command)
    assert found and found <= set(READS[command]) | {"_get_node"}


def test_help_shows_the_defaults_of_the_experiment_asked_for(capsys):
    assert main(["train", "experiment=two_room", "encoder.hidden=7", "--help"]) == 0
    text = capsys.readouterr().out
    assert "  train.steps=1400 " in text and "  encoder.hidden=7 " in text
    assert main(["train", "experiment=gym", "--help"]) == 0
    assert "  env.id=???" in capsys.readouterr().out  # the user has to say it
    assert main(["train", "experiment=moon", "--help"]) == 1


@dataclass(frozen=True, kw_only=True)
class Some(Settings):
    """Some settings.

    Args:
        one, two: of both
            at once.
        three: the third.

    Raises:
        ValueError: never.
    """

    one: Natural = 1
    two: int = 2
    three: list = field(default_factory=list)
    four: str = ""


def test_arguments_are_those_of_the_signature_and_the_docstring():
    takes = arguments_of(Some)
    assert list(takes) == ["one", "two", "three", "four"] and takes["one"].hint == Natural
    assert [a.meaning for a in takes.values()] == ["of both at once."] * 2 + ["the third.", ""]
    # what **rest passes on to the next class counts, with that class's words
    takes = arguments_of(ICEM)
    assert takes["samples"].meaning == "candidates per round." and takes["samples"].hint is int
    assert {"decay", "low", "high", "repeat"} <= takes.keys() and "box" not in takes
    assert "kappa" in arguments_of(RiskCost.to_goal)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_completion_of_the_docs_completes_settings(tmp_path):
    (words,) = re.findall(
        r'^complete .* -W (".*") gjwm$', (ROOT / "docs" / "start.md").read_text(), re.M
    )
    gjwm = f'gjwm() {{ "{sys.executable}" -m gjwm "$@"; }}'
    begun = {
        "train.st": ["train.steps="],
        "planner.sam": ["planner.samples="],
        "eval": ["evaluate"],
        "learner.discount": ["learner.discount="],
        "online.lan": ["online.lanes="],
        "study.see": ["study.seeds="],
    }
    ask = "".join(f'compgen -W "$words" -- {word}; echo; ' for word in begun)
    command = ["bash", "-c", f"{gjwm}\nwords={words}\n{ask}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    found = [part.split() for part in done.stdout.split("\n\n")][: len(begun)]
    assert [part[:1] for part in found] == list(begun.values()), done
