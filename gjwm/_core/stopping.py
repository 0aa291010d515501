"""SIGINT and SIGTERM as ends of a run: the step that is under way is finished and kept first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = "a second signal does not wait"


class Stopped(KeyboardInterrupt):
    """A signal came while `listening`; `number` is its."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Asked:
    """What the handler and the loops of this process share."""

    number: int | None = None  # the signal that came, until a loop has heard it
    waiting: tuple[str, ...] = ()  # what loops finish first, the innermost last


def _handle(number: int, frame: object) -> None:
    again = _Asked.number is not None
    _Asked.number = number
    if again or not _Asked.waiting:  # whoever asks twice does not want to wait
        raise Stopped(number)
    if _Asked.waiting[-1]:
        say(f"{signal.Signals(number).name}: ends after this {_Asked.waiting[-1]}; {AGAIN}.")


def say(line: str) -> None:
    """A line on stderr, also where a signal interrupts whoever writes there: print may not be
    called again within itself. A line of its own, as a progress bar leaves its line open.
    """
    with suppress(OSError):  # nobody may listen any more
        os.write(2, f"\n{line}\n".encode())


@contextmanager
def listening() -> Iterator[None]:
    """In the block SIGINT and SIGTERM raise `Stopped`: at once, or where `Finishing` loops let it.

    A signal that the process ignores, as of `nohup`, stays ignored. Outside the main thread, where
    Python handles no signals, the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Asked.number, _Asked.waiting = None, ()
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _Asked.number = None


class Finishing:
    """A loop whose step is whole before a signal ends it. A context manager.

    with Finishing() as stop:
        for step in steps:
            ...
            asked = stop.asked  # once: what comes later is for the next step
            if asked or due:
                ...  # keep a state
            if asked:
                stop.leave()

    A first signal is answered at once with a line on stderr; a second one does not wait. Without
    `listening` around it nothing is ever asked.

    Args:
        wanted: False: signals end the block at once, as those of a loop that keeps no state should.
        step: what is finished, for the line; "": too short to tell of.
    """

    def __init__(self, wanted: bool = True, *, step: str = "step"):
        self._wanted, self._step = wanted, step

    def __enter__(self) -> Finishing:
        if self._wanted:
            _Asked.waiting += (self._step,)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._wanted:
            _Asked.waiting = _Asked.waiting[:-1]
        if kind is None:
            self.leave()  # it came after the last step had been looked at

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._wanted and _Asked.number is not None

    def leave(self) -> None:
        """Raise `Stopped` if a signal came."""
        if self._wanted and _Asked.number is not None:
            raise Stopped(_Asked.number)
