"""Token states to one vector a text, in every way that sentence-transformers knows.

The states of a batch lie end to end, so every reduction runs over one text's stretch of them. Sums run in float32
whatever the states' precision. On CUDA nothing here waits for the device: torch is told what it would ask of it, how
many tokens there are, and spared the check that lengths add up to them (`unsafe`).

Source: sentence-transformers 6.2, `sentence_transformer/modules/pooling.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pool(states: Tensor, lengths: Tensor, prompt_lengths: Tensor, modes: tuple[str, ...]) -> Tensor:
    """One vector a text, the modes' results end to end.

    Args:
        states: `[num_tokens, dim]`, of all texts, end to end.
        lengths: `[num_texts]`, at least 1 each.
        prompt_lengths: `[num_texts]`, leading tokens that do not count; fewer than the text has.
        modes: Names of `encoders.modules.POOLING_MODES`.

    Returns:
        float32 `[num_texts, dim * len(modes)]`.
    """
    return torch.cat([_pool_mode(mode, states, lengths, prompt_lengths) for mode in modes], dim=-1)


def _pool_mode(mode: str, states: Tensor, lengths: Tensor, prompt_lengths: Tensor) -> Tensor:
    starts = lengths.cumsum(0) - lengths
    match mode:
        case "cls":  # the first token that counts
            return states[starts + prompt_lengths].float()
        case "lasttoken":
            return states[starts + lengths - 1].float()
    num_tokens = len(states)
    first = starts.repeat_interleave(lengths, output_size=num_tokens)
    positions = torch.arange(num_tokens, device=states.device) - first
    counts = positions >= prompt_lengths.repeat_interleave(lengths, output_size=num_tokens)
    match mode:
        case "max":
            counted = states.float().masked_fill(~counts[:, None], float("-inf"))
            return torch.segment_reduce(counted, "max", lengths=lengths, unsafe=True)
        case "mean":
            return _weighted_sum(states, counts, lengths) / (lengths - prompt_lengths)[:, None]
        case "mean_sqrt_len_tokens":
            return _weighted_sum(states, counts, lengths) / (lengths - prompt_lengths).sqrt()[:, None]
        case "weightedmean":
            # 1 to n over the text's tokens; leaving the prompt out keeps the others' weights
            weights = (counts * (positions + 1)).float()
            total = torch.segment_reduce(weights, "sum", lengths=lengths, unsafe=True)
            return _weighted_sum(states, weights, lengths) / total[:, None]
        case _:
            raise AssertionError(mode)


def _weighted_sum(states: Tensor, weights: Tensor, lengths: Tensor) -> Tensor:
    """`[num_texts, dim]`."""
    return torch.segment_reduce(states.float() * weights[:, None], "sum", lengths=lengths, unsafe=True)
