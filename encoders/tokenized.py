"""Texts as ragged token ids: many of a call end to end, or a single one with the characters that its tokens stand for.

All texts of a call are one array of ids with offsets, so that they travel between processes without a Python object
per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encoders.stretches import Stretches, runs


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of many texts, end to end.

    Attributes:
        token_ids: int32 `[num_tokens]`.
        offsets: int64 `[num_texts + 1]`; text i is `token_ids[offsets[i]:offsets[i + 1]]`.
        prompt_lengths: int32 `[num_texts]`; leading tokens that pooling leaves out (attention sees them).
        truncated: bool `[num_texts]`; whether the model does not see the whole text.
        stretches: What gets a vector in place of each text; None where that is the text itself.
    """

    token_ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    prompt_lengths: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]
    stretches: Stretches | None = None

    @classmethod
    def joined(
        cls,
        token_ids: Sequence[npt.NDArray[np.int32]],
        prompt_lengths: npt.NDArray[np.int32],
        truncated: npt.NDArray[np.bool_],
        stretches: Stretches | None = None,
    ) -> TokenizedTexts:
        """From the ids of each text."""
        offsets = np.cumsum([0, *map(len, token_ids)], dtype=np.int64)
        ids = np.concatenate([np.empty(0, np.int32), *token_ids])
        return cls(ids, offsets, prompt_lengths, truncated, stretches)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def distinct(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Of texts that are the same to a model, the first ones; and for each text its place among those.

        The same ids with another prompt length are another text. With stretches every text counts as another one.

        Returns:
            int64 `[num_distinct]` and `[num_texts]`.
        """
        if self.stretches is not None:
            return np.arange(len(self)), np.arange(len(self))
        content, offsets = self.token_ids.tobytes(), (self.offsets * self.token_ids.itemsize).tolist()
        places: dict[tuple[bytes, int], int] = {}
        inverse = np.array(
            [
                places.setdefault((content[start:stop], prompt_length), len(places))
                for start, stop, prompt_length in zip(
                    offsets, offsets[1:], self.prompt_lengths.tolist(), strict=False
                )
            ],
            np.int64,
        )
        # Numbers were given out in order, so a text is the first of its kind where the highest number so far grows.
        highest = np.maximum.accumulate(np.concatenate([[-1], inverse]))
        return np.flatnonzero(np.diff(highest)), inverse

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text, `[num_texts]`."""
        return np.diff(self.offsets)

    @property
    def pooled_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens that belong to each vector, `[num_vectors]`."""
        return self.lengths if self.stretches is None else self.stretches.lengths

    @property
    def pooled_truncated(self) -> npt.NDArray[np.bool_]:
        """Whether the model does not see the whole text of each vector, `[num_vectors]`."""
        return self.truncated if self.stretches is None else np.repeat(self.truncated, self.stretches.counts)

    def take(self, rows: npt.NDArray[np.int64]) -> TokenizedTexts:
        """The texts of some rows, in that order."""
        lengths = self.lengths[rows]
        return TokenizedTexts(
            self.token_ids[runs(self.offsets[rows], lengths)],
            np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]),
            self.prompt_lengths[rows],
            self.truncated[rows],
            None if self.stretches is None else self.stretches.take(rows),
        )


def num_agreeing(one: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> int:
    """Leading tokens that are the same."""
    shared = min(len(one), len(other))
    differing = np.flatnonzero(one[:shared] != other[:shared])
    return int(differing[0]) if len(differing) else shared


@dataclass(frozen=True)
class WholeText:
    """One text's tokens with its prompt, nothing cut off.

    Attributes:
        token_ids: int32 `[num_tokens]`.
        char_starts: int64 `[num_tokens]`; first character of the text that the token stands for.
        char_ends: int64 `[num_tokens]`; behind the last one. Equal where the token stands for none of the text.
    """

    token_ids: npt.NDArray[np.int32]
    char_starts: npt.NDArray[np.int64]
    char_ends: npt.NDArray[np.int64]

    @property
    def own(self) -> npt.NDArray[np.int64]:
        """The tokens that stand for some of the text."""
        return np.flatnonzero(self.char_ends > self.char_starts)

    @property
    def own_characters(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """What they stand for: first characters, and behind the last ones."""
        return self.char_starts[self.own], self.char_ends[self.own]
