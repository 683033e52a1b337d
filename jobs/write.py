"""Last stage: vectors become parts, then the fragment gets its receipt.

Running it twice is harmless: every file is created once, under a name that says what made it, and the first attempt
wins.
"""

from __future__ import annotations

import io
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from encoders.quantization import QUANTIZED, quantize
from jobs.cargo import as_lists, as_vectors, replaced, unpack_table
from jobs.carried import CarriedVectors, Embedded
from jobs.errors import OutputError
from jobs.parquet import open_plain
from jobs.parts import file_record, part_bytes, part_table
from jobs.records import REJECTS, FileRecord, PartRecord, Receipt, receipt_path
from jobs.run_spec import RunSpec, ViewSpec, Work
from jobs.sections import CHUNK_COLUMNS, CHUNK_INDEX
from jobs.storage import open_store


class Writer:
    """Writes what fragments gave.

    Raises:
        StorageError: This machine does not see the corpus or the output.
    """

    def __init__(self, run: RunSpec) -> None:
        run.check_disk()
        self._run = run
        self._store = open_store(run.output)

    def __call__(self, row: pa.Table) -> pa.Table:
        """Write what one fragment gave."""
        started = time.perf_counter()
        work = Work.from_json(row["work"][0].as_py())
        rows, vectors, rejects = (unpack_table(row, name) for name in ("rows", "vectors", "rejects"))
        sources = unpack_table(row, "sources")["source"]
        carried = CarriedVectors(self._store, work)
        encodings = self._run.encodings(work)
        parts = {
            str(spec.view): self._write_part(
                work,
                spec,
                rows,
                carried.merged(
                    self._embedded(vectors, encodings.index(spec.encoding), spec), sources, str(spec.view)
                ),
            )
            for spec in self._run.specs(work)
        }
        reasons = rejects["reason"].value_counts().to_pylist()
        receipt = Receipt(
            fragment=work.fragment.id,
            shard=work.fragment.shard.path,
            num_rows=work.fragment.num_rows,
            rejected={entry["values"]: entry["counts"] for entry in reasons},
            rejects=self._write_rejects(work, rejects) if rejects.num_rows else None,
            parts=parts,
            take=work.fragment.take,
        )
        content = receipt.model_dump_json().encode()
        self._store.create(receipt_path(receipt.id), content)
        num_carried = (len(sources) - sources.null_count) * len(parts)
        cells = {
            "receipt": content,
            "num_carried": num_carried,
            "write_seconds": time.perf_counter() - started,
        }
        return replaced(row, cells, without=("rows", "vectors", "rejects", "sources", "work"))

    def _write_part(self, work: Work, spec: ViewSpec, rows: pa.Table, embedded: Embedded) -> PartRecord:
        table = part_table(rows, embedded.embedding, embedded.num_tokens, embedded.truncated)
        content = part_bytes(
            table,
            spec.labels,
            compression_level=self._run.compression_level,
            row_group_rows=self._run.row_group_rows,
        )
        stored = self._create(work.parts[str(spec.view)], content, self._decided(table))
        return PartRecord(
            **stored.model_dump(),
            num_rows=table.num_rows,
            num_tokens=int(np.sum(embedded.num_tokens.to_numpy(), dtype=np.int64)),
            num_truncated=int(np.sum(embedded.truncated.to_numpy())),
            num_chunked=self._num_chunked(rows),
        )

    def _decided(self, table: pa.Table) -> pa.Table:
        """What says which rows these are, and what the model saw of them."""
        chunk = [name for name in CHUNK_COLUMNS if name in table.column_names]
        return table.select(
            [self._run.reading.columns.id_column, *chunk, "num_tokens", "truncated", "text_hash"]
        )

    def _embedded(self, vectors: pa.Table, key: int, spec: ViewSpec) -> Embedded:
        """What was made now for one view, as its parts store it."""
        embedding = vectors[f"embedding_{key}"]
        if self._run.precision in QUANTIZED:
            quantized = quantize(as_vectors(embedding), self._run.precision, spec.ranges)
            embedding = pa.chunked_array([as_lists(quantized)])
        return Embedded(embedding, vectors[f"num_tokens_{key}"], vectors[f"truncated_{key}"])

    def _num_chunked(self, rows: pa.Table) -> int | None:
        """Rows of the corpus that the vectors are chunks of; each has one first chunk."""
        long_text = self._run.reading.long_text
        if long_text is None or not long_text.chunks:
            return None
        return int(np.sum(rows[CHUNK_INDEX].to_numpy() == 0))

    def _write_rejects(self, work: Work, rejects: pa.Table) -> FileRecord:
        sink = pa.BufferOutputStream()
        pq.write_table(rejects, sink, compression="zstd")
        path = "/".join(filter(None, [REJECTS, work.fragment.shard.partitions, f"rejects-{work.id}.parquet"]))
        return self._create(path, sink.getvalue().to_pybytes(), rejects.select(["row", "reason"]))

    def _create(self, path: str, content: bytes, same: pa.Table) -> FileRecord:
        """Create a file once; where an earlier attempt was first, the record is of its file, not of ours.

        The two may differ in the last bits of a vector (another batch size, another kind of machine), and in nothing
        else: a machine with less memory may have rejected other rows.

        Args:
            path: Of the file.
            content: Its bytes.
            same: Its columns that do not depend on the machine.
        """
        if self._store.create(path, content):
            return file_record(path, content)
        existing = self._store.read(path)
        if existing != content and not _holds(existing, same):
            raise OutputError(
                f"{self._run.output.uri}/{path} exists and does not hold the {same.num_rows} rows that belong there; "
                "remove it and run again"
            )
        return file_record(path, existing)


def _holds(content: bytes, wanted: pa.Table) -> bool:
    """Whether a file has these columns, with these values."""
    try:
        found = open_plain(io.BytesIO(content)).read(wanted.column_names)
        return bool(found.select(wanted.column_names).cast(wanted.schema).equals(wanted))
    except (pa.ArrowException, OSError, KeyError):
        return False
