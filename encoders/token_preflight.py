"""Are these token ids what the model's protocol makes of these very texts?

Of a fragment's texts most are not tokenized whole: equal ones once, long ones in part, and cut so that the special
tokens and whatever stands behind a text stay. Before a tokenizer's first texts count, a few of them are tokenized
whole, alone and uncut, and what was prepared must be that: all of the prompt's tokens first, then the text's own as
long as there is room, and the same tokens at the end, the pooled one among them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from encoders.errors import EncoderError
from encoders.family import Prompt
from encoders.tokenized import TokenizedTexts, WholeText, num_agreeing
from encoders.tokenizer import Tokenizer

_NUM_TEXTS = 3
# Longer texts are not tokenized whole here: it takes 1 s for a million characters.
_MOST_CHARACTERS = 50_000


def prove_tokens(
    tokenizer: Tokenizer, texts: Sequence[str], prompt: Prompt, prepared: TokenizedTexts
) -> None:
    """Compare a few prepared texts with the same texts whole.

    Args:
        tokenizer: That prepared them.
        texts: All of a call.
        prompt: What goes around them.
        prepared: What came out.

    Raises:
        EncoderError: They differ.
    """
    for row in _choose(texts, prepared.lengths):
        whole = tokenizer.whole_text(texts[row], prompt)
        ids = prepared.token_ids[prepared.offsets[row] : prepared.offsets[row + 1]]
        if not _is_cut_of(whole, ids, tokenizer):
            raise EncoderError(
                f"{tokenizer.protocol.repository.name}: a text of {len(texts[row])} characters under the prompt "
                f"{prompt} was to be encoded as the tokens {_shown(ids)}, and tokenized whole it is "
                f"{_shown(whole.token_ids)}; try other releases of tokenizers and transformers; "
                "compute.preflight=false goes on"
            )


def _is_cut_of(whole: WholeText, ids: npt.NDArray[np.int32], tokenizer: Tokenizer) -> bool:
    """Whether ids are the whole text's, or those without one run of them that truncation may take."""
    num_left = min(len(whole.token_ids), tokenizer.protocol.max_seq_length)
    before, behind = num_agreeing(whole.token_ids, ids), num_agreeing(whole.token_ids[::-1], ids[::-1])
    if len(ids) != num_left or before + behind < num_left:
        return False
    if len(whole.token_ids) == num_left or not len(whole.own):
        return True
    # Cut on the left, a prompt goes first, as in sentence-transformers.
    num_before = int(whole.own[0]) if tokenizer.truncation_side == "right" else 0
    return before >= num_before and behind >= len(whole.token_ids) - 1 - int(whole.own[-1])


def _choose(texts: Sequence[str], lengths: npt.NDArray[np.int64]) -> list[int]:
    """The shortest, one of the middle and the longest of those that have tokens and are not too long."""
    rows = [row for row in np.flatnonzero(lengths).tolist() if len(texts[row]) <= _MOST_CHARACTERS]
    rows.sort(key=lambda row: len(texts[row]))
    places = np.linspace(0, len(rows) - 1, _NUM_TEXTS).round().astype(np.int64).tolist()
    return [rows[place] for place in dict.fromkeys(places)] if rows else []


def _shown(ids: npt.NDArray[np.int32]) -> str:
    """Both ends, where prompt and special tokens are."""
    listed = [str(token) for token in ids.tolist()]
    return f"[{' '.join(listed if len(listed) <= 24 else [*listed[:16], '...', *listed[-8:]])}] ({len(ids)})"
