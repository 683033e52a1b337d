"""Stretches of a text's tokens that get a vector each, in place of one vector for the whole text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Stretches:
    """Which tokens of which text are pooled together, text by text; stretches of a text may overlap.

    Attributes:
        offsets: int64 `[num_texts + 1]`; the stretches of text i are `offsets[i]` up to `offsets[i + 1]`.
        starts: int64 `[num_stretches]`; the first token, counted from the text's own first.
        lengths: int64 `[num_stretches]`, at least 1 each.
    """

    offsets: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Stretches of each text, `[num_texts]`."""
        return np.diff(self.offsets)

    def places(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Which stretches are those of some texts, in the texts' order."""
        return runs(self.offsets[:-1][rows], self.counts[rows])

    def take(self, rows: npt.NDArray[np.int64]) -> Stretches:
        """The stretches of some texts, in that order."""
        places = self.places(rows)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.counts[rows])])
        return Stretches(offsets, self.starts[places], self.lengths[places])

    def tokens(self, text_lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Places of the stretches' tokens, one stretch after the other, among those of texts that lie end to end.

        Args:
            text_lengths: Tokens of each text, `[num_texts]`.
        """
        first_tokens = np.cumsum(text_lengths) - text_lengths
        return runs(np.repeat(first_tokens, self.counts) + self.starts, self.lengths)


def runs(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`start, start + 1, ...` for each start, as long as its length says, end to end."""
    before: npt.NDArray[np.int64] = np.cumsum(lengths) - lengths
    within: npt.NDArray[np.int64] = np.arange(lengths.sum()) - np.repeat(before, lengths)
    return within + np.repeat(starts, lengths)
