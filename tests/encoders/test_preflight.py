"""An encoder that gives what the plain path gives passes; one that does not is stopped, whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoders import attention
from encoders.batching import Batch
from encoders.encoder import Dtype, Encoder
from encoders.errors import EncoderError
from encoders.plain import PlainPath
from encoders.preflight import PLAIN, Preflight, _choose
from encoders.protocol import EncoderOptions, resolve_protocol
from encoders.tokenized import TokenizedTexts
from encoders.tokenizer import Tokenizer
from tests.encoders.adapter_repositories import backbone_of, write_adapter, write_jina_v5
from tests.encoders.family_repositories import write_family
from tests.encoders.family_rows import resolve
from tests.encoders.reference import cosines, theirs
from tests.encoders.repositories import TEXTS, write_repository
from tests.encoders.test_memory import refuse_above


def loaded(
    folder: Path, architecture: str = "bert", dtype: Dtype = "float32"
) -> tuple[Encoder, TokenizedTexts]:
    protocol = resolve_protocol(str(write_repository(folder, architecture)))
    return Encoder.load(protocol, device="cpu", dtype=dtype), Tokenizer(protocol).prepare(TEXTS)


def proven(encoder: Encoder, texts: TokenizedTexts) -> Preflight:
    preflight = Preflight(encoder)
    preflight.prove(texts)
    return preflight


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["bert", "mpnet", "modernbert", "qwen3"])
def test_a_sound_encoder_passes(tmp_path: Path, architecture: str, dtype: Dtype) -> None:
    encoder, texts = loaded(tmp_path, architecture, dtype)
    before = encoder.encode(texts).vectors
    preflight = proven(encoder, texts)
    assert preflight.compared_with == PLAIN
    assert 0.99 < preflight.cosine <= 1.000001
    assert preflight.cosine > 0.99999 or dtype == "bfloat16"
    np.testing.assert_array_equal(encoder.encode(texts).vectors, before)  # the encoder is what it was


def test_a_model_that_its_own_code_computes_passes_too(tmp_path: Path) -> None:
    row = "Alibaba-NLP/gte-Qwen2-1.5B-instruct"
    protocol = resolve(write_family(tmp_path / "model", row), row)
    encoder, texts = Encoder.load(protocol, device="cpu"), Tokenizer(protocol).prepare(TEXTS)
    preflight = proven(encoder, texts)
    assert preflight.compared_with == PLAIN
    assert preflight.cosine > 0.99
    np.testing.assert_allclose(encoder.reference(texts), encoder.encode(texts).vectors, atol=1e-2)


def test_the_cosine_is_to_the_weights_of_the_files_and_not_to_rounded_ones(tmp_path: Path) -> None:
    """Stored in float32 and computed in bfloat16: what the weights lose counts too."""
    encoder, texts = loaded(tmp_path, dtype="bfloat16")
    chosen = texts.take(np.array([1, 2]))
    exact = theirs(tmp_path, TEXTS[1:3])
    together = encoder.encode(chosen).vectors
    alone = np.concatenate([encoder.encode(chosen.take(np.array([row]))).vectors for row in range(2)])
    expected = min(cosines(together, exact).min(), cosines(alone, exact).min())
    assert proven(encoder, chosen).cosine == pytest.approx(expected, abs=1e-6)
    assert expected < 0.99999  # so there is something to see


def texts_of(*lengths: int) -> TokenizedTexts:
    """Random texts."""
    generator = np.random.default_rng(0)
    ids = [generator.integers(5, 60, length).astype(np.int32) for length in lengths]
    return TokenizedTexts.joined(ids, np.zeros(len(ids), np.int32), np.zeros(len(ids), np.bool_))


@pytest.mark.parametrize("lengths", [(40, 17, 9, 3), (9, 9), (60, 60, 60), (60, 58), (9, 60)], ids=str)
def test_texts_that_see_each_other_are_caught(
    lengths: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their lengths are, if there are two."""
    monkeypatch.setattr("encoders.preflight._MOST_TOKENS", 50)
    encoder, _ = loaded(tmp_path)
    texts = texts_of(*lengths)

    def as_one(batch: Batch) -> list[tuple[int, int, int]]:
        return [(0, 1, len(batch.token_ids))]

    monkeypatch.setattr(attention, "equal_lengths", as_one)
    with pytest.raises(
        EncoderError, match=r"encoded together in float32 have a cosine of 0\.\d+ to the plain"
    ):
        proven(encoder, texts)


@pytest.mark.parametrize(
    ("lengths", "chosen"),
    [
        ((5, 4, 9, 4, 7, 6), [4, 6, 9]),
        ((4, 4, 4, 4), [4, 4, 4]),
        ((300, 7, 4, 4, 4), [4, 4, 7]),
        ((300, 4, 200), [4, 200]),
        ((256, 256, 256), [256, 256]),
        ((400, 200, 200, 300), [200, 300]),
        ((300,), [300]),
        ((4,), [4]),
    ],
    ids=str,
)
def test_texts_of_different_lengths_are_chosen_and_long_ones_only_to_make_two(
    lengths: tuple[int, ...], chosen: list[int]
) -> None:
    texts = texts_of(*lengths)
    rows = _choose(texts)
    assert sorted(texts.lengths[rows]) == chosen
    assert len(set(rows)) == len(rows)


def test_equal_texts_are_chosen_once() -> None:
    texts = texts_of(4, 4, 4)
    assert sorted(_choose(texts.take(np.array([2, 2, 2, 0])))) == [0, 3]
    assert _choose(texts.take(np.array([1, 1]))).tolist() == [0]


def test_a_way_that_is_wrong_even_for_one_text_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, texts = loaded(tmp_path)
    real = encoder._forward._run_packed
    monkeypatch.setattr(
        encoder._forward, "_run_packed", lambda batch, **how: real(batch, **how).roll(1, dims=1)
    )
    with pytest.raises(EncoderError, match="cosine"):
        proven(encoder, texts)


def test_texts_whose_vectors_are_no_numbers_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run makes rejects of them."""
    encoder, texts = loaded(tmp_path)
    real, spoilt = encoder._forward._run_packed, [int(texts.lengths.min())]

    def run(batch: Batch, *, fill: bool) -> torch.Tensor:
        states = real(batch, fill=fill)
        for start, length in zip(np.cumsum(batch.lengths) - batch.lengths, batch.lengths, strict=True):
            if length in spoilt:
                states[start] = torch.nan
        return states

    monkeypatch.setattr(encoder._forward, "_run_packed", run)
    preflight = Preflight(encoder)
    assert preflight.prove(texts)
    assert preflight.cosine > 0.9999
    spoilt += texts.lengths.tolist()
    assert not Preflight(encoder).prove(texts)


def test_a_weight_that_was_damaged_in_memory_is_caught(tmp_path: Path) -> None:
    encoder, texts = loaded(tmp_path)
    encoder._adapted.module.encoder.layer[1].output.LayerNorm.weight[3] *= -1
    with pytest.raises(EncoderError, match=r"cosine of 0\.\d+ to the plain path"):
        proven(encoder, texts)


@pytest.fixture(scope="module")
def jina(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TokenizedTexts]:
    """Four adapters on a backbone that is stored in bfloat16."""
    folder = write_jina_v5(tmp_path_factory.mktemp("model") / "v5", "small")
    return folder, Tokenizer(resolve_protocol(str(folder))).prepare(TEXTS, "Query: ")


def adapted(folder: Path, *names: str, dtype: Dtype = "bfloat16") -> Encoder:
    return Encoder.load(resolve_protocol(str(folder)), adapters=names, device="cpu", dtype=dtype)


def test_each_adapter_is_proven_whether_one_is_loaded_or_several(jina: tuple[Path, TokenizedTexts]) -> None:
    folder, texts = jina
    preflight = Preflight(encoder := adapted(folder, "retrieval", "clustering"))
    for name in ("retrieval", "clustering"):
        encoder.use_adapter(name)
        preflight.prove(texts)
    assert 0.99 < preflight.cosine < 0.999999
    assert 0.99 < proven(adapted(folder, "clustering"), texts).cosine < 0.999999
    assert proven(adapted(folder, "clustering", dtype="float32"), texts).cosine > 0.99999


def test_the_adapter_of_another_task_is_caught(jina: tuple[Path, TokenizedTexts]) -> None:
    folder, texts = jina
    encoder = adapted(folder, "retrieval", "clustering")
    encoder.use_adapter("clustering")
    encoder._adapted.active = "retrieval"
    with pytest.raises(EncoderError, match="cosine"):
        proven(encoder, texts)


@pytest.mark.parametrize("merged", [True, False])
def test_a_faint_adapter_must_be_in_the_vectors_too(tmp_path: Path, merged: bool) -> None:
    """So faint that no cosine would tell whether it was merged."""
    model = write_repository(tmp_path / "model", "qwen3")
    adapter = write_adapter(
        tmp_path / "faint", backbone_of(model), r=4, lora_alpha=0.02, target_modules=["q_proj", "v_proj"]
    )
    options = EncoderOptions(adapters={"clustering": str(adapter), "retrieval": None})
    protocol = resolve_protocol(str(model), options=options)
    encoder = Encoder.load(protocol, device="cpu", dtype="float32")
    texts = Tokenizer(protocol).prepare(TEXTS)
    encoder.use_adapter("clustering" if merged else None)
    encoder._adapted.active = "clustering"
    if merged:
        assert proven(encoder, texts).cosine > 0.99999
    else:
        with pytest.raises(
            EncoderError, match=r"by the adapter 'clustering' the vectors of a text are .* no effect"
        ):
            proven(encoder, texts)


def test_without_memory_for_float32_the_encoder_is_compared_with_itself_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, texts = loaded(tmp_path, dtype="bfloat16")
    tried = []

    def refuse(*_: Any) -> None:
        tried.append(1)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(PlainPath, "_enter", refuse)
    preflight = proven(encoder, texts)
    assert preflight.compared_with == "its own weights in bfloat16, for want of memory for float32"
    assert 0.99 < preflight.cosine <= 1.000001
    assert preflight._plain is None  # what it took is given back, and not asked for again
    assert preflight.prove(texts)
    assert len(tried) == 1
    real = encoder._forward._run_packed
    monkeypatch.setattr(
        encoder._forward, "_run_packed", lambda batch, **how: real(batch, **how).roll(1, dims=1)
    )
    with pytest.raises(
        EncoderError, match=r"encoded together in bfloat16 have a cosine of .* to its own weights"
    ):
        proven(encoder, texts)


def test_without_memory_for_any_of_it_nothing_is_compared_and_nothing_stopped(tmp_path: Path) -> None:
    encoder, texts = loaded(tmp_path)
    tried = refuse_above(encoder, 0, torch.OutOfMemoryError)
    preflight = proven(encoder, texts)
    assert tried
    assert (preflight.cosine, preflight.compared_with) == (1.0, "")
    # Those that do fit are compared.
    encoder, texts = loaded(tmp_path / "second")
    refuse_above(encoder, int(texts.lengths.min()), torch.OutOfMemoryError)
    assert proven(encoder, texts).compared_with == PLAIN


def test_no_text_proves_nothing_and_stops_nothing(tmp_path: Path) -> None:
    encoder, texts = loaded(tmp_path)
    assert proven(encoder, texts.take(np.array([], np.int64))).compared_with == ""
