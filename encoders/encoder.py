"""A loaded model that turns token ids into vectors, on one device.

    encoder = Encoder.load(resolve_protocol("intfloat/e5-base-v2"))
    vectors = encoder.encode(Tokenizer(encoder.protocol).prepare(texts, prompt))

Texts are sorted by length, cut into batches within a token budget, run through the backbone, pooled and finished;
the result comes back in the order of the call. A text's vector does not depend on its neighbours beyond float
rounding: no text sees another or padding, and every reduction is within a text. Texts of a call that have the same
tokens go through once, and have the same vector bit for bit (but for late chunks).

On the CPU every core takes batches of its own: threads of one process, each computing with one. That is 1.9 times as
fast on two cores as on one, and the cores share one copy of the weights, one import, and the last batches of a call.
Which thread ran a batch changes no bit of it.

On CUDA a batch is queued before the vectors of the one ahead of it are waited for, so the card computes while the host
prepares and copies. No more than two are under way, and what the second adds is its ids and its vectors: states are
freed as the host gets there, and taken again in the order of the queue.

A batch that does not fit the memory halves the token budget, for good, and its texts go through in smaller batches. A
text that does not fit even alone is tried once more when nothing else of the call is under way, and then given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from encoders.batching import Batch, token_budget_batches
from encoders.copies import Fetch, from_device, to_device
from encoders.devices import Dtype, batch_tokens, choose_device, choose_dtype
from encoders.errors import EncoderError
from encoders.finishing import Finisher
from encoders.forward import Forward
from encoders.int8 import quantize_linears
from encoders.linear import pack_linears
from encoders.loading import load_backbone
from encoders.merging import AdaptedBackbone
from encoders.pooling import pool
from encoders.protocol import Protocol
from encoders.rounds import Round, Tried
from encoders.tokenized import TokenizedTexts


@dataclass(frozen=True)
class Encoded:
    """The vectors of one call.

    Attributes:
        vectors: float32 `[num_texts, dim]`; `[num_stretches, dim]` of texts that have stretches.
        num_tokens: Tokens that were computed, without padding: equal texts of a call are computed once.
        num_padding: Tokens that texts were filled up with; none where they are packed.
        lost: int64 `[num_lost]`; texts that did not fit the memory even alone, whose vectors are not a number.
    """

    vectors: npt.NDArray[np.float32]
    num_tokens: int
    num_padding: int
    lost: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


class Encoder:
    """One backbone on one device. One call at a time, but for encoders that share their threads among calls."""

    def __init__(
        self,
        protocol: Protocol,
        adapted: AdaptedBackbone,
        device: torch.device,
        max_batch_tokens: int | Literal["auto"],
        num_threads: int | None = None,
        *,
        eight_bits: bool = False,
    ) -> None:
        self.protocol = protocol
        self.device = device
        self.number_format = "int8" if eight_bits else str(adapted.module.dtype).removeprefix("torch.")
        self._adapted = adapted
        self._forward = Forward(adapted.module, eight_bits=eight_bits)
        if max_batch_tokens == "auto":
            max_batch_tokens = batch_tokens(self._forward, device, protocol.max_seq_length)
        self.max_batch_tokens = max_batch_tokens
        self.budget_halved = False
        self._finish = Finisher(protocol, device)
        # Batches behind the one whose vectors are waited for.
        self._num_queued = 0 if device.type == "cpu" else 1
        self._threads: ThreadPoolExecutor | None = None
        if num_threads is not None:
            share_batches = num_threads > 1 and device.type == "cpu" and self._forward.concurrent
            torch.set_num_threads(1 if share_batches else num_threads)
            self._threads = ThreadPoolExecutor(num_threads) if share_batches else None

    @classmethod
    def load(
        cls,
        protocol: Protocol,
        *,
        adapters: Sequence[str | None] | None = None,
        device: str = "auto",
        dtype: Dtype | Literal["int8"] = "auto",
        max_batch_tokens: int | Literal["auto"] = "auto",
        num_threads: int | None = None,
    ) -> Encoder:
        """Load a model's weights.

        Args:
            protocol: What `resolve_protocol` read.
            adapters: Those that `use_adapter` will ask for, by the names that `Protocol.adapter` gives; None is all of
                the model's. With a single one nothing is kept aside, and it is in use from the start.
            device: `auto` is the GPU if there is one; else `cpu`, `cuda` or `cuda:N`.
            dtype: Of the computation. `auto` is bfloat16 on GPUs and CPUs that are faster in it, else float32; `int8`
                is for linear layers on the CPU, with float32 between them.
            max_batch_tokens: Tokens of a batch, padding included; a text longer than that goes alone. `auto` is 2,048
                on CPU, and on CUDA what fits into half of the memory that is free, by a trial.
            num_threads: CPU threads, each with batches of its own where the model allows that. None leaves it to
                torch, which splits each product among its threads; more threads than cores cost dearly.

        Raises:
            EncoderError: There is no such device, or the model is known to overflow in that format.
            ModelNotFoundError: Weights are missing.
            UnsupportedModelError: They do not fit the architecture.
        """
        target = choose_device(device)
        eight_bits = dtype == "int8"
        if eight_bits and target.type != "cpu":
            raise EncoderError("dtype int8 is for CPUs; on a GPU take bfloat16")
        chosen = torch.float32 if dtype == "int8" else choose_dtype(dtype, target)
        protocol.check_dtype(str(chosen).removeprefix("torch."))
        backbone = load_backbone(protocol, chosen).to(target)
        adapted = AdaptedBackbone(
            protocol, backbone, protocol.adapters.names if adapters is None else adapters
        )
        if eight_bits:
            quantize_linears(backbone)
        elif target.type == "cpu":
            pack_linears(backbone)
        return cls(protocol, adapted, target, max_batch_tokens, num_threads, eight_bits=eight_bits)

    @property
    def shares_threads(self) -> bool:
        """Whether several callers may encode at the same time, as long as none of them calls anything else."""
        return self._threads is not None

    @property
    def why_padded(self) -> str:
        """What keeps texts from going through end to end, without padding; empty where they do."""
        return self._forward.why_padded

    @property
    def adapter(self) -> str | None:
        """The adapter in use; None is the backbone without any."""
        return self._adapted.active

    def use_adapter(self, name: str | None) -> None:
        """Encode with this adapter from now on; nothing is done where it is in use.

        Raises:
            EncoderError: The encoder was not loaded for it.
        """
        self._adapted.activate(name)

    def encode(self, texts: TokenizedTexts) -> Encoded:
        """Vectors of texts, or of their stretches, of at least one token each, in their order, by the adapter in use.

        Raises:
            EncoderError: There are several adapters, and none was chosen yet; or a text does not fit the memory.
        """
        encoded = self.encode_what_fits(texts)
        if len(encoded.lost):
            raise EncoderError(
                f"{len(encoded.lost)} of {len(texts)} texts do not fit the memory of {self.device} even alone, the "
                f"longest of {texts.lengths[encoded.lost].max()} tokens; lower max_seq_length, or use more memory"
            )
        return encoded

    def encode_what_fits(self, texts: TokenizedTexts) -> Encoded:
        """The same, but texts that do not fit the memory are named in the result.

        Raises:
            EncoderError: There are several adapters, and none was chosen yet.
        """
        assert (texts.lengths > 0).all()
        assert (texts.pooled_lengths > 0).all()
        if not self._adapted.is_chosen:
            raise EncoderError(
                f"{self.protocol.repository.name} has several adapters, and none is chosen; call use_adapter"
            )
        first, inverse = texts.distinct()
        if len(first) == len(texts):
            return self._encode_each(texts)
        encoded = self._encode_each(texts.take(first))
        lost = np.flatnonzero(np.isin(inverse, encoded.lost))
        return replace(encoded, vectors=encoded.vectors[inverse], lost=lost)

    def _encode_each(self, texts: TokenizedTexts) -> Encoded:
        """The same of texts that all differ, or for which that does not matter."""
        vectors = np.full((len(texts.pooled_lengths), self.protocol.dim), np.nan, dtype=np.float32)
        num_tokens = num_padding = 0
        left, alone = np.arange(len(texts), dtype=np.int64), False
        while len(left):
            places = left if texts.stretches is None else texts.stretches.places(left)
            missed = []
            some = texts if len(left) == len(texts) else texts.take(left)
            budget = 1 if alone else self.max_batch_tokens
            for batch, result in self._round(some, budget, alone=alone):
                if result is None:
                    missed.append(batch.rows)
                else:
                    vectors[places[batch.vector_rows]] = result
                    num_tokens += len(batch.token_ids)
                    num_padding += self._forward.num_padding(batch)
            left = left[np.sort(np.concatenate(missed))] if missed else left[:0]
            if alone:
                break
            alone = all(len(rows) == 1 for rows in missed)
            if not alone:  # another call may have halved it meanwhile, for the same reason
                self.max_batch_tokens = min(self.max_batch_tokens, max(1, budget // 2))
                self.budget_halved = True
        return Encoded(vectors, num_tokens, num_padding, left)

    def reference(
        self, texts: TokenizedTexts, plain: Callable[[Batch], torch.Tensor] | None = None
    ) -> npt.NDArray[np.float32]:
        """Vectors of the same texts from token states that are made in another way.

        Args:
            texts: As for `encode`.
            plain: A batch to states `[num_tokens, hidden_size]`; None is this very backbone as it is, each text alone
                by transformers' own attention.
        """
        vectors = np.empty((len(texts.pooled_lengths), self.protocol.dim), dtype=np.float32)
        for batch in token_budget_batches(texts, self.max_batch_tokens, padded=False):
            states = (plain or self._forward.plain)(batch)
            vectors[batch.vector_rows] = self._finish_batch(states, batch)()
        return vectors

    def _round(self, texts: TokenizedTexts, budget: int, *, alone: bool) -> Iterator[Tried]:
        """Batches of the texts and their vectors, as they come."""
        batches = token_budget_batches(texts, budget, padded=not self._forward.packed)
        one = Round(self._encode_batch, self._num_computed, self.device, budget)
        if self._threads and not alone:
            return one.by_threads(batches, self._threads)
        return one.in_turn(batches, 0 if alone else self._num_queued)

    def _num_computed(self, batch: Batch) -> int:
        return len(batch.token_ids) + self._forward.num_padding(batch)

    @torch.inference_mode()
    def _encode_batch(self, batch: Batch) -> Fetch:
        return self._finish_batch(self._forward(batch), batch)

    @torch.inference_mode()
    def _finish_batch(self, states: torch.Tensor, batch: Batch) -> Fetch:
        lengths, prompt_lengths = batch.lengths, batch.prompt_lengths
        if batch.stretches is not None:
            states = states[to_device(batch.stretches.tokens(lengths), self.device)]
            lengths, prompt_lengths = batch.stretches.lengths, np.zeros_like(batch.stretches.lengths)
        assert lengths.sum() == len(states)  # torch is not asked to compare them
        modes = self.protocol.pooling.modes
        pooled = pool(states, to_device(lengths, self.device), to_device(prompt_lengths, self.device), modes)
        return from_device(self._finish(pooled))
