"""Batches hold every text once, within the budget, with and without padding."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from encoders.batching import token_budget_batches
from encoders.tokenized import TokenizedTexts


def ragged(lengths: list[int]) -> TokenizedTexts:
    """Texts whose ids say which text and which place they are of."""
    ids = [1000 * row + place + 1 for row, length in enumerate(lengths) for place in range(length)]
    return TokenizedTexts(
        token_ids=np.array(ids, np.int32),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        prompt_lengths=np.arange(len(lengths), dtype=np.int32) % 3,
        truncated=np.zeros(len(lengths), np.bool_),
    )


@given(lengths=st.lists(st.integers(1, 50), max_size=60), budget=st.integers(1, 200), padded=st.booleans())
def test_every_text_is_in_one_batch_with_its_own_tokens(
    lengths: list[int], budget: int, padded: bool
) -> None:
    rows: list[int] = []
    for batch in token_budget_batches(ragged(lengths), budget, padded=padded):
        rows += batch.rows.tolist()
        num_tokens = len(batch.rows) * batch.lengths.max() if padded else len(batch.token_ids)
        assert num_tokens <= budget or len(batch.rows) == 1
        assert batch.num_padding == (batch.lengths.max() - batch.lengths).sum()
        assert batch.lengths.tolist() == [lengths[row] for row in batch.rows]
        assert batch.prompt_lengths.tolist() == [row % 3 for row in batch.rows]
        expected = [1000 * row + place + 1 for row in batch.rows for place in range(lengths[row])]
        assert batch.token_ids.tolist() == expected
    assert sorted(rows) == list(range(len(lengths)))


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), budget=st.integers(50, 200))
def test_no_batch_has_room_for_the_first_text_of_the_next(lengths: list[int], budget: int) -> None:
    batches = list(token_budget_batches(ragged(lengths), budget, padded=False))
    for batch, following in itertools.pairwise(batches):
        assert len(batch.token_ids) + following.lengths[0] > budget


def test_the_longest_texts_come_first_and_equal_ones_keep_their_order() -> None:
    texts = ragged([1, 3, 1, 9, 3])
    assert [batch.rows.tolist() for batch in token_budget_batches(texts, 6, padded=True)] == [
        [3],
        [1, 4],
        [0, 2],
    ]
    assert [batch.rows.tolist() for batch in token_budget_batches(texts, 7, padded=False)] == [
        [3],
        [1, 4, 0],
        [2],
    ]
