"""Small rerankers on disk in the real file layout: trained tokenizers that join pairs, heads, language models.

The language models' vocabulary has `no`, `Yes` and `yes` where Qwen3's has them, and its control tokens; all ids
between are filled up with tokens that no text can have.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from tests.encoders.repositories import (
    TRAINING_TEXT,
    WIDTH,
    random_model,
    sizes_for,
    template,
    write_tokenizer,
)

NO, YES_CAPITAL, YES = 2152, 9454, 9693
ENDOFTEXT, IM_START, IM_END, THINK, END_THINK = range(9694, 9699)
# What Qwen's tokenizers split words with. Source: transformers, `models/qwen2/tokenization_qwen2.py`.
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Architecture -> its tokenizer's kind, and what that puts around a text and around a pair.
# Source: the fast tokenizers of transformers.
_JOINED = {
    "xlm-roberta": ("unigram", "<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    "bert": ("wordpiece", "[CLS] $A [SEP]", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"),
    "modernbert": ("wordpiece", "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
}
CLASSIFIERS = tuple(_JOINED)


def write_classifier(
    folder: Path, architecture: str = "xlm-roberta", *, max_tokens: int = 64, **config: Any
) -> Path:
    """A cross-encoder with a sequence-classification head; `config` goes over its configuration's fields."""
    kind, one, pair = _JOINED[architecture]
    single = write_tokenizer(folder, kind)
    backend = single.backend_tokenizer
    backend.post_processor = template(backend, one, pair)
    types = ["token_type_ids"] if architecture == "bert" else []
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=max_tokens,
        model_input_names=["input_ids", *types, "attention_mask"],
        **single.special_tokens_map,
    )
    tokenizer.save_pretrained(folder)
    sizes = sizes_for(tokenizer) | {"max_position_embeddings": max_tokens, "num_labels": 1}
    match architecture:
        case "bert":
            model: PreTrainedModel = random_model(BertForSequenceClassification, BertConfig(**sizes | config))
        case "modernbert":
            ends = dict.fromkeys(("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"), None)
            model = random_model(
                ModernBertForSequenceClassification,
                ModernBertConfig(**sizes | ends | {"local_attention": 8} | config),
            )
        case _:
            sizes |= {"max_position_embeddings": max_tokens + 2, "type_vocab_size": 1}
            model = random_model(XLMRobertaForSequenceClassification, XLMRobertaConfig(**sizes | config))
    model.save_pretrained(folder)
    return folder


def write_language_model(
    folder: Path, *, tie_word_embeddings: bool = True, max_positions: int = 4096, **tokenizer: Any
) -> Path:
    """A Qwen3 language model; `tokenizer` changes what `vocabulary` does."""
    PreTrainedTokenizerFast(
        tokenizer_object=vocabulary(**tokenizer),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        model_max_length=131072,
    ).save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=END_THINK + 10,  # more rows than tokens, as the real ones have
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tie_word_embeddings,
        bos_token_id=ENDOFTEXT,
        eos_token_id=IM_END,
    )
    random_model(Qwen3ForCausalLM, config).save_pretrained(folder)
    return folder


def vocabulary(*, swapped: bool = False, control_tokens: bool = True, appends_end: bool = False) -> Tokenizer:
    """Byte-level BPE that splits words as Qwen's does.

    Args:
        swapped: `yes` and `no` have each other's ids.
        control_tokens: Whether there are any.
        appends_end: Put <|endoftext|> behind every text, as the tokenizer of Qwen3-Embedding does.
    """
    content = json.loads(_trained_bytes())
    places = {"no": NO, "Yes": YES_CAPITAL, "yes": YES}
    if swapped:
        places |= {"no": YES, "yes": NO}
    free = (number for number in range(ENDOFTEXT) if number not in places.values())
    vocab = {token: places[token] if token in places else next(free) for token in content["model"]["vocab"]}
    vocab |= {f"no text {number}": number for number in free}
    content["model"]["vocab"] = vocab
    tokenizer = Tokenizer.from_str(json.dumps(content))
    if control_tokens:
        tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    else:
        tokenizer.add_special_tokens(["<|endoftext|>"])
    if appends_end:
        tokenizer.post_processor = template(tokenizer, "$A <|endoftext|>")
    return tokenizer


@cache
def _trained_bytes() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    words = ("yes\nno\nYes",) * 50  # at a line's beginning, as in an answer, so without a space
    tokenizer.train_from_iterator([*TRAINING_TEXT, *words], trainer)
    return str(tokenizer.to_str())
