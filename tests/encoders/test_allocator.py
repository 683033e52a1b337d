"""What the allocator is told shows in the page faults of a process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_MEASURE = """
import resource
import sys
from encoders.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for round in range(60):
    if round == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytes(bytearray(b"x") * 16_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", _MEASURE, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's allocator is left alone")
def test_freed_blocks_come_back_without_a_page_fault() -> None:
    assert faults("keep") * 100 < faults("leave")
