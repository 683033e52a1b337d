"""Ragged token ids to batches within a budget of tokens, texts of like length together.

A batch holds its texts end to end, and is padded for models that need that. Sorting by length keeps
that padding low, puts texts of equal length side by side, and keeps the matrix products large.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encoders.stretches import Stretches
from encoders.tokenized import TokenizedTexts


@dataclass(frozen=True)
class Batch:
    """Texts that go through the backbone together, the longest first.

    Attributes:
        rows: int64 `[num_texts]`; which texts of the call these are.
        token_ids: int64 `[num_tokens]`; the texts end to end.
        lengths: int64 `[num_texts]`.
        prompt_lengths: int64 `[num_texts]`; leading tokens that pooling leaves out.
        stretches: What gets a vector in place of each text; None where that is the text itself.
        stretch_rows: int64 `[num_stretches]`; which stretches of the call these are.
    """

    rows: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    prompt_lengths: npt.NDArray[np.int64]
    stretches: Stretches | None = None
    stretch_rows: npt.NDArray[np.int64] | None = None

    @property
    def vector_rows(self) -> npt.NDArray[np.int64]:
        """Which vectors of the call this batch gives, `[num_vectors]`."""
        return self.rows if self.stretch_rows is None else self.stretch_rows

    @property
    def num_padding(self) -> int:
        """Tokens to fill all texts up to the longest."""
        return len(self.rows) * int(self.lengths[0]) - len(self.token_ids)

    @property
    def is_token(self) -> npt.NDArray[np.bool_]:
        """What is a token among the padding, `[num_texts, longest]`.

        Padding goes to the right: absolute positions count from the first token, as for a text alone.
        """
        mask: npt.NDArray[np.bool_] = np.arange(self.lengths[0]) < self.lengths[:, None]
        return mask

    def padded(self, values: npt.NDArray[np.integer], fill: int) -> npt.NDArray[np.int64]:
        """Values of the tokens, texts end to end, to `[num_texts, longest]`."""
        is_token = self.is_token
        padded = np.full(is_token.shape, fill, np.int64)
        padded[is_token] = values
        return padded


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
        yield Batch(
            rows,
            some.token_ids.astype(np.int64),
            some.lengths,
            some.prompt_lengths.astype(np.int64),
            some.stretches,
            None if texts.stretches is None else texts.stretches.places(rows),
        )
        start = stop
