"""Second stage: token ids become vectors. The one that wants the accelerator, and the only one that loads weights.

A fragment is encoded once for each distinct prompt and adapter. What the adapter in use serves comes first, so each
fragment begins with the one that the last ended with, and every other adapter is merged once.

On the CPU there may be several in hand, whose batches the encoder's threads take one after the other (`jobs.turns`).
What is computed of a text is the same whoever is beside it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from encoders.allocator import keep_freed_memory
from encoders.encoder import Encoded, Encoder
from encoders.finishing import cast, unstorable
from encoders.preflight import Preflight
from encoders.tokenized import TokenizedTexts
from jobs.cargo import replaced, tokens_of, unpack_table, vector_columns
from jobs.losses import only, without_deadly, without_lost
from jobs.rows import NOT_FINITE, OUT_OF_MEMORY
from jobs.run_spec import Encoding, RunSpec, Work
from jobs.turns import Clock, Turns

# Of no more nothing can be told about the model; whether they are too many says the limit on rejects.
_FEW_VECTORS = 8


class EncodeFragment:
    """One loaded model; lives in an actor."""

    def __init__(self, run: RunSpec) -> None:
        self._run = run
        if run.device == "cpu":
            keep_freed_memory()
        self._encoder = Encoder.load(
            run.protocol,
            adapters=run.adapters,
            device=run.device,
            dtype=run.dtype,
            max_batch_tokens=run.max_batch_tokens,
            num_threads=run.num_threads,
        )
        self._encoder.use_adapter(self._encoder.adapter)  # which is in it since its effect was seen
        self._turns = Turns(run.fragments_at_once if self._encoder.shares_threads else 1)
        self._clock = Clock()
        self._preflight = Preflight(self._encoder)
        self._unproven = {spec.encoding for spec in run.views} if run.preflight else set()
        self._name = f"{platform.node()}:{os.getpid()}"

    def __call__(self, row: pa.Table) -> pa.Table:
        """Encode one fragment."""
        return self.run(row)

    def open(self, row: pa.Table) -> pa.Table:
        """It comes ready."""
        return row

    def keep(self, opened: pa.Table, numbers: npt.NDArray[np.int64]) -> pa.Table:
        """Only the rows of these numbers."""
        return only(opened, numbers)

    def reject(self, opened: pa.Table, numbers: npt.NDArray[np.int64]) -> pa.Table:
        """Without the rows of these numbers, of which workers die."""
        return without_deadly(opened, numbers)

    def run(self, row: pa.Table) -> pa.Table:
        """Encode it."""
        # The wait before the first fragment is the start of the run, not a lack of readers.
        starved = self._clock.begin()
        try:
            cells = self._encode(row)
        finally:
            worked = self._clock.end()
        times = {"starved_seconds": starved, "encode_seconds": worked}
        return replaced(row, cells | times, without=("tokens", "row_numbers"))

    def _encode(self, row: pa.Table) -> dict[str, object]:
        """What becomes of a fragment."""
        tokens = unpack_table(row, "tokens")
        work = Work.from_json(row["work"][0].as_py())
        vectors: dict[str, pa.Array] = {}
        num_tokens = num_padding = 0
        lost: dict[str, list[npt.NDArray[np.int64]]] = {OUT_OF_MEMORY: [], NOT_FINITE: []}
        prompts, encodings = self._run.prompts(work), self._run.encodings(work)
        ragged = [tokens_of(tokens, key) for key, _ in enumerate(prompts)]
        left = {encoding: ragged[prompts.index(encoding.prompt)] for encoding in encodings}
        while left:
            encoding, encoded = self._encode_one_of(left)
            texts = left.pop(encoding)
            lost[OUT_OF_MEMORY].append(_vectors_of(texts, encoded.lost))
            encoded.vectors[lost[OUT_OF_MEMORY][-1]] = 0.0  # they are dropped below
            lost[NOT_FINITE].append(self._spoilt(encoded.vectors, work))
            encoded.vectors[lost[NOT_FINITE][-1]] = 0.0
            key = encodings.index(encoding)
            vectors |= vector_columns(key, texts, cast(encoded.vectors, self._run.encoded_precision))
            num_tokens += len(texts.token_ids)  # as the parts have them, equal texts too
            num_padding += encoded.num_padding
        if self._preflight.is_open:
            with self._turns.alone():
                self._preflight.close()  # a later fragment that has something to prove opens it anew
        cells: dict[str, object] = {
            "vectors": pa.table(vectors),
            "num_encoded_tokens": num_tokens,
            "num_padding": num_padding,
            "why_padded": self._encoder.why_padded,
            "device": self._encoder.device.type,
            "dtype": self._encoder.number_format,
            "max_batch_tokens": self._encoder.max_batch_tokens,
            "budget_halved": self._encoder.budget_halved,
            "preflight_cosine": self._preflight.cosine,
            "preflight_compared": self._preflight.compared_with,
            "num_encodings": len(encodings),
            "actor": self._name,
        }
        places = {reason: np.concatenate([np.empty(0, np.int64), *some]) for reason, some in lost.items()}
        if any(map(len, places.values())):
            cells |= without_lost(row, pa.table(vectors), places)
        return cells

    def _encode_one_of(self, left: Mapping[Encoding, TokenizedTexts]) -> tuple[Encoding, Encoded]:
        """An encoding and its vectors; of those left one by the adapter in use, where there is any."""
        encoding = next(iter(left))

        def choose() -> bool:
            """Whether nothing has to change for the one that is chosen."""
            nonlocal encoding
            encoding = min(left, key=lambda one: one.adapter != self._encoder.adapter)
            is_proven = encoding not in self._unproven or not len(left[encoding])
            return is_proven and encoding.adapter == self._encoder.adapter

        def prepare() -> None:
            self._encoder.use_adapter(encoding.adapter)
            texts = left[encoding]
            if encoding in self._unproven and len(texts) and self._preflight.prove(texts):
                self._unproven.remove(encoding)

        with self._turns.beside_others(choose, prepare):
            encoded = self._encoder.encode_what_fits(left[encoding])
        if len(encoded.lost) and self._turns.most > 1:  # others may have had the memory
            with self._turns.alone():
                self._encoder.use_adapter(encoding.adapter)
                encoded = self._with_lost(encoded, left[encoding])
        return encoding, encoded

    def _with_lost(self, encoded: Encoded, texts: TokenizedTexts) -> Encoded:
        """The same, with those of the lost texts that fit the memory now."""
        again = self._encoder.encode_what_fits(texts.take(encoded.lost))
        encoded.vectors[_vectors_of(texts, encoded.lost)] = again.vectors
        return Encoded(
            encoded.vectors,
            encoded.num_tokens + again.num_tokens,
            encoded.num_padding + again.num_padding,
            encoded.lost[again.lost],
        )

    def _spoilt(self, vectors: npt.NDArray[np.float32], work: Work) -> npt.NDArray[np.int64]:
        """Which vectors cannot be stored; if that is most of the fragment, it is not for the texts.

        Of a fragment whose other vectors are carried over only the few new ones may come here.

        Raises:
            EncoderError: The model overflows in this number format.
        """
        spoilt = unstorable(vectors, self._run.encoded_precision)
        num_rows = work.num_sampled or work.fragment.num_rows
        if len(spoilt) > max(_FEW_VECTORS, len(vectors) // 2, num_rows // 2):
            cast(vectors, self._run.encoded_precision)
        return spoilt


def _vectors_of(texts: TokenizedTexts, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Which vectors are those of some texts."""
    return rows if texts.stretches is None else texts.stretches.places(rows)
