"""Second stage: token ids become vectors. The one that wants the accelerator, and the only one that loads weights.

A fragment is encoded once for each distinct prompt and adapter. The adapter in use comes first, so each fragment begins
with the one that the last fragment ended with, and every other adapter is merged once.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from encoders.allocator import keep_freed_memory
from encoders.encoder import Encoder
from encoders.finishing import cast
from encoders.preflight import preflight
from encoders.tokenized import TokenizedTexts
from jobs.cargo import replaced, tokens_of, unpack_table, vector_columns
from jobs.losses import only, without_deadly, without_lost
from jobs.run_spec import Encoding, RunSpec, Work


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
        self._preflight_cosine: float | None = None
        self._name = f"{platform.node()}:{os.getpid()}"
        self._idle_since: float | None = None

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
        started = time.perf_counter()
        # The wait before the first fragment is the start of the run, not a lack of readers.
        starved = 0.0 if self._idle_since is None else started - self._idle_since
        tokens = unpack_table(row, "tokens")
        work = Work.from_json(row["work"][0].as_py())
        vectors: dict[str, pa.Array] = {}
        num_tokens = num_padding = 0
        lost = []
        prompts, encodings = self._run.prompts(work), self._run.encodings(work)
        ragged = [tokens_of(tokens, key) for key, _ in enumerate(prompts)]
        prove = self._run.preflight and self._preflight_cosine is None and len(ragged[0]) > 0
        for encoding in self._by_adapter(encodings):
            texts = ragged[prompts.index(encoding.prompt)]
            self._encoder.use_adapter(encoding.adapter)
            if prove:
                cosine = preflight(self._encoder, texts)
                self._preflight_cosine = min(cosine, self._preflight_cosine or 1.0)
            encoded = self._encoder.encode_what_fits(texts)
            lost.append(_vectors_of(texts, encoded.lost))
            encoded.vectors[lost[-1]] = 0.0  # they are dropped below, and nothing is stored that is no number
            key = encodings.index(encoding)
            vectors |= vector_columns(key, texts, cast(encoded.vectors, self._run.encoded_precision))
            num_tokens += len(texts.token_ids)  # as the parts have them, equal texts too
            num_padding += encoded.num_padding
        cells: dict[str, object] = {
            "vectors": pa.table(vectors),
            "starved_seconds": starved,
            "encode_seconds": time.perf_counter() - started,
            "num_encoded_tokens": num_tokens,
            "num_padding": num_padding,
            "why_padded": self._encoder.why_padded,
            "halved_budget": self._encoder.max_batch_tokens if self._encoder.budget_halved else 0,
            "preflight_cosine": 1.0 if self._preflight_cosine is None else self._preflight_cosine,
            "num_encodings": len(encodings),
            "actor": self._name,
        }
        places = np.concatenate([np.empty(0, np.int64), *lost])
        if len(places):
            cells |= without_lost(row, pa.table(vectors), places)
        encoded_row = replaced(row, cells, without=("tokens", "row_numbers"))
        self._idle_since = time.perf_counter()
        return encoded_row

    def _by_adapter(self, encodings: Sequence[Encoding]) -> list[Encoding]:
        """Those of the adapter in use, then those of each other one."""
        adapters = [self._encoder.adapter, *(encoding.adapter for encoding in encodings)]
        return sorted(encodings, key=lambda encoding: adapters.index(encoding.adapter))


def _vectors_of(texts: TokenizedTexts, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Which vectors are those of some texts."""
    return rows if texts.stretches is None else texts.stretches.places(rows)
