"""The tables of families as README shows them: what goes around a text, for each model and view, or around a pair.

python -m encoders.reference [--rerankers]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from encoders.families import FAMILIES
from encoders.family import Family, Prompt
from encoders.jina import MERGED
from encoders.rerank_families import CLASSIFIERS, YesNoFamily
from encoders.rerank_families import FAMILIES as RERANKERS
from encoders.tasks import SYMMETRIC_TASKS, View

_HEADER = (
    "| model | task/role | before the text | behind it | adapter | pooling | dimensions | tokens | licence |"
)


def markdown_families() -> str:
    """One line for each model and each group of views that get the same."""
    lines = [_HEADER, "|---" * 9 + "|"]
    for family in FAMILIES:
        if family in MERGED:
            continue
        models = "<br>".join(f"`{repository}`" for repository in family.repositories)
        for place, ((prompt, adapter), views) in enumerate(_groups(family).items()):
            common = [_pooling(family), _dims(family), str(family.max_seq_length or ""), family.licence]
            cells = [
                models if place == 0 else "",
                ", ".join(views),
                _code(prompt.prefix),
                _code(prompt.suffix) if prompt.suffix else "",
                f"`{adapter}`" if adapter else "",
                *(common if place == 0 else [""] * 4),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    defaults = dict.fromkeys(
        (task, instruction) for family in FAMILIES for task, instruction in family.instructions.items()
    )
    said = {
        (task, instruction): ", ".join(
            f"`{family.name}`" for family in FAMILIES if family.instructions.get(task) == instruction
        )
        for task, instruction in defaults
    }
    lines += ["", "`{instruction}` where none is given:", ""]
    lines += [f"- {task}: `{instruction}` ({models})" for (task, instruction), models in said.items()]
    merged = " and ".join(
        dict.fromkeys(
            f"`{family.name.removesuffix('-' + next(iter(family.prompts)))}-<task>`" for family in MERGED
        )
    )
    lines += ["", f"{merged} are spoken to like the models that they were merged from, and have no adapters."]
    return "\n".join(lines)


def _groups(family: Family) -> dict[tuple[Prompt, str | None], list[str]]:
    """Views that get the same; a symmetric task without its role, unless its two differ."""
    groups: dict[tuple[Prompt, str | None], list[str]] = {}
    for task, roles in family.prompts.items():
        given = {role: (prompt, family.adapters.get(task, {}).get(role)) for role, prompt in roles.items()}
        if len(set(given.values())) == 1:
            name = task if task in SYMMETRIC_TASKS else f"{task}/query, {task}/document"
            groups.setdefault(next(iter(given.values())), []).append(name)
            continue
        for role, one in given.items():
            groups.setdefault(one, []).append(str(View(task, role)))
    return groups


def _code(text: str) -> str:
    """Every byte visible: a space at the end too."""
    escaped = text.replace("\n", "\\n").replace("|", "\\|")
    return f"`{escaped}`" if text else "nothing"


def _pooling(family: Family) -> str:
    words = {"lasttoken": "last token", "cls": "first token"}.get(family.pooling, family.pooling)
    if family.last_token and family.pooling == "lasttoken":
        words += f", {_code(family.last_token)} ({family.ends})"
    if family.pooling == "lasttoken" and family.ends == "none":
        words += ", no token is added"
    if not family.include_prompt:
        words += " without the prompt"
    if family.own_code:
        words += "; needs its own code (`encoder.trust_remote_code`)"
    projections = [f"linear to {width}" for width in family.dense]
    return ", then ".join([words, *projections, *(step.replace("_", " ") for step in family.steps)])


def _dims(family: Family) -> str:
    full = " / ".join(map(str, dict.fromkeys(family.repositories.values())))
    if family.truncate_from is not None:
        return f"{full}; any from {family.truncate_from} up"
    smaller = ", ".join(map(str, family.truncate_dims or ()))
    return f"{full}; {smaller}" if smaller else full


def markdown_rerankers() -> str:
    """One line for each family of yes/no language models, and one for sequence-classification heads."""
    heads = (
        _licensed(CLASSIFIERS),
        "any head with one label",
        "the pair, as the tokenizer joins it",
        "the longer text",
        "sigmoid of the logit, or the logit where the repository says so",
        "as the repository says",
    )
    rows = [
        ("models", "family", "what is read", "cut", "score", "tokens"),
        ("---",) * 6,
        heads,
        *(
            (
                _licensed(row.repositories),
                f'`family="{row.name}"`',
                _code(f"{row.prefix}{row.head}{{document}}{row.suffix}")
                + (", query and document stripped" if row.strip else ""),
                "the document, never what is behind it",
                _score(row),
                f"{row.max_seq_length}",
            )
            for row in RERANKERS
        ),
    ]
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    defaults = [f"`{row.instruction}` (`{row.name}`)" for row in RERANKERS if row.instruction is not None]
    return "\n".join([*lines, "", f"`{{instruction}}` where none is given: {', '.join(defaults)}."])


def _licensed(repositories: Mapping[str, str]) -> str:
    return "<br>".join(f"`{name}` ({licence})" for name, licence in repositories.items())


def _score(row: YesNoFamily) -> str:
    """The sigmoid of one word's logit, or of what it is above another's."""
    logit = f"the logit of `{row.yes.text}`" + (f" less that of `{row.no.text}`" if row.no else "")
    return f"sigmoid of {logit}" + (f", by {row.temperature:g}" if row.temperature != 1 else "")


if __name__ == "__main__":
    print(markdown_rerankers() if "--rerankers" in sys.argv else markdown_families())  # noqa: T201 (its purpose)
