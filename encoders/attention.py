"""Attention on the CPU within each text of a pack: all texts of one length at once, each length by itself.

In float32 it is torch's own `scaled_dot_product_attention`. In bfloat16 that is 2 to 4 times as slow as the steps
written out, two matrix products by oneDNN and powers of two between them. Their scores take memory with the square of
the length, so longer texts are left to torch. With AMX torch's own is as quick up to 128 tokens, and quicker above
(benchmarks/LOG.md).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from encoders.batching import Batch
from encoders.devices import cpu_has_tiles

NAME = "taskvec_packed"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# In 16 heads the scores of one text take 8 MiB.
_LONGEST_WRITTEN_OUT = 0 if cpu_has_tiles() else 512
# Sums of powers of two between which none of them overflowed, and none that counts vanished.
_LEAST_SUM, _LARGEST_SUM = 2.0**-100, 2.0**100


def arguments(batch: Batch, _: torch.device) -> dict[str, Any]:
    """What attention is told of a batch, in every layer: runs of texts of one length."""
    return {"equal_lengths": equal_lengths(batch)}


def equal_lengths(batch: Batch) -> list[tuple[int, int, int]]:
    """Runs of texts of one length: first token, number of texts, length."""
    lengths, first, counts = np.unique(-batch.lengths, return_index=True, return_counts=True)
    starts = np.cumsum(batch.lengths) - batch.lengths
    return [
        (int(starts[at]), int(count), int(-length))
        for length, at, count in zip(lengths, first, counts, strict=True)
    ]


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    equal_lengths: list[tuple[int, int, int]],
    in_bfloat16: bool = False,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each text: `[1, heads, num_tokens, head_dim]` to `[1, num_tokens, heads, head_dim]`.

    Rows behind the last text get zeros: what memory holds may be slow to compute with, and is never the same.
    """
    assert attention_mask is None
    causal = bool(module.is_causal)
    num_heads, num_tokens = query.shape[1:3]
    result = query.new_empty(num_tokens, num_heads, value.shape[-1])
    if in_bfloat16:
        query, key, value = (states.bfloat16() for states in (query, key, value))
    last_start, last_count, last_length = equal_lengths[-1]
    result[last_start + last_count * last_length :] = 0
    for stretch in equal_lengths:
        start, count, length = stretch
        queries, keys, values = (_texts(states, *stretch) for states in (query, key, value))
        window = _window_mask(length, sliding_window, causal=causal)
        attended = None
        if query.dtype == torch.bfloat16 and length <= _LONGEST_WRITTEN_OUT:
            attended = _written_out(queries, keys, values, window, scaling, causal=causal)
        if attended is None:
            attended = scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=window,
                is_causal=causal and window is None,
                scale=scaling,
                enable_gqa=key.shape[1] != num_heads,
            )
        result[start : start + count * length] = attended.transpose(1, 2).flatten(0, 1)
    return result[None], None


def _written_out(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, *, causal: bool
) -> Tensor | None:
    """Attention of texts of one length, `[num_texts, heads, length, head_dim]`, step by step.

    None where its powers of two are too large or too small for their sums; torch's own takes the largest away first.
    """
    num_texts, num_heads, length, head_dim = query.shape
    num_sharing = num_heads // key.shape[1]  # query heads to one of keys and values
    if num_sharing > 1:
        key, value = (states.repeat_interleave(num_sharing, dim=1) for states in (key, value))
    if causal and mask is None:
        mask = torch.ones(length, length, dtype=torch.bool).tril()
    scale = head_dim**-0.5 if scaling is None else scaling
    # What all keys have in common moves all scores of a query alike, which changes no weight, and takes bits of each.
    key = key - key.mean(2, keepdim=True)
    query, key, value = (states.reshape(-1, length, states.shape[-1]) for states in (query, key, value))
    # exp(x) is 2**(x / ln 2), and torch's `exp2` takes a quarter of its softmax's time.
    scores = torch.baddbmm(query.new_zeros(1), query, key.transpose(1, 2), beta=0, alpha=scale / math.log(2))
    weights = (scores if mask is None else scores.masked_fill_(~mask, float("-inf"))).exp2_()
    sums = weights.sum(-1, keepdim=True)
    least, largest = sums.aminmax()
    if not (least > _LEAST_SUM and largest < _LARGEST_SUM):  # not a number is neither
        return None
    return (weights @ value).div_(sums).view(num_texts, num_heads, length, -1)


def _texts(states: Tensor, start: int, count: int, length: int) -> Tensor:
    """`[1, heads, num_tokens, head_dim]` to `[count, heads, length, head_dim]`, without a copy."""
    num_heads, _, head_dim = states.shape[1:]
    run = states[0, :, start : start + count * length]
    return run.view(num_heads, count, length, head_dim).transpose(0, 1)


def _window_mask(length: int, sliding_window: int | None, *, causal: bool) -> Tensor | None:
    """Who sees whom `[length, length]` in local attention; None where the window holds the whole text.

    transformers counts a token itself as one of the window, on each side that it looks to.
    """
    if sliding_window is None or length <= sliding_window:
        return None
    places = torch.arange(length)
    distance = places[:, None] - places
    return (distance >= 0) & (distance < sliding_window) if causal else distance.abs() < sliding_window


AttentionInterface.register(NAME, _attend)
