"""Runs as processes of their own, so that one that crashes or is killed for memory neither stops
nor loses the others.

Several at once on this machine need joblib, on a cluster submitit. `supervise` keeps what a run
printed and, if it failed, why.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gjwm._core.stopping import AGAIN, Finishing, say

LOG, FAILURE = "run.log", "failure.txt"


@dataclass(frozen=True)
class Job:
    """One command.

    Args:
        name: what to call it.
        arguments: of `gjwm`.
        folder: where run.log goes, and failure.txt if it fails.
        threads: OMP_NUM_THREADS, which libraries read when they start; None: as in this process.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path
    threads: int | None = None


class Outcome(NamedTuple):
    """How a job ended; the error is one line, None if it ended well."""

    job: Job
    error: str | None
    seconds: float

    def __str__(self) -> str:
        end = "done" if self.error is None else f"FAILED: {self.error} ({self.job.folder / LOG})"
        return f"{self.job.name}: {end}, {self.seconds:.0f} s"


Done = Callable[[Outcome], None]


class UnderWay:
    """The processes of jobs that run, and how they end together."""

    def __init__(self):
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock, self._ended = threading.Lock(), False

    def start(self, *arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        """A process, which a signal that comes meanwhile finds noted.

        Raises:
            RuntimeError: after `end`.
        """
        here = threading.current_thread() is threading.main_thread()  # where signals are handled
        with Finishing(here, step=""), self._lock:
            if self._ended:
                raise RuntimeError("what was under way has been ended; nothing more begins.")
            process = subprocess.Popen(*arguments, **options)
            self._processes.add(process)
        return process

    def over(self, process: subprocess.Popen[bytes]) -> None:
        """It has ended by itself."""
        self._processes.discard(process)

    def end(self, tell: bool) -> None:
        """Wait for all to end after their step; with `tell` each gets the one signal that asks for
        it. Whoever interrupts this does not want to wait.
        """
        with self._lock:
            self._ended, processes = True, list(self._processes)
        try:
            for process in processes if tell else ():
                process.terminate()
            if going := sum(process.poll() is None for process in processes):
                say(f"waits for {going} of its runs to end, each after its step; {AGAIN}.")
            for process in processes:
                process.wait()
        except BaseException:
            for process in processes:
                process.terminate()
            raise


def supervise(job: Job, under_way: UnderWay | None = None) -> Outcome:
    """Run a job and wait for it; `under_way` holds its process as long as it runs."""
    under_way = UnderWay() if under_way is None else under_way
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / FAILURE).unlink(missing_ok=True)
    threads = {} if job.threads is None else {"OMP_NUM_THREADS": str(job.threads)}
    since = time.perf_counter()
    with open(job.folder / LOG, "w", encoding="utf-8") as log:
        process = under_way.start(
            [sys.executable, "-m", "gjwm", *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **threads},
        )
        status = process.wait()
        under_way.over(process)
    error = None
    if status < 0:
        name = signal.Signals(-status).name
        error = f"killed by {name}" + ", as a machine out of memory does" * (name == "SIGKILL")
    elif status:
        error = last_line(job.folder / LOG) or f"status {status} without a word"
    return record(Outcome(job, error, time.perf_counter() - since))


def record(outcome: Outcome) -> Outcome:
    """Keep the reason of a failure in the job's folder."""
    if outcome.error is not None:
        outcome.job.folder.mkdir(parents=True, exist_ok=True)
        (outcome.job.folder / FAILURE).write_text(outcome.error + "\n", encoding="utf-8")
    return outcome


def last_line(path: Path) -> str:
    """The last line with something on it; a progress bar's states count as lines."""
    lines = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def failure_of(folder: Path) -> str | None:
    """Why the last job in `folder` failed, or None."""
    path = folder / FAILURE
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def has_joblib() -> bool:
    """Whether several runs at once are possible on this machine."""
    try:
        import joblib  # noqa: F401
    except ImportError:
        return False
    return True


def run_local(jobs: Sequence[Job], done: Done, *, at_once: int) -> None:
    """Run jobs on this machine, `at_once` at a time, and tell `done` of each as it ends. A signal
    that ends this ends the runs too, each after its step.

    Raises:
        ImportError: for several at once without joblib.
    """
    under_way = UnderWay()
    try:
        for outcome in _outcomes(jobs, under_way, at_once):
            done(outcome)
    except BaseException as stop:
        # All of a terminal's group get a Ctrl-C, and a second signal would not wait.
        interrupted = isinstance(stop, KeyboardInterrupt)
        told = interrupted and getattr(stop, "number", signal.SIGINT) == signal.SIGINT
        under_way.end(tell=not told)
        raise


def _outcomes(jobs: Sequence[Job], under_way: UnderWay, at_once: int) -> Iterable[Outcome]:
    if at_once == 1:
        return (supervise(job, under_way) for job in jobs)
    try:
        import joblib
    except ImportError as error:
        raise ImportError(
            f"study.jobs={at_once} needs joblib: pip install 'gjwm[study]', or run one at a time "
            f"with study.jobs=1."
        ) from error
    # Threads that each wait for a process: a pool of joblib's own processes breaks as a whole when
    # one of them is killed.
    parallel = joblib.Parallel(
        n_jobs=at_once, backend="threading", batch_size=1, return_as="generator_unordered"
    )
    return parallel(joblib.delayed(supervise)(job, under_way) for job in jobs)


def run_slurm(
    jobs: Sequence[Job],
    done: Done,
    *,
    at_once: int,
    folder: Path,
    options: Mapping[str, Any],
    every: float = 10.0,
) -> None:
    """Run jobs as one array of a Slurm cluster, `at_once` at a time; all nodes must see the same
    files.

    Args:
        folder: for submitit's own logs.
        options: of submitit's AutoExecutor: "cluster" ("slurm"; "local" runs here, all at once),
            timeout_min, mem_gb, cpus_per_task, slurm_partition and so on.
        every: seconds between looks at the queue.

    Raises:
        ImportError: without submitit.
        RuntimeError: where there is no Slurm.
    """
    try:
        import submitit
    except ImportError as error:
        raise ImportError(
            "study.launcher=slurm needs submitit: pip install 'gjwm[slurm]'."
        ) from error
    options = dict(options)
    executor = submitit.AutoExecutor(folder=folder, cluster=options.pop("cluster", "slurm"))
    executor.update_parameters(slurm_array_parallelism=at_once, **options)
    waiting = dict(zip(executor.map_array(supervise, jobs), jobs))
    since = time.perf_counter()
    while waiting:
        for task in [task for task in waiting if task.done()]:
            job = waiting.pop(task)
            try:
                outcome = task.result()
            # the supervisor died with its run: a node, its memory or its time were at an end
            except Exception as error:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                reason = f"the cluster ended it: {lines[-1] if lines else type(error).__name__}"
                outcome = record(Outcome(job, reason, time.perf_counter() - since))
            done(outcome)
        if waiting:
            time.sleep(every)
