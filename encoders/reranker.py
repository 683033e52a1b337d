"""A loaded cross-encoder that scores (query, document) pairs, on one device.

    reranker = Reranker.load("BAAI/bge-reranker-v2-m3")
    scores = reranker.score([("what is a panda?", "The giant panda is a bear endemic to China."), ...])

A cross-encoder reads both texts at once, so nothing of a document can be computed beforehand: every pair costs a whole
forward pass. Use it to put in order the few documents per query that vectors have found, not to search a corpus.

Pairs are sorted by length and cut into batches within a token budget; a pair's score does not depend on its neighbours
beyond float rounding. A batch that does not fit the memory halves the budget, for good, and its pairs go through in
smaller ones; a pair that does not fit even alone is an error with its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from encoders.batching import Batch, token_budget_batches
from encoders.devices import DEFAULT_BATCH_TOKENS, Dtype, choose_device, choose_dtype
from encoders.errors import EncoderError
from encoders.heads import Classifier, Words, load_head
from encoders.memory import if_it_fits
from encoders.pairs import PairTokenizer, TokenizedPairs
from encoders.rerank_protocol import RerankProtocol, resolve_reranker


class Reranker:
    """One cross-encoder on one device. Not for several threads at once."""

    def __init__(self, tokenizer: PairTokenizer, head: Classifier | Words, max_batch_tokens: int) -> None:
        self.protocol: RerankProtocol = tokenizer.protocol
        self.tokenizer = tokenizer
        self.max_batch_tokens = max_batch_tokens
        self._head = head

    @classmethod
    def load(
        cls,
        model: str,
        revision: str | None = None,
        *,
        family: str | None = None,
        instruction: str | None = None,
        max_seq_length: int | None = None,
        device: str = "auto",
        dtype: Dtype = "auto",
        max_batch_tokens: int | Literal["auto"] = "auto",
        num_threads: int | None = None,
    ) -> Reranker:
        """Load a reranker's files and weights.

        Args:
            model: A folder, or a Hub id.
            revision: Branch, tag or commit of a Hub repository; pin a commit.
            family: `qwen3-reranker` or `zerank`, for a language model that is not under its authors' id.
            instruction: What makes a document relevant, in place of the family's default (Qwen3-Reranker).
            max_seq_length: Tokens of a pair, prompt included; None does as repository and family say.
            device: `auto` is the GPU if there is one; else `cpu`, `cuda` or `cuda:N`.
            dtype: Of the computation. `auto` is bfloat16 on GPUs and CPUs that are faster in it, else float32.
            max_batch_tokens: Tokens of a batch, padding included; a pair longer than that goes alone.
            num_threads: CPU threads of this process; None leaves it to torch.

        Raises:
            EncoderError: There is no such device.
            ModelNotFoundError: There is no such model, or weights or tokenizer are missing.
            TaskError: The model takes no instruction, or the prompt leaves no room for a pair.
            UnsupportedModelError: The model is no reranker that is known, or its files do not fit each other.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        protocol = resolve_reranker(
            model, revision, family=family, instruction=instruction, max_seq_length=max_seq_length
        )
        tokenizer = PairTokenizer(protocol)
        target = choose_device(device)
        head = load_head(protocol, choose_dtype(dtype, target), target)
        budget = DEFAULT_BATCH_TOKENS[target.type] if max_batch_tokens == "auto" else max_batch_tokens
        return cls(tokenizer, head, budget)

    def score(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        """How relevant each document is to its query: float32 `[num_pairs]`, larger is more relevant.

        Raises:
            EncoderError: There is no pair, something is no pair of texts, a query leaves no room for its document, a
                pair does not fit the memory, or a score is not finite.
        """
        tokenized = self.tokenizer.prepare(pairs)
        scores = np.full(len(pairs), np.nan, np.float32)
        left = np.arange(len(pairs))
        while len(left):
            left = left[self._score_what_fits(tokenized.take(left), left, scores)]
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            raise EncoderError(
                f"{len(bad)} of {len(scores)} scores are not finite, the first one of pair {bad[0]}; "
                "compute in float32 or bfloat16 (dtype)"
            )
        return scores

    def _score_what_fits(
        self, pairs: TokenizedPairs, places: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.int64]:
        """Fill in scores up to the first batch that does not fit; returns which pairs are left.

        Args:
            pairs: Those that have no score yet.
            places: Of each of them among `scores`.
            scores: Of all pairs of the call.
        """
        done = [np.empty(0, np.int64)]
        for batch in token_budget_batches(pairs.texts, self.max_batch_tokens, padded=not self._head.packed):
            found = self._try_batch(batch, pairs)
            if found is None and len(batch.rows) == 1:
                found = self._try_batch(batch, pairs)  # now that what could be given back is
            if found is None:
                self._make_smaller(batch, places)
                break
            scores[places[batch.rows]] = found
            done.append(batch.rows)
        return np.setdiff1d(np.arange(len(pairs)), np.concatenate(done))

    @torch.inference_mode()
    def _try_batch(self, batch: Batch, pairs: TokenizedPairs) -> npt.NDArray[np.float32] | None:
        """Scores of a batch; None where it does not fit the memory."""
        return if_it_fits(lambda: self._activated(self._head(batch, pairs)).cpu().numpy(), self._head.device)

    def _activated(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid() if self.protocol.activation == "Sigmoid" else logits

    def _make_smaller(self, batch: Batch, places: npt.NDArray[np.int64]) -> None:
        """Halve what did not fit."""
        if len(batch.rows) == 1:
            raise EncoderError(
                f"pair {places[batch.rows[0]]} of {batch.lengths[0]} tokens does not fit the memory of "
                f"{self._head.device} even alone; lower max_seq_length, or use more memory"
            )
        num_padding = 0 if self._head.packed else batch.num_padding
        self.max_batch_tokens = min(self.max_batch_tokens, len(batch.token_ids) + num_padding) // 2
