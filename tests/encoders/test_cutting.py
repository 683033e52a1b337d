"""A text that is cut before it is tokenized has the ids that it has otherwise."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from encoders.cutting import beginning, splits_at_spaces
from encoders.family import Prompt
from encoders.protocol import EncoderOptions, resolve_protocol
from encoders.tokenized import TokenizedTexts
from encoders.tokenizer import Tokenizer
from tests.encoders.repositories import MEAN, edit_json, write_repository

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_STEPS = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": QWEN}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    ],
}
# XLM-R's files of old, but for the character map.
SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
UNIGRAM_STEPS = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, SPACES]}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "BertPreTokenizer, WordPiece": ("bert", {}),
    "GPT-2's pattern, BPE": ("modernbert", {}),
    "Qwen's pattern, BPE": ("qwen3", {"pre_tokenizer": QWEN_STEPS}),
    "spaces and Metaspace, Unigram": ("xlm-roberta", {"normalizer": UNIGRAM_STEPS}),
    "Metaspace alone, Unigram": ("t5", {"pre_tokenizer": METASPACE}),
}
SUFFIX = Prompt("query: ", "[SEP] end")
PROMPTS = ["", "query: ", "  ", "what is\n", SUFFIX]

# What could reach over a place: marks, runs of spaces, contractions, digits, other scripts, added tokens in the text.
WORDS = st.sampled_from(
    [
        *(
            "a",
            "I",
            "the",
            "capital",
            "it's",
            "we'LL",
            "x1",
            "10",
            "2024",
            "-",
            "...",
            "''",
            "fi",
            "ﬁ",
            "ñ",
            "İ",
            "ß",
        ),
        *(
            "e\u0301",
            "\u0301",
            "\u0308a",
            "日本語",
            "ไทย",
            "🙂",
            "👩‍👩‍👧",
            "\u200d",
            "\u00ad",
            "\ufeff",
            "\x00",
            "▁",
            "Ġ",
        ),
        *("[MASK]", "[SEP]", "<s>", "</s>", "<|endoftext|>", "<mask>"),
    ]
)
GAPS = st.sampled_from(
    ["", " ", " ", " ", "  ", "   ", "\t", "\n", " \n ", "\r\n", "\u00a0", "\u3000", "\u2009 ", " \u0301"]
)
PIECES = st.one_of(WORDS, GAPS, st.text(max_size=3))
LONG_TEXTS = st.builds("".join, st.lists(st.builds("".join, st.tuples(PIECES, GAPS)), max_size=60))


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer of few tokens, so that short texts are cut; pooling leaves out the prompt."""
    architecture, changes = KINDS[request.param]
    pooling = MEAN | {"include_prompt": False}
    folder = write_repository(tmp_path_factory.mktemp("model"), architecture, modules=[("Pooling", pooling)])
    edit_json(folder / "tokenizer.json", **changes)
    tokenizer = Tokenizer(resolve_protocol(str(folder), options=EncoderOptions(max_seq_length=12)))
    assert tokenizer._cuts
    return tokenizer


def whole(tokenizer: Tokenizer, texts: list[str], prompt: str | Prompt) -> TokenizedTexts:
    """The same without cutting."""
    tokenizer._cuts = False
    try:
        return tokenizer.prepare(texts, prompt)
    finally:
        tokenizer._cuts = True


def assert_equal(ours: TokenizedTexts, expected: TokenizedTexts) -> None:
    for name in ("token_ids", "offsets", "prompt_lengths", "truncated"):
        assert getattr(ours, name).tolist() == getattr(expected, name).tolist(), name


@given(
    texts=st.lists(LONG_TEXTS, max_size=4),
    prompt=st.sampled_from(PROMPTS),
    characters=st.sampled_from([1, 2, 8]),
)
@example(texts=["a" * 300 + " b" * 300], prompt="", characters=1)
@example(texts=["the capital of France " * 3], prompt="", characters=1)
@example(texts=["I I'm e\u0301 \u0301" * 40 + "日本語" * 100], prompt="query: ", characters=1)
@settings(max_examples=150)
def test_ids_are_those_of_the_whole_text(
    kind: Tokenizer, texts: list[str], prompt: str | Prompt, characters: int
) -> None:
    if isinstance(prompt, Prompt) and "[SEP]" not in kind._backend.get_vocab():
        prompt = prompt.prefix
    if isinstance(prompt, Prompt):
        prompt = Prompt(prompt.prefix, "[SEP]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tokenizer._encode, "__defaults__", (characters,))
        cut = kind.prepare(texts, prompt)
    assert_equal(cut, whole(kind, texts, prompt))


def test_no_more_is_tokenized_than_is_seen_and_a_beginning_of_too_few_tokens_is_taken_longer(
    kind: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    backend = kind._backend

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def encode_batch_fast(self, texts: list[str]) -> Any:
            seen.extend(map(len, texts))
            return backend.encode_batch_fast(texts)

    monkeypatch.setattr(kind, "_backend", Spy())
    text = "the capital of France " * 100
    kind.prepare([text])
    assert [96 <= length < 120 for length in seen] == [True]
    seen.clear()
    monkeypatch.setattr(Tokenizer._encode, "__defaults__", (1,))
    kind.prepare([text])
    assert [12 <= seen[0] < 30, 96 <= seen[1] < 120, len(seen)] == [True, True, 2]


def test_two_megabytes_are_tokenized_tens_of_times_faster(kind: Tokenizer) -> None:
    text = "Two megabytes of text, of which the model sees the very beginning only. " * 28_000
    started = time.perf_counter()
    expected = whole(kind, [text], "")
    middle = time.perf_counter()
    assert_equal(kind.prepare([text]), expected)
    assert 10 * (time.perf_counter() - middle) < middle - started


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("ab cd ef gh", "ab cd"),
        ("ab cd1 ef gh", "ab cd1 ef"),  # only behind an ASCII letter
        ("ab cdé ef gh", "ab cdé ef"),
        ("ab cd\tef\u00a0gh", "ab cd\tef\u00a0gh"),  # only before an ASCII space
        ("ab c d", "ab c d"),  # not worth it
    ],
)
def test_a_text_is_cut_between_an_ascii_letter_and_an_ascii_space(text: str, seen: str) -> None:
    assert beginning(text, 4) == seen


def changed(backend: Backend, **changes: Any) -> Backend:
    steps = json.loads(backend.to_str())
    steps["model"] |= changes.pop("model", {})
    return Backend.from_str(json.dumps(steps | changes))


@pytest.fixture(scope="module")
def bytes_backend(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    folder = write_repository(tmp_path_factory.mktemp("model"), "modernbert")
    return Backend.from_file(str(folder / "tokenizer.json"))


ADDED = {
    "id": 1000,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
METASPACE_WHOLE = METASPACE | {"split": False}
NO_PATTERN = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPLIT = QWEN_STEPS["pretokenizers"][0]
UNKNOWN: dict[str, dict[str, Any]] = {
    "no pre-tokenizer": {"pre_tokenizer": None},
    "Metaspace that splits nothing": {"pre_tokenizer": METASPACE_WHOLE},
    "ByteLevel without its pattern": {"pre_tokenizer": NO_PATTERN},
    "a pattern that nobody looked at": {"pre_tokenizer": SPLIT | {"pattern": {"Regex": r"\w+ \w+|."}}},
    "a pattern that is taken out": {"pre_tokenizer": SPLIT | {"behavior": "Removed"}},
    "the splitter comes second": {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [NO_PATTERN, {"type": "WhitespaceSplit"}]}
    },
    "spaces become something else": {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    },
    "an added token with a space": {"added_tokens": [ADDED | {"content": "a b"}]},
    "a normalised token of another script": {"added_tokens": [ADDED | {"content": "中", "normalized": True}]},
    "words cut by chance": {"model": {"dropout": 0.1}},
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_tokenizers_get_whole_texts(bytes_backend: Backend, name: str) -> None:
    assert splits_at_spaces(bytes_backend)
    assert not splits_at_spaces(changed(bytes_backend, **UNKNOWN[name]))


def test_steps_written_in_python_get_whole_texts(bytes_backend: Backend) -> None:
    class Own:
        def pre_tokenize(self, _: Any) -> None: ...

    backend = Backend.from_str(bytes_backend.to_str())
    backend.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Own())
    assert not splits_at_spaces(backend)
    backend = Backend.from_str(bytes_backend.to_str())
    backend.normalizer = normalizers.Sequence([normalizers.Replace(Regex(" +"), " "), normalizers.NFC()])
    assert not splits_at_spaces(backend)


def test_texts_are_cut_on_the_right_only(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model", tokenizer={"truncation_side": "left"})
    assert not Tokenizer(resolve_protocol(str(folder)))._cuts
