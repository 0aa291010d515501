"""`python scripts/kills.py [--trials 200] [--only collect train ...]`: processes killed at random.

Each trial starts a command in a process of its own, kills it (SIGKILL, every fifth time SIGTERM) at
a random moment of its running time, looks for what it should have kept, lets the same command go
on, and compares what came of it with what an undisturbed run made. One row per kind: trials, how
many left a file damaged, a finished piece lost, or another result; status 1 if any did.

Trials are forked from a process that has imported everything, so that moments are those of work
and not of imports. Sizes and comparisons are those of tests/data/test_crash.py."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from gjwm._core.checkpoint import Checkpoints, load_tensors
from gjwm.cli.app import main as gjwm
from gjwm.data.collect import collect_dataset
from gjwm.data.dataset import DatasetWriter, dataset_info, read_episodes, verify

CRASH = Path(__file__).parent.parent / "tests" / "data" / "test_crash.py"
# of the trials
SHARES = {"collect": 0.62, "train": 0.12, "online": 0.12, "study": 0.1, "export": 0.04}
EPISODES = 120


def _crash() -> Any:
    """The crash tests, whose sizes and comparisons these are."""
    spec = importlib.util.spec_from_file_location("crash", CRASH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


crash = _crash()


class Kind(NamedTuple):
    """What is killed: `work(folder)` as one process does it, going on with what is there."""

    work: Callable[[Path], int]
    kept: Callable[[Path], list[str]]  # what is wrong after a kill
    result: Callable[[Path], Any]  # of a finished folder
    same: Callable[[Any, Any], bool]
    alone: bool = False  # whether every other kill leaves the processes that it started


def alike(a: Any, b: Any) -> bool:
    """Whether two results are equal in every bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return a == b


# -- collection ------------------------------------------------------------------------------------


def collect(folder: Path) -> int:
    """Episodes that are missing; told.txt gets the number of each that was said to be safe."""
    begun = (folder / "data" / "metadata.json").exists()  # or killed before there was anything
    there = dataset_info(folder / "data")["episodes"] if begun else 0
    append = DatasetWriter.append
    with open(folder / "told.txt", "a", buffering=1) as told:

        def append_and_tell(self: DatasetWriter, episode: Any, **source: Any) -> None:
            number = self.episodes
            append(self, episode, **source)
            told.write(f"{number}\n")

        DatasetWriter.append = append_and_tell
        if there < EPISODES:
            collect_dataset(folder / "data", episodes=EPISODES - there, **crash.DATA)
    return 0


def collected(folder: Path) -> list[str]:
    """What is wrong with the dataset after a kill."""
    told = len((folder / "told.txt").read_text().split()) if (folder / "told.txt").exists() else 0
    if not (folder / "data" / "metadata.json").exists():
        return [f"{told} episodes are gone"] if told else []
    count = dataset_info(folder / "data")["episodes"]  # takes up the journal
    lost = [f"{told - count} of {told} episodes are gone"] if count < told else []
    return lost + (verify(folder / "data") if count else [])


def episodes(folder: Path) -> list[list[np.ndarray]]:
    """What was collected."""
    return [list(episode[:5]) for episode in read_episodes(folder / "data")]


# -- training, joint and online --------------------------------------------------------------------


def command(name: str, settings: list[str]) -> Callable[[Path], int]:
    """`gjwm NAME` in the folder, which goes on with what is there."""

    def work(folder: Path) -> int:
        os.chdir(folder)
        return gjwm([name, *settings, "name=run", "collect.workers=0", "resume=true"])

    return work


def states(folder: Path) -> list[str]:
    """Files of weights that cannot be read, and states of which none can."""
    wrong = []
    for file in (folder / "runs").rglob("*.pt"):
        try:
            load_tensors(file)
        except Exception as error:
            wrong.append(f"{file.name}: {error}")
    Checkpoints(folder / "runs" / "run" / "state").latest()
    return wrong


def trained(folder: Path) -> Any:
    """Losses of every step, and weights."""
    return crash.results(folder / "runs" / "run")


def earned(folder: Path) -> Any:
    """What a run online logged, its returns and weights."""
    return crash.earned(folder / "runs" / "run")


# -- studies ---------------------------------------------------------------------------------------

STUDY = """
    discrepancy=none,sigreg study.seeds=[0] study.jobs=1 planner.samples=16 planner.elites=4
    planner.iterations=2 evaluate.episodes=8 evaluate.length=20 evaluate.pairs=4 evaluate.steps=6
    evaluate.horizon=6 evaluate.probe_steps=10 evaluate.oracle=false report.worst=0
    report.typical=0 report.every=0 collect.workers=0 name=run
""".split()
CLOCKS = ("plan ms per step", "train s", "train ms per step", "peak MB")


def study(folder: Path) -> int:
    """`gjwm study` of two runs in the folder, each a process of its own."""
    os.chdir(folder)
    return gjwm(["study", *crash.TRAIN, *STUDY])


def ended(folder: Path) -> dict[str, int]:
    """{model or evaluation of a run that is done: when it was written}."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for done in (folder / "runs").rglob("evaluation.json")
        for path in (done, done.with_name("checkpoint.pt"))
    }


def studied(folder: Path) -> list[str]:
    """Models and evaluations of finished runs that cannot be read; notes when they were made."""
    done, wrong = ended(folder), []
    for name in done:
        try:
            load_tensors(folder / name) if name.endswith(".pt") else json.loads(
                (folder / name).read_text()
            )
        except Exception as error:
            wrong.append(f"{name}: {error}")
    (folder / "done.json").write_text(json.dumps(done))
    return wrong


def found(folder: Path) -> Any:
    """The table of a study without what a clock says, what its runs made, and which of them were
    done again after the kill.
    """
    with open(folder / "runs" / "run" / "runs.csv", newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(file)]
    runs = sorted(path.parent for path in (folder / "runs").rglob("seed-*/evaluation.json"))
    note = folder / "done.json"
    before, now = json.loads(note.read_text()) if note.exists() else {}, ended(folder)
    again = [name for name in before if now.get(name) != before[name]]
    return rows, [(run.name, crash.results(run)) for run in runs], again


# -- export ----------------------------------------------------------------------------------------


def export(folder: Path) -> int:
    """The programs of a model."""
    from properties.checkpoints import model

    model().export(folder / "programs")
    return 0


def programs(folder: Path) -> dict[str, torch.Tensor]:
    """What the programs that are there compute; one that is not whole cannot be loaded."""
    inputs = {"encoder": (torch.ones(2, 3),), "dynamics": (torch.ones(2, 4), torch.ones(2, 2))}
    return {
        path.stem: torch.export.load(path).module()(*inputs[path.stem])
        for path in sorted((folder / "programs").glob("*.pt2"))
    }


def exported(folder: Path) -> list[str]:
    """Programs that cannot be loaded after a kill."""
    try:
        programs(folder)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    return []


def kinds() -> dict[str, Kind]:
    """By name."""
    return {
        "collect": Kind(collect, collected, episodes, alike),
        "train": Kind(command("train", crash.TRAIN), states, trained, alike),
        "online": Kind(command("online", crash.ONLINE), states, earned, alike),
        "study": Kind(study, studied, found, alike, alone=True),
        "export": Kind(export, exported, programs, alike),
    }


# -- trials ----------------------------------------------------------------------------------------


def child(work: Callable[[Path], int], folder: Path) -> int:
    """The pid of a process that does the work in a session of its own, and says nothing."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        status = work(folder)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def finish(work: Callable[[Path], int], folder: Path) -> None:
    """Do the work to its end.

    Raises:
        RuntimeError: when it fails, with the last line it said.
    """
    _, status = os.waitpid(child(work, folder), 0)
    if status:
        raise RuntimeError(f"status {status}: {(folder / 'log').read_text()[-300:]}")


def killed(
    work: Callable[[Path], int], folder: Path, after: float, number: int, alone: bool
) -> bool:
    """Start the work and kill it after so many seconds, its first process alone or all of them ->
    whether it was still at it.
    """
    pid, until = child(work, folder), time.monotonic() + after
    while time.monotonic() < until:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    (os.kill if alone else os.killpg)(pid, number)
    os.waitpid(pid, 0)
    return True


def tried(
    kind: Kind, whole: Any, folder: Path, after: float, number: int, alone: bool
) -> tuple[bool, str]:
    """One trial -> whether the kill came in time, and what was lost, "" for nothing."""
    running = killed(kind.work, folder, after, number, alone)
    wrong = kind.kept(folder)
    if wrong:
        return running, f"after the kill: {wrong[0]}"
    try:
        finish(kind.work, folder)
    except RuntimeError as error:
        return running, f"does not go on: {error}"
    return running, "" if kind.same(kind.result(folder), whole) else "ends otherwise"


def main(arguments: list[str] | None = None) -> int:
    """Run the trials -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200, help="in all")
    parser.add_argument("--only", nargs="+", choices=sorted(SHARES), default=list(SHARES))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rng, total, failures = random.Random(given.seed), 0, 0
    shares = sum(SHARES[name] for name in given.only)
    with tempfile.TemporaryDirectory() as base:
        for name in given.only:
            data = Path(base) / f"{name}-before"
            data.mkdir()
            if name == "train":
                finish(command("collect", crash.TRAIN), data)
            kind, since = kinds()[name], time.monotonic()
            seconds, expected = 0.0, None
            for number in range(2):  # the first fills caches, the second is as long as a trial
                whole = Path(base) / f"{name}-whole-{number}"
                shutil.copytree(data, whole)
                begun = time.monotonic()
                finish(kind.work, whole)
                seconds, expected = time.monotonic() - begun, kind.result(whole)
            kills, late, lost = {signal.SIGKILL: 0, signal.SIGTERM: 0}, 0, []
            wanted = max(1, round(given.trials * SHARES[name] / shares))
            while sum(kills.values()) < wanted:
                number = signal.SIGTERM if sum(kills.values()) % 5 == 4 else signal.SIGKILL
                folder = Path(base) / f"{name}-trial"
                shutil.copytree(data, folder)
                alone = kind.alone and sum(kills.values()) % 2 == 1
                after = rng.uniform(0, seconds)
                running, fault = tried(kind, expected, folder, after, number, alone)
                kills[number] += running
                late += not running
                lost += [fault] if fault else []
                shutil.rmtree(folder)
            total, failures = total + sum(kills.values()), failures + len(lost)
            print(
                f"{name:8s} {kills[signal.SIGKILL]:4d} SIGKILL {kills[signal.SIGTERM]:4d} SIGTERM "
                f"({late} had ended before)  lost {len(lost)}  {time.monotonic() - since:.0f} s",
                flush=True,
            )
            for fault in lost[:5]:
                print(f"  {fault}", file=sys.stderr, flush=True)
    print(f"{total} kills, {failures} lost something")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
