"""Half an hour of `gjwm online` on a tiny task, watched from outside: does it gain memory, files,
threads or processes while it goes on?

    python scripts/soak.py run docs/soak.csv [--minutes 30]    # then checks and draws as below
    python scripts/soak.py check docs/soak.csv --picture docs/assets/soak.svg

Every ten seconds a row: what the command's whole tree of processes holds, from /proc (Linux). Rows
after the warm-up are judged by medians of their first and last fifth, as an evaluation opens a
process for some seconds and a state a file: memory (PSS, which counts shared pages once) may grow
by 2%, nothing else by one."""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gjwm.reporting.svg import Figure

COLUMNS = ("seconds", "step", "processes", "threads", "files", "rss_mb", "pss_mb")
HANDLES = ("processes", "threads", "files")
GROWTH = 0.02  # of memory
WARM_UP = 300.0  # s: imports, the replay's rows, the first evaluation
ONLINE = """
    experiment=suite task=pendulum-swingup name=soak threads=1 logger.wandb=disabled latent_dim=4
    encoder.hidden=[16] dynamics.hidden=16 dynamics.std_hidden=8 heads.reward.hidden=[16]
    heads.value.hidden=16 heads.policy.hidden=[16] discrepancy.num_slices=8 planner.samples=16
    planner.iterations=2 planner.elites=4 online.horizon=3 online.batch=16 online.lanes=2
    +env.max_episode_steps=50 collect.workers=1 online.capacity=2000 online.aimless_steps=200
    online.aimless_limit=200 online.log_every=500 online.evaluate_every=2000 online.episodes=2
    online.checkpoint_every=1000 online.steps=100000000
""".split()

Row = dict[str, float]


def descendants(pid: int) -> list[int]:
    """The process and all that it started."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    found = [pid]
    for child in (int(word) for path in children for word in path.read_text().split()):
        found += descendants(child)
    return found


def held(pid: int) -> Row:
    """What one process holds now; memory in MB of 2^20 bytes.

    Raises:
        OSError: when it has gone.
    """
    proc = Path(f"/proc/{pid}")
    pages = dict(
        line.split(":", 1) for line in (proc / "smaps_rollup").read_text().splitlines()[1:]
    )
    return {
        "processes": 1,
        "threads": len(os.listdir(proc / "task")),
        "files": len(os.listdir(proc / "fd")),
        "rss_mb": int(pages["Rss"].split()[0]) / 1024,
        "pss_mb": int(pages["Pss"].split()[0]) / 1024,
    }


def sample(pid: int, run: Path) -> Row:
    """One row, without its seconds."""
    row: Row = dict.fromkeys(COLUMNS[2:], 0)
    for each in descendants(pid):
        try:
            for name, value in held(each).items():
                row[name] += value
        except OSError:
            continue  # a worker that ended meanwhile
    row["step"] = 0
    for name in ("metrics.jsonl.partial", "metrics.jsonl"):
        if (run / name).is_file():
            lines = (run / name).read_text().splitlines()
            row["step"] = json.loads(lines[-1])["step"] if lines else 0
            break
    return row


def run(path: Path, minutes: float, every: float = 10.0) -> int:
    """Start the command, write a row to `path` now and then, end it by SIGTERM -> its status."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gjwm", "online", *ONLINE]
        log = Path(folder) / "log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with open(log, "wb") as out, open(path, "w", newline="") as table:
            process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=environment)
            writer = csv.DictWriter(table, COLUMNS)
            writer.writeheader()
            begin = time.monotonic()
            while process.poll() is None and time.monotonic() - begin < 60 * minutes:
                time.sleep(every)
                if process.poll() is None:
                    row = sample(process.pid, Path(folder) / "runs" / "soak")
                    row["seconds"] = time.monotonic() - begin
                    writer.writerow({name: round(value, 1) for name, value in row.items()})
                    table.flush()
            process.send_signal(signal.SIGTERM)
            status = process.wait(120)
        if status != 128 + signal.SIGTERM:
            print(log.read_text()[-2000:], file=sys.stderr)
        return status


def read(path: Path) -> list[Row]:
    """The rows of a table that `run` wrote."""
    with open(path, newline="") as table:
        return [
            {name: float(value) for name, value in row.items()} for row in csv.DictReader(table)
        ]


def growth(rows: list[Row], warm_up: float = WARM_UP) -> dict[str, tuple[float, float]]:
    """Median of the first and of the last fifth after the warm-up, by column.

    Raises:
        ValueError: with fewer than ten rows after the warm-up.
    """
    warm = [row for row in rows if row["seconds"] >= warm_up]
    if len(warm) < 10:
        raise ValueError(f"a soak needs ten rows after {warm_up:g} s of warm-up, got {len(warm)}.")
    fifth = len(warm) // 5
    return {
        name: (
            statistics.median(row[name] for row in warm[:fifth]),
            statistics.median(row[name] for row in warm[-fifth:]),
        )
        for name in COLUMNS[1:]
    }


def faults(rows: list[Row], warm_up: float = WARM_UP) -> list[str]:
    """What grew more than it may, a sentence each; also a loop that stood still."""
    found = growth(rows, warm_up)
    before, after = found["pss_mb"]
    said = []
    if after > before * (1 + GROWTH):
        said.append(f"memory grew from {before:.1f} to {after:.1f} MB, over {GROWTH:.0%}.")
    for name in HANDLES:
        before, after = found[name]
        if after > before:
            said.append(f"{name} grew from {before:g} to {after:g}.")
    if not found["step"][1] > found["step"][0]:
        said.append("no step was made.")
    return said


def picture(rows: list[Row]) -> str:
    """Memory over time, and how many files are open, each against its value after the warm-up."""
    base = growth(rows)
    minutes = [row["seconds"] / 60 for row in rows]
    figure = Figure(
        "soak",
        "Half an hour of learning online",
        labels=("minutes", "against the value after warm-up"),
        x=(0, max(minutes)),
        y=(0.9, 1.1),
    )
    for name, role, label in (("pss_mb", "model", "memory (PSS)"), ("files", "oracle", "files")):
        values = [row[name] / base[name][0] for row in rows]
        figure.line(minutes, values, role, label)
    return figure.svg(standalone=True)


def main() -> int:
    """Run or check -> exit status, 1 where something grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("run", "check"))
    parser.add_argument("table", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--picture", type=Path, help="draw this svg")
    given = parser.parse_args()
    status = 0
    if given.command == "run":
        left = run(given.table, given.minutes)
        status = int(left != 128 + signal.SIGTERM)
        if status:
            print(f"soak: the command left with {left}, not by its signal.", file=sys.stderr)
    rows = read(given.table)
    for name, (before, after) in growth(rows).items():
        share = after / before - 1 if before else 0
        print(f"{name:10s} {before:10.1f} -> {after:10.1f}  ({share:+.2%})")
    for fault in (wrong := faults(rows)):
        print(f"soak: {fault}", file=sys.stderr)
    if given.picture:
        given.picture.write_text(picture(rows))
    return int(bool(wrong) or status)


if __name__ == "__main__":
    sys.exit(main())
