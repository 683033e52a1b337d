"""Equal space ids, comparable vectors; different ids, vectors that must not meet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import TaskError
from encoders.protocol import EncoderOptions, resolve_protocol
from encoders.space import Space, digest
from encoders.tasks import STANDARD_TASKS
from tests.encoders.repositories import edit_json, write_repository

PROMPTS = {"query": "query: ", "passage": "passage: ", "clustering": "cluster: "}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("space") / "model", settings={"prompts": PROMPTS})


def space(folder: Path, task: str = "retrieval", precision: str = "float32", **options: Any) -> Space:
    return resolve_protocol(str(folder), options=EncoderOptions(**options)).space(task, precision)


def test_a_copy_under_another_name_is_the_same_space(original: Path, tmp_path: Path) -> None:
    copy = copytree(original, tmp_path / "other-name")
    (copy / "README.md").write_text("what it is")
    (copy / "onnx").mkdir()
    (copy / "onnx" / "config.json").write_text("{}")
    assert space(copy).id == space(original).id
    assert str(space(copy)) != str(space(original))


def test_options_that_change_nothing_are_the_same_space(original: Path) -> None:
    same = space(original, normalize=True, max_seq_length=48, truncate_dim=32)
    assert same.id == space(original).id
    by_hand = {"retrieval": {"query": "query: ", "document": "passage: "}}
    assert space(original, prompts=by_hand).id == space(original).id


def flip_weights(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


CHANGES: dict[str, Callable[[Path], None]] = {
    "weights": flip_weights,
    "tokenizer": lambda folder: edit_json(folder / "tokenizer.json", version="1.1"),
    "tokenizer settings": lambda folder: edit_json(folder / "tokenizer_config.json", truncation_side="left"),
    "pooling": lambda folder: edit_json(folder / "1_Pooling" / "config.json", pooling_mode_cls_token=True),
    "length": lambda folder: edit_json(folder / "sentence_bert_config.json", max_seq_length=47),
    "prompt": lambda folder: edit_json(
        folder / "config_sentence_transformers.json", prompts=PROMPTS | {"query": "query:"}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_a_file_that_decides_a_vector_is_another_space(
    change: str, original: Path, tmp_path: Path
) -> None:
    copy = copytree(original, tmp_path / "model")
    CHANGES[change](copy)
    assert space(copy).id != space(original).id


def test_whatever_changes_a_vector_changes_the_space(original: Path) -> None:
    ids = [
        space(original).id,
        space(original, task="clustering").id,
        space(original, precision="float16").id,
        space(original, truncate_dim=31).id,
        space(original, normalize=False).id,
        space(original, max_seq_length=47).id,
        space(original, prompt="none").id,
        space(original, prompts={"retrieval": {"query": "query: "}}).id,
        space(original, prompts={"retrieval": {"query": "query: ", "document": "passage:"}}).id,
        space(original, prompts={"retrieval": {"query": "Query: ", "document": "passage: "}}).id,
        space(original, prompts={"retrieval": {"query": "passage: ", "document": "query: "}}).id,
    ]
    assert len(set(ids)) == len(ids)


settings_of_a_run = st.fixed_dictionaries(
    {
        "truncate_dim": st.sampled_from([1, 8, 32]),
        "normalize": st.booleans(),
        "max_seq_length": st.sampled_from([8, 48, 64]),
        "prompt": st.sampled_from(["auto", "none"]),
    }
)


@given(one=settings_of_a_run, other=settings_of_a_run)
@settings(max_examples=40)
def test_two_runs_share_a_space_if_and_only_if_they_share_their_settings(
    original: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert (space(original, **one).id == space(original, **other).id) == (one == other)


def test_a_space_is_of_a_task_that_the_model_has(original: Path) -> None:
    for task in ("retrieval", "clustering"):
        assert space(original, task).name.endswith(f"/{task}/32/float32")
    for task in ("text-matching", "code"):
        with pytest.raises(TaskError, match=f"no prompt for {task}"):
            space(original, task)
    assert len({space(original, task, prompt="none").id for task in STANDARD_TASKS}) == len(STANDARD_TASKS)


def test_a_space_reads_as_what_it_is(original: Path) -> None:
    it = space(original)
    assert it.name.startswith("model@")
    assert str(it) == f"{it.name} ({it.id[:12]})"
    assert len(it.id) == 32


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(content=st.dictionaries(st.text(), json_values, max_size=6))
def test_a_digest_does_not_depend_on_the_order_of_keys(content: dict[str, Any]) -> None:
    assert digest(content) == digest(dict(reversed(content.items())))


@given(one=json_values, other=json_values)
def test_digests_are_equal_only_of_equal_contents(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest(one) == digest(other)) == same
