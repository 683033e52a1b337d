"""Attention on the CPU within each text of a pack: all texts of one length at once, each length by itself.

In float32 it is torch's own `scaled_dot_product_attention`. In bfloat16 that is slower than the three steps written
out, two matrix products and a softmax, which go to oneDNN: by 1.3 to 1.8 times on two Zen 4 cores. Their scores take
memory with the square of the length, so longer texts are left to torch. With AMX it is the other way round: torch's own
is 1.2 to 2.2 times as fast from 16 tokens up (benchmarks/LOG.md).
"""

from __future__ import annotations

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
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each text: `[1, heads, num_tokens, head_dim]` to `[1, num_tokens, heads, head_dim]`."""
    assert attention_mask is None
    causal = bool(module.is_causal)
    num_heads, num_tokens = query.shape[1:3]
    result = query.new_empty(num_tokens, num_heads, value.shape[-1])
    for stretch in equal_lengths:
        start, count, length = stretch
        queries, keys, values = (_texts(states, *stretch) for states in (query, key, value))
        window = _window_mask(length, sliding_window, causal=causal)
        if query.dtype == torch.bfloat16 and length <= _LONGEST_WRITTEN_OUT:
            attended = _written_out(queries, keys, values, window, scaling, causal=causal)
        else:
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
) -> Tensor:
    """Attention of texts of one length, `[num_texts, heads, length, head_dim]`, in three steps."""
    length, head_dim = query.shape[2:]
    num_sharing = query.shape[1] // key.shape[1]  # query heads to one of keys and values
    if num_sharing > 1:
        key, value = (states.repeat_interleave(num_sharing, dim=1) for states in (key, value))
    if causal and mask is None:
        mask = torch.ones(length, length, dtype=torch.bool).tril()
    scores = (query * (head_dim**-0.5 if scaling is None else scaling)) @ key.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill_(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ value


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
