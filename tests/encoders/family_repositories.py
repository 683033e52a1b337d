"""A tiny repository for each row of the table, in the layout of the family's real ones.

Real architecture class, real kind of tokenizer with the special tokens that matter, real files; two layers of width
32 with random weights. What the authors' code does with them is spelt out in `recipe`, one text at a time, without
padding and without a line of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    EuroBertConfig,
    Gemma3TextConfig,
    Gemma3TextModel,
    JinaEmbeddingsV3Config,
    MistralConfig,
    ModernBertConfig,
    NomicBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    T5EncoderModel,
    XLMRobertaConfig,
)

from tests.encoders.reference import Vectors
from tests.encoders.repositories import (
    TRAINING_TEXT,
    WIDTH,
    dense,
    edit_json,
    random_model,
    sizes_for,
    t5_config,
    template,
    write_json,
    write_modules,
    write_tokenizer,
)

Module = tuple[str, Mapping[str, Any]]


def legacy(mode: str, **more: Any) -> Module:
    """1_Pooling/config.json as most repositories have it."""
    modes = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    switches = {f"pooling_mode_{name}": name == modes[mode] for name in modes.values()}
    return ("Pooling", {"word_embedding_dimension": WIDTH, **switches, **more})


NORMALIZE: Module = ("Normalize", {})


@dataclass(frozen=True)
class Layout:
    """How a family's repositories look on disk.

    Attributes:
        tokenizer: wordpiece, unigram, unigram-t5, bytes or llama.
        config: The backbone's configuration, from the sizes that all share.
        pooling: mean, cls or lasttoken, as the authors' code does it.
        appended: The special token that the tokenizer puts behind a text; byte-level ones only.
        extra: Special tokens of the vocabulary besides.
        modules: What modules.json lists after the transformer; None: there is none.
        prompts: What config_sentence_transformers.json declares; None: there is no such file.
        length: max_seq_length of sentence_bert_config.json; None: there is no such file.
        changes: Keys of config.json that the real ones have besides.
        code: modeling_qwen.py, where the repository brings its own.
    """

    tokenizer: str
    config: Callable[..., PreTrainedConfig]
    pooling: str
    appended: str | None = None
    extra: tuple[str, ...] = ()
    modules: Sequence[Module] | None = ()
    prompts: Mapping[str, str] | None = None
    length: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    code: str | None = None


def _bert(**sizes: Any) -> PreTrainedConfig:
    return BertConfig(**sizes, max_position_embeddings=512)


def _roberta(positions: int) -> Callable[..., PreTrainedConfig]:
    return lambda **sizes: XLMRobertaConfig(
        **sizes, max_position_embeddings=positions + 2, type_vocab_size=1, bos_token_id=0, eos_token_id=2
    )


def _t5(**sizes: Any) -> PreTrainedConfig:
    return t5_config(sizes["vocab_size"])


def _modernbert(**sizes: Any) -> PreTrainedConfig:
    none = dict.fromkeys(("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"))
    return ModernBertConfig(
        **sizes, **none, max_position_embeddings=8192, local_attention=8, global_attn_every_n_layers=2
    )


def _decoder(kind: Callable[..., PreTrainedConfig], positions: int) -> Callable[..., PreTrainedConfig]:
    none = dict.fromkeys(("bos_token_id", "eos_token_id"))
    return lambda **sizes: kind(
        **sizes, **none, max_position_embeddings=positions, num_key_value_heads=2, head_dim=8
    )


def _gte(**sizes: Any) -> PreTrainedConfig:
    if not hasattr(transformers, "GteConfig"):
        pytest.skip("this transformers has no GteModel yet")
    return transformers.GteConfig(**sizes, max_position_embeddings=8192)


def _gemma(**sizes: Any) -> PreTrainedConfig:
    return Gemma3TextConfig(
        **sizes,
        max_position_embeddings=2048,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        use_bidirectional_attention=True,
    )


def _qwen2(**sizes: Any) -> PreTrainedConfig:
    return Qwen2Config(**sizes, max_position_embeddings=32768, num_key_value_heads=2)


# Like gte-Qwen2's own: Qwen2, but every token sees all others.
_BOTH_WAYS = """
from transformers import Qwen2Config
from transformers.models.qwen2 import modeling_qwen2


class Qwen2Model(modeling_qwen2.Qwen2Model):
    config_class = Qwen2Config

    def forward(self, input_ids=None, attention_mask=None, **more):
        length = input_ids.shape[1]
        mask = attention_mask.bool()[:, None, None, :].expand(-1, 1, length, -1)
        return super().forward(input_ids=input_ids, attention_mask=mask, **more)
"""
_IDENTITY = "linear.Identity"
_QWEN_QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
_REMOTE = {"auto_map": {"AutoConfig": "configuration.Config", "AutoModel": "modeling.Model"}}

LAYOUTS: dict[str, Layout] = {
    "intfloat/e5-base-v2": Layout(
        "wordpiece", _bert, "mean", modules=[legacy("mean"), NORMALIZE], length=512
    ),
    "intfloat/multilingual-e5-base": Layout(
        "unigram", _roberta(512), "mean", modules=[legacy("mean"), NORMALIZE], length=512
    ),
    "intfloat/multilingual-e5-large-instruct": Layout(
        "unigram", _roberta(512), "mean", modules=[legacy("mean"), NORMALIZE], length=512
    ),
    "intfloat/e5-mistral-7b-instruct": Layout(
        "llama",
        _decoder(MistralConfig, 32768),
        "lasttoken",
        modules=[legacy("lasttoken"), NORMALIZE],
        prompts={"sts_query": "Instruct: Retrieve semantically similar text.\nQuery: "},
        length=4096,
    ),
    "Alibaba-NLP/gte-base-en-v1.5": Layout(
        "wordpiece",
        _gte,
        "cls",
        modules=[legacy("cls"), NORMALIZE],
        length=8192,
        changes=_REMOTE,
    ),
    "Alibaba-NLP/gte-multilingual-base": Layout(
        "unigram",
        _gte,
        "cls",
        modules=[legacy("cls"), NORMALIZE],
        length=8192,
        changes=_REMOTE,
    ),
    "Alibaba-NLP/gte-modernbert-base": Layout(
        "bytes", _modernbert, "cls", modules=[legacy("cls")], length=8192
    ),
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": Layout(
        "bytes",
        _qwen2,
        "lasttoken",
        modules=[legacy("lasttoken"), NORMALIZE],
        prompts={"query": _QWEN_QUERY + " "},
        length=32768,
        changes={"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}},
        code=_BOTH_WAYS,
    ),
    "BAAI/bge-base-en-v1.5": Layout(
        "wordpiece", _bert, "cls", modules=[legacy("cls"), NORMALIZE], length=512
    ),
    "BAAI/bge-m3": Layout("unigram", _roberta(8192), "cls", modules=[legacy("cls"), NORMALIZE], length=8192),
    "hkunlp/instructor-large": Layout(
        "unigram-t5",
        _t5,
        "mean",
        modules=[legacy("mean"), dense(WIDTH, 24, _IDENTITY, bias=False), NORMALIZE],
        length=512,
    ),
    "Qwen/Qwen3-Embedding-0.6B": Layout(
        "bytes",
        _decoder(Qwen3Config, 32768),
        "lasttoken",
        appended="<|endoftext|>",
        modules=[legacy("lasttoken", include_prompt=True), NORMALIZE],
        prompts={"query": _QWEN_QUERY, "document": ""},
    ),
    "zeroentropy/zembed-1": Layout(
        "bytes",
        _decoder(Qwen3Config, 40960),
        "lasttoken",
        extra=("<|im_start|>", "<|im_end|>"),
        modules=[legacy("lasttoken"), NORMALIZE],
        prompts={"query": "", "document": ""},
    ),
    "jinaai/jina-embeddings-v5-text-small-retrieval": Layout(
        "bytes",
        _decoder(Qwen3Config, 32768),
        "lasttoken",
        modules=None,
        prompts={"query": "Query: ", "document": "Document: "},
    ),
    "jinaai/jina-embeddings-v5-text-nano-clustering": Layout(
        "bytes",
        _decoder(EuroBertConfig, 8192),
        "lasttoken",
        appended="<|end_of_text|>",
        extra=("<|end_of_text|>",),
        modules=None,
    ),
    "jinaai/jina-embeddings-v3-hf": Layout(
        "unigram",
        lambda **sizes: JinaEmbeddingsV3Config(**sizes, max_position_embeddings=8194),
        "mean",
        modules=[legacy("mean"), NORMALIZE],
        length=8192,
    ),
    "google/embeddinggemma-300m": Layout(
        "unigram",
        _gemma,
        "mean",
        modules=[
            legacy("mean", include_prompt=True),
            dense(WIDTH, 96, _IDENTITY, bias=False),
            dense(96, WIDTH, _IDENTITY, bias=False),
            NORMALIZE,
        ],
        prompts={
            "query": "task: search result | query: ",
            "document": "title: none | text: ",
            "Clustering": "task: clustering | query: ",
            "STS": "task: sentence similarity | query: ",
            "PairClassification": "task: sentence similarity | query: ",
            "BitextMining": "task: search result | query: ",
            "Summarization": "task: summarization | query: ",
            "Reranking": "task: search result | query: ",
            "InstructionRetrieval": "task: code retrieval | query: ",
        },
        length=2048,
    ),
    "nomic-ai/nomic-embed-text-v1.5": Layout(
        "wordpiece",
        lambda **sizes: NomicBertConfig(**sizes, max_position_embeddings=2048),
        "mean",
        modules=[legacy("mean")],
        length=8192,
        changes=_REMOTE | {"rotary_scaling_factor": None, "n_positions": 8192},
    ),
    "Snowflake/snowflake-arctic-embed-m-v2.0": Layout(
        "unigram",
        _gte,
        "cls",
        modules=[legacy("cls"), NORMALIZE],
        prompts={"query": "query: "},
        length=8192,
        changes=_REMOTE,
    ),
    "Snowflake/snowflake-arctic-embed-l-v2.0": Layout(
        "unigram",
        _roberta(8192),
        "cls",
        modules=[legacy("cls"), NORMALIZE],
        prompts={"query": "query: "},
        length=8192,
    ),
    "ibm-granite/granite-embedding-english-r2": Layout(
        "bytes", _modernbert, "cls", modules=[legacy("cls")], length=8192
    ),
    "sentence-transformers/all-MiniLM-L6-v2": Layout(
        "wordpiece", _bert, "mean", modules=[legacy("mean"), NORMALIZE], length=256
    ),
}


def write_family(folder: Path, row: str, **changed: Any) -> Path:
    """Write the repository of a row; `changed` are fields of its layout that are to differ."""
    layout = Layout(**{**LAYOUTS[row].__dict__, **changed})
    tokenizer = _write_tokenizer(folder, layout)
    config = layout.config(**sizes_for(tokenizer))
    own: dict[str, Any] = {"t5": T5EncoderModel, "gemma3_text": Gemma3TextModel}
    kind = own.get(config.model_type, AutoModel.from_config)
    random_model(kind, config, seed=1, norms=True).save_pretrained(folder)
    if layout.changes:
        edit_json(folder / "config.json", **layout.changes)
    if layout.code is not None:
        (folder / "modeling_qwen.py").write_text(layout.code)
    if layout.modules is not None:
        write_modules(folder, layout.modules)
    if layout.length is not None:
        write_json(
            folder / "sentence_bert_config.json", {"max_seq_length": layout.length, "do_lower_case": False}
        )
    if layout.prompts is not None:
        write_json(folder / "config_sentence_transformers.json", {"prompts": layout.prompts})
    return folder


def _write_tokenizer(folder: Path, layout: Layout) -> PreTrainedTokenizerFast:
    if layout.tokenizer == "llama":
        return _write_llama_tokenizer(folder)
    settings = {"eos": False} if layout.tokenizer == "bytes" else {}
    tokenizer = write_tokenizer(folder, layout.tokenizer, model_max_length=10**6, **settings)
    if layout.tokenizer == "bytes":
        tokenizer.add_tokens(list(layout.extra), special_tokens=True)
        if layout.appended:
            backend = tokenizer.backend_tokenizer
            backend.post_processor = template(backend, f"$A {layout.appended}")
        tokenizer.save_pretrained(folder)
    return tokenizer


def _write_llama_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Llama's kind of BPE, which puts <s> before a text and, read by transformers 5, nothing behind it."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.train_from_iterator(
        TRAINING_TEXT,
        trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False),
    )
    backend.post_processor = template(backend, "<s> $A")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        padding_side="left",
        model_max_length=10**6,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def recipe(
    folder: Path, wholes: Sequence[str], row: str, instruction: str = ""
) -> tuple[Vectors, list[list[int]]]:
    """What the authors' code does with each whole text (prompt, text, suffix), and the ids that it feeds the model."""
    layout = LAYOUTS[row]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    half = T5EncoderModel if layout.tokenizer == "unigram-t5" else AutoModel
    model = half.from_pretrained(folder, trust_remote_code=layout.code is not None).eval()
    vectors, fed = [], []
    for whole in wholes:
        ids = tokenizer(whole)["input_ids"]
        if row == "intfloat/e5-mistral-7b-instruct":
            ids = [*ids, tokenizer.eos_token_id]
        if row == "Alibaba-NLP/gte-Qwen2-1.5B-instruct":
            ids = [*ids, tokenizer.convert_tokens_to_ids("<|endoftext|>")]
        with torch.no_grad():
            inputs = torch.tensor([ids])
            states = (
                model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).last_hidden_state[0].double()
            )
        # Without its end token, the instruction's tokens are those that the pooled ones follow.
        left_out = len(tokenizer(instruction)["input_ids"]) - 1 if instruction else 0
        pooled = {"mean": states[left_out:].mean(dim=0), "cls": states[0], "lasttoken": states[-1]}[
            layout.pooling
        ]
        vectors.append(pooled.numpy())
        fed.append(ids)
    return np.stack(vectors), fed
