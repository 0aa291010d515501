"""Worker processes that each serve one object: started clean, told apart from their object's
errors, easy to replace."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

NAME = "gjwm-worker"
GRACE = 5.0  # seconds that a worker has to close its object before it is killed


class WorkerDied(RuntimeError):
    """A worker process ended without an answer: killed, crashed in native code, or not able to
    start."""


def start_method() -> str:
    """ "forkserver", or "spawn" where there is none: a child forked after OpenGL was used hangs in
    the driver."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def cores() -> int:
    """Cores that this process may use."""
    # macOS and Windows cannot say what this process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_worker() -> bool:
    """Whether this is a `Worker`'s process, also while it still imports the script anew: then
    `multiprocessing.parent_process()` is None."""
    return multiprocessing.current_process().name == NAME


class Worker:
    """A process in which `factory(*args)` lives, and whose methods are called from here.

    Starting returns at once; the first `answer` is that of the factory (None when it went well).
    The process computes with one torch thread, ignores Ctrl-C (this process then closes it), and
    ends when this process ends, however it does.

    Args:
        factory: an importable callable; it and `args` are pickled, and `args` may hold
            multiprocessing's shared arrays."""

    def __init__(self, factory: Callable[..., Any], *args: Any):
        context = multiprocessing.get_context(start_method())
        if context.get_start_method() == "forkserver":
            # Imported once, by the server, whose children then start in milliseconds. It must never
            # touch OpenGL.
            context.set_forkserver_preload(["gjwm.envs.vector"])
        self.connection, theirs = context.Pipe()
        # The server has the environment of the moment when it started, so ours goes along.
        arguments = (theirs, dict(os.environ), factory, args)
        self.process = context.Process(target=_serve, args=arguments, daemon=True, name=NAME)
        try:
            self.process.start()
        except BaseException:
            self.connection.close()
            raise
        finally:
            theirs.close()
        self._owed = 1  # answers: the factory's
        self.close = weakref.finalize(self, _close, self.connection, self.process)

    def ask(self, method: str, *args: Any) -> None:
        """Have the object's method called; `answer` brings what it returns. An answer nobody
        fetched is thrown away."""
        while self._owed:
            with contextlib.suppress(Exception):
                self.answer()
        self._owed = 1
        with contextlib.suppress(OSError):  # dead: `answer` will say so
            self.connection.send((method, args))

    def answer(self) -> Any:
        """Wait for the answer owed.

        Raises:
            WorkerDied: naming the exit code.
            Exception: what the method (or the factory) raised, with its traceback as the cause."""
        self._owed = 0
        try:
            good, value = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join(GRACE)
            raise WorkerDied(f"a worker process died ({_reason(self.process.exitcode)})") from error
        if good:
            return value
        error, text = value
        raise error from RuntimeError(f"in a worker process:\n{text}")

    def call(self, method: str, *args: Any) -> Any:
        """`ask`, then `answer`."""
        self.ask(method, *args)
        return self.answer()


def _reason(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name}, perhaps for lack of memory" if name == "SIGKILL" else name


def _close(connection: Connection, process: multiprocessing.process.BaseProcess) -> None:
    connection.close()  # the worker reads its end, closes its object and leaves
    process.join(GRACE)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()


def _serve(
    connection: Connection, environment: dict[str, str], factory: Callable[..., Any], args: tuple
) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)  # the processes share the cores
    served = None
    try:
        good, value = _attempt(factory, args)
        if good:
            served, value = value, None
        while True:
            connection.send((good, value))
            method, arguments = connection.recv()
            if served is not None:  # else why there is no object is the answer to everything
                good, value = _attempt(getattr(served, method), arguments)
    except (EOFError, OSError):  # the other side closed, or is gone
        pass
    finally:
        if hasattr(served, "close"):
            served.close()


def _attempt(function: Callable[..., Any], arguments: tuple) -> tuple[bool, Any]:
    try:
        return True, function(*arguments)
    except Exception as error:
        return False, (_portable(error), traceback.format_exc())


def _portable(error: Exception) -> Exception:
    """The error, or one with the same text where it does not survive pickling."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a class decides for itself how it fails to unpickle
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
