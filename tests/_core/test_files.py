"""Locks keep others out and leave nothing behind."""

import os
import subprocess
import sys

import pytest

from gjwm._core.files import holding

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no flock")

COUNT_UP = """
import sys
from pathlib import Path
from gjwm._core.files import holding
lock, file = map(Path, sys.argv[1:])
for _ in range(500):
    with holding(lock, wait=True):
        number = int(file.read_text())
        file.write_text(str(number + 1))
"""


def test_a_lock_keeps_others_out_and_its_file_is_removed(tmp_path):
    lock = tmp_path / "deeper" / "lock"
    with holding(lock):
        with pytest.raises(BlockingIOError), holding(lock):
            pass
        assert lock.exists()
    with pytest.raises(ZeroDivisionError), holding(lock):
        _ = 1 / 0
    assert not lock.parent.exists()  # made for the lock, and nothing was left in it
    lock.parent.mkdir()
    lock.touch()  # of a process that was killed
    with holding(lock):
        pass
    assert lock.parent.exists() and not lock.exists()
    with holding(tmp_path / "new" / "deep" / "lock"):
        (tmp_path / "new" / "kept").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["kept"]


def test_who_waits_for_a_file_that_is_removed_takes_the_next_one(tmp_path):
    """Else two would hold locks on different files, and lose counts."""
    lock, file = tmp_path / "lock", tmp_path / "count"
    file.write_text("0")
    command = [sys.executable, "-c", COUNT_UP, lock, file]
    others = [subprocess.Popen(command) for _ in range(3)]
    assert [other.wait() for other in others] == [0, 0, 0]
    assert file.read_text() == "1500" and not lock.exists()
