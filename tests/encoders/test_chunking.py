"""Chunks hold every token, in order, whole characters, and never more than fits."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.chunking import Atoms, Chunker, windows
from encoders.encoder import Encoder
from encoders.errors import EncoderError
from encoders.protocol import resolve_protocol
from encoders.tokenizer import Tokenizer
from tests.encoders.reference import assert_same, theirs
from tests.encoders.repositories import TEXTS, write_repository

PROMPTS = ("", "query: ")
ARCHITECTURES = ("bert", "qwen3", "xlm-roberta", "t5")
HARD = st.lists(
    st.sampled_from([*"abcTo 019.,\n\t\u0301", "ü", "日", "🙂", "👩‍👩‍👧‍👦", "\ufdfa", "\u200b", "\x00", "ﬁ"]),
    max_size=150,
).map(lambda pieces: "".join(pieces) * 2)

FIT = st.integers(1, 12).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """One for each kind of tokenizer, 48 tokens long."""
    folder = tmp_path_factory.mktemp("models")
    return {
        name: Tokenizer(resolve_protocol(str(write_repository(folder / name, name))))
        for name in ARCHITECTURES
    }


@given(st.lists(st.integers(1, 4), max_size=60), FIT)
def test_windows_hold_every_atom_in_order(sizes: list[int], fit: tuple[int, int]) -> None:
    """Atoms of one token or, where a character makes several, of more."""
    size, overlap = fit
    starts = np.repeat(np.arange(len(sizes)), sizes)
    atoms = Atoms.of(starts, starts + 1)
    assert len(atoms) == len(sizes)
    cut = windows(atoms, size, overlap)
    assert {atom for first, last in cut for atom in range(first, last)} == set(range(len(sizes)))
    for first, last in cut:
        assert sum(sizes[first:last]) <= size or last == first + 1
        assert last == len(sizes) or sum(sizes[first : last + 1]) > size  # none could be longer
    for (first, last), (next_first, next_last) in pairwise(cut):
        assert first < next_first <= last < next_last
        assert sum(sizes[next_first:last]) <= overlap


def test_windows_of_single_tokens_step_by_size_minus_overlap() -> None:
    atoms = Atoms.of(np.arange(10), np.arange(10) + 1)
    assert windows(atoms, 4, 0) == [(0, 4), (4, 8), (8, 10)]
    assert windows(atoms, 4, 1) == [(0, 4), (3, 7), (6, 10)]
    assert windows(atoms, 4, 3) == [(n, n + 4) for n in range(7)]
    assert windows(atoms, 10, 9) == [(0, 10)]
    assert windows(Atoms.of(np.arange(0), np.arange(0)), 4, 1) == []


@pytest.mark.parametrize("name", ARCHITECTURES)
@given(texts=st.lists(HARD, min_size=1, max_size=3), fit=FIT | st.tuples(st.none(), st.integers(0, 20)))
def test_chunks_cover_what_tokens_stand_for_and_fit_every_prompt(
    tokenizers: dict[str, Tokenizer], name: str, texts: list[str], fit: tuple[int | None, int]
) -> None:
    tokenizer = tokenizers[name]
    chunks = Chunker(tokenizer, PROMPTS, *fit).cut(texts)
    spans = list(zip(chunks.char_starts.tolist(), chunks.char_ends.tolist(), strict=True))
    for row, text in enumerate(texts):
        own = spans[chunks.offsets[row] : chunks.offsets[row + 1]]
        assert all(0 <= start <= end <= len(text) for start, end in own)
        assert all(a < c and b < d for (a, b), (c, d) in pairwise(own))
        if fit[1] == 0:
            assert all(b <= c for (_, b), (c, _) in pairwise(own))
        held = {place for start, end in own for place in range(start, end)}
        whole = tokenizer.whole_text(text)
        for start, end in zip(*whole.own_characters, strict=True):
            piece = text[start:end]
            assert set(range(start, end)) <= held or not tokenizer.prepare([piece]).lengths[0], (piece, own)
        for prompt in PROMPTS:
            prepared = tokenizer.prepare([text[start:end] for start, end in own], prompt)
            for (start, end), truncated in zip(own, prepared.truncated, strict=True):
                atoms = Atoms.of(*_inside(whole.own_characters, start, end))
                assert not truncated or len(atoms) == 1  # one character that no model of this length can take


def _inside(characters: tuple[np.ndarray, np.ndarray], start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    inside = (characters[0] >= start) & (characters[1] <= end)
    return characters[0][inside], characters[1][inside]


def test_a_text_that_fits_is_one_chunk_of_the_whole_text(tokenizers: dict[str, Tokenizer]) -> None:
    texts = ["what is the capital?", " \n Paris \t ", "", "   ", "🙂"]
    for tokenizer in tokenizers.values():
        chunks = Chunker(tokenizer, PROMPTS, None, 0).cut(texts)
        assert chunks.char_starts.tolist() == [0] * len(texts)
        assert chunks.char_ends.tolist() == [len(text) for text in texts]


def test_a_text_without_a_token_has_no_chunk(tmp_path: Path) -> None:
    folder = write_repository(tmp_path, "qwen3", tokenizer={"eos": False})
    chunks = Chunker(Tokenizer(resolve_protocol(str(folder))), PROMPTS, None, 0).cut(["", "Paris", ""])
    assert chunks.counts.tolist() == [0, 1, 0]


def test_an_emoji_of_four_tokens_is_never_split(tokenizers: dict[str, Tokenizer]) -> None:
    chunks = Chunker(tokenizers["qwen3"], [""], 6, 0).cut(["🙂" * 5])
    assert list(zip(chunks.char_starts, chunks.char_ends, strict=True)) == [(n, n + 1) for n in range(5)]
    chunks = Chunker(tokenizers["qwen3"], [""], 8, 4).cut(["🙂" * 4])
    assert list(zip(chunks.char_starts, chunks.char_ends, strict=True)) == [(0, 2), (1, 3), (2, 4)]


def test_one_word_without_an_end_is_cut_too(tokenizers: dict[str, Tokenizer]) -> None:
    text = "solarpanels" * 50
    chunks = Chunker(tokenizers["qwen3"], PROMPTS, None, 0).cut([text])
    assert chunks.counts[0] > 5
    pieces = [text[start:end] for start, end in zip(chunks.char_starts, chunks.char_ends, strict=True)]
    assert "".join(pieces) == text


def test_an_overlap_repeats_that_many_tokens(tokenizers: dict[str, Tokenizer]) -> None:
    text = "solar panels store energy " * 8
    chunks = Chunker(tokenizers["bert"], [""], 10, 4).cut([text])
    starts, _ = tokenizers["bert"].whole_text(text).own_characters
    firsts = np.searchsorted(starts, chunks.char_starts)
    assert np.diff(firsts).tolist() == [6] * (len(firsts) - 1)


def test_chunks_have_the_vectors_of_their_characters(tmp_path: Path) -> None:
    """As if each had been a text of its own: sentence-transformers on the substrings."""
    for name in ("bert", "qwen3"):
        folder = write_repository(tmp_path / name, name)
        protocol = resolve_protocol(str(folder))
        tokenizer = Tokenizer(protocol)
        texts = [*TEXTS, "How do batteries store energy? " * 20]
        chunks = Chunker(tokenizer, PROMPTS, 20, 5).cut(texts)
        rows = np.repeat(np.arange(len(texts)), chunks.counts)
        pieces = [
            texts[row][start:end]
            for row, start, end in zip(rows, chunks.char_starts, chunks.char_ends, strict=True)
        ]
        assert len(pieces) > 2 * len(texts)
        vectors = Encoder.load(protocol, device="cpu").encode(tokenizer.prepare(pieces, "query: ")).vectors
        assert_same(vectors, theirs(folder, pieces, "query: "))


def test_chunks_leave_room_for_the_longest_prompt_and_special_tokens(
    tokenizers: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers["bert"]
    assert Chunker(tokenizer, [""], None, 0).size == 48 - 2
    assert Chunker(tokenizer, PROMPTS, None, 0).size == 48 - 2 - 2
    with pytest.raises(
        EncoderError, match=r"chunks of 45 tokens .* do not fit: .* takes 48 tokens, .* at most 44"
    ):
        Chunker(tokenizer, PROMPTS, 45, 0)
    with pytest.raises(EncoderError, match=r"chunks of 44 tokens cannot repeat 44"):
        Chunker(tokenizer, PROMPTS, None, 44)
