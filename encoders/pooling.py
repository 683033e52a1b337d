"""Token states to one vector a text, in every way that sentence-transformers knows.

Two masks are at work: the text's tokens, and those of them that count (without the prompt's, where the model leaves
those out). Sums run in float32 whatever the states' precision.

Source: sentence-transformers 6.2, `sentence_transformer/modules/pooling.py`, on right-padded batches.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pool(states: Tensor, lengths: Tensor, prompt_lengths: Tensor, modes: tuple[str, ...]) -> Tensor:
    """One vector a text, the modes' results end to end.

    Args:
        states: `[num_texts, longest, dim]`, padded on the right.
        lengths: `[num_texts]`, at least 1 each.
        prompt_lengths: `[num_texts]`, leading tokens that do not count.
        modes: Names of `encoders.modules.POOLING_MODES`.

    Returns:
        float32 `[num_texts, dim * len(modes)]`.
    """
    positions = torch.arange(states.shape[1], device=states.device)
    is_token = positions < lengths[:, None]
    counts = is_token & (positions >= prompt_lengths[:, None])
    return torch.cat([_pool_mode(mode, states, is_token, counts) for mode in modes], dim=-1)


def _pool_mode(mode: str, states: Tensor, is_token: Tensor, counts: Tensor) -> Tensor:
    rows = torch.arange(states.shape[0], device=states.device)
    match mode:
        case "cls":  # the first token that counts
            return states[rows, counts.int().argmax(dim=1)].float()
        case "lasttoken":
            return states[rows, is_token.sum(dim=1) - 1].float()
        case "max":
            return states.float().masked_fill(~counts[:, :, None], float("-inf")).amax(dim=1)
        case "mean":
            return _weighted_sum(states, counts.float()) / _at_least_one(counts.sum(dim=1))
        case "mean_sqrt_len_tokens":
            return _weighted_sum(states, counts.float()) / _at_least_one(counts.sum(dim=1)).sqrt()
        case (
            "weightedmean"
        ):  # weights 1..n over the text's tokens; leaving the prompt out keeps the others' weights
            weights = counts * is_token.cumsum(dim=1)
            return _weighted_sum(states, weights.float()) / _at_least_one(weights.sum(dim=1))
        case _:
            raise AssertionError(mode)


def _weighted_sum(states: Tensor, weights: Tensor) -> Tensor:
    """`[num_texts, dim]`; one batched matrix product, so no float32 copy of the weighted states is made."""
    return torch.bmm(weights[:, None, :], states.float())[:, 0]


def _at_least_one(total: Tensor) -> Tensor:
    return total.clamp(min=1).float()[:, None]
