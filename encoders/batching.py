"""Ragged token ids to batches within a budget of tokens, texts of like length together.

A batch holds its texts end to end; encoders/forward.py pads it for models that need padding. Sorting by length keeps
that padding low, puts texts of equal length side by side, and keeps the matrix products large.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encoders.tokenizer import TokenizedTexts


@dataclass(frozen=True)
class Batch:
    """Texts that go through the backbone together, the longest first.

    Attributes:
        rows: int64 `[num_texts]`; which texts of the call these are.
        token_ids: int64 `[num_tokens]`; the texts end to end.
        lengths: int64 `[num_texts]`.
        prompt_lengths: int64 `[num_texts]`; leading tokens that pooling leaves out.
    """

    rows: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    prompt_lengths: npt.NDArray[np.int64]

    @property
    def num_padding(self) -> int:
        """Tokens to fill all texts up to the longest."""
        return len(self.rows) * int(self.lengths[0]) - len(self.token_ids)


def token_budget_batches(texts: TokenizedTexts, max_batch_tokens: int, *, padded: bool) -> Iterator[Batch]:
    """Batches of at most `max_batch_tokens`, the longest texts first; a longer text goes alone.

    Longest first, so that a budget that does not fit the memory fails at the first batch and not at the last.

    Args:
        texts: All texts of a call.
        max_batch_tokens: Of one batch.
        padded: Whether padding counts too.
    """
    lengths = texts.lengths
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])  # tokens up to and with each text
    start = 0
    while start < len(order):
        if padded:
            stop = start + max_batch_tokens // max(1, int(lengths[order[start]]))
        else:
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + max_batch_tokens, side="right"))
        stop = max(stop, start + 1)
        rows = order[start:stop]
        some = texts.take(rows)
        yield Batch(rows, some.token_ids.astype(np.int64), some.lengths, some.prompt_lengths.astype(np.int64))
        start = stop
