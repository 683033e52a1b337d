"""The transformer's own files: the length of a text, and everything that would make another model of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from encoders.errors import UnsupportedModelError
from encoders.repository import open_repository
from encoders.transformer import Transformer, read_transformer
from tests.encoders.repositories import write_json

OTHER = f"org/other@{'a' * 40}"
PLAIN = {"method": "forward", "method_output_name": "last_hidden_state"}


def read(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    file: str = "sentence_bert_config.json",
    max_seq_length: int | None = None,
    trust_remote_code: bool = False,  # that of the folder as it is
) -> Transformer:
    write_json(folder / "config.json", {"hidden_size": 32} | (config or {}))
    write_json(folder / "tokenizer_config.json", tokenizer or {})
    write_json(folder / file, settings or {})
    repository = open_repository(str(folder), remote_code=trust_remote_code)
    allowed = [f"{repository.name}@{repository.revision}", OTHER] if trust_remote_code else []
    return read_transformer(repository, "", max_seq_length=max_seq_length, trust_remote_code=allowed)


@pytest.mark.parametrize(
    ("stated", "tokenizer", "positions", "wanted", "expected"),
    [
        (256, 512, 512, None, 256),
        (None, 128, 512, None, 128),
        (None, 512, 128, None, 128),
        (None, None, 512, None, 512),
        (None, int(1e30), 512, None, 512),
        (None, 512, None, None, 512),
        (256, 512, None, None, 256),
        (8192, 512, None, None, 8192),
        (256, 128, 512, None, 256),
        (256, 128, 512, 512, 512),
        (None, None, None, 77, 77),
        (None, 512, -1, None, 512),
    ],
)
def test_a_texts_length_is_what_is_wanted_else_stated_else_possible(
    stated: int | None,
    tokenizer: int | None,
    positions: int | None,
    wanted: int | None,
    expected: int,
    tmp_path: Path,
) -> None:
    read_it = read(
        tmp_path,
        config={"max_position_embeddings": positions},
        tokenizer={} if tokenizer is None else {"model_max_length": tokenizer},
        settings={"max_seq_length": stated},
        max_seq_length=wanted,
    )
    assert read_it == Transformer("", expected, do_lower_case=False, hidden_size=32)


def test_an_older_name_of_the_length_counts(tmp_path: Path) -> None:
    assert read(tmp_path, tokenizer={"max_len": 99}).max_seq_length == 99


@pytest.mark.parametrize("tokenizer", [{}, {"model_max_length": int(1e30)}])
def test_a_length_that_nobody_says_is_asked_for(tokenizer: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"does not say how many tokens.*give encoder\.max_seq_length"
    ):
        read(tmp_path, tokenizer=tokenizer)


@pytest.mark.parametrize(("stated", "wanted"), [(1024, None), (256, 513), (None, 0), (0, None)])
def test_a_length_beyond_the_positions_is_an_error(
    stated: int | None, wanted: int | None, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=r"512 positions.*encoder\.max_seq_length from 1 to 512"):
        read(
            tmp_path,
            config={"max_position_embeddings": 512},
            settings={"max_seq_length": stated},
            max_seq_length=wanted,
        )


def test_older_names_of_the_file_are_read(tmp_path: Path) -> None:
    settings = {"max_seq_length": 20, "do_lower_case": True}
    assert read(tmp_path, settings=settings, file="sentence_xlm-roberta_config.json").do_lower_case


def test_settings_that_say_what_is_done_anyway_are_fine(tmp_path: Path) -> None:
    settings = {
        "max_seq_length": 20,
        "transformer_task": "feature-extraction",
        "modality_config": {"text": PLAIN},
        "module_output_name": "token_embeddings",
        "unpad_inputs": True,
        "processing_kwargs": {},
        "model_args": {},
        "query_length": None,
    }
    assert read(tmp_path, settings=settings).max_seq_length == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transformer_task": "fill-mask"}, "loads the model for 'fill-mask'; only 'feature-extraction'"),
        ({"query_length": 32}, "asks for query_length"),
        ({"processing_kwargs": {"text": {"padding": "max_length"}}}, "asks for processing_kwargs"),
        ({"model_args": {"add_pooling_layer": False}}, "asks for model_args"),
        ({"module_output_name": "scores"}, "'scores'"),
        ({"modality_config": {"text": PLAIN | {"method": "get_text_features"}}}, "get_text_features"),
        ({"modality_config": {"image": PLAIN}}, "takes texts through None"),
        ({"modality_config": {"text": PLAIN, "message": PLAIN}}, "chat template"),
    ],
)
def test_settings_that_are_not_done_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read(tmp_path, settings={"max_seq_length": 20} | settings)


@pytest.mark.parametrize("model_type", ["bert", "of-its-own"])
@pytest.mark.parametrize(
    ("config", "tokenizer"),
    [
        ({"auto_map": {"AutoConfig": "c.Config", "AutoModel": "m.Model"}}, {}),
        ({"auto_map": {"AutoModel": "org/other--m.Model"}}, {}),
        ({}, {"auto_map": {"AutoTokenizer": ["t.Tokenizer", None]}}),
    ],
)
def test_code_of_the_repositorys_own_is_asked_for_and_never_replaced(
    config: dict[str, Any], tokenizer: dict[str, Any], model_type: str, tmp_path: Path
) -> None:
    files = {
        "config": {"model_type": model_type} | config,
        "tokenizer": {"model_max_length": 20} | tokenizer,
    }
    with pytest.raises(UnsupportedModelError, match=r"auto_map.*encoder\.trust_remote_code"):
        read(tmp_path, **files)
    assert read(tmp_path, **files, trust_remote_code=True).max_seq_length == 20


def test_code_for_another_purpose_does_not_matter(tmp_path: Path) -> None:
    config = {"auto_map": {"AutoModelForSequenceClassification": "m.Model"}, "max_position_embeddings": 20}
    assert read(tmp_path, config=config).max_seq_length == 20


def test_an_adapter_is_never_left_off(tmp_path: Path) -> None:
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": "org/base"})
    with pytest.raises(UnsupportedModelError, match="is an adapter"):
        read(tmp_path, tokenizer={"model_max_length": 20})


@pytest.mark.parametrize(
    ("config", "width"), [({"d_model": 8}, 8), ({"dim": 8}, 8), ({"n_embd": 8}, 8), ({"layers": 2}, None)]
)
def test_the_hidden_size_has_several_names(config: dict[str, Any], width: int | None, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", config)
    repository = open_repository(str(tmp_path))
    read_it = read_transformer(repository, "", max_seq_length=5, trust_remote_code=())
    assert read_it.hidden_size == width
