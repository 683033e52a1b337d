"""What `benchmarks/gpu.py` measures on: models of known shapes with random weights, and texts of known lengths.

Speed does not depend on what weights and ids are, so nothing is downloaded. A model is a whole repository on disk,
which every way loads as it loads any other. Its tokenizer knows numbers only, and a number is the token of that id: a
text of random numbers is tokenized into the very ids that the other ways are given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    EuroBertConfig,
    EuroBertModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
)

from encoders.options import EncoderOptions
from encoders.protocol import Protocol, resolve_protocol
from encoders.tokenized import TokenizedTexts

TASKS = ("retrieval", "text-matching", "clustering", "classification")
_TARGETS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]

# How long the texts of a documentation corpus are (C++, 96,678 texts, under the tokenizer of all-MiniLM-L6-v2): of each
# share of them, how many tokens they have at most.
_SHARES = (*np.arange(0, 1, 0.05), 0.975, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 1)
_TOKENS = """8 19 23 26 29 32 36 41 46 51 56 61 68 77 89 106 132 175 246 391
    568 632 881 1210 1826 2519 3614 63477"""


@dataclass(frozen=True)
class Shape:
    """An architecture at one size.

    Attributes:
        kind: Its class.
        sizes: Of its configuration.
        causal: Whether a token sees only those before it.
        has_adapters: Whether four of rank 32 come with it.
    """

    kind: Any
    sizes: dict[str, Any]
    causal: bool
    has_adapters: bool

    def tiny(self) -> Shape:
        """Two layers of it, small enough for a CPU."""
        heads = self.sizes["num_key_value_heads"] < self.sizes["num_attention_heads"]
        sizes = {
            "vocab_size": 1000,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2 if heads else 4,
            "head_dim": 16,
            "intermediate_size": 128,
        }
        return Shape(self.kind, self.sizes | sizes, self.causal, self.has_adapters)

    @property
    def linear_weights(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the linear layers, of all layers."""
        sizes = self.sizes
        hidden, middle = sizes["hidden_size"], sizes["intermediate_size"]
        queries, keys = (
            sizes[f"num_{which}_heads"] * sizes["head_dim"] for which in ("attention", "key_value")
        )
        products = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
        return [*products, (hidden, middle), (hidden, middle), (middle, hidden)] * sizes["num_hidden_layers"]

    def linear_flop(self, lengths: Sequence[int]) -> float:
        """Operations of the linear layers for texts of these lengths."""
        return 2.0 * sum(lengths) * sum(rows * columns for rows, columns in self.linear_weights)

    def attention_flop(self, lengths: Sequence[int]) -> float:
        """Operations of the attention for texts of these lengths: what is seen counts, no mask."""
        sizes = self.sizes
        width: int = sizes["num_attention_heads"] * sizes["head_dim"] * sizes["num_hidden_layers"]
        seen = sum(length * ((length + 1) / 2 if self.causal else length) for length in map(int, lengths))
        return 4.0 * width * seen


# Source: config.json of Qwen/Qwen3-Embedding-0.6B, and the defaults of transformers' EuroBertConfig, which are those
# of EuroBERT/EuroBERT-210m.
SHAPES = {
    "qwen3-0.6b": Shape(
        Qwen3Model,
        {
            "vocab_size": 151_936,
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3072,
            "max_position_embeddings": 32_768,
        },
        causal=True,
        has_adapters=True,
    ),
    "eurobert-210m": Shape(
        EuroBertModel,
        {
            "vocab_size": 128_256,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "head_dim": 64,
            "intermediate_size": 3072,
            "max_position_embeddings": 8192,
        },
        causal=False,
        has_adapters=False,
    ),
}


def write_model(folder: Path, shape: Shape, device: torch.device, longest: int) -> Protocol:
    """A repository with random weights in bfloat16, and its adapters beside it."""
    configs = {Qwen3Model: Qwen3Config, EuroBertModel: EuroBertConfig}
    config = configs[shape.kind](**shape.sizes, pad_token_id=0, bos_token_id=None, eos_token_id=None)
    torch.manual_seed(0)
    with device:
        backbone = shape.kind(config).to(torch.bfloat16)
    backbone.save_pretrained(folder)
    words = {"[PAD]": 0} | {str(number): number for number in range(1, config.vocab_size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", model_max_length=longest)
    tokenizer.save_pretrained(folder)
    pooling = {"word_embedding_dimension": config.hidden_size, "pooling_mode_lasttoken": True}
    steps = {"Transformer": None, "Pooling": pooling, "Normalize": None}
    entries = []
    for place, (name, settings) in enumerate(steps.items()):
        path = f"{place}_{name}" if place else ""
        kind = f"sentence_transformers.models.{name}"
        entries.append({"idx": place, "name": str(place), "path": path, "type": kind})
        (folder / path).mkdir(exist_ok=True)
        if settings is not None:
            (folder / path / "config.json").write_text(json.dumps(settings))
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    adapters = _write_adapters(folder / "adapters", backbone) if shape.has_adapters else {}
    return resolve_protocol(str(folder), options=EncoderOptions(adapters=adapters))


def _write_adapters(folder: Path, backbone: Any) -> dict[str, str]:
    adapted = get_peft_model(
        backbone, LoraConfig(r=32, lora_alpha=32, target_modules=_TARGETS, init_lora_weights="gaussian")
    )
    for task in TASKS:
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        adapted.save_pretrained(str(folder / task))
    return {task: str(folder / task) for task in TASKS}


def text_lengths(kind: str, num_tokens: int, longest: int, rng: np.random.Generator) -> list[int]:
    """Lengths of texts that have about so many tokens together: `docs`, or texts of one length."""
    if kind != "docs":
        return [int(kind)] * max(1, num_tokens // int(kind))
    lengths: list[int] = []
    while sum(lengths) < num_tokens:
        drawn = np.exp(np.interp(rng.random(1024), _SHARES, np.log(np.array(_TOKENS.split(), float))))
        lengths += [min(longest, round(length)) for length in drawn]
    return lengths[: int(np.searchsorted(np.cumsum(lengths), num_tokens)) + 1]


def corpus_lengths(corpus: Path, tokenizer: Path, num_tokens: int, longest: int) -> list[int]:
    """Lengths of the texts of a Parquet file under some tokenizer, spread over the file."""
    import pyarrow.parquet as pq

    texts = pq.read_table(corpus, columns=["text"])["text"].to_pylist()
    backend = Tokenizer.from_file(str(tokenizer))
    backend.no_padding()
    backend.enable_truncation(longest)
    order = np.random.default_rng(0).permutation(len(texts))
    lengths: list[int] = []
    for start in range(0, len(order), 1000):
        some = [texts[place] for place in order[start : start + 1000]]
        lengths += [max(1, len(encoding.ids)) for encoding in backend.encode_batch_fast(some)]
        if sum(lengths) > num_tokens:
            break
    return lengths[: int(np.searchsorted(np.cumsum(lengths), num_tokens)) + 1]


def random_texts(lengths: Sequence[int], vocab_size: int, rng: np.random.Generator) -> TokenizedTexts:
    """Texts of these lengths, in this order; no id is that of padding."""
    ids = [rng.integers(1, vocab_size, length).astype(np.int32) for length in lengths]
    return TokenizedTexts.joined(ids, np.zeros(len(ids), np.int32), np.zeros(len(ids), bool))


def spelled(texts: TokenizedTexts) -> list[str]:
    """The same as strings, for ways that tokenize by themselves."""
    return [
        " ".join(map(str, texts.token_ids[start:stop].tolist()))
        for start, stop in zip(texts.offsets, texts.offsets[1:], strict=False)
    ]
