"""`python scripts/promises.py`: docs/promises.md, what is promised beside what shows it.

Promises stand in docs/promises.yaml, page by page, those of docs/reliability.md in its tables too.
A page must have the words; a test that is named must exist, and so must a script or a target of
make; `--check` only compares with the file that is there."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

from gjwm.cli.app import COMMANDS
from gjwm.cli.config import load_config, split_sweep, with_experiment

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "promises.md"
RELIABILITY = "docs/reliability.md"
FAULTS = "tests/cli/test_faults.py"  # where docs/reliability.md means tests named without a file
CRASH = "tests/data/test_crash.py"


class Promise(NamedTuple):
    """Words of a page, and the tests and commands that show them."""

    page: str
    words: str
    shown: list[str]


def promises() -> list[Promise]:
    """Those of all pages, page by page.

    Raises:
        ValueError: for words that a page does not have.
    """
    found = []
    for page, entries in yaml.safe_load((ROOT / "docs" / "promises.yaml").read_text()).items():
        text = " ".join((ROOT / page).read_text().split())
        for entry in entries:
            if " ".join(entry["words"].split()) not in text:
                raise ValueError(f"{page} does not say {entry['words']!r}; change promises.yaml.")
            found.append(Promise(page, entry["words"], entry["shown"]))
    inside = ""  # the first cell of the table's head
    for line in (ROOT / RELIABILITY).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = ""
        elif not inside:
            inside = cells[0]
        elif inside == "fault" and not cells[0].startswith("-"):
            found.append(Promise(RELIABILITY, cells[0], evidence(line)))
        elif inside == "what" and not cells[0].startswith("-"):
            shown = ["tests/test_fuzz.py", "python scripts/fuzz.py"]
            found.append(Promise(RELIABILITY, f"whatever comes in: {cells[0]}", shown))
    return found


def evidence(text: str) -> list[str]:
    """The tests and commands that a line of docs/reliability.md names."""
    shown = re.findall(r"`(python scripts/[^`]+)`", text)
    for test in re.findall(r"`((?:tests/[\w/]+\.py::)?test_\w+)`", text):
        shown.append(test if "::" in test else f"{FAULTS}::{test}")
    return shown + [CRASH] * ("`crash`" in text)


def missing(shown: str) -> str:
    """What of a test or a command is not there; "" where all is."""
    if shown.startswith("make "):
        target = shown.split()[1]
        there = f"\n{target}:" in (ROOT / "Makefile").read_text()
        return "" if there else f"the Makefile has no target {target}"
    if shown.startswith("gjwm "):
        command, *settings = shlex.split(shown)[1:]
        try:
            load_config(with_experiment(command, split_sweep(settings)[1]))
        except ValueError as error:
            return str(error).rstrip(".")
        return "" if command in COMMANDS else f"gjwm has no command {command}"
    file, _, test = re.sub("^(python|bash) ", "", shown).split(" ")[0].partition("::")
    if not (ROOT / file).is_file():
        return f"there is no {file}"
    name = test.partition("[")[0]
    there = not name or f"def {name}(" in (ROOT / file).read_text()
    return "" if there else f"{file} has no {name}"


def table(found: list[Promise]) -> str:
    """The page.

    Raises:
        ValueError: for a test or a command that is not there.
    """
    wrong = [m for promise in found for m in map(missing, promise.shown) if m]
    if wrong:
        raise ValueError("; ".join(wrong) + ".")
    pages: dict[str, list[Promise]] = {}
    for promise in found:
        pages.setdefault(promise.page, []).append(promise)
    parts = []
    for page, rows in pages.items():
        link = os.path.relpath(ROOT / page, PAGE.parent) if page != "README.md" else ""
        title = f"[{link}]({link})" if link else page  # the site does not have the README
        parts.append(
            f"## {title}\n\n| promise | shown by |\n|---|---|\n" + "\n".join(map(_row, rows))
        )
    bare = sum(not promise.shown for promise in found)
    return (
        "# Promises\n\n"
        "What the pages promise, and what shows it: a test of the suite or a command. `python\n"
        "scripts/promises.py` makes this page, and sees that the pages have these words and that "
        "the tests\nand commands exist. Figures that nothing here makes by itself stand in "
        "[Results](results.md) with\ntheir command. Tests with an extra or a GPU are skipped "
        "without it.\n\n"
        f"{len(found)} promises, {bare} of them with neither test nor command.\n\n"
        + "\n\n".join(parts)
        + "\n"
    )


def _row(promise: Promise) -> str:
    words = re.sub(r"(?<!\\)\|", r"\\|", promise.words)
    shown = ", ".join(f"`{s}`" for s in promise.shown) or "**nothing that runs by itself**"
    return f"| {words} | {shown} |"


def main() -> int:
    """Write or check the page -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    try:
        text = table(promises())
    except ValueError as error:
        print(f"promises: {error}", file=sys.stderr)
        return 1
    if given.check and PAGE.read_text() != text:
        print("promises: docs/promises.md is not current; run this again.", file=sys.stderr)
        return 1
    PAGE.write_text(text)
    print(f"{PAGE.relative_to(ROOT)}: {re.search(r'[0-9]+ promises, [0-9]+', text)[0]} bare")
    return 0


if __name__ == "__main__":
    sys.exit(main())
