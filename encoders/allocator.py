"""What a process keeps on the CPU: freed memory, and the kernels that oneDNN made.

glibc gives a large block back to the kernel as soon as it is freed and asks for it anew a layer later; the kernel then
clears every page again. Kept, each layer finds its pages where the last one left them. For all-MiniLM-L6-v2 in batches
of 2,048 tokens, one thread: 3,070 tokens per CPU second without, 3,700 with this. All threads take from one arena, for
those that glibc makes for further threads cannot hold such blocks: two threads 7,130 tokens a second without, 8,240
with (benchmarks/LOG.md). It costs memory, since what the largest batch took stays with the process: whoever reads
and writes beside the encoder takes from the same arena.

oneDNN makes a kernel for each shape of a product, and keeps 1,024 of them. Attention within texts of every length has
more, and each was made anew before it came again: 2 to 10 % of the time in bfloat16. With 4,096 texts of documentation
are as quick as with 32,768, and what kernels take is bounded where texts are of all lengths: a third of a MiB each in
an encoder, and a whole one of some shapes (benchmarks/LOG.md).
"""

from __future__ import annotations

import ctypes
import os

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGEST = 2**31 - 1
_KERNELS = 2**12


def keep_freed_memory() -> bool:
    """Tell the C library's allocator; False where it is another one than glibc's, and nothing changed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = {_M_MMAP_THRESHOLD: 2**30, _M_TRIM_THRESHOLD: _LARGEST, _M_ARENA_MAX: 1}
    return all(bool(mallopt(parameter, value)) for parameter, value in wanted.items())


def keep_kernels() -> None:
    """Let oneDNN keep more of its kernels; before it makes the first. What the user has set stays."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KERNELS))
