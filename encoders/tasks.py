"""Tasks, roles and views: what a vector is for, and on which side of the comparison its text stands.

A retrieval model embeds a question and its answer differently, so an asymmetric task needs a role. A symmetric
task compares like with like: both sides get the same vector, and `document` is its only side unless a model's
own prompts tell the two apart. mteb's task types are other names of the tasks; here is where they are mapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from encoders.errors import TaskError


class Role(StrEnum):
    """The side of an asymmetric task that a text is on."""

    QUERY = "query"
    DOCUMENT = "document"


STANDARD_TASKS = ("retrieval", "text-matching", "classification", "clustering")
SYMMETRIC_TASKS = frozenset({"text-matching", "classification", "clustering"})

# Other names of the tasks: the usual word, and mteb's task types.
TASK_ALIASES = {
    "similarity": "text-matching",
    "STS": "text-matching",
    "PairClassification": "text-matching",
    "BitextMining": "text-matching",
    "Summarization": "text-matching",
    "Retrieval": "retrieval",
    "Reranking": "retrieval",
    "InstructionRetrieval": "retrieval",
    "InstructionReranking": "retrieval",
    "Classification": "classification",
    "MultilabelClassification": "classification",
    "Clustering": "clustering",
}

# Names under which repositories keep the prompt of a side, the most usual first. The order for documents is that
# of sentence-transformers' encode_document; `search_*` is Nomic's.
_ROLE_NAMES = {
    Role.QUERY: ("query", "search_query"),
    Role.DOCUMENT: ("document", "passage", "corpus", "search_document"),
}
# ... and of a symmetric task: our own name, then mteb's task types, then Jina v3's.
_TASK_NAMES = {
    "retrieval": ("retrieval", "Retrieval"),
    "text-matching": ("text-matching", "similarity", "STS"),
    "classification": ("classification", "Classification"),
    "clustering": ("clustering", "Clustering", "separation"),
}


@dataclass(frozen=True, order=True)
class View:
    """One (task, role) that a run produces."""

    task: str
    role: Role

    @property
    def opposite(self) -> View:
        """The other side of the same task."""
        return View(self.task, Role.QUERY if self.role == Role.DOCUMENT else Role.DOCUMENT)

    def __str__(self) -> str:
        return f"{self.task}/{self.role}"


def canonical_task(task: str) -> str:
    """A task by the name that it has here; a model's own task keeps its name."""
    return TASK_ALIASES.get(task, task)


def view_of(task: str, role: str | None = None) -> View:
    """The view that a task, by any of its names, and an optional role mean.

    Raises:
        TaskError: The role is unknown, or missing from a task whose two sides differ.
    """
    task = canonical_task(task)
    if role is None:
        if task not in SYMMETRIC_TASKS:
            raise TaskError(
                f"task {task!r} has queries and documents, and no role was given; say role: query or role: document "
                f"(tasks of every model: {', '.join(STANDARD_TASKS)}; of these only retrieval needs a role)"
            )
        return View(task, Role.DOCUMENT)
    if role not in tuple(Role):
        raise TaskError(f"unknown role {role!r}; allowed: {', '.join(Role)}")
    return View(task, Role(role))


def prompt_names(view: View) -> Iterator[str]:
    """Names under which a repository may keep the prompt of a view, the most specific first."""
    tasks = _TASK_NAMES.get(view.task, (view.task,))
    for task in tasks:
        yield from _names_with_role(task, view.role)
    if view.task == "retrieval":
        yield from _ROLE_NAMES[view.role]
    yield from tasks


def type_prompt_names(name: str, view: View) -> Iterator[str]:
    """Names under which a repository may keep a prompt for a task type of mteb, of which a view is meant.

    Of an asymmetric task the type's bare name is for queries; documents have the prompt of their role.
    """
    yield from _names_with_role(name, view.role)
    if view.task in SYMMETRIC_TASKS or view.role == Role.QUERY:
        yield name


def _names_with_role(task: str, role: Role) -> Iterator[str]:
    for side in _ROLE_NAMES[role]:
        yield f"{task}.{side}"
        yield f"{task}-{side}"
