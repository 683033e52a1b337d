"""Token ids against the tokenizer's own call, truncation, and where a prompt ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from encoders.errors import ModelNotFoundError, TaskError, UnsupportedModelError
from encoders.protocol import EncoderOptions, resolve_protocol
from encoders.tokenized import TokenizedTexts
from encoders.tokenizer import Tokenizer
from tests.encoders.repositories import (
    ARCHITECTURES,
    MEAN,
    TEXTS,
    edit_json,
    write_repository,
    write_tokenizer,
)

LONG = "solar panels and batteries " * 40
TEXT_WITHOUT_PROMPT = MEAN | {"include_prompt": False}


def load(folder: Path, **options: Any) -> Tokenizer:
    return Tokenizer(resolve_protocol(str(folder), options=EncoderOptions(**options)))


def ids_of(texts: TokenizedTexts) -> list[list[int]]:
    return [
        texts.token_ids[start:stop].tolist()
        for start, stop in zip(texts.offsets, texts.offsets[1:], strict=False)
    ]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_ids_are_those_of_the_tokenizers_own_call(architecture: str, side: str, tmp_path: Path) -> None:
    folder = write_repository(
        tmp_path / "model", architecture, tokenizer={"truncation_side": side, "padding_side": side}
    )
    independent = AutoTokenizer.from_pretrained(folder)
    texts = [*TEXTS, "", LONG]
    prompt = "query: "
    expected = independent([prompt + text for text in texts], truncation=True, max_length=48)["input_ids"]
    prepared = load(folder).prepare(texts, prompt)
    assert ids_of(prepared) == expected
    whole = independent([prompt + text for text in texts])["input_ids"]
    assert prepared.truncated.tolist() == [len(ids) > 48 for ids in whole]
    assert (prepared.truncated[0], prepared.truncated[-1]) == (False, True)


def test_a_text_of_exactly_the_models_length_is_not_truncated(tmp_path: Path) -> None:
    tokenizer = load(write_repository(tmp_path / "model", transformer={"max_seq_length": 8}))
    prepared = tokenizer.prepare(["query " * 5, "query " * 6, "query " * 7])
    assert prepared.lengths.tolist() == [7, 8, 8]
    assert prepared.truncated.tolist() == [False, False, True]


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation_keeps_the_special_tokens_and_the_side_that_the_tokenizer_names(
    side: str, tmp_path: Path
) -> None:
    folder = write_repository(tmp_path / "model", "xlm-roberta", tokenizer={"truncation_side": side})
    (ids,) = ids_of(load(folder, max_seq_length=6).prepare([f"query {LONG} answer"]))
    words = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(ids)
    assert len(ids) == 6
    assert (words[0], words[-1]) == ("<s>", "</s>")
    assert ("query" in "".join(words)) == (side == "right")


def test_special_tokens_in_a_text_are_split_where_the_tokenizer_says_so(tmp_path: Path) -> None:
    for split in (False, True):
        folder = write_repository(tmp_path / str(split), tokenizer={"split_special_tokens": split})
        expected = AutoTokenizer.from_pretrained(folder)(["a [SEP] b"])["input_ids"]
        assert ids_of(load(folder).prepare(["a [SEP] b"])) == expected
    assert len(expected[0]) > 5


@given(texts=st.lists(st.text(max_size=40), max_size=8), prompt=st.sampled_from(["", "query: "]))
@settings(max_examples=40)
def test_tokenizing_together_is_tokenizing_alone(
    straddling: Tokenizer, texts: list[str], prompt: str
) -> None:
    together = straddling.prepare(texts, prompt)
    alone = [straddling.prepare([text], prompt) for text in texts]
    assert ids_of(together) == [ids_of(one)[0] for one in alone]
    assert together.prompt_lengths.tolist() == [one.prompt_lengths[0] for one in alone]
    assert together.truncated.tolist() == [one.truncated[0] for one in alone]
    rows = np.arange(len(texts))[::-2]
    assert ids_of(together.take(rows)) == [ids_of(together)[row] for row in rows]


def test_more_texts_than_a_chunk_stay_in_order(straddling: Tokenizer) -> None:
    texts = [f"{number} Paris" for number in range(2500)]
    ids = ids_of(straddling.prepare(texts))
    assert [ids[row] for row in (0, 1023, 1024, 2499)] == [
        ids_of(straddling.prepare([texts[row]]))[0] for row in (0, 1023, 1024, 2499)
    ]


@pytest.fixture(scope="module")
def straddling(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Byte-level tokens begin with their space, so the last one of `query: ` merges with the text's first word."""
    folder = tmp_path_factory.mktemp("straddling")
    return load(write_repository(folder, "qwen3", modules=[("Pooling", TEXT_WITHOUT_PROMPT)]))


def test_a_token_that_reaches_into_the_text_belongs_to_the_text(straddling: Tokenizer) -> None:
    backend = AutoTokenizer.from_pretrained(straddling.protocol.repository.path)
    alone = backend.tokenize("query: ")
    assert alone[-1] == "Ġ"
    assert backend.tokenize("query: the") == [*alone[:-1], "Ġthe"]
    prepared = straddling.prepare(["the", "Zug", "the"], "query: ")
    assert prepared.prompt_lengths.tolist() == [len(alone) - 1, len(alone), len(alone) - 1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_prompts_tokens_are_those_that_the_prompt_has_alone(architecture: str, tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model", architecture, modules=[("Pooling", TEXT_WITHOUT_PROMPT)])
    tokenizer, backend = load(folder), AutoTokenizer.from_pretrained(folder)
    prompt = "Represent the question:"
    alone = backend(prompt)["input_ids"]
    trailing = alone[-1] in backend.all_special_ids
    assert tokenizer.prepare([" Paris", ""], prompt).prompt_lengths.tolist() == [len(alone) - trailing] * 2
    assert tokenizer.prepare(["Paris", ""]).prompt_lengths.tolist() == [0, 0]


def test_a_prompt_that_pooling_takes_in_has_no_tokens_of_its_own(tmp_path: Path) -> None:
    tokenizer = load(write_repository(tmp_path / "model"))
    assert tokenizer.prepare(["Paris"], "query: ").prompt_lengths.tolist() == [0]


def test_truncation_on_the_left_cuts_the_prompt_and_not_the_count_of_it(tmp_path: Path) -> None:
    folder = write_repository(
        tmp_path / "model", modules=[("Pooling", TEXT_WITHOUT_PROMPT)], tokenizer={"truncation_side": "left"}
    )
    prepared = load(folder, max_seq_length=12).prepare(["the capital of France", LONG], "query: ")
    assert prepared.truncated[1]
    assert prepared.prompt_lengths[1] == 1, "of prompt and text only the leading [CLS] is not the text's"


def test_a_text_of_which_pooling_would_take_nothing_has_no_token(tmp_path: Path) -> None:
    folder = write_repository(
        tmp_path / "model", "qwen3", modules=[("Pooling", TEXT_WITHOUT_PROMPT)], tokenizer={"eos": False}
    )
    prepared = load(folder).prepare(["", "Paris"], "query:")
    assert prepared.lengths[0] == 0
    assert prepared.prompt_lengths[0] == 0
    assert prepared.lengths[1] > prepared.prompt_lengths[1] > 0


@pytest.mark.parametrize("include_prompt", [True, False])
def test_a_prompt_that_leaves_no_room_for_a_text_is_an_error(include_prompt: bool, tmp_path: Path) -> None:
    folder = write_repository(
        tmp_path / "model", modules=[("Pooling", MEAN | {"include_prompt": include_prompt})]
    )
    num_tokens = len(AutoTokenizer.from_pretrained(folder)("query:")["input_ids"])
    prepared = load(folder, max_seq_length=num_tokens + 1).prepare(["Paris"], "query:")
    assert prepared.lengths.tolist() == [num_tokens + 1]
    with pytest.raises(TaskError, match=r"leaves no room.*shorten it or raise encoder\.max_seq_length"):
        load(folder, max_seq_length=num_tokens).prepare(["Paris"], "query:")


def test_segments_that_would_be_dropped_are_an_error(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model", tokenizer={"segment": 1})
    with pytest.raises(UnsupportedModelError, match="token_type_ids"):
        load(folder)


def test_a_repository_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match="tokenizer cannot be loaded"):
        load(folder)
    # transformers makes one up for architectures that it knows: a few special tokens, every word unknown.
    edit_json(folder / "tokenizer_config.json", tokenizer_class=None)
    assert len(AutoTokenizer.from_pretrained(folder)) < 10
    with pytest.raises(ModelNotFoundError, match=r"holds none of .*tokenizer\.json"):
        load(folder)


def test_a_broken_tokenizer_is_an_error(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model")
    content = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(content[: len(content) // 2])
    with pytest.raises(ModelNotFoundError, match="tokenizer cannot be loaded"):
        load(folder)


def test_the_tokenizer_stands_where_the_transformer_stands(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model")
    write_tokenizer(folder / "0_Transformer", "wordpiece", model_max_length=10)
    for file in ("config.json", "sentence_bert_config.json"):
        (folder / file).rename(folder / "0_Transformer" / file)
    modules = (folder / "modules.json").read_text().replace('"path": ""', '"path": "0_Transformer"')
    (folder / "modules.json").write_text(modules)
    edit_json(folder / "0_Transformer" / "sentence_bert_config.json", max_seq_length=None)
    assert load(folder).prepare([LONG]).lengths.tolist() == [10]
