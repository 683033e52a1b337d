"""A late chunk's vector is pooled from the whole text's token states, which transformers gives a text at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from encoders.encoder import Encoder
from encoders.errors import UnsupportedModelError
from encoders.family import Prompt
from encoders.late_chunking import POOLING_MODES, LateChunker, refuse_late_chunking
from encoders.modules import POOLING_MODES as ALL_MODES
from encoders.protocol import resolve_protocol
from encoders.stretches import Stretches
from encoders.tokenizer import Tokenizer
from tests.encoders.reference import assert_same
from tests.encoders.repositories import TEXTS, WIDTH, dense, edit_json, write_repository

LONG = ["How do batteries store energy, and why do they lose it? Größe 🙂 " * 4, *TEXTS]
PROMPTS = ("", "query: ")


def pooling(mode: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "Pooling", {"embedding_dimension": WIDTH, "pooling_mode": mode, **more}


def plainly(
    folder: Path,
    text: str,
    prompt: str,
    spans: list[tuple[int, int]],
    mode: str,
    suffix: str = "",
    most: int = 48,
) -> np.ndarray:
    """Pooled and normalised states of the tokens that reach into each span of the text, cut at `most` tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 10**6
    model = AutoModel.from_pretrained(folder).eval()
    whole = tokenizer(prompt + text + suffix, return_offsets_mapping=True, return_special_tokens_mask=True)
    if (
        len(whole["input_ids"]) > most
    ):  # one token stands behind the text, whatever the tokenizer or the suffix
        whole = {name: [*values[: most - 1], values[-1]] for name, values in whole.items()}
    with torch.no_grad():
        ids, mask = (
            torch.tensor([whole["input_ids"]]),
            torch.ones(1, len(whole["input_ids"]), dtype=torch.long),
        )
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state[0].double()
    vectors = []
    for span_start, span_end in spans:
        own = [
            place
            for place, (start, end) in enumerate(whole["offset_mapping"])
            if not whole["special_tokens_mask"][place]
            and start - len(prompt) < span_end
            and end - len(prompt) > span_start
        ]
        assert own == list(range(own[0], own[-1] + 1))
        some = states[own]
        match mode:
            case "mean":
                vector = some.mean(0)
            case "mean_sqrt_len_tokens":
                vector = some.sum(0) / len(own) ** 0.5
            case "max":
                vector = some.max(0).values
            case _:
                vector = some[-1]
        vectors.append(vector / vector.norm())
    return torch.stack(vectors).float().numpy()


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize(
    ("architecture", "mode"),
    [
        *(("bert", mode) for mode in POOLING_MODES),
        ("qwen3", "lasttoken"),
        ("xlm-roberta", "mean"),
        ("mpnet", "mean"),
    ],
)
def test_each_chunk_is_pooled_from_the_states_of_the_whole_text(
    tmp_path: Path, architecture: str, mode: str, include_prompt: bool
) -> None:
    modules = [pooling(mode, include_prompt=include_prompt), ("Normalize", {})]
    folder = write_repository(tmp_path, architecture, modules=modules)
    protocol = resolve_protocol(str(folder))
    encoder = Encoder.load(protocol, device="cpu", max_batch_tokens=100, num_threads=2)
    chunks, tokenized = LateChunker(Tokenizer(protocol), PROMPTS, 10, 3).cut_in_place(LONG)
    assert chunks.counts.max() >= 5
    spans = list(zip(chunks.char_starts.tolist(), chunks.char_ends.tolist(), strict=True))
    for prompt in PROMPTS:
        texts = tokenized[prompt]
        vectors = encoder.encode(texts).vectors
        expected = [
            plainly(folder, text, prompt, spans[chunks.offsets[row] : chunks.offsets[row + 1]], mode)
            for row, text in enumerate(LONG)
        ]
        assert_same(vectors, np.concatenate(expected))
        assert texts.truncated.tolist()[0]
        assert len(texts.pooled_truncated) == len(texts.pooled_lengths) == len(spans)


@pytest.mark.parametrize(("architecture", "mode"), [("modernbert", "mean"), ("qwen3", "lasttoken")])
def test_a_document_of_many_chunks_is_encoded_once_and_whole(
    tmp_path: Path, architecture: str, mode: str
) -> None:
    """Its first and its last chunk know of each other only if nothing was cut, and nothing encoded in pieces."""
    folder = write_repository(
        tmp_path,
        architecture,
        modules=[pooling(mode), ("Normalize", {})],
        transformer={"max_seq_length": 4096},
        tokenizer={"model_max_length": 4096},
    )
    edit_json(folder / "config.json", max_position_embeddings=4096)
    document = " ".join(f"{number}. {TEXTS[number % len(TEXTS)]}" for number in range(60))
    protocol = resolve_protocol(str(folder))
    chunks, tokenized = LateChunker(Tokenizer(protocol), PROMPTS, 128, 16).cut_in_place([document])
    spans = list(zip(chunks.char_starts.tolist(), chunks.char_ends.tolist(), strict=True))
    assert len(spans) > 10
    assert (spans[0][0], spans[-1][1]) == (0, len(document))
    encoder = Encoder.load(protocol, device="cpu")
    for prompt in PROMPTS:
        assert tokenized[prompt].truncated.tolist() == [False]
        vectors = encoder.encode(tokenized[prompt]).vectors
        assert_same(vectors, plainly(folder, document, prompt, spans, mode, most=4096))


def test_a_text_before_a_suffix_is_cut_and_the_suffix_is_no_chunk_s(tmp_path: Path) -> None:
    modules = [pooling("lasttoken"), ("Normalize", {})]
    folder = write_repository(tmp_path, "qwen3", modules=modules, tokenizer={"eos": False})
    protocol = resolve_protocol(str(folder))
    prompt = Prompt("query: ", "<|endoftext|>")
    chunks, tokenized = LateChunker(Tokenizer(protocol), [prompt], 10, 3).cut_in_place(LONG)
    vectors = Encoder.load(protocol, device="cpu").encode(tokenized[prompt]).vectors
    spans = list(zip(chunks.char_starts.tolist(), chunks.char_ends.tolist(), strict=True))
    expected = [
        plainly(
            folder,
            text,
            "query: ",
            spans[chunks.offsets[row] : chunks.offsets[row + 1]],
            "lasttoken",
            prompt.suffix,
        )
        for row, text in enumerate(LONG)
    ]
    assert_same(vectors, np.concatenate(expected))
    assert tokenized[prompt].truncated[0]


def test_what_follows_the_pooling_is_done_to_each_chunk(tmp_path: Path) -> None:
    modules = [pooling("mean"), dense(WIDTH, 24), ("Normalize", {})]
    protocol = resolve_protocol(str(write_repository(tmp_path, modules=modules)))
    _, tokenized = LateChunker(Tokenizer(protocol), [""], 10, 0).cut_in_place(LONG)
    vectors = Encoder.load(protocol, device="cpu").encode(tokenized[""]).vectors
    assert vectors.shape == (len(tokenized[""].pooled_lengths), 24)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_what_the_model_does_not_see_has_no_chunk(tmp_path: Path, side: str) -> None:
    folder = write_repository(tmp_path, tokenizer={"truncation_side": side})
    text = "solar panels store energy over the years " * 12
    chunks, tokenized = LateChunker(Tokenizer(resolve_protocol(str(folder))), PROMPTS, 10, 0).cut_in_place(
        [text]
    )
    stretches = {prompt: texts.stretches for prompt, texts in tokenized.items()}
    for prompt, texts in tokenized.items():
        found = stretches[prompt]
        assert texts.truncated.tolist() == [True]
        assert found is not None
        # 48 less special tokens and the longest prompt, the same for both; on the left it is the prompt that is cut.
        assert found.lengths.sum() == (44 if side == "right" else 46)
    if side == "right":
        assert (chunks.char_starts[0], chunks.char_ends[-1] < len(text)) == (0, True)
        assert [found.starts[0] for found in stretches.values() if found is not None] == [1, 3]
    else:
        assert chunks.char_starts[0] > 0
        assert text[chunks.char_ends[-1] :] == " "
        assert [
            found.starts[-1] + found.lengths[-1] for found in stretches.values() if found is not None
        ] == [47, 47]


def test_a_text_without_a_token_of_its_own_has_no_chunk(tmp_path: Path) -> None:
    protocol = resolve_protocol(str(write_repository(tmp_path)))
    chunks, tokenized = LateChunker(Tokenizer(protocol), PROMPTS, 10, 0).cut_in_place(["", "Paris", "  "])
    assert chunks.counts.tolist() == [0, 1, 0]
    assert (chunks.char_starts.tolist(), chunks.char_ends.tolist()) == ([0], [5])
    assert tokenized["query: "].take(np.array([1])).pooled_lengths.tolist() == [len_of("Paris", protocol)]


def len_of(text: str, protocol: Any) -> int:
    return int(Tokenizer(protocol).prepare([text]).lengths[0]) - 2


@pytest.mark.parametrize("mode", [mode for mode in ALL_MODES if mode not in POOLING_MODES])
def test_pooling_that_means_nothing_for_a_chunk_is_refused(tmp_path: Path, mode: str) -> None:
    folder = write_repository(
        tmp_path, modules=[("Pooling", {"embedding_dimension": WIDTH, "pooling_mode": mode})]
    )
    with pytest.raises(UnsupportedModelError, match=rf"pools with {mode}, .* take encoder.long_text=chunk"):
        refuse_late_chunking(resolve_protocol(str(folder)))


def test_late_chunks_have_a_space_of_their_own(tmp_path: Path) -> None:
    protocol = resolve_protocol(str(write_repository(tmp_path)))
    whole, late = (
        protocol.space("retrieval", "float32"),
        protocol.space("retrieval", "float32", late_chunk=True),
    )
    assert whole.id != late.id
    assert late.name == f"{whole.name}/late_chunk"


COUNTS = st.lists(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=4), min_size=1, max_size=6
)


@given(COUNTS, st.data())
def test_stretches_find_their_tokens_in_any_order_of_the_texts(
    found: list[list[tuple[int, int]]], data: st.DataObject
) -> None:
    flat = np.array([one for text in found for one in text], np.int64).reshape(-1, 2)
    stretches = Stretches(np.cumsum([0, *map(len, found)]), flat[:, 0], flat[:, 1])
    rows = np.array(data.draw(st.permutations(range(len(found)))), np.int64)
    lengths = np.full(len(rows), 9)
    expected = [
        9 * place + token
        for place, row in enumerate(rows)
        for start, length in found[row]
        for token in range(start, start + length)
    ]
    assert stretches.take(rows).tokens(lengths).tolist() == expected
    assert [tuple(one) for one in flat[stretches.places(rows)].tolist()] == [
        one for row in rows for one in found[row]
    ]
