"""The beginning of a text that a model will cut anyway, so that megabytes are not tokenized for their first 512 tokens.

A tokenizer whose first step splits words at spaces treats what stands before a space as if nothing came behind it. So
a text may be cut before an ASCII space that follows an ASCII letter: the beginning's tokens are the whole text's first
ones, and if they alone are too many, the truncated ids are the same. That is known of the kinds of tokenizers listed
here, from what each step does; any other is given the whole text. So is a text whose beginning has too few tokens, or
no such place.

Why each normalizer keeps the place: all of them work on single characters, or on graphemes, or compose letters with
the marks behind them, and nothing composes with a space before it; `Replace` is known for runs of spaces only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_PLACE = re.compile(r"(?<=[A-Za-z]) ")
# A beginning has as many characters for each token that the model takes. English has four to five a token, so most
# are enough at once; those that are not are tried again, longer.
CHARACTERS_PER_TOKEN = 8
# Shorter texts are not worth the trouble.
_WORTH_CUTTING = 2

_NORMALIZERS = frozenset(
    {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Precompiled", "StripAccents"}
)
_SPACES = {"Regex": " {2,}"}
# These end a word wherever a space follows a letter, in every setting.
_SPLITTERS = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
# Patterns of which no alternative reaches over a letter and the space behind it: GPT-2's is ByteLevel's own.
_BPE_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen2 and Qwen3; Llama 3 and EuroBERT.
_PATTERNS = frozenset(_BPE_PATTERN.replace("NUMBER", number) for number in (r"\p{N}", r"\p{N}{1,3}"))
_MODELS = frozenset({"BPE", "Unigram", "WordLevel", "WordPiece"})


def beginning(text: str, num_characters: int) -> str:
    """The text up to the first place behind so many characters where it may be cut; all of it if that saves little."""
    if len(text) < _WORTH_CUTTING * num_characters:
        return text
    place = _PLACE.search(text, num_characters)
    return text if place is None else text[: place.start()]


def splits_at_spaces(backend: Any) -> bool:
    """Whether a tokenizer is known to treat what stands before such a place alike, whatever comes behind."""
    try:
        steps = json.loads(backend.to_str())
    except Exception:  # steps written in Python cannot be written out, and tokenizers raises just that
        return False
    model = steps["model"]
    return bool(
        model["type"] in _MODELS
        and not model.get("dropout")
        and all(_keeps_place(step) for step in _steps(steps["normalizer"], "normalizers"))
        and any(_splits(step) for step in _steps(steps["pre_tokenizer"], "pretokenizers")[:1])
        and all(_matches_no_place(token) for token in steps["added_tokens"])
        and (backend.normalizer is None or backend.normalizer.normalize_str("a b") == "a b")
    )


def stands_apart(suffix: str, backend: Any) -> bool:
    """Whether what stands behind every text begins with an added token, which no letter before it can be part of."""
    tokens = backend.get_added_tokens_decoder().values()
    letter_before = re.compile(f"[A-Za-z]{re.escape(suffix[:1])}")
    begins = [one for one in tokens if suffix.startswith(one.content)]
    plain = [one for one in begins if not one.normalized and not one.single_word]
    return bool(plain) and not any(letter_before.search(one.content) for one in tokens)


def _steps(step: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [one for part in step[inner] for one in _steps(part, inner)]


def _keeps_place(normalizer: Mapping[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        return bool(normalizer["pattern"] == _SPACES and normalizer["content"] == " ")
    return normalizer["type"] in _NORMALIZERS


def _splits(first: Mapping[str, Any]) -> bool:
    """Whether the first step ends a word there; later ones see each word by itself."""
    match first["type"]:
        case "ByteLevel":
            return bool(first["use_regex"])
        case "Metaspace":
            return bool(first["split"])
        case "Split":
            pattern = first["pattern"].get("Regex")
            return pattern in _PATTERNS and first["behavior"] == "Isolated" and not first["invert"]
        case kind:
            return kind in _SPLITTERS


def _matches_no_place(token: Mapping[str, Any]) -> bool:
    """Whether an added token, which is looked for before everything else, can never hold a letter and a space."""
    content: str = token["content"]
    return not any(map(str.isspace, content)) and (content.isascii() or not token["normalized"])
