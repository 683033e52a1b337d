"""Batches hold every text once, within the budget, padded on the right."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from encoders.batching import token_budget_batches
from encoders.tokenizer import TokenizedTexts


def ragged(lengths: list[int]) -> TokenizedTexts:
    """Texts whose ids say which text and which place they are of."""
    ids = [1000 * row + place + 1 for row, length in enumerate(lengths) for place in range(length)]
    return TokenizedTexts(
        token_ids=np.array(ids, np.int32),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        prompt_lengths=np.arange(len(lengths), dtype=np.int32) % 3,
        truncated=np.zeros(len(lengths), np.bool_),
    )


@given(lengths=st.lists(st.integers(1, 50), max_size=60), budget=st.integers(1, 200))
def test_every_text_is_in_one_batch_with_its_own_tokens(lengths: list[int], budget: int) -> None:
    texts = ragged(lengths)
    rows: list[int] = []
    for batch in token_budget_batches(texts, budget, pad_token_id=0):
        rows += batch.rows.tolist()
        assert batch.token_ids.shape[1] == batch.lengths.max()
        assert batch.token_ids.size <= budget or len(batch.rows) == 1
        assert batch.num_padding == (batch.token_ids == 0).sum()
        for row, ids, length, prompt_length in zip(
            batch.rows, batch.token_ids, batch.lengths, batch.prompt_lengths, strict=True
        ):
            assert ids[:length].tolist() == [1000 * row + place + 1 for place in range(lengths[row])]
            assert not ids[length:].any()
            assert prompt_length == row % 3
    assert sorted(rows) == list(range(len(lengths)))


def test_the_longest_texts_come_first_and_equal_ones_keep_their_order() -> None:
    batches = list(token_budget_batches(ragged([1, 3, 1, 9, 3]), 6, pad_token_id=0))
    assert [batch.rows.tolist() for batch in batches] == [[3], [1, 4], [0, 2]]
