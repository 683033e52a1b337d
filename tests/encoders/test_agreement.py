"""Which row speaks for a repository, and what happens where the two disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from encoders.encoder import Encoder
from encoders.errors import EncoderError, UnsupportedModelError
from encoders.family import Prompt
from encoders.modules import Normalize, Pooling, Standardize
from encoders.protocol import EncoderOptions, Protocol, resolve_protocol
from encoders.tasks import Role, View
from encoders.tokenizer import Tokenizer
from tests.encoders.family_repositories import recipe, write_family
from tests.encoders.reference import assert_same, unit
from tests.encoders.repositories import MEAN, TEXTS, edit_json, write_json, write_modules

QUERY, DOCUMENT = View("retrieval", Role.QUERY), View("retrieval", Role.DOCUMENT)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache on this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(hub: Path, repository: str, *, width: int, **config: Any) -> None:
    """A repository's small files in the Hub's cache, as a download leaves them."""
    commit = "f52bf8ec8c7124536f0efb74aca902b2995e5bcd"
    root = hub / f"models--{repository.replace('/', '--')}"
    folder = root / "snapshots" / commit
    write_modules(folder, [("Pooling", MEAN | {"word_embedding_dimension": width}), ("Normalize", {})])
    write_json(folder / "config.json", {"model_type": "bert", "hidden_size": width} | config)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 512})
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)


def folder_of(root: Path, *, pooling: dict[str, Any] | None = None, length: int = 64, **config: Any) -> Path:
    write_modules(root, [("Pooling", pooling or MEAN), ("Normalize", {})])
    write_json(root / "config.json", {"model_type": "bert", "hidden_size": 32} | config)
    write_json(root / "sentence_bert_config.json", {"max_seq_length": length})
    return root


def resolve(folder: Path, protocol: Any = None, **options: Any) -> Protocol:
    return resolve_protocol(str(folder), options=EncoderOptions(protocol=protocol, **options))


def test_a_repository_of_the_hub_finds_its_row_by_its_exact_id(hub: Path) -> None:
    put(hub, "intfloat/e5-base-v2", width=768)
    put(hub, "somebody/e5-base-v2", width=768)
    put(hub, "somebody/intfloat-e5-base-v2-tuned", width=768)
    protocol = resolve_protocol("intfloat/e5-base-v2")
    assert (protocol.prompt(QUERY), protocol.prompt(DOCUMENT)) == (Prompt("query: "), Prompt("passage: "))
    for other in ("somebody/e5-base-v2", "somebody/intfloat-e5-base-v2-tuned"):
        assert resolve_protocol(other).family is None
        assert resolve_protocol(other).prompt(QUERY) == Prompt()
        tuned = resolve_protocol(other, options=EncoderOptions(protocol="intfloat/e5-base-v2"))
        assert tuned.prompt(QUERY) == Prompt("query: ")


def test_a_repository_with_a_row_cannot_be_given_another(hub: Path) -> None:
    put(hub, "intfloat/e5-base-v2", width=768)
    with pytest.raises(EncoderError, match="has a row of its own"):
        resolve_protocol("intfloat/e5-base-v2", options=EncoderOptions(protocol="BAAI/bge-m3"))


def test_a_repository_with_another_dimension_than_its_row_is_refused(hub: Path) -> None:
    put(hub, "intfloat/e5-base-v2", width=384)
    with pytest.raises(UnsupportedModelError, match=r"say dimension 384, and the row of .* says 768"):
        resolve_protocol("intfloat/e5-base-v2")


def test_a_folder_has_no_row_unless_the_configuration_names_one(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "intfloat" / "e5-base-v2")
    assert resolve(folder).family is None
    assert resolve(folder, "intfloat/e5-base-v2").prompt(QUERY) == Prompt("query: ")
    with pytest.raises(EncoderError, match=r"no row for 'e5-base-v2'; rows: intfloat/e5-small-v2"):
        resolve(folder, "e5-base-v2")


@pytest.mark.parametrize(
    ("files", "row", "message"),
    [
        (
            {"pooling": MEAN | {"include_prompt": True}},
            {"include_prompt": False},
            "include_prompt True.* says False",
        ),
        ({"length": 1024}, "intfloat/e5-base-v2", "take texts of 1024 tokens, and the row of .* says 512"),
        ({}, "BAAI/bge-m3", "say pooling 'mean', and the row of .* says 'cls'"),
        ({}, {"normalize": False}, "say normalize True, and the row of .* says False"),
    ],
)
def test_contradictions_show_both_sides(
    files: dict[str, Any], row: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        resolve(folder_of(tmp_path, **files), row)


def test_a_shorter_length_and_a_configured_one_are_no_contradiction(tmp_path: Path) -> None:
    row = "intfloat/e5-base-v2"
    assert resolve(folder_of(tmp_path, length=48), row).max_seq_length == 48
    assert resolve(folder_of(tmp_path, length=1024), row, max_seq_length=600).max_seq_length == 600


def test_what_a_repository_does_not_say_is_the_rows(tmp_path: Path) -> None:
    write_json(
        tmp_path / "config.json", {"model_type": "qwen3", "hidden_size": 32, "max_position_embeddings": 40960}
    )
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": "{{ messages }}"})
    protocol = resolve(tmp_path, "zeroentropy/zembed-1")
    assert protocol.pooling == Pooling(("lasttoken",))
    assert (protocol.max_seq_length, protocol.normalize, protocol.dim) == (32768, True, 32)
    assert resolve(folder_of(tmp_path / "nomic"), "nomic-ai/nomic-embed-text-v1.5").steps == (Standardize(),)
    assert Normalize() not in resolve(folder_of(tmp_path / "e5"), "intfloat/e5-base-v2").steps


@pytest.mark.parametrize(
    ("config", "row", "message"),
    [
        ({"model_type": "newer"}, "Alibaba-NLP/gte-base-en-v1.5", "model_type 'newer'.*'gte' is known"),
        ({"model_type": "xlm-roberta"}, "jinaai/jina-embeddings-v3-hf", "model_type 'xlm-roberta'"),
        (
            {"model_type": "nomic_bert", "rotary_scaling_factor": 2.0},
            "nomic-ai/nomic-embed-text-v1.5",
            r"rotary_scaling_factor=2\.0",
        ),
        ({"model_type": "qwen2"}, "Qwen/Qwen3-Embedding-0.6B", "auto_map"),
    ],
)
def test_code_for_which_no_class_is_known_to_give_the_same_is_refused(
    config: dict[str, Any], row: str, message: str, tmp_path: Path
) -> None:
    remote = {"auto_map": {"AutoModel": "modeling.Model"}}
    pooling = {"word_embedding_dimension": 32, "pooling_mode_lasttoken": True} if "Qwen3" in row else None
    if "gte" in row:
        pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True}
    with pytest.raises(UnsupportedModelError, match=message):
        resolve(folder_of(tmp_path, pooling=pooling, **remote, **config), row)


@pytest.mark.parametrize(
    ("row", "wanted", "message"),
    [
        ("nomic-ai/nomic-embed-text-v1.5", 31, "not trained for vectors of 31 dimensions; it was for 32"),
        ("intfloat/e5-base-v2", 16, "not trained for vectors of 16 dimensions; it was for 32"),
        ({"truncate_dims": [8, 16]}, 12, "it was for 8, 16, 32; .*force_truncate_dim"),
        ({"truncate_from": 8}, 7, "it was for any from 8 up, 32"),
    ],
)
def test_a_slice_that_a_model_was_not_trained_for_must_be_forced(
    row: Any, wanted: int, message: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path)
    with pytest.raises(UnsupportedModelError, match=message):
        resolve(folder, row, truncate_dim=wanted)
    assert resolve(folder, row, truncate_dim=wanted, force_truncate_dim=True).dim == wanted
    assert resolve(folder, row, truncate_dim=32).dim == 32
    assert resolve(folder, truncate_dim=wanted).dim == wanted, "of an unknown model any slice is taken"


def test_a_dimension_of_the_table_is_taken(tmp_path: Path) -> None:
    assert resolve(folder_of(tmp_path), {"truncate_dims": [8]}, truncate_dim=8).dim == 8
    assert resolve(folder_of(tmp_path), {"truncate_from": 8}, truncate_dim=9).dim == 9


def test_nomics_vector_is_normalised_over_its_layer_before_the_slice(tmp_path: Path) -> None:
    row = "nomic-ai/nomic-embed-text-v1.5"
    folder = write_family(tmp_path / "model", row)
    protocol = resolve(folder, row, truncate_dim=8, force_truncate_dim=True)
    vectors = Encoder.load(protocol, device="cpu").encode(Tokenizer(protocol).prepare(TEXTS)).vectors
    pooled = recipe(folder, TEXTS, row)[0]
    centred = pooled - pooled.mean(axis=1, keepdims=True)
    assert_same(vectors, unit((centred / centred.std(axis=1, keepdims=True))[:, :8]))


def test_any_backbone_works_with_a_protocol_written_out(tmp_path: Path) -> None:
    """A bare causal backbone with neither modules.json nor prompts."""
    like = "zeroentropy/zembed-1"
    folder = write_family(tmp_path / "model", like, modules=None, settings=None, length=None)
    row = {
        "prompts": {"retrieval": {"query": "Q: ", "document": {"prefix": "D: ", "suffix": "<|im_end|>"}}},
        "pooling": "lasttoken",
        "ends": "none",
        "max_seq_length": 64,
    }
    protocol = resolve(folder, row)
    vectors = (
        Encoder.load(protocol, device="cpu")
        .encode(Tokenizer(protocol).prepare(TEXTS, protocol.prompt(DOCUMENT)))
        .vectors
    )
    short = [place for place, text in enumerate(TEXTS) if len(text) < 40]
    pooled = recipe(folder, [f"D: {TEXTS[place]}<|im_end|>" for place in short], like)[0]
    assert_same(vectors[short], unit(pooled))


def test_whatever_of_a_row_changes_a_vector_changes_the_space(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    rows: list[Any] = [
        None,
        {"prompts": {"retrieval": "q: "}},
        {"prompts": {"retrieval": {"query": "q: ", "document": {"prefix": "q: ", "suffix": "!"}}}},
        {"prompts": {"retrieval": "q: "}, "strip": "both"},
        {"prompts": {"retrieval": "q: "}, "steps": ["layer_norm"]},
        {"prompts": {"retrieval": "q: "}, "last_token": "</s>", "ends": "added"},
        {"prompts": {"retrieval": "q: {instruction}"}, "instructions": {"retrieval": "x"}},
    ]
    ids = [resolve(folder, row).space("retrieval", "float32").id for row in rows]
    assert len(set(ids)) == len(ids)
    told = resolve(folder, rows[-1], instruction="y").space("retrieval", "float32").id
    assert told not in ids


def test_a_row_that_changes_no_vector_makes_no_other_space(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    by_hand = {"retrieval": {"query": "query: ", "document": "passage: "}}
    assert (
        resolve(folder, "intfloat/e5-base-v2").space("retrieval", "float32").id
        == resolve(folder, prompts=by_hand).space("retrieval", "float32").id
    )
    edit_json(folder / "sentence_bert_config.json", max_seq_length=64)
    assert resolve(folder, {"last_token": "[SEP]"}).family is not None
