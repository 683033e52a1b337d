"""Texts to ragged token ids: the half of encoding that needs no accelerator.

All texts of a call end up in one array of ids with offsets, so that they travel between processes without a
Python object per token. Truncation keeps the model's special tokens, on the side that its tokenizer names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from encoders.errors import ModelNotFoundError, TaskError, UnsupportedModelError
from encoders.native import native_config
from encoders.protocol import Protocol

# Encodings hold offsets and strings besides the ids, about 1 KB a token: drop them as we go.
_CHUNK_TEXTS = 1024


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of many texts, end to end.

    Attributes:
        token_ids: int32 `[num_tokens]`.
        offsets: int64 `[num_texts + 1]`; text i is `token_ids[offsets[i]:offsets[i + 1]]`.
        prompt_lengths: int32 `[num_texts]`; leading tokens that pooling leaves out (attention sees them).
        truncated: bool `[num_texts]`; whether the model does not see the whole text.
    """

    token_ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    prompt_lengths: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text, `[num_texts]`."""
        return np.diff(self.offsets)

    def take(self, rows: npt.NDArray[np.int64]) -> TokenizedTexts:
        """The texts of some rows, in that order."""
        ids = [self.token_ids[self.offsets[row] : self.offsets[row + 1]] for row in rows]
        return TokenizedTexts(
            token_ids=np.concatenate(ids) if ids else np.empty(0, np.int32),
            offsets=_offsets(self.lengths[rows]),
            prompt_lengths=self.prompt_lengths[rows],
            truncated=self.truncated[rows],
        )


class Tokenizer:
    """A model's tokenizer, set up once for its protocol. Load it in the process that uses it.

    Raises:
        ModelNotFoundError: The repository has no tokenizer.
        UnsupportedModelError: It has one without the fast backend, or one whose inputs the encoder cannot honour.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        tokenizer = _load(protocol)
        self._all_special_ids = frozenset(tokenizer.all_special_ids)
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.enable_truncation(protocol.max_seq_length, direction=tokenizer.truncation_side)
        if protocol.do_lower_case:
            _prepend_lowercase(self._backend)
        if any(any(encoding.type_ids) for encoding in self._backend.encode_batch(["a b", ""])):
            raise UnsupportedModelError(
                f"{protocol.repository.name}: its tokenizer marks segments (token_type_ids), which are not passed on"
            )

    def prepare(self, texts: Sequence[str], prompt: str = "") -> TokenizedTexts:
        """Token ids of `prompt + text` for every text.

        A text may come out with no token at all: an empty one, where the tokenizer adds none of its own, or where
        pooling leaves out the prompt and nothing else is there.

        Raises:
            TaskError: The prompt alone fills the model's length.
        """
        left_out = self._left_out(prompt)
        parts: list[npt.NDArray[np.int32]] = []
        prompt_lengths = np.zeros(len(texts), np.int32)
        truncated = np.zeros(len(texts), np.bool_)
        for start in range(0, len(texts), _CHUNK_TEXTS):
            chunk = [prompt + text for text in texts[start : start + _CHUNK_TEXTS]]
            for row, encoding in enumerate(self._backend.encode_batch_fast(chunk), start):
                ids = np.asarray(encoding.ids, dtype=np.int32)
                # `overflowing` makes a Python object per piece cut off, so it is asked of full-length texts only.
                truncated[row] = len(ids) >= self.protocol.max_seq_length and bool(encoding.overflowing)
                if len(left_out):
                    prompt_lengths[row] = self._prompt_length(ids, left_out, prompt, texts[row])
                    if prompt_lengths[row] == len(ids):
                        ids, prompt_lengths[row] = ids[:0], 0
                parts.append(ids)
        lengths = np.array([len(ids) for ids in parts], np.int64)
        token_ids = np.concatenate(parts) if parts else np.empty(0, np.int32)
        return TokenizedTexts(token_ids, _offsets(lengths), prompt_lengths, truncated)

    def _left_out(self, prompt: str) -> npt.NDArray[np.int32]:
        """The prompt's own tokens, where pooling leaves them out; none where it takes all tokens.

        As in sentence-transformers: the prompt alone is tokenized, a trailing special token is not the prompt's.
        """
        alone = self._backend.encode(prompt).ids if prompt else []
        if prompt and len(alone) >= self.protocol.max_seq_length:
            raise TaskError(
                f"the prompt of {len(alone)} tokens leaves no room for a text in the {self.protocol.max_seq_length} "
                f"tokens that {self.protocol.repository.name} takes; shorten it or raise encoder.max_seq_length"
            )
        if self.protocol.pooling.include_prompt:
            alone = []
        elif alone and alone[-1] in self._all_special_ids:
            alone = alone[:-1]
        return np.asarray(alone, dtype=np.int32)

    def _prompt_length(
        self, ids: npt.NDArray[np.int32], left_out: npt.NDArray[np.int32], prompt: str, text: str
    ) -> int:
        """Leading tokens of a text that pooling leaves out.

        They are the prompt's very tokens wherever the text begins with those. Where the last of them has merged
        with the text's beginning, the token that reaches into the text belongs to the text.
        """
        if np.array_equal(ids[: len(left_out)], left_out):
            return len(left_out)
        inside = [end <= len(prompt) for _, end in self._backend.encode(prompt + text).offsets]
        return inside.index(False) if False in inside else len(ids)


def _load(protocol: Protocol) -> Any:
    from transformers import AutoTokenizer

    repository = protocol.repository.on_this_machine(remote_code=protocol.options.trust_remote_code)
    folder = repository.path / protocol.transformer_folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder,
            config=native_config(
                repository.name, repository.json_object(protocol.transformer_folder, "config.json")
            ),
            trust_remote_code=protocol.options.trust_remote_code,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelNotFoundError(
            f"{repository.name}: its tokenizer cannot be loaded from {folder}: {error}"
        ) from error
    files = sorted(set(tokenizer.vocab_files_names.values()))
    if not any((folder / file).is_file() for file in files):
        # transformers makes up a tokenizer without words for architectures that it knows.
        raise ModelNotFoundError(
            f"{repository.name}: {folder} holds none of {', '.join(files)}, so the model has no tokenizer"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModelError(
            f"{repository.name}: {type(tokenizer).__name__} has no fast backend; a repository with a tokenizer.json has"
        )
    return tokenizer


def _prepend_lowercase(backend: Any) -> None:
    """What sentence-transformers does for `do_lower_case`: lower-case first, unless the tokenizer has such a step."""
    from tokenizers.normalizers import Lowercase
    from tokenizers.normalizers import Sequence as NormalizerSequence

    own = backend.normalizer
    steps: list[Any] = [] if own is None else [own]
    if isinstance(own, NormalizerSequence):
        steps = [own[place] for place in range(len(own))]
    if not any(isinstance(step, Lowercase) for step in steps):
        backend.normalizer = NormalizerSequence([Lowercase(), *steps])


def _offsets(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
