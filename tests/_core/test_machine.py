"""What the machine is told."""

import platform
import resource

import pytest
import torch

from gjwm._core.machine import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_that_is_freed_is_not_faulted_in_again():
    assert keep_freed_memory()

    def faults() -> int:
        """Pages that 48 MB, more than glibc itself ever keeps, take from the system."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(12_000_000)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() < 1000  # of about 12,000
