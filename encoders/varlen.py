"""Attention on CUDA within each text of a pack: one kernel for all lengths, by torch's `varlen_attn`.

It is told where each text begins and how long the longest is, which is reckoned once a batch and serves every layer.
Half precision only. Not measured on a card yet.

Source: torch 2.13, `torch/nn/attention/varlen.py`: `window_size` counts tokens to the left and to the right besides the
token itself, -1 is all of them. `num_splits`, for sums in an order that no neighbour changes, is not for the kernel
that torch takes by itself (FlashAttention 2), which does not split (github.com/pytorch/torchtitan/pull/2683).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from encoders.batching import Batch

NAME = "taskvec_varlen"
DTYPES = (torch.bfloat16, torch.float16)


def arguments(batch: Batch, device: torch.device) -> dict[str, Any]:
    """What attention is told of a batch, in every layer: first tokens, with the end of all, and the longest length."""
    starts = np.concatenate([[0], np.cumsum(batch.lengths)]).astype(np.int32)
    return {"text_starts": torch.from_numpy(starts).to(device), "longest_text": int(batch.lengths.max())}


def window_of(sliding_window: int | None, *, causal: bool) -> tuple[int, int]:
    """Tokens that a token sees to its left and to its right; transformers counts the token itself as one of them."""
    reach = -1 if sliding_window is None else sliding_window - 1
    return reach, 0 if causal else reach


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    text_starts: Tensor,
    longest_text: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each text: `[1, heads, num_tokens, head_dim]` to `[1, num_tokens, heads, head_dim]`."""
    from torch.nn.attention.varlen import varlen_attn

    assert attention_mask is None
    result = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        text_starts,
        text_starts,
        longest_text,
        longest_text,
        scale=scaling,
        window_size=window_of(sliding_window, causal=bool(module.is_causal)),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    assert isinstance(result, Tensor)
    return result[None], None


AttentionInterface.register(NAME, _attend)
