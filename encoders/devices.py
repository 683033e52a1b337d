"""What to compute on, in which number format, and how much at once, where the configuration leaves it open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from encoders.batching import Batch
from encoders.errors import EncoderError
from encoders.memory import free_memory, is_out_of_memory

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

# Tokens of a batch. CPU: 2k and 4k run alike, 1k is slower by 7 to 14 % (benchmarks/LOG.md).
DEFAULT_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
# Least and most on CUDA. Beyond the most nothing is left to gain: even a small model fills a card.
_LEAST, _MOST = 4096, 131_072
# The rest is for pooling, for long texts whose attention takes more than its share, and for whoever else comes.
_SHARE_OF_FREE_MEMORY = 0.5
_TRIAL_LENGTH = 128

# One of these, or products in bfloat16 are emulated and slower than in float32. Both kinds of x86, and ARM's.
_BFLOAT16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16")


def choose_device(device: str) -> torch.device:
    """The device of that name; `auto` is the GPU if there is one.

    Raises:
        EncoderError: There is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EncoderError(
            f"device {device!r} was asked for, and this process sees no GPU; use device auto or cpu"
        )
    known = [*DEFAULT_BATCH_TOKENS, *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if device not in known:
        raise EncoderError(f"there is no device {device!r} here; use auto, {', '.join(known)}")
    return torch.device(device)


def num_gpus() -> int:
    """GPUs that this process can compute on."""
    return torch.cuda.device_count()


def choose_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """The number format of that name; `auto` is bfloat16 on CUDA and on CPUs that compute in it, else float32."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" or cpu_has_bfloat16() else torch.float32
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16, and this build of torch uses them.

    oneDNN's own answer is not enough: it is yes for every CPU with AVX-512, where it emulates them.
    """
    return _cpu_has_any(_BFLOAT16_CAPABILITIES) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cpu_has_tiles() -> bool:
    """Whether this CPU multiplies whole tiles in bfloat16 (AMX), some eight times as fast as it does in float32."""
    return _cpu_has_any(("amx_bf16",))


def _cpu_has_any(names: Iterable[str]) -> bool:
    capabilities: Mapping[str, bool] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # older torch cannot tell
    return any(capabilities.get(name, False) for name in names)


def batch_tokens(forward: Callable[[Batch], Tensor], device: torch.device) -> int:
    """Tokens of a batch. On CUDA half of the free memory by what a trial batch took, within 4k and 128k.

    Args:
        forward: The loaded model, its weights on the device.
        device: Where it is.
    """
    if device.type == "cpu":
        return DEFAULT_BATCH_TOKENS["cpu"]
    num_texts = _LEAST // _TRIAL_LENGTH
    token_ids = np.arange(_LEAST) % 100  # any vocabulary has these
    lengths = np.full(num_texts, _TRIAL_LENGTH)
    free_memory(device)
    free, _ = torch.cuda.mem_get_info(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        forward(Batch(np.arange(num_texts), token_ids, lengths, np.zeros_like(lengths)))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return _LEAST
    return tokens_that_fit(free, torch.cuda.max_memory_allocated(device) - before)


def tokens_that_fit(free_bytes: int, trial_bytes: int) -> int:
    """Tokens of a batch, from the free memory and what the trial batch took of it."""
    fitting = int(_SHARE_OF_FREE_MEMORY * free_bytes * _LEAST / max(1, trial_bytes))
    return max(_LEAST, min(_MOST, fitting))
