"""Texts of a call that are the same are tokenized and encoded once, and nothing else shows of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.encoder import Encoder
from encoders.protocol import resolve_protocol
from encoders.stretches import Stretches
from encoders.tokenized import TokenizedTexts
from encoders.tokenizer import Tokenizer
from tests.encoders.repositories import MEAN, TEXTS, write_repository

# Few enough to come again in most lists; the first two are the same only to some tokenizers.
SOME = st.lists(st.sampled_from(["Paris", "paris", " Paris ", "", *TEXTS]), max_size=30)


@pytest.fixture(scope="module", params=["bert", "t5"])
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Encoder]:
    """A packed model and a padded one; their prompts are not pooled."""
    folder = write_repository(
        tmp_path_factory.mktemp("model"),
        request.param,
        modules=[("Pooling", MEAN | {"include_prompt": False})],
    )
    protocol = resolve_protocol(str(folder))
    return Tokenizer(protocol), Encoder.load(protocol, device="cpu", max_batch_tokens=50)


@given(texts=SOME, prompt=st.sampled_from(["", "query: "]))
@settings(max_examples=30)
def test_ids_are_those_of_each_text_alone(
    loaded: tuple[Tokenizer, Encoder], texts: list[str], prompt: str
) -> None:
    prepared = loaded[0].prepare(texts, prompt)
    alone = [loaded[0].prepare([text], prompt) for text in texts]
    assert prepared.token_ids.tolist() == [number for one in alone for number in one.token_ids]
    assert prepared.lengths.tolist() == [one.lengths[0] for one in alone]
    assert prepared.prompt_lengths.tolist() == [one.prompt_lengths[0] for one in alone]
    assert prepared.truncated.tolist() == [one.truncated[0] for one in alone]


@given(texts=SOME)
@settings(max_examples=30)
def test_vectors_are_bit_for_bit_those_of_the_distinct_texts(
    loaded: tuple[Tokenizer, Encoder], texts: list[str]
) -> None:
    tokenizer, encoder = loaded
    prepared = tokenizer.prepare(texts, "query: ")
    first: dict[bytes, int] = {}
    for row in range(len(texts)):
        first.setdefault(prepared.take(np.array([row])).token_ids.tobytes(), row)
    expected = encoder._encode_each(prepared.take(np.array(list(first.values()), np.int64)))
    places = list(first).index
    found = encoder.encode(prepared)
    rows = [places(prepared.take(np.array([row])).token_ids.tobytes()) for row in range(len(texts))]
    np.testing.assert_array_equal(found.vectors, expected.vectors[rows])
    assert found.num_tokens == sum(prepared.lengths[row] for row in first.values())
    np.testing.assert_allclose(found.vectors, encoder._encode_each(prepared).vectors, atol=1e-6)


def test_each_distinct_text_goes_through_the_backbone_once(loaded: tuple[Tokenizer, Encoder]) -> None:
    tokenizer, encoder = loaded
    prepared = tokenizer.prepare(["Paris", "solar panels", "Paris"] * 20)
    seen: list[int] = []

    def count(_: Any, __: Any, kwargs: dict[str, torch.Tensor]) -> None:
        seen.append(kwargs["input_ids"].numel())

    hook = encoder._adapted.module.register_forward_pre_hook(count, with_kwargs=True)
    encoded = encoder.encode(prepared)
    hook.remove()
    assert sum(seen) == encoded.num_tokens + encoded.num_padding
    assert encoded.num_tokens == sum(prepared.lengths[:2])


def ragged(*texts: list[int], prompt_lengths: list[int] | None = None) -> TokenizedTexts:
    none = np.zeros(len(texts), np.int32)
    lengths = none if prompt_lengths is None else np.array(prompt_lengths, np.int32)
    return TokenizedTexts.joined([np.array(ids, np.int32) for ids in texts], lengths, none.astype(bool))


def test_another_prompt_length_makes_another_text() -> None:
    texts = ragged([1, 2], [3], [1, 2], [1, 2], [3], prompt_lengths=[1, 0, 1, 0, 0])
    first, inverse = texts.distinct()
    assert first.tolist() == [0, 1, 3]
    assert inverse.tolist() == [0, 1, 0, 2, 1]


def test_stretches_are_left_as_they_are() -> None:
    stretches = Stretches(np.array([0, 1, 3]), np.array([0, 0, 1]), np.array([2, 1, 1]))
    first, inverse = replace(ragged([1, 2], [1, 2]), stretches=stretches).distinct()
    assert first.tolist() == inverse.tolist() == [0, 1]


def test_a_text_that_does_not_fit_is_lost_wherever_it_stands(tmp_path: Path) -> None:
    protocol = resolve_protocol(str(write_repository(tmp_path / "model")))
    encoder = Encoder.load(protocol, device="cpu")
    texts = ["Paris", "solar " * 30, "Paris", "solar " * 30, "Zug"]

    def refuse(_: Any, __: Any, kwargs: dict[str, torch.Tensor]) -> None:
        if kwargs["input_ids"].numel() > 20:
            raise torch.OutOfMemoryError

    encoder._adapted.module.register_forward_pre_hook(refuse, with_kwargs=True)
    encoded = encoder.encode_what_fits(Tokenizer(protocol).prepare(texts))
    assert encoded.lost.tolist() == [1, 3]
    assert np.isnan(encoded.vectors).all(axis=1).tolist() == [False, True, False, True, False]
