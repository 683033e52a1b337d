"""The three stages that a fragment goes through; each turns a table of one row into another (see `jobs.cargo`).

They hold no Ray: the pipeline decides where and how often they run. Running one twice is harmless, for what the
last one writes is created once, under a name that says what made it, and the first attempt wins.
"""

from __future__ import annotations

import os
import platform
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from encoders.encoder import Encoder
from encoders.finishing import cast
from encoders.tokenizer import TokenizedTexts, Tokenizer
from jobs.cargo import pack, token_columns, tokens_of, unpack_table, vector_columns
from jobs.errors import CorpusError, OutputError
from jobs.parts import file_record, part_bytes, part_table
from jobs.records import RECEIPTS, REJECTS, FileRecord, PartRecord, Receipt
from jobs.rows import NO_TOKENS, Rows, read_rows, text_hashes, unreadable_rows
from jobs.run_spec import RunSpec, ViewSpec, Work
from jobs.storage import open_store


class Reader:
    """Shard -> rows, rejects and token ids. CPU only."""

    def __init__(self, run: RunSpec) -> None:
        self._run = run
        self._store = open_store(run.corpus)
        self._tokenizer = Tokenizer(run.protocol)

    def __call__(self, row: pa.Table) -> pa.Table:
        """Read and tokenize one fragment."""
        work = Work.from_json(row["work"][0].as_py())
        started = time.perf_counter()
        rows = self._read(work)
        read = time.perf_counter()
        rows, tokenized = self._tokenize(rows, work)
        tokens: dict[str, pa.Array] = {}
        for key, texts in enumerate(tokenized):
            tokens |= token_columns(key, texts)
        return pack(
            {
                "work": work.to_json(),
                "rows": rows.carried.append_column("text_hash", text_hashes(rows.texts)),
                "rejects": rows.rejects,
                "tokens": pa.table(tokens),
                "read_seconds": read - started,
                "tokenize_seconds": time.perf_counter() - read,
            }
        )

    def _read(self, work: Work) -> Rows:
        try:
            return read_rows(self._store, work.fragment, self._run.reading)
        except CorpusError:
            if not self._run.skip_bad_shards:
                raise
            return unreadable_rows(work.fragment, self._run.reading)

    def _tokenize(self, rows: Rows, work: Work) -> tuple[Rows, list[TokenizedTexts]]:
        """Token ids for each distinct prompt; texts that come out empty under one of them are rejects."""
        prompts = self._run.prompts(work)
        tokenized = [self._tokenizer.prepare(rows.texts, prompt) for prompt in prompts]
        empty = np.logical_or.reduce([texts.lengths == 0 for texts in tokenized])
        if not empty.any():
            return rows, tokenized
        shard = work.fragment.shard.path
        kept = rows.without(np.flatnonzero(empty).tolist(), NO_TOKENS, self._run.reading, shard)
        return kept, [texts.take(np.flatnonzero(~empty)) for texts in tokenized]


class EncodeFragment:
    """Token ids -> vectors, with one loaded model. The stage that wants the accelerator."""

    def __init__(self, run: RunSpec) -> None:
        self._run = run
        self._encoder = Encoder.load(
            run.protocol,
            device=run.device,
            dtype=run.dtype,
            max_batch_tokens=run.max_batch_tokens,
            num_threads=1 if run.device == "cpu" else None,
        )
        self._name = f"{platform.node()}:{os.getpid()}"

    def __call__(self, row: pa.Table) -> pa.Table:
        """Encode one fragment, once for each distinct prompt."""
        started = time.perf_counter()
        tokens = unpack_table(row, "tokens")
        work = Work.from_json(row["work"][0].as_py())
        vectors: dict[str, pa.Array] = {}
        num_tokens = num_padding = 0
        for key, _ in enumerate(self._run.prompts(work)):
            texts = tokens_of(tokens, key)
            encoded = self._encoder.encode(texts)
            vectors |= vector_columns(key, texts, cast(encoded.vectors, self._run.precision))
            num_tokens += len(texts.token_ids)
            num_padding += encoded.num_padding
        cells = pack(
            {
                "vectors": pa.table(vectors),
                "encode_seconds": time.perf_counter() - started,
                "num_encoded_tokens": num_tokens,
                "num_padding": num_padding,
                "actor": self._name,
            }
        )
        kept = row.drop_columns(["tokens"])
        return pa.Table.from_arrays(
            [*kept.columns, *cells.columns], names=[*kept.column_names, *cells.column_names]
        )


class Writer:
    """Vectors -> parts, rejects, and last the fragment's receipt."""

    def __init__(self, run: RunSpec) -> None:
        self._run = run
        self._store = open_store(run.output)

    def __call__(self, row: pa.Table) -> pa.Table:
        """Write what one fragment gave."""
        started = time.perf_counter()
        work = Work.from_json(row["work"][0].as_py())
        carried, vectors, rejects = (unpack_table(row, name) for name in ("rows", "vectors", "rejects"))
        prompts = self._run.prompts(work)
        parts = {
            str(spec.view): self._write_part(work, spec, carried, vectors, prompts.index(spec.prompt))
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
        )
        content = receipt.model_dump_json().encode()
        self._store.create(receipt_path(work), content)
        spent = row.select(
            [name for name in row.column_names if name not in ("rows", "vectors", "rejects", "work")]
        )
        cells = pack({"receipt": content, "write_seconds": time.perf_counter() - started})
        return pa.Table.from_arrays(
            [*spent.columns, *cells.columns], names=[*spent.column_names, *cells.column_names]
        )

    def _write_part(
        self, work: Work, spec: ViewSpec, carried: pa.Table, vectors: pa.Table, key: int
    ) -> PartRecord:
        num_tokens, truncated = vectors[f"num_tokens_{key}"], vectors[f"truncated_{key}"]
        table = part_table(carried, vectors[f"embedding_{key}"], num_tokens, truncated)
        content = part_bytes(
            table,
            spec.labels,
            compression_level=self._run.compression_level,
            row_group_rows=self._run.row_group_rows,
        )
        stored = self._create(work.parts[str(spec.view)], content, table.num_rows)
        return PartRecord(
            **stored.model_dump(),
            num_rows=table.num_rows,
            num_tokens=int(np.sum(num_tokens.to_numpy(), dtype=np.int64)),
            num_truncated=int(np.sum(truncated.to_numpy())),
        )

    def _write_rejects(self, work: Work, rejects: pa.Table) -> FileRecord:
        sink = pa.BufferOutputStream()
        pq.write_table(rejects, sink, compression="zstd")
        path = "/".join(filter(None, [REJECTS, work.fragment.shard.partitions, f"rejects-{work.id}.parquet"]))
        return self._create(path, sink.getvalue().to_pybytes(), rejects.num_rows)

    def _create(self, path: str, content: bytes, num_rows: int) -> FileRecord:
        """Create a file once; where an earlier attempt was first, the record is of its file, not of ours.

        The two may differ in the last bits of a vector (another batch size, another kind of machine).
        """
        if self._store.create(path, content):
            return file_record(path, content)
        existing = self._store.read(path)
        if existing != content and _num_rows(existing) != num_rows:
            raise OutputError(
                f"{self._run.output.uri}/{path} exists and does not hold the {num_rows} rows that belong there; "
                "remove it and run again"
            )
        return file_record(path, existing)


def receipt_path(work: Work) -> str:
    """Where the receipt of a fragment's views goes."""
    return f"{RECEIPTS}/{work.id}.json"


def _num_rows(content: bytes) -> int | None:
    try:
        return int(pq.read_metadata(pa.BufferReader(content)).num_rows)
    except pa.ArrowInvalid:
        return None
