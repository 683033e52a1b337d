"""Long texts cut into chunks of whole tokens, by the tokenizer's own offsets.

A window of tokens becomes the characters that they stand for. Alone, these characters may make more tokens than they
did in their place (the tokenizer of a chunk does not know that a space stood before it), so each chunk is tokenized
as it will be encoded, and one that does not fit is shortened; nothing of it is cut in silence. All prompts of a run
share the chunks, so all its views have the same rows.

Every character that a token stands for is in some chunk, and a character is never split, though it may be several
tokens (an emoji in byte-level BPE). Only a single character that alone is too long for the model stays too long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from encoders.errors import EncoderError
from encoders.family import Prompt
from encoders.tokenizer import Tokenizer


@dataclass(frozen=True)
class Chunks:
    """Where texts are cut, text by text.

    Attributes:
        offsets: int64 `[num_texts + 1]`; the chunks of text i are `offsets[i]` up to `offsets[i + 1]`.
        char_starts: int64 `[num_chunks]`; the first character, counted from the text's first.
        char_ends: int64 `[num_chunks]`; behind the last one.
    """

    offsets: npt.NDArray[np.int64]
    char_starts: npt.NDArray[np.int64]
    char_ends: npt.NDArray[np.int64]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Chunks of each text, `[num_texts]`; 0 where there is nothing to embed."""
        return np.diff(self.offsets)

    @classmethod
    def of(cls, spans: Sequence[Sequence[tuple[int, int]]]) -> Chunks:
        """From the spans of each text."""
        flat = np.array([span for text in spans for span in text], np.int64).reshape(-1, 2)
        offsets = np.cumsum([0, *map(len, spans)], dtype=np.int64)
        return cls(offsets, flat[:, 0], flat[:, 1])


@dataclass(frozen=True)
class Atoms:
    """Tokens that share no character with those before and after, and so may be parted from them.

    Attributes:
        ends: Tokens up to and with each atom, `[num_atoms]`.
        char_starts: `[num_atoms]`.
        char_ends: `[num_atoms]`.
    """

    ends: npt.NDArray[np.int64]
    char_starts: npt.NDArray[np.int64]
    char_ends: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    @classmethod
    def of(cls, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> Atoms:
        """From the characters of the tokens, none of them empty, `[num_tokens]` each."""
        reach = np.maximum.accumulate(ends) if len(ends) else ends
        firsts = np.flatnonzero(
            np.concatenate([np.ones(min(1, len(ends)), np.bool_), starts[1:] >= reach[:-1]])
        )
        lasts = np.concatenate([firsts[1:], np.full(min(1, len(ends)), len(ends))])
        return cls(lasts.astype(np.int64), starts[firsts], reach[lasts - 1])

    def window(self, first: int, size: int) -> int:
        """Behind the last atom of a window of at most `size` tokens, and of at least one atom."""
        return max(first + 1, int(np.searchsorted(self.ends, self._before(first) + size, side="right")))

    def following(self, first: int, last: int, size: int, overlap: int) -> int:
        """Where the window after `first:last` begins: it repeats at most `overlap` tokens, and ends later."""
        repeatable_from = self._before(last) - overlap
        if repeatable_from > 0:
            first = max(first, int(np.searchsorted(self.ends, repeatable_from)))
        first += 1
        while self.window(first, size) <= last:
            first += 1
        return first

    def _before(self, atom: int) -> int:
        return int(self.ends[atom - 1]) if atom else 0


def windows(atoms: Atoms, size: int, overlap: int) -> list[tuple[int, int]]:
    """Runs of atoms of at most `size` tokens, each repeating at most `overlap` tokens of the one before."""
    found: list[tuple[int, int]] = []
    first = last = 0
    while last < len(atoms):
        first = atoms.following(first, last, size, overlap) if found else 0
        last = atoms.window(first, size)
        found.append((first, last))
    return found


class Chunker:
    """Cuts texts so that each chunk fits the model under each prompt of a run.

    Attributes:
        size: Tokens of a chunk, in its place in the text.

    Raises:
        EncoderError: Chunks of that size do not fit, or the overlap leaves no headway.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[str | Prompt],
        chunk_tokens: int | None,
        chunk_overlap: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._prompts = tuple(dict.fromkeys(prompts))
        self._overlap = chunk_overlap
        longest = tokenizer.protocol.max_seq_length
        around = max(len(tokenizer.whole_text("", prompt).token_ids) for prompt in self._prompts)
        self.size = longest - around if chunk_tokens is None else chunk_tokens
        if self.size > longest - around:
            raise EncoderError(
                f"chunks of {self.size} tokens (encoder.chunk_tokens) do not fit: {tokenizer.protocol.repository.name} "
                f"takes {longest} tokens, and prompt and special tokens are up to {around} of them; give at most "
                f"{longest - around}, or null for just that"
            )
        if chunk_overlap >= self.size:
            raise EncoderError(
                f"chunks of {self.size} tokens cannot repeat {chunk_overlap} (encoder.chunk_overlap) of the one "
                "before; give fewer"
            )

    def cut(self, texts: Sequence[str]) -> Chunks:
        """The chunks of each text; a text that fits is one chunk, and one without a token has none."""
        cursors = [
            _Cursor(text, Atoms.of(*whole.own_characters), self.size, self._overlap)
            for text, whole in zip(texts, self._tokenizer.whole_texts(texts), strict=True)
        ]
        pending = cursors
        while pending:
            candidates = [cursor.candidate for cursor in pending]
            tokenized = [self._tokenizer.prepare(candidates, prompt) for prompt in self._prompts]
            empty = np.logical_or.reduce([tokens.lengths == 0 for tokens in tokenized])
            truncated = np.logical_or.reduce([tokens.truncated for tokens in tokenized])
            for cursor, is_empty, is_too_long in zip(pending, empty, truncated, strict=True):
                cursor.go_on(is_empty=bool(is_empty), is_too_long=bool(is_too_long))
            pending = [cursor for cursor in pending if not cursor.done]
        return Chunks.of([cursor.spans for cursor in cursors])


@dataclass
class _Cursor:
    """How far one text is cut.

    Attributes:
        text: What is cut.
        atoms: Its tokens.
        size: Tokens of a window.
        overlap: Tokens that a window may repeat.
        spans: Characters of the chunks so far.
        reached: Atoms in the chunks so far.
        first: First atom of the candidate.
        shorter_by: Atoms that the candidate lacks at its end, since it did not fit.
        done: Whether all of the text is in chunks.
    """

    text: str
    atoms: Atoms
    size: int
    overlap: int
    spans: list[tuple[int, int]] = field(default_factory=list)
    reached: int = 0
    first: int = 0
    shorter_by: int = 0
    done: bool = False

    @property
    def last(self) -> int:
        """Behind the candidate's last atom."""
        if not len(self.atoms):
            return 0
        return max(self.first + 1, self.atoms.window(self.first, self.size) - self.shorter_by)

    @property
    def span(self) -> tuple[int, int]:
        """Characters of the candidate; what no token stands for at a text's ends goes with its end chunks."""
        start = 0 if self.first == 0 else int(self.atoms.char_starts[self.first])
        end = len(self.text) if self.last == len(self.atoms) else int(self.atoms.char_ends[self.last - 1])
        return start, end

    @property
    def candidate(self) -> str:
        """What may become the next chunk."""
        start, end = self.span
        return self.text[start:end]

    def go_on(self, *, is_empty: bool, is_too_long: bool) -> None:
        """Take the candidate, or shorten it."""
        last = self.last
        if is_too_long and last > self.first + 1:
            self.shorter_by = 2 * self.shorter_by or 1
            return
        if not is_empty and (last > self.reached or not len(self.atoms)):
            self.spans.append(self.span)
        self.reached = max(self.reached, last)
        self.done = self.reached == len(self.atoms)
        if not self.done:
            self.first = self.atoms.following(self.first, last, self.size, self.overlap)
            self.shorter_by = 0
