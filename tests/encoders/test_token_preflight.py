"""Token ids that are a text's own pass, cut or not; a lost prompt, end or suffix, and another text's ids do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from encoders.errors import EncoderError
from encoders.family import Prompt
from encoders.protocol import resolve_protocol
from encoders.token_preflight import prove_tokens
from encoders.tokenized import TokenizedTexts
from encoders.tokenizer import Tokenizer
from tests.encoders.repositories import TEXTS, write_repository

SOME = ["", " ", *TEXTS, "solar panels store energy over the years " * 40, TEXTS[0]]
PROMPTS = (Prompt(), Prompt("query: "), Prompt("Represent the question: "))
Ids = npt.NDArray[np.int32]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", ["bert", "qwen3", "xlm-roberta", "t5"])
def test_what_a_tokenizer_prepares_passes(architecture: str, side: str, tmp_path: Path) -> None:
    folder = write_repository(tmp_path, architecture, tokenizer={"truncation_side": side})
    tokenizer = Tokenizer(resolve_protocol(str(folder)))
    for prompt in PROMPTS:
        prepared = tokenizer.prepare(SOME, prompt)
        assert prepared.truncated.any()
        prove_tokens(tokenizer, SOME, prompt, prepared)
    prove_tokens(tokenizer, [], Prompt(), tokenizer.prepare([], Prompt()))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One that ends every text with <|endoftext|>, here used in a prompt too."""
    folder = write_repository(tmp_path_factory.mktemp("model"), "qwen3")
    return Tokenizer(resolve_protocol(str(folder)))


AROUND = Prompt("query: ", "<|endoftext|> and more")
DAMAGES: dict[str, Callable[[Ids], Ids]] = {
    "the first token of the prompt is another": lambda ids: np.concatenate([ids[:1] + 1, ids[1:]]),
    "the prompt lacks its first token": lambda ids: ids[1:],
    "the last token is gone": lambda ids: ids[:-1],
    "the last token is another": lambda ids: np.concatenate([ids[:-1], ids[-1:] - 1]),
    "the last token is there twice": lambda ids: np.concatenate([ids, ids[-1:]]),
    "two tokens of the text have changed places": lambda ids: ids[[*range(3), 4, 3, *range(5, len(ids))]],
    "the text ends early": lambda ids: np.delete(ids, 6),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("text", [TEXTS[2], SOME[-2]], ids=["whole", "cut"])
def test_damage_is_caught_in_whole_texts_and_in_cut_ones(
    text: str, damage: str, tokenizer: Tokenizer
) -> None:
    prepared = tokenizer.prepare([text], AROUND)
    prove_tokens(tokenizer, [text], AROUND, prepared)
    ids = DAMAGES[damage](prepared.token_ids)
    assert not np.array_equal(ids, prepared.token_ids)
    broken = TokenizedTexts.joined([ids], prepared.prompt_lengths, prepared.truncated)
    with pytest.raises(
        EncoderError, match=r"under the prompt 'query: ' \.\.\. '<\|endoftext\|> and more' was to be"
    ):
        prove_tokens(tokenizer, [text], AROUND, broken)


@pytest.mark.parametrize("other", [Prompt(), Prompt("query:", AROUND.suffix), Prompt("query: ")])
def test_another_prompt_or_none_is_caught(other: Prompt, tokenizer: Tokenizer) -> None:
    with pytest.raises(EncoderError, match="tokenized whole it is"):
        prove_tokens(tokenizer, SOME, AROUND, tokenizer.prepare(SOME, other))


def test_the_ids_of_another_text_are_caught(tokenizer: Tokenizer) -> None:
    prepared = tokenizer.prepare(SOME[1:], AROUND)
    with pytest.raises(EncoderError, match="was to be encoded as"):
        prove_tokens(tokenizer, SOME[1:], AROUND, prepared.take(np.arange(len(SOME) - 1)[::-1].copy()))
