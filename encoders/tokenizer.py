"""Texts to ragged token ids: the half of encoding that needs no accelerator.

Truncation keeps the model's special tokens, on the side that its tokenizer names; where a
model wants something behind the text too, the text is cut and never that. Equal texts of a call
are tokenized once, and of a long text no more than the model can see, where that is known to be
the same (`encoders.cutting`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from encoders.cutting import CHARACTERS_PER_TOKEN, beginning, splits_at_spaces, stands_apart
from encoders.ends import settle_ends
from encoders.errors import ModelNotFoundError, TaskError, UnsupportedModelError
from encoders.family import Prompt
from encoders.native import native_config
from encoders.protocol import Protocol
from encoders.remote_code import check_code
from encoders.repository import Repository
from encoders.tokenized import TokenizedTexts, WholeText

# A beginning that has too few tokens is taken so many times longer, until it is the whole text.
_LONGER = 8
# Encodings hold offsets and strings besides the ids, about 1 KB a token: drop them as we go.
_CHUNK_TEXTS = 1024
_WHOLE_TEXTS = 16


class Tokenizer:
    """A model's tokenizer, set up once for its protocol. Load it in the process that uses it.

    Raises:
        ModelNotFoundError: The repository has no tokenizer.
        UnsupportedModelError: It has one without the fast backend, one whose inputs the encoder cannot honour, or one
            that puts other special tokens around a text than the model's row says.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        tokenizer = load_tokenizer(
            protocol.repository,
            protocol.transformer_folder,
            trust_remote_code=protocol.options.trust_remote_code,
        )
        self._all_special_ids = frozenset(tokenizer.all_special_ids)
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        self._ends = settle_ends(protocol, tokenizer)
        self.truncation_side: str = tokenizer.truncation_side
        self._truncate()
        if protocol.do_lower_case:
            _prepend_lowercase(self._backend)
        self._cuts = self.truncation_side == "right" and splits_at_spaces(self._backend)
        if any(any(encoding.type_ids) for encoding in self._backend.encode_batch(["a b", ""])):
            raise UnsupportedModelError(
                f"{protocol.repository.name}: its tokenizer marks segments (token_type_ids), which are not passed on"
            )

    def prepare(self, texts: Sequence[str], prompt: str | Prompt = "") -> TokenizedTexts:
        """Token ids of every text with its prompt around it.

        A text may come out with no token at all: an empty one, where the tokenizer adds none of its own, or where
        pooling leaves out the prompt and nothing else is there.

        Args:
            texts: What is embedded.
            prompt: What the model wants around it; a text is the prompt before it.

        Raises:
            TaskError: The prompt alone fills the model's length.
            UnsupportedModelError: What stands behind the text cannot be kept apart from it.
        """
        prompt = Prompt(prompt) if isinstance(prompt, str) else prompt
        places: dict[str, int] = {}
        rows = [places.setdefault(self._stripped(text), len(places)) for text in texts]
        distinct = self._prepare_distinct(list(places), prompt)
        return distinct if len(places) == len(rows) else distinct.take(np.array(rows, np.int64))

    def _prepare_distinct(self, texts: Sequence[str], prompt: Prompt) -> TokenizedTexts:
        if not prompt.suffix:
            return self._prepare(texts, prompt, np.empty(0, np.int32))
        self._backend.no_truncation()  # it would cut the suffix
        try:
            return self._prepare(texts, prompt, self._suffix(prompt))
        finally:
            self._truncate()

    def _truncate(self) -> None:
        self._backend.enable_truncation(self.protocol.max_seq_length, direction=self.truncation_side)

    def _prepare(self, texts: Sequence[str], prompt: Prompt, suffix: npt.NDArray[np.int32]) -> TokenizedTexts:
        longest = self.protocol.max_seq_length
        left_out = self._left_out(prompt.prefix)
        parts: list[npt.NDArray[np.int32]] = []
        prompt_lengths = np.zeros(len(texts), np.int32)
        truncated = np.zeros(len(texts), np.bool_)
        for start in range(0, len(texts), _CHUNK_TEXTS):
            chunk = self._encode(texts[start : start + _CHUNK_TEXTS], prompt)
            for row, (text, encoding) in enumerate(chunk, start):
                ids = np.asarray(encoding.ids, dtype=np.int32)
                truncated[row] = self._is_cut(encoding)
                if len(ids) > longest:  # only with a suffix: then the backend does not truncate
                    ids = np.concatenate([ids[: longest - len(suffix)], suffix])
                if len(left_out):
                    prompt_lengths[row] = self._prompt_length(ids, left_out, prompt.prefix, text)
                    if prompt_lengths[row] == len(ids):
                        ids, prompt_lengths[row] = ids[:0], 0
                parts.append(ids)
        prepared = TokenizedTexts.joined(parts, prompt_lengths, truncated)
        self._check_ends(prepared, suffix)
        return prepared

    def _encode(
        self, texts: Sequence[str], prompt: Prompt, per_token: int = CHARACTERS_PER_TOKEN
    ) -> list[tuple[str, Any]]:
        """Each text, or as much of it as is seen, with its tokens."""
        cuts = self._cuts and (not prompt.suffix or stands_apart(prompt.suffix, self._backend))
        longest = per_token * self.protocol.max_seq_length
        seen = [beginning(text, longest) if cuts else text for text in texts]
        encodings = self._backend.encode_batch_fast([prompt.around(text) for text in seen])
        found = list(zip(seen, encodings, strict=True))
        unsure = [
            row
            for row, text in enumerate(texts)
            if len(seen[row]) < len(text) and not self._is_cut(encodings[row])
        ]
        if unsure:
            longer = self._encode([texts[row] for row in unsure], prompt, _LONGER * per_token)
            for row, one in zip(unsure, longer, strict=True):
                found[row] = one
        return found

    def _is_cut(self, encoding: Any) -> bool:
        """Whether there are more tokens than the model takes."""
        num_tokens, longest = len(encoding), self.protocol.max_seq_length
        # `overflowing` makes a Python object per piece cut off, so it is asked of full-length texts only.
        return num_tokens > longest or (num_tokens == longest and bool(encoding.overflowing))

    def _check_ends(self, prepared: TokenizedTexts, suffix: npt.NDArray[np.int32]) -> None:
        """What is pooled is what the model's row says: a property of the tokenizer, so it holds for every text."""
        firsts, lasts = prepared.offsets[:-1], prepared.offsets[1:] - 1
        some = prepared.lengths > 0
        if self._ends.first is not None:
            assert (prepared.token_ids[firsts[some]] == self._ends.first).all()
        if len(suffix) or self._ends.last is not None:
            last = suffix[-1] if len(suffix) else self._ends.last
            assert (prepared.token_ids[lasts[some]] == last).all()

    def pooled_token(self, prompt: str | Prompt) -> str | None:
        """The token whose state is the vector, as `token (id)`; None where several are pooled."""
        modes = self.protocol.pooling.modes
        if modes not in (("cls",), ("lasttoken",)):
            return None
        prepared = self.prepare(["text"], prompt)
        place = prepared.prompt_lengths[0] if modes == ("cls",) else -1
        number = int(prepared.token_ids[place])
        is_content = number not in self._all_special_ids and not (
            isinstance(prompt, Prompt) and prompt.suffix
        )
        return "the text's own" if is_content else f"{self._backend.id_to_token(number)!r} ({number})"

    def _suffix(self, prompt: Prompt) -> npt.NDArray[np.int32]:
        """Ids of what stands behind a text, with the special tokens that the tokenizer adds behind that."""
        model = self.protocol.repository.name
        bare = self._backend.encode("a", add_special_tokens=False).ids
        full = self._backend.encode("a").ids
        behind = full[full.index(bare[-1]) + 1 :] if bare else []
        ids = self._backend.encode(prompt.suffix, add_special_tokens=False).ids + behind
        whole = self._backend.encode(prompt.around("a")).ids
        if whole[-len(ids) :] != ids or self.truncation_side != "right":
            raise UnsupportedModelError(
                f"{model}: its tokenizer does not keep {prompt.suffix!r} apart from the text before it (it cuts on the "
                f"{self.truncation_side}), so a long text could not be cut without it; begin it with a special token"
            )
        if len(self._backend.encode(prompt.around("")).ids) >= self.protocol.max_seq_length:
            raise TaskError(
                f"the prompt {prompt} leaves no room for a text in the {self.protocol.max_seq_length} tokens that "
                f"{model} takes; raise encoder.max_seq_length"
            )
        return np.asarray(ids, dtype=np.int32)

    def whole_text(self, text: str, prompt: str | Prompt = "") -> WholeText:
        """The tokens of a text with its prompt, nothing cut off, and the characters of it that they stand for."""
        [whole] = self.whole_texts([text], prompt)
        return whole

    def whole_texts(self, texts: Sequence[str], prompt: str | Prompt = "") -> Iterator[WholeText]:
        """The same for many texts."""
        prompt = Prompt(prompt) if isinstance(prompt, str) else prompt
        for start in range(0, len(texts), _WHOLE_TEXTS):
            some = texts[start : start + _WHOLE_TEXTS]
            self._backend.no_truncation()
            try:
                encodings = self._backend.encode_batch([prompt.around(self._stripped(text)) for text in some])
            finally:
                self._truncate()
            for text, encoding in zip(some, encodings, strict=True):
                stripped = self._stripped(text)
                characters = np.array(encoding.offsets, np.int64).reshape(-1, 2) - len(prompt.prefix)
                characters[np.array(encoding.special_tokens_mask, np.bool_)] = 0
                starts, ends = np.clip(characters, 0, len(stripped)).T + text.find(stripped)
                yield WholeText(np.array(encoding.ids, np.int32), starts, ends)

    def _stripped(self, text: str) -> str:
        """The text as it is tokenized."""
        family = self.protocol.family
        return text.strip() if family is not None and family.strip == "both" else text

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


def load_tokenizer(repository: Repository, folder: str = "", *, trust_remote_code: Sequence[str] = ()) -> Any:
    """A repository's own tokenizer, with a fast backend.

    Raises:
        ModelNotFoundError: The repository has no tokenizer.
        UnsupportedModelError: It has one without the fast backend.
    """
    from transformers import AutoTokenizer

    repository = repository.on_this_machine(remote_code=bool(trust_remote_code))
    path = repository.path / folder
    code_revision = check_code(repository, folder, trust_remote_code) if trust_remote_code else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path,
            config=native_config(
                repository.name,
                repository.json_object(folder, "config.json"),
                own_code=bool(trust_remote_code),
            ),
            trust_remote_code=bool(trust_remote_code),
            code_revision=code_revision,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelNotFoundError(
            f"{repository.name}: its tokenizer cannot be loaded from {path}: {error}"
        ) from error
    files = sorted(set(tokenizer.vocab_files_names.values()))
    if not any((path / file).is_file() for file in files):
        # transformers makes up a tokenizer without words for architectures that it knows.
        raise ModelNotFoundError(
            f"{repository.name}: {path} holds none of {', '.join(files)}, so the model has no tokenizer"
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
