"""Every silent fallback of loading is an error here."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BartConfig,
    BartModel,
    BertForMaskedLM,
    OpenAIGPTConfig,
    OpenAIGPTModel,
    T5ForConditionalGeneration,
)

from encoders.encoder import Encoder
from encoders.errors import EncoderError, UnsupportedModelError
from encoders.loading import load_backbone, look_both_ways
from encoders.protocol import EncoderOptions, resolve_protocol
from encoders.tokenizer import Tokenizer
from tests.encoders.reference import assert_same, cosines, ours, theirs
from tests.encoders.repositories import (
    MAX_TOKENS,
    MEAN,
    TEXTS,
    edit_json,
    edit_weights,
    write_repository,
)


def load(folder: Path, options: EncoderOptions | None = None) -> object:
    return load_backbone(resolve_protocol(str(folder), options=options), torch.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "model")


def test_a_tensor_of_another_shape_is_an_error(folder: Path) -> None:
    edit_weights(folder, **{"encoder.layer.1.output.dense.weight": torch.zeros(3, 3)})
    with pytest.raises(UnsupportedModelError, match="model"):
        load(folder)


def test_a_pooler_that_is_missing_changes_no_vector_and_is_no_error(folder: Path) -> None:
    expected = ours(folder, TEXTS)
    edit_weights(folder, **{"pooler.dense.weight": None, "pooler.dense.bias": None})
    assert_same(ours(folder, TEXTS), expected)


def test_the_weights_of_a_head_are_left_aside(folder: Path) -> None:
    torch.manual_seed(1)
    model = BertForMaskedLM.from_pretrained(folder)
    model.save_pretrained(folder)
    assert "bert.embeddings.word_embeddings.weight" in load_file(folder / "model.safetensors")
    assert_same(ours(folder, TEXTS), theirs(folder, TEXTS))


def test_a_file_that_was_cut_off_is_an_error(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnsupportedModelError, match="cannot be loaded"):
        load(folder)


def test_an_unknown_architecture_is_an_error(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="bert-of-tomorrow")
    with pytest.raises(UnsupportedModelError, match="bert-of-tomorrow"):
        load(folder)


def test_a_hidden_size_that_contradicts_the_pooling_is_an_error(tmp_path: Path) -> None:
    folder = write_repository(
        tmp_path / "model", modules=[("Pooling", MEAN | {"word_embedding_dimension": 24})]
    )
    with pytest.raises(UnsupportedModelError, match="24 dimensions, the backbone has 32"):
        load(folder)


@pytest.mark.parametrize("architecture", ["xlm-roberta", "mpnet"])
def test_a_length_beyond_the_table_of_positions_is_an_error(architecture: str, tmp_path: Path) -> None:
    """These architectures count positions from behind the padding token's id, so two rows of the table are lost."""
    folder = write_repository(tmp_path / "model", architecture, transformer={"max_seq_length": MAX_TOKENS})
    assert_same(ours(folder, ["Paris " * 100]), theirs(folder, ["Paris " * 100]))
    with pytest.raises(UnsupportedModelError, match=rf"takes {MAX_TOKENS} tokens.*up to {MAX_TOKENS}"):
        load(folder, EncoderOptions(max_seq_length=MAX_TOKENS + 1))


def test_of_a_whole_encoder_decoder_the_encoder_is_loaded(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model", "t5")
    encoder = copytree(folder, tmp_path / "encoder")
    T5ForConditionalGeneration.from_pretrained(folder).save_pretrained(folder)
    assert any(name.startswith("decoder.") for name in load_file(folder / "model.safetensors"))
    assert_same(ours(folder, TEXTS), ours(encoder, TEXTS))
    assert_same(ours(folder, TEXTS), theirs(folder, TEXTS))


def test_an_encoder_decoder_without_an_encoder_class_is_an_error(folder: Path) -> None:
    config = BartConfig(
        vocab_size=300,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=MAX_TOKENS,
    )
    BartModel(config).save_pretrained(folder)
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        load(folder)


def test_a_folder_that_changed_since_it_was_opened_is_an_error(folder: Path) -> None:
    protocol = resolve_protocol(str(folder))
    edit_weights(folder, **{"pooler.dense.bias": torch.zeros(32)})
    with pytest.raises(EncoderError, match="differs on this machine"):
        load_backbone(protocol, torch.float32)


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3-causal"])
def test_a_causal_class_that_is_told_to_look_both_ways_does(architecture: str, tmp_path: Path) -> None:
    """The causal mask is left out then, and a text without padding is causal all the same."""
    folder = write_repository(tmp_path / "model", architecture)
    causal = ours(folder, TEXTS)
    edit_json(folder / "config.json", is_causal=False)
    # Eager attention adds the mask to its scores and goes by nothing else.
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=48)["input_ids"]])
        with torch.no_grad():
            pooled = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].mean(0)
        expected.append((pooled / pooled.norm()).numpy())
    both_ways = ours(folder, TEXTS)
    assert_same(both_ways, np.stack(expected))
    assert cosines(both_ways, causal)[0] < 0.999
    protocol = resolve_protocol(str(folder))
    encoder, texts = Encoder.load(protocol, device="cpu"), Tokenizer(protocol).prepare(TEXTS)
    assert_same(encoder.reference(texts), both_ways)
    encoder._forward.why_padded = "a test"
    encoder._forward._backbone.set_attn_implementation("sdpa")
    assert_same(encoder.encode(texts).vectors, both_ways)


def test_a_causal_class_that_goes_on_looking_one_way_is_an_error() -> None:
    config = OpenAIGPTConfig(vocab_size=20, n_embd=32, n_layer=2, n_head=4, n_positions=16, is_causal=False)
    with pytest.raises(UnsupportedModelError, match=r"is_causal=false, and OpenAIGPTModel goes on"):
        look_both_ways("model", OpenAIGPTModel(config).eval())


def test_a_number_format_in_which_a_model_overflows_is_refused_before_its_weights_are_read(
    folder: Path,
) -> None:
    (folder / "model.safetensors").unlink()
    row = {"forbidden_dtypes": ["float16"], "prompts": {"retrieval": ""}}
    protocol = resolve_protocol(str(folder), options=EncoderOptions(protocol=row))
    with pytest.raises(EncoderError, match=r"overflows in float16; take encoder\.dtype"):
        Encoder.load(protocol, device="cpu", dtype="float16")
