"""Whether a file holds what the manifest says of it: the bytes first, then, if they are right, what they mean.

Bytes that differ are not looked into: their content is as wrong as can be already. Right bytes may hold wrong values
all the same, where a writer was at fault or a manifest was edited with care.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.findings import Finding, compare, finding
from jobs.parquet import open_plain
from jobs.parts import METADATA_PREFIX
from jobs.records import FileRecord, PartRecord, Receipt, ViewRecord
from jobs.rows import Reading
from jobs.sections import CHUNK_COLUMNS, CHUNK_INDEX

_LABELS = (
    *("task", "role", "space_id", "dim", "precision", "normalized", "ranges_digest"),
    *("prompt", "suffix", "revision"),
)
# A folder's name says nothing of the model in it, and may be another one by now.
_LABELS_OF_HUB = ("model", "space_name")
# How far from 1 rounding takes the length of a vector: relative steps of 2**-24 and 2**-11 a dimension.
_NORM_TOLERANCE = {"float32": 1e-4, "float16": 2e-3}
_ELEMENTS = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}
_BATCH_ROWS = 4096

Remember = Callable[[pa.RecordBatch], None]


def check_bytes(record: FileRecord, content: bytes) -> list[Finding]:
    """Size and checksum."""
    return [
        *compare(record.path, "bytes", len(content), record.num_bytes),
        *compare(record.path, "sha256", hashlib.sha256(content).hexdigest(), record.sha256),
    ]


def check_rejects(record: FileRecord, receipt: Receipt, reading: Reading, content: bytes) -> list[Finding]:
    """The rows of a rejects file against its receipt."""
    try:
        table = open_plain(io.BytesIO(content)).read()
    except (pa.ArrowException, OSError) as error:
        return [finding(record.path, "content", error, "a Parquet file")]
    wrong = _check_schema(record.path, table.schema, reading.rejects_schema())
    if wrong:
        return wrong
    reasons = Counter(table["reason"].to_pylist())
    shards = table["shard"].unique().to_pylist()
    return [
        *compare(
            record.path,
            "rejects by reason",
            dict(sorted(reasons.items())),
            dict(sorted(receipt.rejected.items())),
        ),
        *compare(record.path, "shards of rejects", shards, [receipt.shard]),
        *compare(record.path, "distinct rows of rejects", len(table["row"].unique()), table.num_rows),
    ]


def check_part(
    record: PartRecord, view: ViewRecord, reading: Reading, content: bytes, remember: Remember
) -> list[Finding]:
    """Footer, schema, labels and values of a part; `remember` gets its ids batch by batch."""
    path = record.path
    try:
        with open_plain(io.BytesIO(content)) as file:
            wrong = [
                *_check_schema(path, file.schema_arrow, part_schema(view, reading)),
                *_check_labels(path, file.metadata.metadata or {}, view),
                *compare(path, "rows in the footer", file.metadata.num_rows, record.num_rows),
            ]
            if any(one.what.startswith("column") for one in wrong):
                return wrong  # without its columns there are no values to look at
            values = _Values(path, view, reading)
            for batch in file.iter_batches(_BATCH_ROWS):
                values.add(batch)
                if batch.column(0).null_count == 0:
                    remember(batch)
    except (pa.ArrowException, OSError) as error:
        return [finding(path, "content", error, "a Parquet file")]
    return [*wrong, *values.findings(record)]


def part_schema(view: ViewRecord, reading: Reading) -> pa.Schema:
    """The columns of a part, in their order."""
    chunks = reading.long_text is not None and reading.long_text.chunks
    where = zip(CHUNK_COLUMNS, (pa.int32(), pa.int64(), pa.int64()), strict=True) if chunks else ()
    first, *kept = [reading.carried.field(name) for name in dict.fromkeys(reading.carried.names)]
    width = view.dim // 8 if view.precision == "binary" else view.dim
    return pa.schema(
        [
            first,
            *(pa.field(name, kind) for name, kind in where),
            *kept,
            pa.field("embedding", pa.list_(_ELEMENTS[view.precision], width)),
            pa.field("num_tokens", pa.int32()),
            pa.field("truncated", pa.bool_()),
            pa.field("text_hash", pa.binary(16)),
        ]
    )


def _check_schema(path: str, found: pa.Schema, expected: pa.Schema) -> list[Finding]:
    """Names and types; each that differs, or their order."""
    types = {field.name: field.type for field in found}
    wrong = [
        finding(path, f"column {field.name}", types.get(field.name, "none"), field.type)
        for field in expected
        if types.get(field.name) != field.type
    ]
    return wrong or compare(path, "columns", ", ".join(found.names), ", ".join(expected.names))


def _check_labels(path: str, metadata: dict[bytes, bytes], view: ViewRecord) -> Iterator[Finding]:
    record = view.model_dump(exclude_none=True)
    is_local = view.revision.startswith("sha256:")
    for name in (*_LABELS, *(() if is_local else _LABELS_OF_HUB)):
        found = metadata.get(f"{METADATA_PREFIX}{name}".encode())
        expected = record.get(name)
        yield from compare(
            path,
            f"label {METADATA_PREFIX}{name}",
            None if found is None else found.decode(errors="replace"),
            None if expected is None else str(expected),
        )


class _Values:
    """Counts of what is wrong with the values of a part, and where it is first, over its batches."""

    def __init__(self, path: str, view: ViewRecord, reading: Reading) -> None:
        self._path = path
        self._view = view
        self._required = [reading.columns.id_column, "embedding", "num_tokens", "truncated", "text_hash"]
        self._chunks = reading.long_text is not None and reading.long_text.chunks
        self._wrong: dict[str, tuple[int, int, str, str]] = {}
        self._num_rows = self._num_tokens = self._num_truncated = self._num_first_chunks = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Look at some rows."""
        for name in [*self._required, *(CHUNK_COLUMNS if self._chunks else ())]:
            self._note(
                f"null in {name}",
                batch.column(name).is_null().to_numpy(zero_copy_only=False),
                None,
                "a value",
            )
        embedding, tokens = batch.column("embedding"), batch.column("num_tokens").fill_null(0)
        self._add_vectors(embedding)
        num_tokens = tokens.to_numpy()
        self._note("num_tokens", num_tokens < 1, num_tokens, "at least 1")
        self._num_tokens += int(num_tokens.sum(dtype=np.int64))
        self._num_truncated += int(batch.column("truncated").true_count)
        if self._chunks:
            index, starts, ends = (batch.column(name).fill_null(0).to_numpy() for name in CHUNK_COLUMNS)
            self._note(CHUNK_INDEX, index < 0, index, "at least 0")
            self._note("char_start", (starts < 0) | (starts > ends), starts, "from 0 to char_end")
            self._num_first_chunks += int((index == 0).sum())
        self._num_rows += batch.num_rows

    def _add_vectors(self, embedding: pa.Array) -> None:
        dim = embedding.type.list_size
        elements = embedding.values.slice(embedding.offset * dim, len(embedding) * dim)
        if elements.null_count:
            self._note(
                "null in a vector",
                elements.is_null().to_numpy(zero_copy_only=False).reshape(-1, dim).any(1),
                None,
                "a number",
            )
            elements = elements.fill_null(0)
        if self._view.precision not in _NORM_TOLERANCE:
            return  # every byte is a value
        vectors = elements.to_numpy(zero_copy_only=False).reshape(-1, dim)
        present = embedding.is_valid().to_numpy(zero_copy_only=False)
        finite = np.isfinite(vectors).all(axis=1)
        self._note("values of a vector", ~finite & present, None, "finite")
        if self._view.normalized:
            norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
            off = np.abs(norms - 1) > _NORM_TOLERANCE[self._view.precision]
            self._note(
                "norm", off & finite & present, norms, f"1 within {_NORM_TOLERANCE[self._view.precision]:g}"
            )

    def _note(
        self, what: str, bad: npt.NDArray[np.bool_], values: npt.NDArray[Any] | None, expected: str
    ) -> None:
        if not bad.any():
            return
        first = int(np.argmax(bad))
        count, row, shown, _ = self._wrong.get(
            what, (0, self._num_rows + first, "" if values is None else str(values[first]), "")
        )
        self._wrong[what] = (count + int(bad.sum()), row, shown, expected)

    def findings(self, record: PartRecord) -> Sequence[Finding]:
        """All of it, sums included."""
        wrong = [
            finding(
                self._path, what, f"{shown} in {count} rows, the first one is row {row}".strip(), expected
            )
            for what, (count, row, shown, expected) in self._wrong.items()
        ]
        wrong += compare(self._path, "rows", self._num_rows, record.num_rows)
        wrong += compare(self._path, "sum of num_tokens", self._num_tokens, record.num_tokens)
        wrong += compare(self._path, "truncated rows", self._num_truncated, record.num_truncated)
        if self._chunks:
            wrong += compare(self._path, "first chunks", self._num_first_chunks, record.num_chunked)
        return wrong
