"""`python scripts/benchmark.py NAME [--quick] [--out FILE.json]`: one benchmark, or `all` of those
of speed, as tables below what they depend on: the machine, the date and versions."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmarks

ALL = "all"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write -> exit status: 0, or 1 after an error told in one sentence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help=f"{ALL}, or one of {', '.join(benchmarks.names())}")
    parser.add_argument("--quick", action="store_true", help="shows that it runs, not how fast")
    parser.add_argument("--out", type=Path, help="JSON: machine, quick, benchmarks by name")
    options = parser.parse_args(arguments)
    described = {"machine": benchmarks.machine(), "quick": options.quick}
    failed: list[str] = []
    if options.name == ALL:
        found, failed = everything(options.quick)
    else:
        try:
            found = {options.name: benchmarks.run(options.name, quick=options.quick)}
        except ValueError as error:
            print(f"benchmark: {error}", file=sys.stderr)
            return 1
    if options.out is not None:
        content = json.dumps({**described, "benchmarks": found}, indent=1, allow_nan=False)
        options.out.write_text(content + "\n")
    print(", ".join(f"{name} {value}" for name, value in described["machine"].items()))
    for name, rows in found.items():
        print(f"\n{name}\n\n{benchmarks.table(rows)}")
    for name in failed:
        print(f"benchmark: {name} failed; what it said is above.", file=sys.stderr)
    return 1 if failed else 0


def everything(quick: bool) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Rows of every benchmark of speed, by name, and the names of those that failed. Each runs in a
    process of its own: none meets what another has left in memory, or falls with it."""
    found, failed = {}, []
    with tempfile.TemporaryDirectory(prefix="gjwm-benchmark-") as folder:
        for name in [name for name in benchmarks.names() if name not in benchmarks.JUDGED]:
            file = Path(folder) / f"{name}.json"
            command = [sys.executable, __file__, name, "--out", str(file)]
            print(f"{name} ...", file=sys.stderr, flush=True)
            done = subprocess.run([*command, *["--quick"] * quick], stdout=subprocess.DEVNULL)
            if done.returncode or not file.exists():
                failed.append(name)
            else:
                found |= json.loads(file.read_text())["benchmarks"]
    return found, failed


if __name__ == "__main__":
    sys.exit(main())
