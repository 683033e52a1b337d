"""A fragment's rows out of its shard: those that have a text, and those that do not, with the reason.

Every row that the footer promised ends up on one side or the other; a shard that holds more or fewer is an error.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from jobs.column_types import is_string
from jobs.decoding import decode
from jobs.errors import OutputError
from jobs.footers import MAX_FRAGMENT_BYTES, Columns
from jobs.fragments import Fragment, rows_in
from jobs.parquet import read_plain_schema, reason_of
from jobs.records import LongTextRecord, ReadingRecord
from jobs.storage import Store

NULL_ID = "null_id"
NULL_TEXT = "null_text"
DUPLICATE_ID = "duplicate_id"
UNDECODABLE = "undecodable"
NO_TOKENS = "no_tokens"
TOO_LONG = "too_long"
UNREADABLE = "unreadable_shard"
OUT_OF_MEMORY = "out_of_memory"
NOT_FINITE = "not_finite"
KILLED_WORKER = "killed_worker"
# Another machine, or another number format, may have no such rejects.
OF_THE_MACHINE = frozenset({OUT_OF_MEMORY, NOT_FINITE, KILLED_WORKER})


@dataclass(frozen=True)
class Reading:
    """How rows become texts.

    Attributes:
        columns: What is read.
        text_joiner: What stands between the texts of several columns.
        carried: The id and kept columns, with the types that every part has.
        long_text: What becomes of texts that are too long; None where their rest is cut.
    """

    columns: Columns
    text_joiner: str
    carried: pa.Schema
    long_text: LongTextRecord | None = None

    def record(self) -> ReadingRecord:
        """As it stands in the manifest."""
        return ReadingRecord(
            id_column=self.columns.id_column,
            text_columns=self.columns.text_columns,
            text_joiner=self.text_joiner,
            keep_columns=self.columns.keep_columns,
            carried=tuple((field.name, str(field.type)) for field in self.carried),
            carried_schema=base64.b64encode(self.carried.serialize()).decode(),
            long_text=self.long_text,
        )

    @classmethod
    def of(cls, record: ReadingRecord) -> Reading:
        """Back from the manifest."""
        return cls(record.columns, record.text_joiner, carried_types(record), record.long_text)

    def rejects_schema(self) -> pa.Schema:
        """Of the files that name rejected rows."""
        return pa.schema(
            [
                self.carried.field(self.columns.id_column).with_nullable(True),
                pa.field("reason", pa.string()),
                pa.field("shard", pa.string()),
                pa.field("row", pa.int64()),
            ]
        )


def carried_types(record: ReadingRecord) -> pa.Schema:
    """The id and kept columns with the types that every part has.

    Raises:
        OutputError: The manifest holds no such schema.
    """
    try:
        return read_plain_schema(base64.b64decode(record.carried_schema, validate=True))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise OutputError(
            f"the manifest says of its columns what cannot be read (carried_schema: {reason_of(error)}); "
            "bring it back from a copy, or use another output"
        ) from error


@dataclass(frozen=True)
class Rows:
    """The rows of one fragment.

    Attributes:
        carried: Id and kept columns of the rows that have a text, `[num_texts]`.
        texts: Their texts, in the same order.
        row_numbers: Their numbers in the shard.
        rejects: The other rows: id, reason, shard, row.
    """

    carried: pa.Table
    texts: list[str]
    row_numbers: list[int]
    rejects: pa.Table

    def without(self, rejected: Sequence[int], reason: str, reading: Reading, shard: str) -> Rows:
        """The same with some of the texts (by their place) turned into rejects."""
        if not rejected:
            return self
        dropped = set(rejected)
        kept = [place for place in range(len(self.texts)) if place not in dropped]
        ids = self.carried[reading.columns.id_column].take(pa.array(rejected))
        numbers = [self.row_numbers[place] for place in rejected]
        more = _rejects(reading, shard, ids.combine_chunks(), [reason] * len(rejected), numbers)
        return Rows(
            carried=self.carried.take(pa.array(kept, pa.int64())),
            texts=[self.texts[place] for place in kept],
            row_numbers=[self.row_numbers[place] for place in kept],
            rejects=pa.concat_tables([self.rejects, more]),
        )

    def sample(self, num_texts: int) -> Rows:
        """Some of the texts, or all if there are no more, spread evenly: each the middle one of its stretch."""
        num_texts = min(num_texts, len(self.texts))
        return self.take(
            [(2 * number + 1) * len(self.texts) // (2 * num_texts) for number in range(num_texts)]
        )

    def take(self, taken: Sequence[int]) -> Rows:
        """Some of the texts, by their places, and all rejects."""
        return Rows(
            carried=self.carried.take(pa.array(taken, pa.int64())),
            texts=[self.texts[place] for place in taken],
            row_numbers=[self.row_numbers[place] for place in taken],
            rejects=self.rejects,
        )


def read_rows(
    store: Store, fragment: Fragment, reading: Reading, max_bytes: int = MAX_FRAGMENT_BYTES
) -> Rows:
    """Read one fragment.

    Raises:
        CorpusError: The shard cannot be decoded, does not hold what it promised, or takes too much memory.
        FileChangedError: It has changed or gone since it was listed.
    """
    table = decode(store, fragment, reading.columns.names, max_bytes)
    ids = decoded_ids(table[reading.columns.id_column], reading.carried.field(reading.columns.id_column).type)
    texts, undecodable = _texts(table, reading)
    reasons = _reasons(ids, texts, undecodable, table, reading)
    for place in rows_in(fragment.dropped):
        reasons[place] = DUPLICATE_ID
    kept = [place for place, reason in enumerate(reasons) if reason is None]
    bad = [place for place, reason in enumerate(reasons) if reason is not None]
    return Rows(
        carried=_carried(table, reading).take(pa.array(kept, pa.int64())),  # view types cannot be taken from
        texts=[text for place in kept if (text := texts[place]) is not None],
        row_numbers=[fragment.first_row + place for place in kept],
        rejects=_rejects(
            reading,
            fragment.shard.path,
            ids.take(pa.array(bad, pa.int64())),
            [reason for reason in reasons if reason is not None],
            [fragment.first_row + place for place in bad],
        ),
    )


def unreadable_rows(fragment: Fragment, reading: Reading) -> Rows:
    """All rows of a fragment whose shard cannot be decoded, as rejects."""
    count = fragment.num_rows
    ids = pa.nulls(count, reading.carried.field(reading.columns.id_column).type)
    numbers = list(range(fragment.first_row, fragment.first_row + count))
    rejects = _rejects(reading, fragment.shard.path, ids, [UNREADABLE] * count, numbers)
    return Rows(reading.carried.empty_table(), [], [], rejects)


def _texts(table: pa.Table, reading: Reading) -> tuple[list[str | None], set[int]]:
    """The joined text of each row, None where every column is null; and the rows with undecodable bytes."""
    undecodable: set[int] = set()
    columns = []
    for name in reading.columns.text_columns:
        texts, bad = _strings(table[name])
        columns.append(texts)
        undecodable |= bad
    if len(columns) == 1:
        return columns[0], undecodable
    return [_join(parts, reading.text_joiner) for parts in zip(*columns, strict=True)], undecodable


def _join(parts: Sequence[str | None], joiner: str) -> str | None:
    """Null and empty columns leave no joiner behind; a row where all are null has no text."""
    if all(part is None for part in parts):
        return None
    return joiner.join(part for part in parts if part)


def _strings(column: pa.ChunkedArray) -> tuple[list[str | None], set[int]]:
    """A text column's values, and the rows whose bytes are no UTF-8 (their value is None)."""
    if pa.types.is_null(column.type):
        return [None] * len(column), set()
    raw = column.cast(pa.large_binary())
    try:
        return raw.cast(pa.large_string()).to_pylist(), set()  # the cast checks the encoding
    except pa.ArrowInvalid:
        texts: list[str | None] = []
        bad: set[int] = set()
        for row, value in enumerate(raw.to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                texts.append(None)
                bad.add(row)
        return texts, bad


def _reasons(
    ids: pa.Array, texts: Sequence[str | None], undecodable: set[int], table: pa.Table, reading: Reading
) -> list[str | None]:
    """Why each row gets no vector, None for those that get one."""
    damaged = undecodable.copy()
    for name in {reading.columns.id_column, *reading.columns.keep_columns}:
        if is_string(table[name].type):
            damaged |= _strings(table[name])[1]
    id_is_null = ids.is_null().to_pylist()
    return [
        UNDECODABLE if row in damaged else NULL_ID if id_is_null[row] else NULL_TEXT if text is None else None
        for row, text in enumerate(texts)
    ]


def decoded_ids(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """The ids in the output's type; those that are no UTF-8 become null."""
    if is_string(column.type) and (bad := _strings(column)[1]):
        texts, _ = _strings(column)
        assert all(texts[row] is None for row in bad)
        return pa.array(texts, kind)
    return column.cast(kind).combine_chunks()


def _carried(table: pa.Table, reading: Reading) -> pa.Table:
    columns = [table[field.name].cast(field.type) for field in reading.carried]
    return pa.Table.from_arrays([column.combine_chunks() for column in columns], schema=reading.carried)


def _rejects(
    reading: Reading, shard: str, ids: pa.Array, reasons: Sequence[str], rows: Sequence[int]
) -> pa.Table:
    arrays = [
        ids,
        pa.array(reasons, pa.string()),
        pa.array([shard] * len(rows), pa.string()),
        pa.array(rows, pa.int64()),
    ]
    return pa.Table.from_arrays(arrays, schema=reading.rejects_schema())


def text_hashes(texts: Sequence[str]) -> pa.Array:
    """blake2b-128 of each text's UTF-8 bytes, without a prompt: equal texts, equal hashes, whatever the model."""
    hashes = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    return pa.array(hashes, pa.binary(16))
