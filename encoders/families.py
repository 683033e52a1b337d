"""The table of families: how the models that people use are spoken to, to the byte.

A row is found by a repository's exact id, never by a part of a name: `Query:` and `Query: ` differ by one byte and by
model. What a repository says of itself is read from it and must agree; where it is silent, its row speaks. A folder
on disk has no id, so there the configuration names the row: `encoder.protocol: intfloat/e5-base-v2`.

`python -m encoders.reference` prints the table as README shows it.

Source: what each row names; a model card at the commit that embeddings-benchmark/mteb a905523 pins for that model
(mteb/models/model_implementations, where the licences are too), the first model's where a row has several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from encoders.family import INSTRUCTION, Family, Prompt, sides
from encoders.jina import JINA
from encoders.tasks import STANDARD_TASKS, SYMMETRIC_TASKS, Role

_BARE = {task: sides("") for task in STANDARD_TASKS}
_WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
_SIMILAR = "Retrieve semantically similar text."


def _instructed(template: str, *more: str) -> dict[str, Mapping[Role, Prompt]]:
    """Queries and the texts of symmetric tasks are instructed, documents are bare."""
    asymmetric: dict[str, Mapping[Role, Prompt]] = {
        task: sides(template, "") for task in ("retrieval", *more)
    }
    return asymmetric | {task: sides(template) for task in STANDARD_TASKS if task in SYMMETRIC_TASKS}


def _chat(role: str) -> Prompt:
    return Prompt(f"<|im_start|>system\n{role}<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n")


# What the models on top of these tokenizers have in common.
_BERT = Family(first_token="[CLS]", last_token="[SEP]", attention="both", truncate_dims=())
_XLM_R = replace(_BERT, first_token="<s>", last_token="</s>")

_E5 = replace(
    _BERT,
    repositories={"intfloat/e5-small-v2": 384, "intfloat/e5-base-v2": 768, "intfloat/e5-large-v2": 1024},
    prompts={task: sides("query: ") for task in STANDARD_TASKS}
    | {"retrieval": sides("query: ", "passage: ")},
    max_seq_length=512,
    licence="mit",
    source="model card at dca8b1a, FAQ 1; arXiv 2212.03533",
)
_MULTILINGUAL_E5 = replace(
    _E5,
    repositories={
        "intfloat/multilingual-e5-small": 384,
        "intfloat/multilingual-e5-base": 768,
        "intfloat/multilingual-e5-large": 1024,
    },
    first_token="<s>",
    last_token="</s>",
    source="model card at fd1525a, FAQ 1; arXiv 2402.05672",
)
_E5_INSTRUCT = replace(
    _XLM_R,
    repositories={"intfloat/multilingual-e5-large-instruct": 1024},
    prompts=_instructed(f"Instruct: {INSTRUCTION}\nQuery: "),
    instructions={"retrieval": _WEB_SEARCH, "text-matching": _SIMILAR},
    max_seq_length=512,
    licence="mit",
    source="model card at baa7be4; microsoft/unilm, e5/utils.py",
)
_E5_MISTRAL = replace(
    _E5_INSTRUCT,
    repositories={"intfloat/e5-mistral-7b-instruct": 4096},
    pooling="lasttoken",
    max_seq_length=4096,
    ends="added",  # transformers 5 drops the tokenizer's add_eos_token in silence
    attention="causal",
    source="model card at 07163b7; microsoft/unilm, e5/utils.py; </s>: mteb a905523, e5_instruct.py",
)
_GTE = replace(
    _BERT,
    repositories={
        "Alibaba-NLP/gte-base-en-v1.5": 768,
        "Alibaba-NLP/gte-large-en-v1.5": 1024,
        "alibaba-nlp-community/gte-base-en-v1.5": 768,  # the same in files for transformers' own class
        "alibaba-nlp-community/gte-large-en-v1.5": 1024,
    },
    prompts=_BARE,
    pooling="cls",
    max_seq_length=8192,
    native="gte",
    native_of=("new", "gte"),
    licence="apache-2.0",
    source="model card at a829fd0; arXiv 2407.19669",
)
_GTE_MULTILINGUAL = replace(
    _GTE,
    repositories={
        "Alibaba-NLP/gte-multilingual-base": 768,
        "alibaba-nlp-community/gte-multilingual-base": 768,
    },
    truncate_dims=None,
    truncate_from=128,
    first_token="<s>",
    last_token="</s>",
    source="model card at ca1791e; arXiv 2407.19669",
)
_GTE_MODERNBERT = replace(
    _GTE,
    repositories={"Alibaba-NLP/gte-modernbert-base": 768},
    native=None,
    native_of=(),
    source="model card at 7ca8b4c",
)
_GTE_QWEN2 = Family(
    repositories={"Alibaba-NLP/gte-Qwen2-1.5B-instruct": 1536, "Alibaba-NLP/gte-Qwen2-7B-instruct": 3584},
    prompts=_instructed(f"Instruct: {INSTRUCTION}\nQuery: "),
    instructions={"retrieval": _WEB_SEARCH},
    pooling="lasttoken",
    max_seq_length=32768,
    truncate_dims=(),
    last_token="<|endoftext|>",
    ends="added",
    attention="both",
    forbidden_dtypes=("float16",),
    own_code=True,  # in transformers' class of that name attention is causal
    licence="apache-2.0",
    source="model card at c6c1b92; the end: mteb a905523, gte_models.py; float16: mteb, pull request 4935",
)
_BGE = replace(
    _BERT,
    repositories={
        "BAAI/bge-small-en-v1.5": 384,
        "BAAI/bge-base-en-v1.5": 768,
        "BAAI/bge-large-en-v1.5": 1024,
    },
    prompts=_BARE | {"retrieval": sides("Represent this sentence for searching relevant passages: ", "")},
    pooling="cls",
    max_seq_length=512,
    licence="mit",
    source="model card at 5c38ec7",
)
_BGE_M3 = replace(
    _XLM_R,
    repositories={"BAAI/bge-m3": 1024},
    prompts=_BARE,
    pooling="cls",
    max_seq_length=8192,
    licence="mit",
    source="model card at 5617a9f (dense vectors)",
)
_INSTRUCTOR = Family(
    repositories={"hkunlp/instructor-base": 768, "hkunlp/instructor-large": 768, "hkunlp/instructor-xl": 768},
    prompts={task: sides(INSTRUCTION) for task in STANDARD_TASKS},
    strip="both",
    include_prompt=False,
    dense=(768,),
    max_seq_length=512,
    truncate_dims=(),
    last_token="</s>",
    attention="both",
    licence="apache-2.0",
    source="xlang-ai/instructor-embedding 188ee78, InstructorEmbedding/instructor.py; the projection: mteb, pull "
    "request 4883",
)
_QWEN3 = Family(
    repositories={
        "Qwen/Qwen3-Embedding-0.6B": 1024,
        "Qwen/Qwen3-Embedding-4B": 2560,
        "Qwen/Qwen3-Embedding-8B": 4096,
    },
    prompts=_instructed(f"Instruct: {INSTRUCTION}\nQuery:", "code"),
    instructions={"retrieval": _WEB_SEARCH},
    pooling="lasttoken",
    max_seq_length=32768,
    truncate_from=32,
    last_token="<|endoftext|>",
    last_token_id=151643,
    attention="causal",
    licence="apache-2.0",
    source="model card at b22da49; arXiv 2506.05176",
)
_ZEMBED = Family(
    repositories={"zeroentropy/zembed-1": 2560, "zeroentropy/zembed-1-embedding": 2560},
    prompts={"retrieval": sides(_chat("query"), _chat("document"))},
    pooling="lasttoken",
    max_seq_length=32768,
    truncate_dims=(),
    never_sliced="its smaller dimensions are learned projections of the vector, not slices of it",
    ends="none",  # what is pooled is the newline at the end of the suffix
    attention="causal",
    own_modules=("modeling_zembed.ZembedTransformer",),  # puts the suffix behind the text, and nothing else
    licence="apache-2.0",  # until 1037887 (2026-03-12) cc-by-nc-4.0, for the same weights
    source="zeroentropy/zembed-1-embedding at cf13c81 (2026-07-24): model card, config_sentence_transformers.json",
)
_GEMMA = Family(
    repositories={"google/embeddinggemma-300m": 768},
    prompts={
        "retrieval": sides("task: search result | query: ", "title: none | text: "),
        "text-matching": sides("task: sentence similarity | query: "),
        "classification": sides("task: classification | query: "),
        "clustering": sides("task: clustering | query: "),
        "code": sides("task: code retrieval | query: ", "title: none | text: "),
    },
    dense=(3072, 768),
    max_seq_length=2048,
    truncate_dims=(128, 256, 512),
    first_token="<bos>",
    last_token="<eos>",
    attention="both",
    forbidden_dtypes=("float16",),
    licence="gemma",
    source="model card at 64614b0; arXiv 2509.20354; files: huggingface/transformers 0d7e95d, "
    "models/gemma3/convert_gemma3_weights.py",
)
_NOMIC = replace(
    _BERT,
    repositories={"nomic-ai/nomic-embed-text-v1.5": 768},
    prompts={
        "retrieval": sides("search_query: ", "search_document: "),
        "text-matching": sides("classification: "),
        "classification": sides("classification: "),
        "clustering": sides("clustering: "),
    },
    steps=("layer_norm",),
    max_seq_length=8192,
    truncate_dims=(64, 128, 256, 512),
    native="nomic_bert",
    native_of=("nomic_bert",),
    native_if={
        "activation_function": "swiglu",
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "prenorm": False,
        "qkv_proj_bias": False,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_scaling_factor": None,
    },
    licence="apache-2.0",
    source="model card at b0753ae; text-matching: nomic-ai/contrastors 5f7b461, eval/mteb_eval/eval_mteb.py",
)
_ARCTIC_L = replace(
    _XLM_R,
    repositories={"Snowflake/snowflake-arctic-embed-l-v2.0": 1024},
    prompts=_BARE | {"retrieval": sides("query: ", "")},
    pooling="cls",
    max_seq_length=8192,
    truncate_dims=(256,),
    licence="apache-2.0",
    source="model card at edc2df7; arXiv 2412.04506",
)
_ARCTIC_M = replace(  # gte-multilingual's backbone, the large one's is XLM-R
    _ARCTIC_L,
    repositories={"Snowflake/snowflake-arctic-embed-m-v2.0": 768},
    native="gte",
    native_of=("gte",),
    source="model card at f2a7d59; arXiv 2412.04506",
)
_GRANITE = Family(
    repositories={
        "ibm-granite/granite-embedding-english-r2": 768,
        "ibm-granite/granite-embedding-small-english-r2": 384,
    },
    prompts=_BARE,
    pooling="cls",
    max_seq_length=8192,
    truncate_dims=(),
    attention="both",
    licence="apache-2.0",
    source="model card at 6e7b8ce; arXiv 2508.21085",
)
_MINILM = replace(
    _BERT,
    repositories={"sentence-transformers/all-MiniLM-L6-v2": 384},
    prompts=_BARE,
    max_seq_length=256,
    licence="apache-2.0",
    source="model card at 8b3219a",
)

FAMILIES: tuple[Family, ...] = (
    _E5,
    _MULTILINGUAL_E5,
    _E5_INSTRUCT,
    _E5_MISTRAL,
    _GTE,
    _GTE_MULTILINGUAL,
    _GTE_MODERNBERT,
    _GTE_QWEN2,
    _BGE,
    _BGE_M3,
    _INSTRUCTOR,
    _QWEN3,
    _ZEMBED,
    *JINA,
    _GEMMA,
    _NOMIC,
    _ARCTIC_M,
    _ARCTIC_L,
    _GRANITE,
    _MINILM,
)
