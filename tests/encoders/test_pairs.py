"""Pairs as token ids: every token is the one that the authors' code gives, the suffix stays, and slips are errors."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from time import process_time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from encoders.errors import EncoderError, TaskError, UnsupportedModelError
from encoders.pairs import PairTokenizer, TokenizedPairs
from encoders.rerank_protocol import resolve_reranker
from tests.encoders.repositories import TEXTS
from tests.encoders.rerank_repositories import (
    CLASSIFIERS,
    END_THINK,
    ENDOFTEXT,
    IM_END,
    IM_START,
    NO,
    THINK,
    YES,
    YES_CAPITAL,
    write_classifier,
    write_language_model,
)

# Written out once more, not taken from the table.
QWEN3_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
QWEN3_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
ZERANK_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
DEFAULT = "Given a web search query, retrieve relevant passages that answer the query"
LONG = "long document " * 1429  # 20,000 characters


def tokenizer(folder: Path, family: str | None = None, **settings: Any) -> PairTokenizer:
    return PairTokenizer(resolve_reranker(str(folder), family=family, **settings))


def ids_of(tokenized: TokenizedPairs, row: int = 0) -> list[int]:
    offsets = tokenized.texts.offsets
    return [int(token_id) for token_id in tokenized.texts.token_ids[offsets[row] : offsets[row + 1]]]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("models") / "language-model")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("models") / "classifier")


@pytest.mark.parametrize("instruction", [None, "Find the proof", "{query} <|im_end|>", ""])
def test_qwen3_reranker_reads_its_cards_words_to_the_byte(
    language_model: Path, instruction: str | None
) -> None:
    pair = (" what is\nit? ", " Paris \n")
    ids = ids_of(tokenizer(language_model, "qwen3-reranker", instruction=instruction).prepare([pair]))
    asked = DEFAULT if instruction is None else instruction
    text = f"{QWEN3_PREFIX}<Instruct>: {asked}\n<Query>:  what is\nit? \n<Document>:  Paris \n{QWEN3_SUFFIX}"
    theirs = AutoTokenizer.from_pretrained(language_model)
    assert theirs.decode(ids) == text
    # Parts that are tokenized apart are, for this prompt, what the whole is.
    assert ids == theirs.encode(text)
    newline, two_newlines = theirs.encode("\n")[0], theirs.encode("\n\n")
    assert ids[0] == IM_START
    assert ids[-len(two_newlines) :] == two_newlines
    assert [token_id for token_id in ids if token_id >= ENDOFTEXT][-4:] == [
        IM_END,
        IM_START,
        THINK,
        END_THINK,
    ]
    assert newline in ids


def test_zerank_reads_query_and_document_as_a_chat(language_model: Path) -> None:
    ids = ids_of(tokenizer(language_model, "zerank").prepare([(" what is\nit? \n", "\t Paris ")]))
    theirs = AutoTokenizer.from_pretrained(language_model)
    text = "<|im_start|>system\nwhat is\nit?<|im_end|>\n<|im_start|>user\nParis<|im_end|>\n<|im_start|>assistant\n"
    assert theirs.decode(ids) == text
    assert ids == theirs.encode(text)
    assert ids[0] == IM_START
    assert ids[-1] == theirs.encode("\n")[0]
    assert [token_id for token_id in ids if token_id >= ENDOFTEXT] == [IM_START, IM_END] * 2 + [IM_START]


def test_the_words_have_the_ids_of_qwens_vocabulary(language_model: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(language_model)
    words = [theirs.encode(word) for word in ("no", "Yes", "yes")]
    assert words == [[NO], [YES_CAPITAL], [YES]] == [[2152], [9454], [9693]]


@pytest.mark.parametrize(("family", "suffix"), [("qwen3-reranker", QWEN3_SUFFIX), ("zerank", ZERANK_SUFFIX)])
def test_a_long_document_is_cut_and_the_suffix_is_not(language_model: Path, family: str, suffix: str) -> None:
    pairs = [("what is it?", LONG), ("what is it?", "Paris")]
    whole = ids_of(tokenizer(language_model, family).prepare(pairs[:1]))
    cut = tokenizer(language_model, family, max_seq_length=300).prepare(pairs)
    behind = AutoTokenizer.from_pretrained(language_model).encode(suffix)
    assert len(whole) > 300 == len(ids_of(cut))
    assert ids_of(cut)[-len(behind) :] == behind == whole[-len(behind) :]
    assert ids_of(cut)[: -len(behind)] == whole[: 300 - len(behind)]
    assert cut.texts.truncated.tolist() == [True, False]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_document_is_cut_at_its_end_whatever_the_tokenizer_says(side: str, tmp_path: Path) -> None:
    folder = write_language_model(tmp_path / "model")
    theirs = AutoTokenizer.from_pretrained(folder, truncation_side=side, padding_side=side)
    theirs.save_pretrained(folder)
    ids = ids_of(tokenizer(folder, "zerank", max_seq_length=40).prepare([("Paris", LONG)]))
    assert theirs.decode(ids).startswith(
        "<|im_start|>system\nParis<|im_end|>\n<|im_start|>user\nlong document"
    )


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_a_classifier_reads_what_its_tokenizer_makes_of_a_pair(architecture: str, tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "model", architecture)
    theirs = AutoTokenizer.from_pretrained(folder)
    pairs = [(query, document) for query in [*TEXTS, ""] for document in [*TEXTS, ""]]
    both = "both are long " * 30
    pairs += [("Paris", LONG), (LONG, "Paris"), (both, both)]
    tokenized = tokenizer(folder).prepare(pairs)
    types: list[int] = []
    for row, pair in enumerate(pairs):
        # In a list of one: of a bare pair with an empty document it would make a single text.
        alone = theirs([pair], truncation="longest_first")
        assert ids_of(tokenized, row) == alone["input_ids"][0]
        types += alone.get("token_type_ids", [[]])[0]
        assert tokenized.texts.truncated[row] == (len(theirs([pair])["input_ids"][0]) > 64)
    assert (tokenized.type_ids is not None) == (architecture == "bert")
    if tokenized.type_ids is not None:
        assert tokenized.type_ids.tolist() == types
        assert set(types) == {0, 1}


@pytest.mark.parametrize("side", ["left", "right"])
def test_two_long_texts_are_cut_as_transformers_cuts_them(
    classifier: Path, side: str, tmp_path: Path
) -> None:
    folder = copytree(classifier, tmp_path / "model")
    theirs = AutoTokenizer.from_pretrained(folder, truncation_side=side)
    theirs.save_pretrained(folder)
    numbers = [0, 1, 2, 6, 7, 8, 9, 15, 16, 17, 40]
    pairs = [("a " * query, "b " * document) for query in numbers for document in numbers]
    for room in (20, 21):
        theirs.model_max_length = room
        ours = tokenizer(folder, max_seq_length=room).prepare(pairs)
        expected = theirs(pairs, truncation="longest_first")["input_ids"]
        assert [ids_of(ours, row) for row in range(len(pairs))] == expected


def test_two_long_texts_take_the_time_of_each_and_not_of_their_product(classifier: Path) -> None:
    own = tokenizer(classifier)
    long = "what is the capital? " * 1500

    def seconds(query: str, document: str) -> float:
        started = process_time()
        own.prepare([(query, document)])
        return process_time() - started

    seconds(long, long)
    assert seconds(long, long) < 5 * (seconds(long, "Paris") + seconds("Paris", long))


def test_xlm_roberta_joins_a_pair_with_two_separators(classifier: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(classifier)
    query, document = (theirs.encode(text, add_special_tokens=False) for text in ("what is it?", "Paris"))
    [start], [end] = (theirs.encode(token, add_special_tokens=False) for token in ("<s>", "</s>"))
    ids = ids_of(tokenizer(classifier).prepare([("what is it?", "Paris")]))
    assert ids == [start, *query, end, end, *document, end]


@given(pairs=st.lists(st.tuples(st.text(max_size=20), st.text(max_size=60)), min_size=1, max_size=6))
def test_pairs_keep_their_order_and_their_tokens(language_model: Path, pairs: list[tuple[str, str]]) -> None:
    own = tokenizer(language_model, "qwen3-reranker")
    tokenized = own.prepare(pairs)
    assert len(tokenized) == len(pairs)
    for row, pair in enumerate(pairs):
        assert ids_of(tokenized, row) == ids_of(own.prepare([pair]))
    assert not tokenized.texts.truncated.any()


def test_more_pairs_than_are_tokenized_at_once_keep_their_order(classifier: Path) -> None:
    own = tokenizer(classifier)
    tokenized = own.prepare([(str(number), "Paris") for number in range(2500)])
    assert len(tokenized) == 2500
    for number in (0, 1023, 1024, 2047, 2048, 2499):
        assert ids_of(tokenized, number) == ids_of(own.prepare([(str(number), "Paris")]))
    assert tokenized.texts.offsets.dtype == np.int64
    assert tokenized.texts.token_ids.dtype == np.int32


def test_no_pair_is_an_error(classifier: Path) -> None:
    with pytest.raises(EncoderError, match="no pair to score"):
        tokenizer(classifier).prepare([])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("query", "document"), ("query", None)], "pair 1: the document is None"),
        ([(None, "document")], "pair 0: the query is None"),
        ([("query", float("nan"))], "the document is nan"),
        ([("query", b"document")], "the document is b'document'"),
        (("query", "document"), "pair 0 is 'query'; give pairs"),
        ([("query", "document", "document")], "pair 0 is"),
        ([None], "pair 0 is None"),
    ],
)
def test_what_is_no_pair_of_texts_is_an_error(classifier: Path, pairs: Any, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        tokenizer(classifier).prepare(pairs)


def test_an_instruction_that_leaves_no_room_is_an_error(language_model: Path, classifier: Path) -> None:
    with pytest.raises(TaskError, match=r"leaves no room for a pair in the 300 tokens"):
        tokenizer(language_model, "qwen3-reranker", instruction="Find it. " * 200, max_seq_length=300)
    with pytest.raises(TaskError, match=r"leaves no room for a pair in the 10 tokens"):
        tokenizer(language_model, "zerank", max_seq_length=10)
    with pytest.raises(TaskError, match=r"prompt of 4 tokens leaves no room"):
        tokenizer(classifier, max_seq_length=4)


@pytest.mark.parametrize("family", ["qwen3-reranker", "zerank"])
def test_a_query_that_hides_its_document_is_an_error(language_model: Path, family: str) -> None:
    own = tokenizer(language_model, family, max_seq_length=320)
    with pytest.raises(EncoderError, match=r"pair 1: the query of 20006 characters leaves no room"):
        own.prepare([("Paris", LONG), (LONG, "Paris")])
    # And the tokenizer goes on as before.
    assert len(ids_of(own.prepare([("Paris", LONG)]))) == 320


def test_a_vocabulary_with_other_words_is_an_error(tmp_path: Path) -> None:
    swapped = write_language_model(tmp_path / "swapped", swapped=True)
    with pytest.raises(UnsupportedModelError, match=r"makes \[2152\] of 'yes'.*from the token 9693"):
        tokenizer(swapped, "qwen3-reranker")
    without = write_language_model(tmp_path / "without", control_tokens=False)
    with pytest.raises(UnsupportedModelError, match=r"does not know <\|im_start\|>, <think>, </think>"):
        tokenizer(without, "qwen3-reranker")


def test_a_tokenizer_that_adds_an_end_of_its_own_is_an_error(tmp_path: Path) -> None:
    folder = write_language_model(tmp_path / "model", appends_end=True)
    with pytest.raises(UnsupportedModelError, match=r"adds tokens of its own \(\[9694\]\)"):
        tokenizer(folder, "zerank")
