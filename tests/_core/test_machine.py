"""Claims about the machine that a process runs on."""

import platform
import subprocess
import sys

import pytest

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
