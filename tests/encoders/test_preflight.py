"""An encoder that gives what the plain path gives passes; one that does not is stopped, whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from encoders import attention
from encoders.batching import Batch
from encoders.encoder import Dtype, Encoder
from encoders.errors import EncoderError
from encoders.preflight import preflight
from encoders.protocol import resolve_protocol
from encoders.tokenized import TokenizedTexts
from encoders.tokenizer import Tokenizer
from tests.encoders.repositories import TEXTS, write_repository


def loaded(
    folder: Path, architecture: str = "bert", dtype: Dtype = "float32"
) -> tuple[Encoder, TokenizedTexts]:
    protocol = resolve_protocol(str(write_repository(folder, architecture)))
    return Encoder.load(protocol, device="cpu", dtype=dtype), Tokenizer(protocol).prepare(TEXTS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["bert", "mpnet", "modernbert", "qwen3"])
def test_a_sound_encoder_passes(tmp_path: Path, architecture: str, dtype: Dtype) -> None:
    encoder, texts = loaded(tmp_path, architecture, dtype)
    before = encoder.encode(texts).vectors
    cosine = preflight(encoder, texts)
    assert 0.99 < cosine <= 1.000001
    assert cosine > 0.99999 or dtype == "bfloat16"
    np.testing.assert_array_equal(encoder.encode(texts).vectors, before)  # the encoder is what it was


def test_texts_that_see_each_other_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, texts = loaded(tmp_path)

    def as_one(batch: Batch) -> list[tuple[int, int, int]]:
        return [(0, 1, len(batch.token_ids))]

    monkeypatch.setattr(attention, "equal_lengths", as_one)
    with pytest.raises(
        EncoderError, match=r"encoded together in torch.float32 have a cosine of 0\.\d+ to the plain"
    ):
        preflight(encoder, texts)


def test_a_way_that_is_wrong_even_for_one_text_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, texts = loaded(tmp_path)
    real = encoder._forward._run_packed
    monkeypatch.setattr(encoder._forward, "_run_packed", lambda batch: real(batch).roll(1, dims=1))
    with pytest.raises(EncoderError, match="cosine"):
        preflight(encoder, texts)


def test_vectors_that_are_no_numbers_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, texts = loaded(tmp_path)
    real = encoder._forward._run_packed
    monkeypatch.setattr(encoder._forward, "_run_packed", lambda batch: real(batch) * torch.nan)
    with pytest.raises(EncoderError, match="cosine of nan"):
        preflight(encoder, texts)


def test_no_text_proves_nothing_and_stops_nothing(tmp_path: Path) -> None:
    encoder, texts = loaded(tmp_path)
    assert preflight(encoder, texts.take(np.array([], np.int64))) == 1.0
