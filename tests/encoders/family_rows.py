"""What each row of the table must say, view by view, byte by byte, written out once more; and the rows' repositories.

A row that changes must be changed in two places. What the vectors must be is in `Loaded.reference`: the authors'
recipe, without a line of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from encoders.encoder import Encoded, Encoder
from encoders.families import FAMILIES
from encoders.family import Family
from encoders.protocol import EncoderOptions, Protocol, resolve_protocol
from encoders.repository import open_repository
from encoders.tasks import Role, View, view_of
from encoders.tokenized import TokenizedTexts
from encoders.tokenizer import Tokenizer
from tests.encoders.adapter_repositories import V5_TASKS
from tests.encoders.family_repositories import LAYOUTS, recipe, write_family
from tests.encoders.reference import Vectors, unit
from tests.encoders.repositories import TEXTS

WEB = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
SIMILAR = "Instruct: Retrieve semantically similar text.\nQuery:"
TOPIC, LABEL = "Identify the topic of the text", "Classify the text"
TOLD = f"Instruct: {LABEL}\nQuery:", f"Instruct: {TOPIC}\nQuery:"
BARE = dict.fromkeys(
    ("retrieval/query", "retrieval/document", "text-matching", "classification", "clustering"), ""
)
E5 = dict.fromkeys(BARE, "query: ") | {"retrieval/document": "passage: "}
INSTRUCTED = {
    "retrieval/query": WEB + " ",
    "retrieval/document": "",
    "text-matching": SIMILAR + " ",
    "classification": TOLD[0] + " ",
    "clustering": TOLD[1] + " ",
}
WIKI = "Represent the Wikipedia {} for retrieving {}: "
# The colon keeps the instruction's last token apart from the text; where the two merge we differ on purpose.
REPRESENT = "Represent the text for {}:"
CHAT = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n"
JINA_V5 = {f"{task}/{role}": f"{role.title()}: " for task in V5_TASKS for role in Role}

# Row -> view -> what goes before the text; a symmetric task without a role is for both.
PROMPTS: dict[str, dict[str, str]] = {
    "intfloat/e5-base-v2": E5,
    "intfloat/multilingual-e5-base": E5,
    "intfloat/multilingual-e5-large-instruct": INSTRUCTED,
    "intfloat/e5-mistral-7b-instruct": INSTRUCTED,
    "Alibaba-NLP/gte-base-en-v1.5": BARE,
    "Alibaba-NLP/gte-multilingual-base": BARE,
    "Alibaba-NLP/gte-modernbert-base": BARE,
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": INSTRUCTED,
    "BAAI/bge-base-en-v1.5": BARE
    | {"retrieval/query": "Represent this sentence for searching relevant passages: "},
    "BAAI/bge-m3": BARE,
    "hkunlp/instructor-large": {
        "retrieval/query": WIKI.format("question", "supporting documents").strip(),
        "retrieval/document": WIKI.format("document", "it").strip(),
        "text-matching": "Represent the sentence:",
        "classification": REPRESENT.format("classification"),
        "clustering": REPRESENT.format("clustering"),
    },
    "Qwen/Qwen3-Embedding-0.6B": {
        "retrieval/query": WEB,
        "retrieval/document": "",
        "code/query": "Instruct: Find the function\nQuery:",
        "code/document": "",
        "text-matching": SIMILAR,
        "classification": TOLD[0],
        "clustering": TOLD[1],
    },
    "zeroentropy/zembed-1": {
        "retrieval/query": CHAT.format("query"),
        "retrieval/document": CHAT.format("document"),
    },
    "jinaai/jina-embeddings-v5-text-small": JINA_V5,
    "jinaai/jina-embeddings-v5-text-nano": JINA_V5,
    **{
        f"jinaai/jina-embeddings-v5-text-{size}-{task}": {
            f"{task}/query": "Query: ",
            f"{task}/document": "Document: ",
        }
        for size in ("small", "nano")
        for task in V5_TASKS
    },
    "jinaai/jina-embeddings-v3-hf": BARE
    | {
        "retrieval/query": "Represent the query for retrieving evidence documents: ",
        "retrieval/document": "Represent the document for retrieval: ",
    },
    "google/embeddinggemma-300m": {
        "retrieval/query": "task: search result | query: ",
        "retrieval/document": "title: none | text: ",
        "text-matching": "task: sentence similarity | query: ",
        "classification": "task: classification | query: ",
        "clustering": "task: clustering | query: ",
        "code/query": "task: code retrieval | query: ",
        "code/document": "title: none | text: ",
    },
    "nomic-ai/nomic-embed-text-v1.5": {
        "retrieval/query": "search_query: ",
        "retrieval/document": "search_document: ",
        "text-matching": "classification: ",
        "classification": "classification: ",
        "clustering": "clustering: ",
    },
    "Snowflake/snowflake-arctic-embed-m-v2.0": BARE | {"retrieval/query": "query: "},
    "Snowflake/snowflake-arctic-embed-l-v2.0": BARE | {"retrieval/query": "query: "},
    "ibm-granite/granite-embedding-english-r2": BARE,
    "sentence-transformers/all-MiniLM-L6-v2": BARE,
}
SUFFIXES = {"zeroentropy/zembed-1": "<|im_end|>\n"}
# What is put in the place of an instruction, where the row has no default or another is asked for.
INSTRUCTIONS: dict[str, dict[str, Any]] = {
    "intfloat/multilingual-e5-large-instruct": {"classification": LABEL, "clustering": TOPIC},
    "intfloat/e5-mistral-7b-instruct": {"classification": LABEL, "clustering": TOPIC},
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": {
        "text-matching": "Retrieve semantically similar text.",
        "classification": LABEL,
        "clustering": TOPIC,
    },
    "Qwen/Qwen3-Embedding-0.6B": {
        "code": "Find the function",
        "text-matching": "Retrieve semantically similar text.",
        "classification": LABEL,
        "clustering": TOPIC,
    },
    "hkunlp/instructor-large": {
        "retrieval": {
            "query": WIKI.format("question", "supporting documents"),
            "document": WIKI.format("document", "it"),
        },
        "text-matching": "Represent the sentence:",
        "classification": REPRESENT.format("classification"),
        "clustering": REPRESENT.format("clustering"),
    },
}
# Folder of the adapter of a view, or of a whole task.
ADAPTERS: dict[str, dict[str, str]] = {
    **{
        f"jinaai/jina-embeddings-v5-text-{size}": {task: f"adapters/{task}" for task in V5_TASKS}
        for size in ("small", "nano")
    },
    "jinaai/jina-embeddings-v3-hf": {
        "retrieval/query": "retrieval_query",
        "retrieval/document": "retrieval_passage",
        "text-matching": "text_matching",
        "classification": "classification",
        "clustering": "separation",
    },
}
# First and last token of every text; None is the text's own.
ENDS: dict[str, tuple[str | None, str | None]] = {
    "wordpiece": ("[CLS]", "[SEP]"),
    "unigram": ("<s>", "</s>"),
    "unigram-t5": (None, "</s>"),
    "llama": ("<s>", "</s>"),
    "gemma": ("<bos>", "<eos>"),
    "Alibaba-NLP/gte-modernbert-base": ("[CLS]", "[SEP]"),
    "ibm-granite/granite-embedding-english-r2": ("[CLS]", "[SEP]"),
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": (None, "<|endoftext|>"),
    "Qwen/Qwen3-Embedding-0.6B": (None, "<|endoftext|>"),
    "zeroentropy/zembed-1": ("<|im_start|>", "Ċ"),
    **{row: (None, "<|end_of_text|>") for row in LAYOUTS if "-nano" in row},
}
LAST_IDS = {"jinaai/jina-embeddings-v5-text-nano": 128001}
# Layouts that sentence-transformers 6.2 cannot load as their authors mean them.
NOT_THEIRS = {
    "intfloat/e5-mistral-7b-instruct": "it leaves out the </s>",
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": "it leaves out the end token",
    "zeroentropy/zembed-1": "it needs its own code",
    "hkunlp/instructor-large": "by its id only; see the test of that",
    **{row: "it means the tokens without modules.json" for row in LAYOUTS if "-v5-text-" in row},
    **dict.fromkeys(ADAPTERS, "it takes no adapter but by the repository's own code"),
}
TEXTS_OF = [text.strip() for text in TEXTS]


def options_of(folder: Path, row: str, **more: Any) -> EncoderOptions:
    told: dict[str, Any] = {"instruction": INSTRUCTIONS[row]} if row in INSTRUCTIONS else {}
    if LAYOUTS[row].code is not None:
        told["trust_remote_code"] = (own_code(folder),)
    return EncoderOptions(**{"protocol": row} | told | more)


def own_code(folder: Path) -> str:
    """What lets the code of a folder run."""
    repository = open_repository(str(folder), remote_code=True)
    return f"{repository.name}@{repository.revision}"


def resolve(folder: Path, row: str, **more: Any) -> Protocol:
    return resolve_protocol(str(folder), options=options_of(folder, row, **more))


def view(name: str) -> View:
    task, _, role = name.partition("/")
    return view_of(task, role or None)


def row_of(row: str) -> Family:
    return next(family for family in FAMILIES if row in family.repositories)


def views_of(row: str) -> dict[View, str]:
    """Every view of a row with what goes before its texts."""
    return {
        View(name.partition("/")[0], role): prefix
        for name, prefix in PROMPTS[row].items()
        for role in ([Role(name.partition("/")[2])] if "/" in name else Role)
    }


def adapter_of(row: str, of: View) -> str | None:
    adapters = ADAPTERS.get(row, {})
    return adapters.get(str(of), adapters.get(of.task))


def ends_of(row: str) -> tuple[str | None, str | None]:
    return ENDS.get(row, ENDS.get(LAYOUTS[row].tokenizer, (None, None)))


def finished(pooled: Vectors, folder: Path, row: str) -> Vectors:
    """What the authors do after pooling, written out for the few that do anything but divide by the norm."""
    states = torch.from_numpy(pooled)
    for weights in sorted(folder.glob("*_Dense/model.safetensors")):
        states = states @ load_file(weights)["linear.weight"].double().T
    if row.startswith("nomic-ai/"):
        states = torch.nn.functional.layer_norm(states, states.shape[-1:])
    return unit(states.numpy())


@dataclass(frozen=True)
class Loaded:
    """A row's repository, loaded once for all of its tests."""

    row: str
    folder: Path

    @cached_property
    def protocol(self) -> Protocol:
        return resolve(self.folder, self.row)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.protocol)

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder.load(self.protocol, device="cpu", dtype="float32")

    @cached_property
    def _references(self) -> dict[tuple[str, str | None], tuple[Vectors, list[list[int]]]]:
        return {}

    def reference(self, of: View) -> tuple[Vectors, list[list[int]]]:
        """Vectors and ids of the texts by the authors' recipe, computed once for each prompt and adapter."""
        prefix, adapter = views_of(self.row)[of], adapter_of(self.row, of)
        if (prefix, adapter) not in self._references:
            wholes = [prefix + text + SUFFIXES.get(self.row, "") for text in TEXTS_OF]
            instruction = prefix if self.row.startswith("hkunlp/") else ""
            pooled, ids = recipe(self.folder, wholes, self.row, instruction, adapter)
            self._references[prefix, adapter] = finished(pooled, self.folder, self.row), ids
        return self._references[prefix, adapter]

    def encode(self, texts: TokenizedTexts, of: View) -> Encoded:
        """What our code gives, by the view's adapter."""
        self.encoder.use_adapter(self.protocol.adapter(of))
        return self.encoder.encode(texts)


class Rows(dict[str, Loaded]):
    """The repository of each row, written when it is first asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def __missing__(self, row: str) -> Loaded:
        self[row] = Loaded(row, write_family(self._root / row, row))
        return self[row]


@contextmanager
def padded(encoder: Encoder) -> Iterator[None]:
    """Batches that are padded, even where they could be packed."""
    forward = encoder._forward
    packed, why_padded, packing = (
        forward.packed,
        forward.why_padded,
        forward._backbone.config._attn_implementation,
    )
    forward.why_padded = "a test"
    if packed:
        forward._backbone.set_attn_implementation(forward._own_attention)
    try:
        yield
    finally:
        forward.why_padded = why_padded
        if packed:
            forward._backbone.set_attn_implementation(packing)
