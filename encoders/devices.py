"""What to compute on, in which number format, and how much at once, where the configuration leaves it open."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from encoders.batching import Batch
from encoders.errors import EncoderError
from encoders.memory import free_memory, if_it_fits

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

# Tokens of a batch. CPU: 2k and 4k run alike, 1k is slower by 2 to 14 %, but for int8 (benchmarks/LOG.md).
DEFAULT_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
# Least and most on CUDA. Beyond the most nothing is left to gain: even a small model fills a card.
_LEAST, _MOST = 4096, 131_072
# The rest is for pooling, for the pieces that memory falls into, and for whoever else comes.
_SHARE_OF_FREE_MEMORY = 0.5
# Where the longest texts that a model takes do not fit, batches are reckoned for shorter ones, down to these.
_SHORT = 128


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
    """The number format of that name; `auto` is bfloat16 where the device is faster in it, else float32."""
    if dtype == "auto":
        has_bfloat16 = cuda_has_bfloat16(device) if device.type == "cuda" else cpu_has_bfloat16()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 faster than in float32, and this build of torch lets it.

    oneDNN's own answer is not enough: it is yes for every CPU with AVX-512, where it emulates such products. Nor are
    instructions for them: Intel's that have AVX512-FP16 too are made for tiles, and on a virtual machine that hides the
    tiles what is left takes twice as long as float32 (benchmarks/LOG.md).
    """
    has = _cpu_capabilities()
    is_made_for_tiles = has.get("avx512_fp16", False) and "Intel" in has.get("cpu_name", "")
    in_vectors = has.get("avx512_bf16", False) and not is_made_for_tiles
    on_arm = has.get("bf16", False)
    return (cpu_has_tiles() or in_vectors or on_arm) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cpu_has_tiles() -> bool:
    """Whether this CPU multiplies whole tiles in bfloat16 (AMX), some eight times as fast as it does in float32."""
    return bool(_cpu_capabilities().get("amx_bf16", False))


def _cpu_capabilities() -> Mapping[str, Any]:
    # Older torch cannot tell.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities


def cuda_has_bfloat16(device: torch.device) -> bool:
    """Whether this card computes in bfloat16: from Ampere on. Older ones emulate it, and have no kernel for packs."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def batch_tokens(forward: Callable[[Batch], Tensor], device: torch.device, longest: int) -> int:
    """Tokens of a batch. On CUDA half of the free memory by what a trial batch took, within 4k and 128k.

    The trial's texts are as long as texts get: where attention takes memory with the square of the length, nothing
    else takes as much, and a single text of that length is seen to fit. It warms the device up, too.

    Args:
        forward: The loaded model, its weights on the device.
        device: Where it is.
        longest: Tokens of the longest text that the model takes.
    """
    if device.type == "cpu":
        return DEFAULT_BATCH_TOKENS["cpu"]
    while True:
        num_tokens = trial_tokens(longest)
        free_memory(device)
        free, _ = torch.cuda.mem_get_info(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        trial = functools.partial(forward, _trial(num_tokens // longest, longest))
        if if_it_fits(trial, device) is not None:
            return tokens_that_fit(free, torch.cuda.max_memory_allocated(device) - before, num_tokens)
        if longest <= _SHORT:
            return _LEAST
        longest = max(_SHORT, longest // 4)


def trial_tokens(longest: int) -> int:
    """Tokens of a trial batch: whole texts of this length, at least one, and about as many as the least batch has."""
    return max(1, _LEAST // longest) * longest


def _trial(num_texts: int, length: int) -> Batch:
    lengths = np.full(num_texts, length)
    token_ids = np.zeros(num_texts * length, np.int64)  # every vocabulary has this one
    return Batch(np.arange(num_texts), token_ids, lengths, np.zeros_like(lengths))


def tokens_that_fit(free_bytes: int, trial_bytes: int, num_trial_tokens: int) -> int:
    """Tokens of a batch, from the free memory and what a trial batch of some tokens took of it."""
    fitting = int(_SHARE_OF_FREE_MEMORY * free_bytes * num_trial_tokens / max(1, trial_bytes))
    return max(_LEAST, min(_MOST, fitting))
