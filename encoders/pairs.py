"""(query, document) pairs to ragged token ids, as a reranker reads them.

A sequence-classification head reads the pair as its tokenizer joins the two; where it is too long, tokens go from the
end of the longer text. A yes/no language model reads prefix + head + document + suffix: prefix and suffix are tokenized
alone and never cut, since the answer is read behind the suffix; the middle is one text and is cut at its end, which is
the document's. A query that would leave nothing of the document is an error: its score would say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from encoders.errors import EncoderError, TaskError, UnsupportedModelError
from encoders.rerank_families import YesNoFamily
from encoders.rerank_protocol import RerankProtocol
from encoders.stretches import runs
from encoders.tokenized import TokenizedTexts
from encoders.tokenizer import load_tokenizer

# Encodings hold offsets and strings besides the ids, about 1 KB a token: drop them as we go.
_CHUNK_PAIRS = 1024


@dataclass(frozen=True)
class TokenizedPairs:
    """Token ids of many pairs, end to end.

    Attributes:
        texts: Each pair as one text.
        type_ids: int32 `[num_tokens]`; which half of its pair a token is of, for models that take that. Else None.
    """

    texts: TokenizedTexts
    type_ids: npt.NDArray[np.int32] | None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: npt.NDArray[np.int64]) -> TokenizedPairs:
        """The pairs of some rows, in that order."""
        types = self.type_ids
        if types is not None:
            types = types[runs(self.texts.offsets[rows], self.texts.lengths[rows])]
        return TokenizedPairs(self.texts.take(rows), types)


class PairTokenizer:
    """A reranker's tokenizer, set up once for its protocol. Load it in the process that uses it.

    Raises:
        ModelNotFoundError: The repository has no tokenizer.
        TaskError: The prompt alone fills the model's length.
        UnsupportedModelError: The tokenizer is not one that the family's prompt is written for.
    """

    def __init__(self, protocol: RerankProtocol) -> None:
        self.protocol = protocol
        tokenizer = load_tokenizer(protocol.repository)
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        self._prefix, self._suffix, self._room = [], [], protocol.max_seq_length
        self._has_type_ids = protocol.family is None and "token_type_ids" in tokenizer.model_input_names
        self._cut_from_left = tokenizer.truncation_side == "left"
        if protocol.family is None:
            self._check_room(self._backend.num_special_tokens_to_add(is_pair=True))
        else:
            self._check_vocabulary(protocol.family)
            self._prefix = self._ids(protocol.family.prefix)
            self._suffix = self._ids(protocol.family.suffix)
            self._room -= len(self._prefix) + len(self._suffix)
            self._check_room(len(self._ids(self._head(""))))

    def prepare(self, pairs: Sequence[tuple[str, str]]) -> TokenizedPairs:
        """Token ids of every pair, in their order.

        Raises:
            EncoderError: There is no pair, something is no pair of texts, or a query leaves no room for its document.
        """
        _check_pairs(pairs)
        parts: list[npt.NDArray[np.int32]] = []
        type_ids: list[npt.NDArray[np.int32]] = []
        truncated = np.zeros(len(pairs), np.bool_)
        for start in range(0, len(pairs), _CHUNK_PAIRS):
            chunk = pairs[start : start + _CHUNK_PAIRS]
            for row, encoding in enumerate(self._encode(chunk), start):
                ids = np.array(encoding.ids, np.int32)
                kept = np.arange(len(ids))
                truncated[row] = len(ids) > self._room
                if truncated[row] and self.protocol.family is None:
                    kept = self._kept_of_both(encoding)
                elif truncated[row]:
                    self._check_document_is_seen(row, pairs[row][0])
                    kept = kept[: self._room]
                parts.append(np.array([*self._prefix, *ids[kept], *self._suffix], np.int32))
                if self._has_type_ids:
                    type_ids.append(np.array(encoding.type_ids, np.int32)[kept])
        texts = TokenizedTexts.joined(parts, np.zeros(len(pairs), np.int32), truncated)
        return TokenizedPairs(texts, np.concatenate(type_ids) if self._has_type_ids else None)

    def _encode(self, pairs: Sequence[tuple[str, str]]) -> list[Any]:
        """The pairs without prefix and suffix."""
        family = self.protocol.family
        if family is None:
            encodings = self._backend.encode_batch_fast([(query, document) for query, document in pairs])
        else:
            bodies = [
                self._head(query) + (document.strip() if family.strip else document)
                for query, document in pairs
            ]
            encodings = self._backend.encode_batch_fast(bodies, add_special_tokens=False)
        return list(encodings)

    def _kept_of_both(self, encoding: Any) -> npt.NDArray[np.int64]:
        """Places of the tokens that are left of a joined pair: transformers' `longest_first`.

        tokenizers' own truncation keeps each piece cut off of one text with each piece of the other, so that its time
        and memory go with the product of the two lengths (benchmarks/LOG.md).
        """
        halves = np.array([-1 if half is None else half for half in encoding.sequence_ids])
        special, query, document = (np.flatnonzero(halves == half) for half in (-1, 0, 1))
        room = self._room - len(special)
        shorter = min(len(query), len(document), room // 2)
        num_query = room - shorter if len(query) > len(document) else shorter
        kept = [self._cut(query, num_query), self._cut(document, room - num_query)]
        return np.sort(np.concatenate([special, *kept]))

    def _cut(self, places: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
        return places[len(places) - length :] if self._cut_from_left else places[:length]

    def _head(self, query: str) -> str:
        family = self.protocol.family
        assert family is not None
        return family.head.format(
            query=query.strip() if family.strip else query, instruction=self.protocol.instruction
        )

    def _ids(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def _check_vocabulary(self, family: YesNoFamily) -> None:
        """Another vocabulary would split the prompt's control tokens, and read other words' logits."""
        name = self.protocol.repository.name
        for word in (family.yes, family.no):
            if word is not None and self._ids(word.text) != [word.token_id]:
                raise UnsupportedModelError(
                    f"{name}: its tokenizer makes {self._ids(word.text)} of {word.text!r}, and the family "
                    f"{family.name!r} reads the answer from the token {word.token_id}; name the model's own family"
                )
        split = [token for token in family.control_tokens if len(self._ids(token)) != 1]
        if split:
            raise UnsupportedModelError(
                f"{name}: its tokenizer does not know {', '.join(split)}, and the prompt of the family "
                f"{family.name!r} is written with them; name the model's own family"
            )
        if added := self._backend.encode("").ids:
            raise UnsupportedModelError(
                f"{name}: its tokenizer adds tokens of its own ({added}), which would stand inside the prompt of the "
                f"family {family.name!r}; give the repository of the reranker itself"
            )

    def _check_room(self, taken: int) -> None:
        if taken >= self._room:
            alone = taken + len(self._prefix) + len(self._suffix)
            raise TaskError(
                f"the prompt of {alone} tokens leaves no room for a pair in the {self.protocol.max_seq_length} tokens "
                f"that {self.protocol.repository.name} takes; shorten the instruction or raise max_seq_length"
            )

    def _check_document_is_seen(self, row: int, query: str) -> None:
        if len(self._ids(self._head(query))) >= self._room:
            raise EncoderError(
                f"pair {row}: the query of {len(query)} characters leaves no room for its document in the "
                f"{self.protocol.max_seq_length} tokens that {self.protocol.repository.name} takes; shorten the query "
                "or raise max_seq_length"
            )


def _check_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    if not len(pairs):
        raise EncoderError("there is no pair to score; give at least one (query, document)")
    for row, pair in enumerate(pairs):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise EncoderError(f"pair {row} is {pair!r}; give pairs of texts: [(query, document), ...]")
        for side, text in zip(("query", "document"), pair, strict=True):
            if not isinstance(text, str):
                raise EncoderError(
                    f"pair {row}: the {side} is {text!r}, not a text; leave the pair out, or give '' on purpose"
                )
