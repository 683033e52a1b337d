"""Late chunking: a text is encoded once, and each chunk's vector is pooled from the chunk's own tokens.

A token's state then knows the whole text: a chunk that says "it" is near the query that names the thing. It costs one
forward pass over the text, whatever the overlap. Prompt and special tokens belong to no chunk. What the model does not
see of a text has no chunk, and all chunks of such a text say so (`truncated`).

It is defined where a vector is pooled from states that each stand for a token of the text: means, maxima, and the last
token of a chunk. The first token of a chunk is no summary of it in a model that pools its first, and weights that
count from the text's beginning mean nothing in its middle: such models are refused.

Source: arXiv 2409.04701, section 3, algorithm 1; without its variant for texts beyond the model's length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from encoders.chunking import Atoms, Chunker, Chunks, windows
from encoders.errors import UnsupportedModelError
from encoders.family import Prompt
from encoders.protocol import Protocol
from encoders.stretches import Stretches
from encoders.tokenized import TokenizedTexts, WholeText, num_agreeing

POOLING_MODES = ("mean", "mean_sqrt_len_tokens", "max", "lasttoken")


def refuse_late_chunking(protocol: Protocol) -> None:
    """Refuse a model whose pooling says nothing about a chunk.

    Raises:
        UnsupportedModelError: It is one.
    """
    undefined = [mode for mode in protocol.pooling.modes if mode not in POOLING_MODES]
    if undefined:
        raise UnsupportedModelError(
            f"{protocol.repository.name} pools with {', '.join(undefined)}, which gives no vector for a chunk in the "
            f"middle of a text; late_chunk is for {', '.join(POOLING_MODES)}; take encoder.long_text=chunk"
        )


@dataclass(frozen=True)
class _Seen:
    """The tokens of a text that the model sees under one prompt, and that stand for some of it.

    Attributes:
        tokens: Their places among the tokens that are encoded.
        char_starts: First characters, never decreasing.
        char_ends: Behind the last ones, never decreasing.
    """

    tokens: npt.NDArray[np.int64]
    char_starts: npt.NDArray[np.int64]
    char_ends: npt.NDArray[np.int64]

    def stretch(self, char_start: int, char_end: int) -> tuple[int, int]:
        """First token and number of tokens of some characters; a token that reaches into them counts."""
        first = int(np.searchsorted(self.char_ends, char_start, side="right"))
        last = int(np.searchsorted(self.char_starts, char_end, side="left"))
        if last <= first:
            return 0, 0
        return int(self.tokens[first]), int(self.tokens[last - 1] - self.tokens[first]) + 1


class LateChunker(Chunker):
    """Cuts texts into chunks that all prompts of a run share, and finds their tokens under each.

    Raises:
        EncoderError: Chunks of that size do not fit, or the overlap leaves no headway.
    """

    def cut_in_place(self, texts: Sequence[str]) -> tuple[Chunks, Mapping[str | Prompt, TokenizedTexts]]:
        """Chunks of each text, and under each prompt the texts' tokens with the stretch of each chunk.

        A text of which the model sees no token has no chunk, and no stretch.
        """
        tokenized = {prompt: self._tokenizer.prepare(texts, prompt) for prompt in self._prompts}
        truncated = np.logical_or.reduce([tokens.truncated for tokens in tokenized.values()])
        whole = [self._tokenizer.whole_texts(texts, prompt) for prompt in ("", *self._prompts)]
        spans: list[list[tuple[int, int]]] = []
        stretches: dict[str | Prompt, list[tuple[int, int]]] = {prompt: [] for prompt in self._prompts}
        for row, (bare, *prompted) in enumerate(zip(*whole, strict=True)):
            seen = [
                _seen(one, tokens, row, self._tokenizer.truncation_side)
                for one, tokens in zip(prompted, tokenized.values(), strict=True)
            ]
            spans.append([])
            for span in self._spans(bare, seen, len(texts[row]), truncated=bool(truncated[row])):
                found = [one.stretch(*span) for one in seen]
                if all(length for _, length in found):
                    spans[-1].append(span)
                    for prompt, stretch in zip(self._prompts, found, strict=True):
                        stretches[prompt].append(stretch)
        chunks = Chunks.of(spans)
        return chunks, {
            prompt: replace(tokens, truncated=truncated, stretches=_stretches(chunks, stretches[prompt]))
            for prompt, tokens in tokenized.items()
        }

    def _spans(
        self, bare: WholeText, seen: Sequence[_Seen], num_chars: int, *, truncated: bool
    ) -> list[tuple[int, int]]:
        """Characters of each chunk, of those that the model sees under all prompts."""
        if not all(len(one.tokens) for one in seen):
            return []
        char_starts, char_ends = bare.own_characters
        visible = (char_starts >= max(one.char_starts[0] for one in seen)) & (
            char_ends <= min(one.char_ends[-1] for one in seen)
        )
        atoms = Atoms.of(char_starts[visible], char_ends[visible])
        return [
            (
                0 if first == 0 and not truncated else int(atoms.char_starts[first]),
                num_chars if last == len(atoms) and not truncated else int(atoms.char_ends[last - 1]),
            )
            for first, last in windows(atoms, self.size, self._overlap)
        ]


def _seen(whole: WholeText, texts: TokenizedTexts, row: int, truncation_side: str) -> _Seen:
    """What truncation leaves of a text, which takes one run of tokens out of it."""
    encoded = texts.token_ids[texts.offsets[row] : texts.offsets[row + 1]]
    own = whole.own
    num_cut = len(whole.token_ids) - len(encoded)
    if num_cut:
        if truncation_side == "left":
            stop = len(whole.token_ids) - num_agreeing(whole.token_ids[::-1], encoded[::-1])
        else:
            stop = num_agreeing(whole.token_ids, encoded) + num_cut
        cut = slice(stop - num_cut, stop)
        assert np.array_equal(np.delete(whole.token_ids, cut), encoded)
        own = own[(own < cut.start) | (own >= stop)]
        tokens = np.where(own < stop, own, own - num_cut)
    else:
        tokens = own
    return _Seen(
        tokens, np.maximum.accumulate(whole.char_starts[own]), np.maximum.accumulate(whole.char_ends[own])
    )


def _stretches(chunks: Chunks, found: Sequence[tuple[int, int]]) -> Stretches:
    starts, lengths = np.array(found, np.int64).reshape(-1, 2).T
    return Stretches(chunks.offsets, starts, lengths)
