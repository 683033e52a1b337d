"""The rows of the families whose tasks have adapters of their own: Jina's v5 and v3.

v5's repositories hold the bare backbone with four adapters beside it; the single-task ones hold the two merged.
"""

from __future__ import annotations

from dataclasses import replace

from encoders.family import Family, sides
from encoders.tasks import Role

_TASKS = ("retrieval", "text-matching", "clustering", "classification")
_V5_SMALL = Family(
    repositories={"jinaai/jina-embeddings-v5-text-small": 1024},
    prompts={task: sides("Query: ", "Document: ") for task in _TASKS},
    pooling="lasttoken",
    max_seq_length=32768,
    truncate_dims=(32, 64, 128, 256, 512, 768),
    adapters={task: dict.fromkeys(Role, task) for task in _TASKS},
    ends="none",  # the last token of the text itself is pooled
    native="qwen3",
    native_of=("jina_embeddings_v5", "qwen3"),
    licence="cc-by-nc-4.0",
    source="model card",
)
_V5_NANO = replace(
    _V5_SMALL,
    repositories={"jinaai/jina-embeddings-v5-text-nano": 768},
    max_seq_length=8192,
    truncate_dims=(32, 64, 128, 256, 512),
    last_token="<|end_of_text|>",
    last_token_id=128001,
    ends="asserted",
    native="eurobert",
    native_of=("jina_embeddings_v5", "eurobert"),
)
MERGED = tuple(
    replace(
        family,
        repositories={f"{family.name}-{task}": dim for dim in family.repositories.values()},
        prompts={task: family.prompts[task]},
        adapters={},
    )
    for family in (_V5_SMALL, _V5_NANO)
    for task in _TASKS
)
_V3 = Family(
    repositories={"jinaai/jina-embeddings-v3-hf": 1024},
    prompts={task: sides("") for task in _TASKS}
    | {
        "retrieval": sides(
            "Represent the query for retrieving evidence documents: ",
            "Represent the document for retrieval: ",
        )
    },
    max_seq_length=8192,
    truncate_dims=(32, 64, 128, 256, 512, 768),
    adapters={
        "retrieval": {Role.QUERY: "retrieval.query", Role.DOCUMENT: "retrieval.passage"},
        "text-matching": dict.fromkeys(Role, "text-matching"),
        "classification": dict.fromkeys(Role, "classification"),
        "clustering": dict.fromkeys(Role, "separation"),
    },
    native="jina_embeddings_v3",
    native_of=("jina_embeddings_v3",),
    licence="cc-by-nc-4.0",
    source="model card; arXiv 2409.10173",
)

JINA: tuple[Family, ...] = (_V5_SMALL, _V5_NANO, *MERGED, _V3)
