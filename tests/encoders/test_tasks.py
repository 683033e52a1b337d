"""What tasks and roles mean, and under which names repositories keep their prompts."""

from __future__ import annotations

import pytest

from encoders.errors import TaskError
from encoders.tasks import STANDARD_TASKS, SYMMETRIC_TASKS, Role, View, canonical_task, prompt_names, view_of


@pytest.mark.parametrize("task", sorted(SYMMETRIC_TASKS))
def test_the_texts_of_a_symmetric_task_are_documents(task: str) -> None:
    assert view_of(task) == View(task, Role.DOCUMENT)


@pytest.mark.parametrize("task", ["retrieval", "code"])
def test_an_asymmetric_task_needs_a_role(task: str) -> None:
    with pytest.raises(
        TaskError, match=r"no role was given; say role: query or role: document .*retrieval, text-matching"
    ):
        view_of(task)
    assert view_of(task, "query") == View(task, Role.QUERY)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("similarity", "text-matching"),
        ("STS", "text-matching"),
        ("PairClassification", "text-matching"),
        ("BitextMining", "text-matching"),
        ("Summarization", "text-matching"),
        ("Classification", "classification"),
        ("MultilabelClassification", "classification"),
        ("Clustering", "clustering"),
    ],
)
def test_mtebs_symmetric_task_types_need_no_role(name: str, task: str) -> None:
    assert view_of(name) == View(task, Role.DOCUMENT)


@pytest.mark.parametrize("name", ["Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking"])
def test_mtebs_retrieval_task_types_need_one(name: str) -> None:
    assert view_of(name, "query") == View("retrieval", Role.QUERY)
    with pytest.raises(TaskError, match="no role was given"):
        view_of(name)


def test_a_models_own_task_keeps_its_name() -> None:
    assert canonical_task("code") == "code"
    assert canonical_task("sts") == "sts", "names are exact"


@pytest.mark.parametrize("role", ["passage", "Query", "", "queries"])
def test_an_unknown_role_is_an_error(role: str) -> None:
    with pytest.raises(TaskError, match="allowed: query, document"):
        view_of("retrieval", role)


def test_a_view_reads_as_task_and_role_and_knows_its_other_side() -> None:
    view = View("retrieval", Role.QUERY)
    assert str(view) == "retrieval/query"
    assert view.opposite == View("retrieval", Role.DOCUMENT)
    assert view.opposite.opposite == view


def test_names_go_from_the_most_specific_to_the_least() -> None:
    names = list(prompt_names(View("retrieval", Role.DOCUMENT)))
    ordered = [
        "retrieval.document",
        "retrieval.passage",
        "Retrieval-document",
        "document",
        "passage",
        "corpus",
    ]
    assert [name for name in names if name in ordered] == ordered
    assert names.index("corpus") < names.index("search_document") < names.index("retrieval")


@pytest.mark.parametrize("task", [*STANDARD_TASKS, "code"])
def test_no_name_of_one_role_is_a_name_of_the_other_but_the_tasks_own(task: str) -> None:
    query, document = (set(prompt_names(View(task, role))) for role in Role)
    assert {name.lower() for name in query & document} <= {task, "similarity", "sts", "separation"}
    assert task in query & document


def test_only_retrieval_takes_prompts_that_name_a_role_alone() -> None:
    for task in STANDARD_TASKS:
        assert ("query" in set(prompt_names(View(task, Role.QUERY)))) == (task == "retrieval")
