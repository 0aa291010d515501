"""Claims about the machine that a process runs on."""

import platform
import subprocess
import sys

import pytest
import torch

from gjwm._core import machine
from gjwm.cli.config import load_config, prepare

ROUNDS = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 24_000_000

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(size) for _ in range(6)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(6):
    faults()  # until there is a place for each
print(sum(faults() for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_that_is_freed_is_not_faulted_in_again():
    """Three rounds of six blocks of 24 MB, 105,000 pages that glibc gives back by itself."""
    told = "from gjwm._core.machine import keep_freed_memory\nassert keep_freed_memory()\n"
    pages = {
        before: int(subprocess.check_output([sys.executable, "-c", before + ROUNDS], text=True))
        for before in ("", told)
    }
    assert pages[told] < 1000 and pages[""] > 50_000, pages


@pytest.mark.parametrize(
    ("said", "threads"),
    [(None, 8), ("", 8), ("3", 3), ("12", 8), ("2,4", 2), ("0", 8), ("many", 8)],
)
def test_no_more_threads_than_the_user_allows(said, threads, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert machine.most_threads() == threads


def test_a_command_measures_no_more_threads_than_the_user_allows(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    try:
        prepare(load_config(["experiment=two_room"]))
        assert torch.get_num_threads() == 3
        prepare(load_config(["experiment=two_room", "threads=2"]))  # who asks for it gets it
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
