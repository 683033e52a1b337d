"""Ragged token ids to padded batches: texts of like length together, within a budget of tokens.

Sorting by length is what keeps padding low, and it keeps the matrix products large. Padding always goes to the
right: the mask hides it, and absolute positions count from the first token, as they do for a text alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encoders.tokenizer import TokenizedTexts


@dataclass(frozen=True)
class Batch:
    """Texts that go through the backbone together.

    Attributes:
        rows: int64 `[num_texts]`; which texts of the call these are.
        token_ids: int64 `[num_texts, longest]`; padded on the right.
        lengths: int64 `[num_texts]`.
        prompt_lengths: int64 `[num_texts]`; leading tokens that pooling leaves out.
    """

    rows: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    prompt_lengths: npt.NDArray[np.int64]

    @property
    def num_padding(self) -> int:
        """Padding tokens that are computed for nothing."""
        return int(self.token_ids.size - self.lengths.sum())


def token_budget_batches(texts: TokenizedTexts, max_batch_tokens: int, pad_token_id: int) -> Iterator[Batch]:
    """Batches of at most `max_batch_tokens` padded tokens, the longest texts first; a longer text goes alone.

    Longest first, so that a budget that does not fit the memory fails at the first batch and not at the last.
    """
    lengths = texts.lengths
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        stop = start + max(1, max_batch_tokens // max(1, longest))
        yield _pad(texts, order[start:stop], longest, pad_token_id)
        start = stop


def _pad(texts: TokenizedTexts, rows: npt.NDArray[np.int64], longest: int, pad_token_id: int) -> Batch:
    lengths = texts.lengths[rows]
    token_ids = np.full((len(rows), longest), pad_token_id, dtype=np.int64)
    for place, row in enumerate(rows):
        token_ids[place, : lengths[place]] = texts.token_ids[texts.offsets[row] : texts.offsets[row + 1]]
    return Batch(rows, token_ids, lengths, texts.prompt_lengths[rows].astype(np.int64))
