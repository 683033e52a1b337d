"""Too little memory: which errors say so, and what is given back before the next try.

What a batch takes is found out by trying: it depends on the model, its attention, the allocator, and on whoever else
is on the device. So a batch that does not fit is no failure; `encoders.encoder` makes batches smaller.
"""

from __future__ import annotations

import torch

# The CPU's allocator, cuBLAS and the driver have no class of their own for it; the last two may say so while work is
# queued, or when its end is waited for.
_SAID_AS = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was too little memory, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID_AS)


def free_memory(device: torch.device) -> None:
    """Give back what the allocator keeps in pieces that may be too small."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
