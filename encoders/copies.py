"""Arrays to the device and back, without a wait for what the device is doing.

On CUDA a copy from or to ordinary memory waits until all work before it is done. From and to pinned memory it is one
more piece of work in the queue, and the next batch can be prepared and queued meanwhile. torch keeps pinned memory for
the next copies, and gives it out again only when the copy that used it is done. On the CPU nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Waits for an array of `[num_vectors, dim]`, and gives it.
Fetch = Callable[[], npt.NDArray[np.float32]]


def to_device(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """The same values on the device; work that is queued later finds them there."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def from_device(vectors: Tensor) -> Fetch:
    """Queue the way back of float32 `[num_vectors, dim]`; the result waits for them and no longer."""
    if vectors.device.type != "cuda":
        return vectors.numpy
    copied = vectors.to("cpu", non_blocking=True)  # torch takes pinned memory for this
    # Blocking: the thread sleeps meanwhile, and readers and writers have use for its core.
    done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(vectors.device))

    def fetch() -> npt.NDArray[np.float32]:
        done.synchronize()
        return copied.numpy()

    return fetch
