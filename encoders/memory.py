"""Too little memory: which errors say so, and what is given back before the next try.

What a batch takes is found out by trying: it depends on the model, its attention, the allocator, and on whoever else
is on the device. So a batch that does not fit is no failure; `encoders.encoder` makes batches smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")

# The CPU's allocator, cuBLAS and the driver have no class of their own for it; the last two may say so while work is
# queued, or when its end is waited for.
_SAID_AS = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was too little memory, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID_AS)


def if_it_fits(action: Callable[[], Result], device: torch.device) -> Result | None:
    """What an action on a device gives; None where it took too much memory, which is given back."""
    try:
        return action()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Only here: until the handler's end the error holds the states of the layer that failed.
    free_memory(device)
    return None


def free_memory(device: torch.device) -> None:
    """Give back what the allocator keeps in pieces that may be too small."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
