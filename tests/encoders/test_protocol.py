"""Which prompt a view gets, and what of a repository's settings is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer

from encoders.errors import TaskError, UnsupportedModelError
from encoders.modules import Normalize
from encoders.protocol import EncoderOptions, Protocol, resolve_protocol
from encoders.tasks import STANDARD_TASKS, Role, View
from tests.encoders.reference import assert_same, ours
from tests.encoders.repositories import MEAN, TEXTS, WIDTH, dense, write_json, write_modules, write_repository

QUERY, DOCUMENT = View("retrieval", Role.QUERY), View("retrieval", Role.DOCUMENT)


def resolve(folder: Path, settings: dict[str, Any] | None = None, **options: Any) -> Protocol:
    """The protocol of a repository without weights: reading one needs none."""
    if not (folder / "modules.json").exists():
        write_modules(folder, [("Pooling", MEAN), ("Normalize", {})])
        write_json(folder / "config.json", {"model_type": "bert", "hidden_size": WIDTH})
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": 48})
    write_json(folder / "config_sentence_transformers.json", settings or {})
    return resolve_protocol(str(folder), options=EncoderOptions(**options))


def before(protocol: Protocol, view: View) -> str:
    """What stands before a text; what stands behind it is a matter of the table's rows."""
    prompt = protocol.prompt(view)
    assert not prompt.suffix
    return prompt.prefix


def with_prompts(
    folder: Path, declared: dict[str, Any], default: str | None = None, **options: Any
) -> Protocol:
    return resolve(folder, {"prompts": declared, "default_prompt_name": default}, **options)


@pytest.mark.parametrize(
    ("prompts", "query", "document"),
    [
        ({"query": "q: ", "document": "d: "}, "q: ", "d: "),
        ({"query": "q: ", "passage": "p: "}, "q: ", "p: "),
        ({"query": "q: ", "corpus": "c: "}, "q: ", "c: "),
        ({"search_query": "q: ", "search_document": "d: "}, "q: ", "d: "),
        ({"corpus": "c: ", "passage": "p: ", "document": "d: ", "query": "q: "}, "q: ", "d: "),
        ({"retrieval.query": "rq: ", "retrieval.passage": "rp: ", "query": "q: "}, "rq: ", "rp: "),
        ({"Retrieval-query": "rq: ", "Retrieval-document": "rd: "}, "rq: ", "rd: "),
        ({"retrieval": "r: "}, "r: ", "r: "),
        ({"query": "", "document": ""}, "", ""),
        ({"query": "q: ", "document": ""}, "q: ", ""),
        ({"query": "q: ", "document": None}, "q: ", ""),
        ({"query": "q: "}, "q: ", ""),
        ({}, "", ""),
    ],
)
def test_the_two_sides_of_retrieval_get_the_prompts_that_the_repository_names(
    prompts: dict[str, Any], query: str, document: str, tmp_path: Path
) -> None:
    protocol = with_prompts(tmp_path, prompts)
    assert (before(protocol, QUERY), before(protocol, DOCUMENT)) == (query, document)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("text-matching", ["text-matching", "similarity", "STS", "text-matching.document"]),
        ("classification", ["classification", "Classification"]),
        ("clustering", ["clustering", "Clustering"]),
        ("code", ["code", "code.document", "code-passage"]),
    ],
)
def test_other_tasks_get_the_prompt_that_is_named_after_them(
    task: str, names: list[str], tmp_path: Path
) -> None:
    for name in names:
        protocol = with_prompts(tmp_path, {"query": "q: ", name: "t: "})
        assert before(protocol, View(task, Role.DOCUMENT)) == "t: "


@pytest.mark.parametrize("task", STANDARD_TASKS)
def test_a_default_prompt_is_for_tasks_of_which_the_repository_says_nothing(
    task: str, tmp_path: Path
) -> None:
    protocol = with_prompts(tmp_path, {"general": "g: ", "code": "c: "}, default="general")
    assert {before(protocol, View(task, role)) for role in Role} == {"g: "}


@pytest.mark.parametrize("default", [None, "query"])
def test_the_default_never_puts_the_queries_prompt_on_documents(default: str | None, tmp_path: Path) -> None:
    protocol = with_prompts(tmp_path, {"query": "q: "}, default=default)
    assert (before(protocol, QUERY), before(protocol, DOCUMENT)) == ("q: ", "")


def test_nor_the_documents_prompt_on_queries(tmp_path: Path) -> None:
    protocol = with_prompts(tmp_path, {"document": "d: "}, default="document")
    assert before(protocol, DOCUMENT) == "d: "
    with pytest.raises(TaskError, match="retrieval/query; it declares 'document'"):
        before(protocol, QUERY)


@pytest.mark.parametrize("task", STANDARD_TASKS)
def test_a_task_that_a_repository_with_prompts_does_not_name_is_an_error(task: str, tmp_path: Path) -> None:
    protocol = with_prompts(tmp_path, {"web": "w: ", "sts-2": "s: "})
    for role in Role:
        with pytest.raises(
            TaskError, match=rf"{task}/{role}; it declares 'web', 'sts-2'.*encoder\.prompt=none"
        ):
            before(protocol, View(task, role))


@pytest.mark.parametrize("default", [None, "query"])
def test_a_task_that_is_not_standard_must_be_named(default: str | None, tmp_path: Path) -> None:
    protocol = with_prompts(tmp_path, {"query": ""}, default=default)
    with pytest.raises(TaskError, match="no prompt for code/query"):
        before(protocol, View("code", Role.QUERY))


def test_no_prompt_on_purpose_is_for_every_task_that_somebody_knows(tmp_path: Path) -> None:
    protocol = with_prompts(tmp_path, {"query": "q: ", "code": "c: "}, default="query", prompt="none")
    for task in (*STANDARD_TASKS, "code"):
        assert {before(protocol, View(task, role)) for role in Role} == {""}
    with pytest.raises(TaskError, match="no prompt for retreival/query"):
        before(protocol, View("retreival", Role.QUERY))


def test_the_configurations_prompts_replace_the_repositorys_for_their_task(tmp_path: Path) -> None:
    options = {"retrieval": {"query": "mine: ", "document": ""}, "code": {"query": "c: "}}
    protocol = with_prompts(
        tmp_path, {"query": "q: ", "document": "d: ", "clustering": "cl: "}, prompts=options
    )
    assert before(protocol, QUERY) == "mine: "
    assert before(protocol, DOCUMENT) == ""
    assert before(protocol, View("code", Role.QUERY)) == "c: "
    assert before(protocol, View("clustering", Role.DOCUMENT)) == "cl: "
    with pytest.raises(TaskError, match=r"'code' with query, but not its role 'document'.*'' for no prompt"):
        before(protocol, View("code", Role.DOCUMENT))


def test_prompts_of_the_two_sides_are_those_of_encode_query_and_encode_document(tmp_path: Path) -> None:
    # "document", not "passage": 6.2 looks for both, but for its own empty "document" first.
    prompts = {"query": "query: ", "document": "passage: "}
    folder = write_repository(tmp_path / "model", settings={"prompts": prompts})
    protocol = resolve_protocol(str(folder))
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert_same(ours(folder, TEXTS, before(protocol, QUERY)), model.encode_query(list(TEXTS)))
    assert_same(ours(folder, TEXTS, before(protocol, DOCUMENT)), model.encode_document(list(TEXTS)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": {"query": "q"}, "default_prompt_name": "web"}, r"default prompt is 'web'.*\['query'\]"),
        ({"prompts": ["query"]}, "prompts are not texts by name"),
        ({"prompts": {"query": 1}}, "prompts are not texts by name"),
        ({"model_type": "SparseEncoder"}, "is a SparseEncoder"),
        ({"model_type": "CrossEncoder"}, "is a CrossEncoder"),
        ({"truncate_dim": 33}, "has 32 dimensions; truncate_dim=33 must be from 1 to 32"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        resolve(tmp_path, settings)


@pytest.mark.parametrize("truncate_dim", [0, -1, WIDTH + 1])
def test_a_dimension_that_the_model_does_not_have_is_refused(truncate_dim: int, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="must be from 1 to 32"):
        resolve(tmp_path, truncate_dim=truncate_dim)


def test_the_configurations_dimension_replaces_the_repositorys(tmp_path: Path) -> None:
    assert resolve(tmp_path, {"truncate_dim": 8}).dim == 8
    assert resolve(tmp_path, {"truncate_dim": 8}, truncate_dim=16).dim == 16
    assert resolve(tmp_path).dim == WIDTH


def test_the_dimension_is_that_of_the_last_projection(tmp_path: Path) -> None:
    pooling = {"embedding_dimension": WIDTH, "pooling_mode": ["cls", "mean"]}
    write_modules(tmp_path, [("Pooling", pooling), dense(2 * WIDTH, 48), ("LayerNorm", {"dimension": 48})])
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": 48})
    assert resolve(tmp_path).dim == 48


@pytest.mark.parametrize("step", [dense(24, 8), ("LayerNorm", {"dimension": 24})])
def test_projections_that_do_not_fit_each_other_are_refused(step: Any, tmp_path: Path) -> None:
    write_modules(tmp_path, [("Pooling", MEAN), step])
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": 48})
    with pytest.raises(UnsupportedModelError, match=r"2_\w+ takes 24 dimensions, but it is given 32"):
        resolve(tmp_path)


def test_a_hidden_size_that_nobody_says_is_an_error(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "bert", "max_position_embeddings": 48})
    with pytest.raises(UnsupportedModelError, match="hidden size"):
        resolve_protocol(str(tmp_path))


def test_only_the_last_normalisation_comes_after_the_slice(tmp_path: Path) -> None:
    protocol = resolve(tmp_path)
    assert (protocol.steps, protocol.normalize) == ((), True)
    write_modules(tmp_path, [("Pooling", MEAN), ("Normalize", {}), dense(WIDTH, 8)])
    protocol = resolve(tmp_path)
    assert isinstance(protocol.steps[0], Normalize)
    assert (len(protocol.steps), protocol.normalize) == (2, False)
    assert resolve(tmp_path, normalize=True).normalize
