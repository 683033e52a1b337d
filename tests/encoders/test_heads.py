"""Every weight of a reranker is its repository's, and what cannot be honoured is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BartConfig, BartForSequenceClassification

from encoders.errors import EncoderError, ModelNotFoundError, UnsupportedModelError
from encoders.reranker import Reranker
from tests.encoders.repositories import edit_json, edit_weights, write_repository
from tests.encoders.rerank_repositories import write_classifier, write_language_model


def score(folder: Path, **settings: Any) -> object:
    return Reranker.load(str(folder), device="cpu", **settings).score([("what is it?", "Paris")])


def test_a_missing_head_is_an_error_and_never_a_random_one(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "classifier")
    edit_weights(folder, **{"classifier.out_proj.weight": None})
    with pytest.raises(UnsupportedModelError, match=r"do not fill XLMRoberta.*classifier\.out_proj\.weight"):
        score(folder)
    folder = write_classifier(tmp_path / "pooler", "bert")
    edit_weights(folder, **{"bert.pooler.dense.weight": None})
    with pytest.raises(UnsupportedModelError, match=r"bert\.pooler\.dense\.weight"):
        score(folder)
    folder = write_language_model(tmp_path / "language-model", tie_word_embeddings=False)
    edit_weights(folder, **{"lm_head.weight": None})
    with pytest.raises(UnsupportedModelError, match=r"do not fill Qwen3ForCausalLM.*lm_head\.weight"):
        score(folder, family="zerank")


def test_weights_in_a_pickle_are_never_loaded(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="no safetensors weights"):
        score(folder)


def test_a_length_beyond_the_table_of_positions_is_an_error(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "model", max_tokens=64)
    with pytest.raises(UnsupportedModelError, match=r"takes 64 tokens, and max_seq_length is 66.*up to 64"):
        score(folder, max_seq_length=66)


def test_a_classifier_that_cannot_tell_padding_is_an_error(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "model", "modernbert", pad_token_id=None)
    with pytest.raises(UnsupportedModelError, match="names no pad_token_id"):
        score(folder)


def test_scores_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "model")
    bias = load_file(folder / "model.safetensors")["classifier.out_proj.bias"]
    edit_weights(folder, **{"classifier.out_proj.bias": bias * float("nan")})
    with pytest.raises(EncoderError, match=r"scores are not finite, the first one of pair 0"):
        score(folder)


def test_an_embedding_model_is_no_reranker(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match=r"BertModel, which is no sequence classification"):
        score(folder)


def test_an_encoder_decoder_is_an_error(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "model")
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 300}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = BartConfig(**sizes, **heads, encoder_ffn_dim=32, decoder_ffn_dim=32, num_labels=1)
    BartForSequenceClassification(config).save_pretrained(folder)
    with pytest.raises(UnsupportedModelError, match="is an encoder-decoder"):
        score(folder)


def test_a_language_model_without_logits_for_the_words_is_an_error(tmp_path: Path) -> None:
    folder = write_language_model(tmp_path / "model", tie_word_embeddings=False)
    head = load_file(folder / "model.safetensors")["lm_head.weight"]
    edit_weights(
        folder,
        **{"lm_head.weight": head[:9600].clone(), "model.embed_tokens.weight": head[:9600].clone()},
    )
    edit_json(folder / "config.json", vocab_size=9600)
    with pytest.raises(
        UnsupportedModelError, match=r"logits for 9600 tokens, and the family 'qwen3-reranker'"
    ):
        score(folder, family="qwen3-reranker")
