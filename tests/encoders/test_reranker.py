"""Scores against sentence-transformers and the authors' recipes, and what must not show: batching, order, padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from encoders.errors import EncoderError
from encoders.heads import load_head
from encoders.pairs import PairTokenizer
from encoders.rerank_families import FAMILIES, Word, YesNoFamily
from encoders.rerank_protocol import resolve_reranker
from encoders.reranker import Reranker
from tests.encoders.repositories import TEXTS, edit_json, template
from tests.encoders.rerank_repositories import (
    CLASSIFIERS,
    NO,
    YES,
    YES_CAPITAL,
    write_classifier,
    write_language_model,
)

Scores = npt.NDArray[np.float32]

PAIRS = (
    *[(query, document) for query in TEXTS[:3] for document in TEXTS],
    ("what is the capital of France?", ""),
    ("", "Paris"),
    ("", ""),
    ("  spaces before and after \n", "\t tabs, and a line end \n"),
    ("emoji 👩‍👩‍👧‍👦 🇫🇷?", "🙂🙂🙂 ❤️"),
    ("tokens of the prompt", "<|im_end|>\n<|im_start|>assistant\n<think> <s> </s> [SEP]"),
    ("{query} {instruction}", "{document} {0} {}"),
    ("solar panels", "long document " * 1429),
)
LONG_LAST = PAIRS[-1]
INSTRUCTION = "Find code that does what is asked for"
QWEN3, ZERANK = FAMILIES
MAX_TOKENS = 320


def ours(folder: Path, pairs: Sequence[tuple[str, str]], **settings: object) -> Scores:
    return Reranker.load(str(folder), device="cpu", **settings).score(pairs)  # type: ignore[arg-type]


def qwen3_recipe(
    folder: Path, query: str, document: str, instruction: str, *, max_length: int = MAX_TOKENS
) -> float:
    """The model card's code, one pair at a time: the logits of all words at all positions."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    before = tokenizer.encode(prefix, add_special_tokens=False)
    behind = tokenizer.encode(suffix, add_special_tokens=False)
    body = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    ids = tokenizer(body, truncation="longest_first", max_length=max_length - len(before) - len(behind))
    ids = before + ids["input_ids"] + behind
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    yes, no = tokenizer.convert_tokens_to_ids("yes"), tokenizer.convert_tokens_to_ids("no")
    return float(torch.stack([logits[no], logits[yes]]).softmax(0)[1])


def zerank_recipe(folder: Path, query: str, document: str, attention: str = "sdpa") -> float:
    """What the repository's own code does, with the chat template written out; for pairs that are not too long."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval()
    text = (
        f"<|im_start|>system\n{query.strip()}<|im_end|>\n<|im_start|>user\n{document.strip()}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0, -1]
    return float(torch.sigmoid(logits[tokenizer.encode("Yes", add_special_tokens=False)[0]] / 5))


def sentence_transformers_scores(
    folder: Path, template: str, yes: int, no: int | None, pairs: Sequence[tuple[str, str]], max_length: int
) -> torch.Tensor:
    """Raw scores of a CrossEncoder of a language model and a chat template, one pair at a time."""
    transformer = Transformer(
        str(folder),
        transformer_task="text-generation",
        max_seq_length=max_length,
        processor_kwargs={"chat_template": template},
        processing_kwargs={"chat_template": {"add_generation_prompt": True}},
    )
    model = CrossEncoder(
        modules=[transformer, LogitScore(yes, no)], device="cpu", activation_fn=torch.nn.Identity()
    )
    return torch.stack(
        [model.predict([pair], convert_to_tensor=True, show_progress_bar=False)[0] for pair in pairs]
    )


QUERY_AND_DOCUMENT = (
    "{%- set query = messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first -%}"
    "{%- set document = messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first -%}"
)
QWEN3_TEMPLATE = QUERY_AND_DOCUMENT + (
    "{{- '<|im_start|>system\\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\\n<|im_start|>user\\n'
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\\n' -}}"
    "{{- '<Query>: ' + query + '\\n<Document>: ' + document -}}"
    "{{- '<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' -}}"
)
ZERANK_TEMPLATE = QUERY_AND_DOCUMENT + (
    "{{- '<|im_start|>system\\n' + (query | trim) + '<|im_end|>\\n<|im_start|>user\\n' + (document | trim) -}}"
    "{{- '<|im_end|>\\n<|im_start|>assistant\\n' -}}"
)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("models") / "language-model")


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_a_classifier_scores_as_sentence_transformers_does(architecture: str, tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "model", architecture)
    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    theirs = np.array([model.predict([pair], show_progress_bar=False)[0] for pair in PAIRS])
    np.testing.assert_allclose(ours(folder, PAIRS), theirs, atol=1e-5)
    assert np.ptp(theirs) > 0.1


def test_raw_logits_are_the_score_where_the_repository_says_so(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "model")
    edit_json(
        folder / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"}
    )
    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    theirs = model.predict(list(PAIRS), show_progress_bar=False)
    np.testing.assert_allclose(ours(folder, PAIRS), theirs, atol=1e-4)
    assert theirs.min() < 0 or theirs.max() > 1


def test_a_repository_as_sentence_transformers_saves_it_scores_as_before(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "model", "bert")
    CrossEncoder(str(folder), device="cpu", local_files_only=True).save_pretrained(str(tmp_path / "saved"))
    np.testing.assert_array_equal(ours(tmp_path / "saved", PAIRS), ours(folder, PAIRS))


@pytest.mark.parametrize("instruction", [None, INSTRUCTION])
@pytest.mark.parametrize("tied", [True, False])
def test_qwen3_reranker_scores_as_its_card_does(tied: bool, instruction: str | None, tmp_path: Path) -> None:
    folder = write_language_model(tmp_path / "model", tie_word_embeddings=tied)
    scores = ours(folder, PAIRS, family="qwen3-reranker", instruction=instruction, max_seq_length=MAX_TOKENS)
    default = "Given a web search query, retrieve relevant passages that answer the query"
    expected = [qwen3_recipe(folder, *pair, instruction or default) for pair in PAIRS]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.ptp(scores) > 0.1


def test_a_language_model_that_is_told_to_look_both_ways_does(tmp_path: Path) -> None:
    folder = write_language_model(tmp_path / "model")
    causal = ours(folder, PAIRS[:6], family="zerank")
    edit_json(folder / "config.json", is_causal=False)
    scores = ours(folder, PAIRS[:6], family="zerank")
    # Eager attention adds the mask to its scores and goes by nothing else.
    expected = [zerank_recipe(folder, *pair, attention="eager") for pair in PAIRS[:6]]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.abs(scores - causal).max() > 1e-3


@pytest.mark.parametrize("tied", [True, False])
def test_zerank_scores_as_its_repository_does(tied: bool, tmp_path: Path) -> None:
    folder = write_language_model(tmp_path / "model", tie_word_embeddings=tied)
    pairs = [pair for pair in PAIRS if pair != LONG_LAST]
    scores = ours(folder, pairs, family="zerank")
    np.testing.assert_allclose(scores, [zerank_recipe(folder, *pair) for pair in pairs], atol=1e-5)
    assert np.ptp(scores) > 0.05


def test_language_models_score_as_in_sentence_transformers_with_their_chat_templates(
    language_model: Path,
) -> None:
    theirs = sentence_transformers_scores(language_model, QWEN3_TEMPLATE, YES, NO, PAIRS, MAX_TOKENS)
    scores = ours(language_model, PAIRS, family="qwen3-reranker", max_seq_length=MAX_TOKENS)
    np.testing.assert_allclose(scores, theirs.sigmoid(), atol=1e-5)
    theirs = sentence_transformers_scores(
        language_model, ZERANK_TEMPLATE, YES_CAPITAL, None, PAIRS, MAX_TOKENS
    )
    scores = ours(language_model, PAIRS, family="zerank", max_seq_length=MAX_TOKENS)
    np.testing.assert_allclose(scores, (theirs / 5).sigmoid(), atol=1e-5)


def scored_with(folder: Path, family: YesNoFamily, pairs: Sequence[tuple[str, str]]) -> Scores:
    """Scores of a family that is not in the table."""
    protocol = replace(resolve_reranker(str(folder), family=QWEN3.name), family=family)
    head = load_head(protocol, torch.float32, torch.device("cpu"))
    return Reranker(PairTokenizer(protocol), head, 2048).score(pairs)


# A part of the protocol that is broken, for each family.
BROKEN = {
    QWEN3.name: [
        replace(QWEN3, suffix=""),
        replace(QWEN3, suffix="<|im_end|>\n<|im_start|>assistant\n"),
        replace(QWEN3, suffix=QWEN3.suffix.removesuffix("\n")),
        replace(QWEN3, prefix=QWEN3.prefix.removesuffix("\n")),
        replace(QWEN3, prefix=QWEN3.prefix.replace("Judge", "judge")),
        replace(QWEN3, head=QWEN3.head.removesuffix(" ")),
        replace(QWEN3, head=QWEN3.head.replace("<Query>: ", "<Query>:")),
        replace(QWEN3, strip=True),
        replace(QWEN3, no=None),
        replace(QWEN3, temperature=5.0),
        replace(QWEN3, yes=QWEN3.no or QWEN3.yes, no=QWEN3.yes),
        replace(QWEN3, yes=Word("Yes", YES_CAPITAL)),
    ],
    ZERANK.name: [
        replace(ZERANK, suffix=""),
        replace(ZERANK, suffix="<|im_end|>\n"),
        replace(ZERANK, suffix=ZERANK.suffix.removesuffix("\n")),
        replace(ZERANK, suffix=QWEN3.suffix),
        replace(ZERANK, prefix=ZERANK.prefix.removesuffix("\n")),
        replace(ZERANK, prefix="<|im_start|>query\n"),
        replace(ZERANK, head=ZERANK.head.replace("<|im_end|>", "")),
        replace(ZERANK, head=ZERANK.head.removesuffix("\n")),
        replace(ZERANK, head=ZERANK.head.replace("user", "system")),
        replace(ZERANK, strip=False),
        replace(ZERANK, no=Word("no", NO)),
        replace(ZERANK, temperature=1.0),
        replace(ZERANK, yes=Word("yes", YES)),
    ],
}


@pytest.mark.parametrize(
    ("row", "broken"), [(row, broken) for row in FAMILIES for broken in BROKEN[row.name]]
)
def test_any_change_of_the_protocol_shows_in_the_scores(
    row: YesNoFamily, broken: YesNoFamily, language_model: Path
) -> None:
    pairs = [pair for pair in PAIRS if pair != LONG_LAST and pair[0] != pair[0].strip()]
    assert pairs
    right = scored_with(language_model, row, pairs)
    assert np.abs(scored_with(language_model, broken, pairs) - right).max() > 1e-4


@pytest.mark.parametrize(
    "joined",
    [
        "<s> $A </s> $B </s>",  # one separator, as BERT has it
        "<s> $A $B </s>",
        "<s> $A </s> </s> $B",
        "$A </s> </s> $B </s>",
        "<s> $B </s> </s> $A </s>",
    ],
)
def test_any_change_of_how_a_pair_is_joined_shows_in_the_scores_of_a_classifier(
    joined: str, tmp_path: Path
) -> None:
    folder = write_classifier(tmp_path / "model")
    pairs = [pair for pair in PAIRS if all(pair) and pair != LONG_LAST]
    right = ours(folder, pairs)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = template(backend, "<s> $A </s>", joined)
    backend.save(str(folder / "tokenizer.json"))
    assert np.abs(ours(folder, pairs) - right).max() > 1e-4


def test_another_activation_another_cut_and_another_order_show_in_the_scores_of_a_classifier(
    tmp_path: Path,
) -> None:
    folder = write_classifier(tmp_path / "model")
    right = ours(folder, PAIRS)
    assert np.abs(ours(folder, [(document, query) for query, document in PAIRS]) - right).max() > 1e-4
    edit_json(folder / "tokenizer_config.json", truncation_side="left")
    assert np.abs(ours(folder, PAIRS) - right)[-1] > 1e-4
    edit_json(folder / "config.json", sentence_transformers={"activation_fn": "torch.nn.Identity"})
    assert np.abs(ours(folder, PAIRS) - right).max() > 1e-4


Score = Callable[[list[tuple[str, str]], int], Scores]


@pytest.fixture(scope="module", params=[*CLASSIFIERS, "qwen3-reranker", "zerank"])
def score(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Score:
    """Pairs and a budget to scores, with one loaded reranker."""
    folder = tmp_path_factory.mktemp("models") / "model"
    if request.param in CLASSIFIERS:
        reranker = Reranker.load(str(write_classifier(folder, request.param)), device="cpu")
    else:
        write_language_model(folder)
        reranker = Reranker.load(str(folder), family=request.param, device="cpu", max_seq_length=MAX_TOKENS)

    def score(pairs: list[tuple[str, str]], max_batch_tokens: int) -> Scores:
        reranker.max_batch_tokens = max_batch_tokens
        return reranker.score(pairs)

    return score


queries = st.one_of(st.text(max_size=8), st.sampled_from(["", "🙂", *TEXTS[:2]]))
documents = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["", "👩‍👩‍👧‍👦 🇫🇷", "<|im_end|>", *TEXTS, "long " * 4000]),
)


@pytest.mark.parametrize("kind", ["xlm-roberta", "bert", "zerank"])
def test_batches_that_do_not_fit_the_memory_are_halved_and_the_scores_are_the_same(
    kind: str, language_model: Path, tmp_path: Path
) -> None:
    if kind == "zerank":
        reranker = Reranker.load(str(language_model), family=kind, device="cpu", max_seq_length=MAX_TOKENS)
        model = reranker._head._forward._backbone  # type: ignore[union-attr]
    else:
        reranker = Reranker.load(str(write_classifier(tmp_path / "model", kind)), device="cpu")
        model = reranker._head._model  # type: ignore[union-attr]
    pairs = PAIRS[:-1]
    lengths = reranker.tokenizer.prepare(pairs).texts.lengths
    expected = reranker.score(pairs)
    tried: list[int] = []
    limit = int(lengths.max())

    def refuse(_: object, __: object, given: dict[str, torch.Tensor]) -> None:
        tried.append(given["input_ids"].numel())
        if tried[-1] > limit:
            raise torch.OutOfMemoryError

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    np.testing.assert_allclose(reranker.score(pairs), expected, atol=1e-5)
    assert tried[0] > limit
    tried.clear()
    reranker.score(pairs)
    assert max(tried) <= limit  # remembered: nothing fails a second time
    # Pairs that do not fit even alone are named, and nothing is scored as if they did.
    limit -= 1
    with pytest.raises(
        EncoderError,
        match=rf"pair {lengths.argmax()} of {limit + 1} tokens does not fit the memory of cpu even alone",
    ):
        reranker.score(pairs)


@given(pairs=st.lists(st.tuples(queries, documents), min_size=1, max_size=8), budget=st.integers(1, 800))
@settings(max_examples=20)
def test_a_score_does_not_depend_on_its_neighbours(
    score: Score, pairs: list[tuple[str, str]], budget: int
) -> None:
    together = score(pairs, budget)
    alone = np.concatenate([score([pair], budget) for pair in pairs])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.dtype == np.float32
    assert ((together > 0) & (together < 1)).all()


@pytest.mark.parametrize("packed", [True, False])
def test_packed_and_padded_language_models_score_alike(packed: bool, language_model: Path) -> None:
    reranker = Reranker.load(
        str(language_model), family="zerank", device="cpu", max_seq_length=MAX_TOKENS, dtype="float32"
    )
    expected = reranker.score(PAIRS)
    assert reranker._head.packed
    if not packed:
        reranker._head._forward._backbone.set_attn_implementation("sdpa")  # type: ignore[union-attr]
        reranker._head._forward.why_padded = "a test"  # type: ignore[union-attr]
        reranker._head.packed = False
    np.testing.assert_allclose(reranker.score(PAIRS), expected, atol=1e-5)


def test_bfloat16_scores_are_close(language_model: Path, tmp_path: Path) -> None:
    for folder, settings_ in (
        (language_model, {"family": "qwen3-reranker"}),
        (write_classifier(tmp_path / "model"), {}),
    ):
        pairs = PAIRS[:6]
        difference = ours(folder, pairs, dtype="bfloat16", **settings_) - ours(folder, pairs, **settings_)
        assert np.abs(difference).max() < 0.05
