"""Families of yes/no language models: what they are asked, and which words of the answer count.

A language model answers any prompt with a plausible score, and what it was trained to be asked stands nowhere but on
model cards. So the words stand here, to the byte, and a model's family is found by its exact repository id or is named
by the caller; nothing is guessed from a part of a name.

`python -m encoders.reference --rerankers` prints the table as docs/models.md shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from encoders.errors import UnsupportedModelError


@dataclass(frozen=True)
class Word:
    """A word whose logit counts, and its token id in the family's vocabulary."""

    text: str
    token_id: int


@dataclass(frozen=True)
class YesNoFamily:
    """Language models that are asked in the same words.

    Attributes:
        name: What `family` is called by users.
        repositories: Hub ids of the models, each with its licence: SPDX id, or the licence's name.
        model_type: The architecture, as `config.json` calls it.
        prefix: What stands before everything; tokenized alone, never cut.
        head: What stands between prefix and document, with `{query}` and perhaps `{instruction}`.
        suffix: What stands behind the document; tokenized alone, never cut.
        control_tokens: Parts of the above that are one token each.
        yes: The score rises with this word's logit.
        no: It falls with this word's logit, if there is one.
        temperature: What the logits are divided by, before the sigmoid.
        instruction: The default one; None where the prompt has no place for any.
        strip: Whether white space around query and document is taken away.
        max_seq_length: Tokens of a whole prompt.
        source: Where these facts are from.
    """

    name: str
    repositories: Mapping[str, str]
    model_type: str
    prefix: str
    head: str
    suffix: str
    control_tokens: tuple[str, ...]
    yes: Word
    no: Word | None
    temperature: float
    instruction: str | None
    strip: bool
    max_seq_length: int
    source: str


FAMILIES = (
    YesNoFamily(
        name="qwen3-reranker",
        repositories={
            "Qwen/Qwen3-Reranker-0.6B": "apache-2.0",
            "Qwen/Qwen3-Reranker-4B": "apache-2.0",
            "Qwen/Qwen3-Reranker-8B": "apache-2.0",
        },
        model_type="qwen3",
        prefix=(
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        ),
        head="<Instruct>: {instruction}\n<Query>: {query}\n<Document>: ",
        suffix="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        control_tokens=("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
        yes=Word("yes", 9693),  # softmax over (no, yes) is the sigmoid of their difference
        no=Word("no", 2152),
        temperature=1.0,
        instruction="Given a web search query, retrieve relevant passages that answer the query",
        strip=False,
        max_seq_length=8192,
        source="model card of Qwen3-Reranker-0.6B",
    ),
    YesNoFamily(
        name="zerank",
        repositories={
            "zeroentropy/zerank-1": "cc-by-nc-4.0",
            "zeroentropy/zerank-1-reranker": "cc-by-nc-4.0",
            "zeroentropy/zerank-1-small": "apache-2.0",
            "zeroentropy/zerank-1-small-reranker": "apache-2.0",
            "zeroentropy/zerank-2": "cc-by-nc-4.0",
            "zeroentropy/zerank-2-reranker": "cc-by-nc-4.0",
        },
        model_type="qwen3",
        prefix="<|im_start|>system\n",
        head="{query}<|im_end|>\n<|im_start|>user\n",
        suffix="<|im_end|>\n<|im_start|>assistant\n",
        control_tokens=("<|im_start|>", "<|im_end|>"),
        yes=Word("Yes", 9454),
        no=None,
        temperature=5.0,
        instruction=None,
        strip=True,
        # The code of zerank-1-small also cuts queries at 2,000 characters and documents at 10,000; the card of zerank-2
        # says 32,768 tokens and cuts nothing else, as is done here for all.
        max_seq_length=32768,
        source="zerank-1-small, modeling_zeranker.py; model card of zerank-2",
    ),
)

# Sequence-classification heads with a test of their kind, and their licences; all else stands in their files.
# Source: model cards.
CLASSIFIERS = {
    "BAAI/bge-reranker-v2-m3": "apache-2.0",
    "cross-encoder/ms-marco-MiniLM-L6-v2": "apache-2.0",
}


def find_family(model: str, name: str | None) -> YesNoFamily | None:
    """The family that a caller names, or that a Hub id is known to be of; None where there is neither.

    Raises:
        UnsupportedModelError: There is no such family, or the model is known to be of another one.
    """
    of_model = next((row for row in FAMILIES if model in row.repositories), None)
    if name is None:
        return of_model
    names = {row.name: row for row in FAMILIES}
    if name not in names:
        raise UnsupportedModelError(f"there is no family {name!r} of rerankers; known: {', '.join(names)}")
    if of_model is not None and of_model.name != name:
        raise UnsupportedModelError(
            f"{model} is of the family {of_model.name!r}, and {name!r} was given; leave it out"
        )
    return names[name]
