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
    attention="causal",
    own_modules=("custom_st.Transformer",),  # chooses the adapter, pools and divides by the norm
    native="qwen3",
    native_of=("jina_embeddings_v5", "qwen3"),
    licence="cc-by-nc-4.0",
    source="model card at dd76d53; arXiv 2602.15547",
)
_V5_NANO = replace(
    _V5_SMALL,
    repositories={"jinaai/jina-embeddings-v5-text-nano": 768},
    max_seq_length=8192,
    truncate_dims=(32, 64, 128, 256, 512),
    last_token="<|end_of_text|>",
    last_token_id=128001,
    ends="asserted",
    attention="both",
    native="eurobert",
    native_of=("jina_embeddings_v5", "eurobert"),
    source="model card at 4c1f984; files at 8a7f00a (config.json, custom_st.py); arXiv 2602.15547",
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
    unreadable=("jinaai/jina-embeddings-v3",),
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
    first_token="<s>",
    last_token="</s>",
    attention="both",
    native="jina_embeddings_v3",
    native_of=("jina_embeddings_v3",),
    licence="cc-by-nc-4.0",
    source="files at d18862d; model card of jinaai/jina-embeddings-v3 at 215a6e1; arXiv 2409.10173",
)

JINA: tuple[Family, ...] = (_V5_SMALL, _V5_NANO, *MERGED, _V3)
