"""Instructions, rows and the repository's own prompts: what wins, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from encoders.errors import EncoderError, TaskError
from encoders.family import Prompt, read_family
from encoders.protocol import EncoderOptions, Protocol, resolve_protocol
from encoders.tasks import Role, View
from tests.encoders.repositories import MEAN, WIDTH, dense, write_json, write_modules

QUERY, DOCUMENT = View("retrieval", Role.QUERY), View("retrieval", Role.DOCUMENT)
CLUSTERING = View("clustering", Role.DOCUMENT)
E5_INSTRUCT, E5 = "intfloat/multilingual-e5-large-instruct", "intfloat/e5-base-v2"


def resolve(folder: Path, declared: dict[str, str] | None = None, **options: Any) -> Protocol:
    """The protocol of a mean-pooling repository without weights."""
    projections = [dense(WIDTH, WIDTH, "linear.Identity", bias=False)] if "hkunlp" in str(options) else []
    write_modules(folder, [("Pooling", MEAN), *projections, ("Normalize", {})])
    write_json(folder / "config.json", {"model_type": "bert", "hidden_size": WIDTH})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 48})
    write_json(folder / "config_sentence_transformers.json", {"prompts": declared or {}})
    return resolve_protocol(str(folder), options=EncoderOptions(**options))


def test_one_instruction_is_for_every_view_that_has_a_place_for_it(tmp_path: Path) -> None:
    protocol = resolve(tmp_path, protocol=E5_INSTRUCT, instruction="Find the answer")
    assert protocol.prompt(QUERY) == Prompt("Instruct: Find the answer\nQuery: ")
    assert protocol.prompt(CLUSTERING) == Prompt("Instruct: Find the answer\nQuery: ")
    assert protocol.prompt(DOCUMENT) == Prompt()


@pytest.mark.parametrize("task", ["clustering", "Clustering"])
def test_an_instruction_by_task_is_for_that_task(task: str, tmp_path: Path) -> None:
    protocol = resolve(tmp_path, protocol=E5_INSTRUCT, instruction={task: "Group by topic"})
    assert protocol.prompt(CLUSTERING) == Prompt("Instruct: Group by topic\nQuery: ")
    assert "Given a web search query" in protocol.prompt(QUERY).prefix


def test_an_instruction_by_role_is_for_that_side(tmp_path: Path) -> None:
    write = {"retrieval": {"query": " Represent the question: ", "document": "Represent the document: "}}
    protocol = resolve(tmp_path, protocol="hkunlp/instructor-large", instruction=write)
    assert protocol.prompt(QUERY) == Prompt("Represent the question:"), "its authors strip it"
    assert protocol.prompt(DOCUMENT) == Prompt("Represent the document:")


def test_a_task_without_a_default_instruction_asks_for_one(tmp_path: Path) -> None:
    protocol = resolve(tmp_path, protocol=E5_INSTRUCT)
    with pytest.raises(
        TaskError, match=r"wants an instruction for clustering/document.*encoder\.instruction=.*Instruct: "
    ):
        protocol.prompt(CLUSTERING)


@pytest.mark.parametrize(
    ("row", "instruction", "message"),
    [
        (None, "Find it", "takes no instruction: its prompts have no place"),
        (E5, "Find it", "takes no instruction: its prompts have no place"),
        (E5_INSTRUCT, {"retrieval": {"document": "Find it"}}, "takes no instruction for retrieval/document"),
        (
            E5_INSTRUCT,
            {"code": "Find it"},
            "takes no instruction for code/query; it takes them for retrieval/query",
        ),
        (E5_INSTRUCT, "  ", "is empty"),
    ],
)
def test_an_instruction_without_a_place_is_refused(
    row: str | None, instruction: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=message):
        resolve(tmp_path, protocol=row, instruction=instruction)


WHOLE = {"retrieval": {"query": "Find: ", "document": ""}}


def test_an_instruction_for_a_task_whose_whole_prompt_is_given_is_refused(tmp_path: Path) -> None:
    told = {"retrieval": {"query": "Find it"}, "clustering": "Group by topic"}
    with pytest.raises(
        TaskError, match=r"instruction is given for retrieval/query, and encoder\.prompts gives whole"
    ):
        resolve(tmp_path, protocol=E5_INSTRUCT, instruction=told, prompts=WHOLE)
    # For all tasks, it is for those that are left, if any are.
    protocol = resolve(tmp_path, protocol=E5_INSTRUCT, instruction="Find it", prompts=WHOLE)
    assert protocol.prompt(QUERY) == Prompt("Find: ")
    assert protocol.prompt(CLUSTERING) == Prompt("Instruct: Find it\nQuery: ")
    row = {"prompts": {"retrieval": {"query": "{instruction}: ", "document": ""}}}
    with pytest.raises(TaskError, match=r"instruction is given for retrieval/query"):
        resolve(tmp_path, protocol=row, instruction="Find it", prompts=WHOLE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prompts": {"clustering": {"document": "Instruct: {instruction}\nQuery: "}}},
            r"encoder\.prompts: \{instruction\} in the prompt for clustering/document is not filled",
        ),
        (
            {"protocol": {"prompts": {"clustering": {"prefix": "a: ", "suffix": "{instruction}"}}}},
            r"in the suffix for clustering/query is not filled, only in the prefix",
        ),
        (
            {"protocol": {"prompts": {"clustering": "a: "}, "instructions": {"clustering": "Group"}}},
            r"instructions are given for clustering, whose prompts have no \{instruction\}",
        ),
    ],
)
def test_a_place_that_nothing_fills_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=message):
        resolve(tmp_path, **options)


def test_a_row_speaks_where_the_repository_is_silent(tmp_path: Path) -> None:
    protocol = resolve(tmp_path, {"query": "", "document": ""}, protocol=E5)
    assert (protocol.prompt(QUERY).prefix, protocol.prompt(DOCUMENT).prefix) == ("query: ", "passage: ")
    assert protocol.prompt(CLUSTERING).prefix == "query: "


def test_a_task_of_the_repositorys_own_stands_beside_its_row(tmp_path: Path) -> None:
    protocol = resolve(tmp_path, {"code": "code: "}, protocol=E5)
    assert protocol.prompt(View("code", Role.QUERY)).prefix == "code: "
    with pytest.raises(
        TaskError, match=r"no prompt for web/query; it declares 'code', and the row of intfloat/.* has"
    ):
        protocol.prompt(View("web", Role.QUERY))


def test_no_prompt_on_purpose_is_raw_text_whatever_the_row_says(tmp_path: Path) -> None:
    protocol = resolve(tmp_path, protocol=E5, prompt="none")
    assert protocol.prompt(QUERY) == Prompt()
    assert not protocol.prompts.is_raw(QUERY), "on purpose is not for want of knowledge"


def test_raw_text_for_want_of_any_prompt_is_known_as_such(tmp_path: Path) -> None:
    assert resolve(tmp_path).prompts.is_raw(QUERY)
    assert not resolve(tmp_path, {"query": "q: ", "document": ""}).prompts.is_raw(DOCUMENT)
    assert not resolve(tmp_path, protocol="sentence-transformers/all-MiniLM-L6-v2").prompts.is_raw(QUERY)
    configured = {"retrieval": {"query": "", "document": ""}}
    assert not resolve(tmp_path, prompts=configured).prompts.is_raw(QUERY)


def test_a_prompt_of_the_configuration_cannot_lose_what_stands_behind_a_text(tmp_path: Path) -> None:
    row = {"prompts": {"retrieval": {"prefix": "<s>", "suffix": "</s>"}}}
    given = {"retrieval": {"query": "q", "document": "d"}}
    with pytest.raises(TaskError, match="also wants '</s>' behind it"):
        resolve(tmp_path, protocol=row, prompts=given).prompt(QUERY)


def test_a_row_can_be_written_out() -> None:
    family = read_family(
        {
            "prompts": {
                "retrieval": {"query": "q: ", "document": {"prefix": "d: ", "suffix": "!"}},
                "STS": "s: ",
                "code": {"prefix": "c: "},
            },
            "adapters": {"clustering": "topics"},
            "pooling": "lasttoken",
            "truncate_dims": [8, 16],
            "last_token": "</s>",
        }
    )
    assert family.prompts["retrieval"] == {Role.QUERY: Prompt("q: "), Role.DOCUMENT: Prompt("d: ", "!")}
    assert family.prompts["text-matching"] == dict.fromkeys(Role, Prompt("s: "))
    assert family.prompts["code"] == dict.fromkeys(Role, Prompt("c: "))
    assert family.adapters == {"clustering": dict.fromkeys(Role, "topics")}
    assert (family.pooling, family.truncate_dims) == ("lasttoken", (8, 16))
    assert family.has_dim(8, 32)
    assert not family.has_dim(9, 32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"poling": "mean"}, "poling"),
        ({"pooling": "median"}, "pooling"),
        ({"prompts": {"retrieval": {"passage": "p: "}}}, "passage"),
        ({"prompts": {"retrieval": {"query": {"before": "p: "}}}}, "before"),
        ({"prompts": "query: "}, "by task"),
        ({"strip": "left"}, "strip"),
    ],
)
def test_a_row_with_a_slip_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderError, match=rf"(?s)encoder\.protocol: .*{message}.*its fields are"):
        read_family(given)
