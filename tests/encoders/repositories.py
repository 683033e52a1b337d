"""Small model repositories on disk in the real file layout: two layers of width 32, trained tokenizers.

Every file is written by the library that owns its format (transformers, tokenizers, safetensors) or spelled as
sentence-transformers spells it, so both sentence-transformers and our code can load the same folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    XLMRobertaConfig,
)

WIDTH = 32
MAX_TOKENS = 64

# What the tokenizers are trained on: the words of the prompts and enough others to give merges and pieces.
TRAINING_TEXT = (
    "query: what is the capital of France? passage: Paris is the capital and largest city of France.",
    "Represent the question for retrieving supporting documents: how do batteries store energy?",
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: solar panels",
    "A token may straddle the end of a prompt; its characters decide on which side it stands.",
    "def mean(values): return sum(values) / len(values)  # arithmetic mean, not the median",
    "Ein Satz mit Umlauten: über, schön, Größe. Une phrase en français où l'été s'achève.",
    "numbers 0 1 2 3 4 5 6 7 8 9 10 100 2024 and punctuation, quotes, dashes - all of it!",
)
TEXTS = (
    "what is the capital of France?",
    "Paris",
    "How do batteries store energy, and why do they lose it over the years?",
    "über Größe 2024 - naïve café",
    "a token that was never seen: 日本語 🙂",
    "retrieve relevant passages that answer the query about solar panels and the capital of France " * 2,
)

# Architecture -> the tokenizer that its kind comes with.
TOKENIZERS = {
    "bert": "wordpiece",
    "distilbert": "wordpiece",
    "mpnet": "wordpiece",
    "modernbert": "bytes",
    "qwen3": "bytes",
    "qwen3-causal": "bytes",
    "xlm-roberta": "unigram",
    "t5": "unigram-t5",
}
ARCHITECTURES = tuple(name for name in TOKENIZERS if name != "qwen3-causal")

MEAN = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}


def write_repository(
    folder: Path,
    architecture: str = "bert",
    *,
    modules: Sequence[tuple[str, Mapping[str, Any]]] | None = (("Pooling", MEAN), ("Normalize", {})),
    settings: Mapping[str, Any] | None = None,
    transformer: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> Path:
    """Write a whole repository.

    Args:
        folder: Where to.
        architecture: A key of `TOKENIZERS`.
        modules: (class, config.json) of what follows the transformer; None writes no modules.json.
        settings: config_sentence_transformers.json.
        transformer: sentence_bert_config.json; the default gives a length of 48 tokens.
        tokenizer: What differs from the architecture's tokenizer: padding_side, truncation_side, eos, ...

    Returns:
        The folder.
    """
    own = write_tokenizer(folder, TOKENIZERS[architecture], **(tokenizer or {}))
    write_backbone(folder, architecture, own)
    if modules is not None:
        write_modules(folder, modules)
        write_json(
            folder / "sentence_bert_config.json",
            transformer or {"max_seq_length": 48, "do_lower_case": False},
        )
        write_json(folder / "config_sentence_transformers.json", settings or {"prompts": {}})
    return folder


def write_modules(
    folder: Path,
    modules: Sequence[tuple[str, Mapping[str, Any]]],
    transformer: str = "sentence_transformers.models.Transformer",
) -> None:
    """modules.json, and a numbered folder for each module with its configuration and random weights."""
    entries = [{"idx": 0, "name": "0", "path": "", "type": transformer}]
    for place, (kind, config) in enumerate(modules, start=1):
        path = f"{place}_{kind}"
        entries.append(
            {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        )
        (folder / path).mkdir(parents=True, exist_ok=True)
        if config:
            write_json(folder / path / "config.json", config)
        if weights := _module_weights(kind, config, torch.Generator().manual_seed(place)):
            save_file(weights, folder / path / "model.safetensors")
    write_json(folder / "modules.json", entries)


def dense(
    in_features: int, out_features: int, activation: str = "activation.Tanh", *, bias: bool = True
) -> Any:
    """A Dense module as sentence-transformers configures it."""
    config = {"in_features": in_features, "out_features": out_features, "bias": bias}
    return ("Dense", config | {"activation_function": f"torch.nn.modules.{activation}"})


def _module_weights(
    kind: str, config: Mapping[str, Any], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    if kind == "Dense":
        width, given = config["out_features"], config.get("in_features", WIDTH)
        weights = {"linear.weight": torch.randn(width, given, generator=generator) / 4}
        if config.get("bias", True):
            weights["linear.bias"] = torch.randn(width, generator=generator)
        return weights
    if kind == "LayerNorm":
        width = config.get("dimension", WIDTH)
        return {
            "norm.weight": torch.rand(width, generator=generator),
            "norm.bias": torch.rand(width, generator=generator),
        }
    return {}


def write_backbone(folder: Path, architecture: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """A backbone of that architecture, with random weights."""
    backbones: dict[str, Any] = {"qwen3-causal": Qwen3ForCausalLM, "t5": T5EncoderModel}
    kind = backbones.get(architecture, AutoModel.from_config)
    random_model(kind, _config(architecture, tokenizer)).save_pretrained(folder)


def random_model(kind: Callable[[Any], Any], config: Any, seed: int = 0, *, norms: bool = False) -> Any:
    """A model with random weights, large enough that every token and every attention weight shows in the result.

    Args:
        kind: What makes it of its configuration.
        config: The configuration.
        seed: Of the weights.
        norms: Whether those of norms are random too. 1 and 0 would hide a norm behind the backbone's own.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower():
                torch.nn.init.normal_(parameter, std=0.2)
            elif norms:
                torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)
    return model


def sizes_for(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What small backbones have in common, by the names that most configurations have for it."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "pad_token_id": tokenizer.pad_token_id,
    }


def t5_config(vocab_size: int) -> T5Config:
    """The same of a T5, which has other names for it."""
    return T5Config(
        vocab_size=vocab_size, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0
    )


def _config(architecture: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    sizes = sizes_for(tokenizer) | {"max_position_embeddings": MAX_TOKENS}
    match architecture:
        case "bert":
            return BertConfig(**sizes)
        case "distilbert":
            return DistilBertConfig(
                vocab_size=len(tokenizer),
                dim=WIDTH,
                n_layers=2,
                n_heads=4,
                hidden_dim=64,
                max_position_embeddings=MAX_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
            )
        case "mpnet":
            return MPNetConfig(**sizes | {"max_position_embeddings": MAX_TOKENS + 2, "pad_token_id": 1})
        case "xlm-roberta":
            return XLMRobertaConfig(
                **sizes | {"max_position_embeddings": MAX_TOKENS + 2, "type_vocab_size": 1}
            )
        case "modernbert":
            special = dict.fromkeys(("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"), None)
            return ModernBertConfig(**sizes, **special, local_attention=8, global_attn_every_n_layers=2)
        case "qwen3" | "qwen3-causal":
            return Qwen3Config(**sizes, num_key_value_heads=2, head_dim=8)
        case "t5":
            return t5_config(len(tokenizer))
        case _:
            raise AssertionError(architecture)


def write_tokenizer(
    folder: Path,
    kind: str,
    *,
    eos: bool = True,
    lowercase: bool = True,
    segment: int = 0,
    model_max_length: int | None = MAX_TOKENS,
    **settings: Any,
) -> PreTrainedTokenizerFast:
    """A trained tokenizer in its files.

    Args:
        folder: Where to.
        kind: wordpiece, bytes, unigram or unigram-t5.
        eos: Whether byte-level BPE appends <|endoftext|>, as Qwen3-Embedding's does.
        lowercase: Whether WordPiece lower-cases.
        segment: The token_type_id of every token.
        model_max_length: None leaves it out, as some repositories do.
        settings: More of tokenizer_config.json, e.g. padding_side.
    """
    backend = Tokenizer.from_str(_trained(kind, lowercase))
    match kind:
        case "wordpiece":
            pattern = f"[CLS]:{segment} $A:{segment} [SEP]:{segment}"
            names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        case "bytes":
            pattern = "$A <|endoftext|>" if eos else "$A"
            names = {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        case "unigram":
            pattern = "<s> $A </s>"
            names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        case _:
            pattern = "$A </s>"
            names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    around = template(backend, pattern)
    backend.post_processor = (
        processors.Sequence([processors.ByteLevel(trim_offsets=False), around]) if kind == "bytes" else around
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        **names,
        **settings,
    )
    tokenizer.save_pretrained(folder)
    if model_max_length is None:
        edit_json(folder / "tokenizer_config.json", model_max_length=None)
    return tokenizer


def template(backend: Tokenizer, single: str, pair: str | None = None) -> processors.TemplateProcessing:
    """What puts special tokens around `$A`, and around `$A` and `$B`: `[CLS] $A [SEP]`."""
    words = {word.partition(":")[0] for word in f"{single} {pair or ''}".split()}
    special = [(word, backend.token_to_id(word)) for word in sorted(words) if not word.startswith("$")]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


@cache
def _trained(kind: str, lowercase: bool) -> str:
    """A tokenizer as JSON, the same in every process.

    The trainers of WordPiece and Unigram count in tables whose order is drawn anew in each process, and so are the
    vocabularies that they end with. Byte-pair merges have an order, so the other kinds take their pieces from them.
    """
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        pieces = _merge(tokenizer, vocab_size=150)
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        words = [*special, *pieces, *(f"##{piece}" for piece in pieces)]
        tokenizer.model = models.WordPiece(
            {word: place for place, word in enumerate(words)}, unk_token="[UNK]"
        )
        tokenizer.add_special_tokens(special)
    elif kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        _merge(
            tokenizer,
            vocab_size=400,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    else:
        special = ["<s>", "<pad>", "</s>", "<unk>"] if kind == "unigram" else ["<pad>", "</s>", "<unk>"]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
        pieces = _merge(tokenizer, vocab_size=250)
        # The earlier a piece was merged, the likelier it is; one long piece is likelier than two short ones.
        scored = [(piece, -1 - place / len(pieces)) for place, piece in enumerate(pieces)]
        vocabulary = [*((word, 0.0) for word in special), *scored]
        tokenizer.model = models.Unigram(vocabulary, unk_id=special.index("<unk>"), byte_fallback=False)
        tokenizer.add_special_tokens(special)
    return str(tokenizer.to_str())


def _merge(tokenizer: Tokenizer, **settings: Any) -> list[str]:
    """Train byte-pair merges; the pieces, by id."""
    tokenizer.train_from_iterator(TRAINING_TEXT, trainers.BpeTrainer(show_progress=False, **settings))
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def write_json(path: Path, content: Any) -> None:
    """A JSON file, as the Hub's libraries write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Change some keys of a JSON object; None removes a key."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    write_json(path, {key: value for key, value in content.items() if value is not None})


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change some of a repository's weights; None removes one."""
    weights = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
