"""Attention on CUDA within each text of a pack: one kernel for all lengths, by torch's `varlen_attn`.

It is told where each text begins and how long the longest is, which is reckoned once a batch and serves every layer.
Not measured on a card yet. The kernel is FlashAttention 2, for cards from Ampere on, bfloat16 and float16, and heads of
a multiple of 8 numbers up to 256; whatever it refuses is padded, after the self-test of `encoders.forward`.

Source: torch 2.11 to 2.14, `torch/nn/attention/varlen.py`, and its `flash_api.cpp`, `mha_varlen_fwd`.
- `window_size` counts tokens to the left and to the right besides the token itself, -1 is all of them.
- `enable_gqa` came with 2.12, which refuses fewer heads of keys than of queries without it. 2.11 asks nothing, and its
  kernel takes them.
- From 2.14 on, texts beyond 128 tokens may go to cuDNN instead, which makes a plan for every new number of texts and
  longest length, in 55 to 70 ms (github.com/flashinfer-ai/flashinfer/pull/5245): for us that is every batch. With
  `enable_gqa` 2.14 leaves them with FlashAttention, so it is given for equal numbers of heads too.
- `num_splits`, for sums in an order that no neighbour changes, is not for this kernel, which does not split
  (github.com/pytorch/torchtitan/pull/2683).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from encoders.batching import Batch
from encoders.copies import to_device

NAME = "taskvec_varlen"
DTYPES = (torch.bfloat16, torch.float16)


def arguments(batch: Batch, device: torch.device) -> dict[str, Any]:
    """What attention is told of a batch, in every layer: first tokens, with the end of all, and the longest length."""
    # It brings the compiler along, and CPUs have no use for it.
    from torch.nn.attention.varlen import varlen_attn

    starts = np.concatenate([[0], np.cumsum(batch.lengths)]).astype(np.int32)
    return {
        "text_starts": to_device(starts, device),
        "longest_text": int(batch.lengths.max()),
        "kernel": _kernel(varlen_attn),
    }


@cache
def _kernel(varlen_attn: Callable[..., Any]) -> Callable[..., Any]:
    """With what this release of torch has to be told in any case."""
    has_gqa = "enable_gqa" in inspect.signature(varlen_attn).parameters
    return partial(varlen_attn, enable_gqa=True) if has_gqa else varlen_attn


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
    kernel: Callable[..., Any],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each text: `[1, heads, num_tokens, head_dim]` to `[1, num_tokens, heads, head_dim]`."""
    assert attention_mask is None
    result = kernel(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        text_starts,
        text_starts,
        longest_text,
        longest_text,
        scale=scaling,
        window_size=window_of(sliding_window, causal=bool(module.is_causal)),
    )
    assert isinstance(result, Tensor)
    return result[None], None


AttentionInterface.register(NAME, _attend)
