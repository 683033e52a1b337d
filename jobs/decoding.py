"""The columns of a fragment, decoded within bounds.

What a footer says of sizes decides first, before anything is read (`jobs.footers`). It may lie, so what the pages say
of themselves is looked at next, before one of them is decompressed (`jobs.pages`): how many values they hold, which
must be the footer's, and what they take. And a dictionary lets a page of a megabyte stand for gigabytes, so rows are
decoded a few at a time and counted as they come.

Columns that are dictionaries for Arrow too bring theirs with every batch, a copy each (10,000 texts of 5 KB, 64 rows a
batch: 8.5 GB), so they are read in one, and looked up once it is known how long the values are together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.column_types import is_binary, is_string, leaves_of
from jobs.errors import CorpusError
from jobs.footers import MAX_FRAGMENT_BYTES
from jobs.fragments import Fragment
from jobs.pages import pages_in
from jobs.parquet import Source, open_parquet, quoted, reason_of
from jobs.storage import Store

# Decoding 54 MB of text takes 0.06 s in batches of 1,024 rows, 0.08 s in such of 64, 0.13 s in such of 8.
_BATCH_ROWS = 64
_CODED_BATCH_ROWS = 2**20
_BATCHES = 8  # that fit into the allowed memory, if each of their values were as long as a whole page
_MEND = "write the shard anew, or go on without its rows: input.on_bad_shard=skip"


def decode(
    store: Store, fragment: Fragment, names: Sequence[str], max_bytes: int = MAX_FRAGMENT_BYTES
) -> pa.Table:
    """Some columns of one fragment, in this order.

    Raises:
        CorpusError: The shard cannot be decoded, does not hold what it promised, or takes too much memory.
        FileChangedError: It has changed or gone since it was listed.
    """
    path = fragment.shard.path
    left = _Allowance(max_bytes, fragment)
    columns: dict[str, pa.ChunkedArray] = {}
    try:
        with (
            store.open(path, fragment.shard.version, fragment.shard.size_bytes) as file,
            open_parquet(source := Source(file)) as parquet,
        ):
            largest = _check_pages(source, parquet, fragment, leaves_of(parquet.schema_arrow, names), left)
            coded = [name for name in names if _has_dictionary(parquet.schema_arrow.field(name).type)]
            plain = [name for name in names if name not in coded]
            for some, batches in (
                (plain, _plain_batches(parquet, fragment, plain, largest, left)),
                *(([name], _coded_batches(parquet, fragment, name, left)) for name in coded),
            ):
                columns |= _columns(some, list(batches), fragment)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"shard {path!r} cannot be read: {reason_of(error)}; {_MEND}") from error
    return pa.table({name: columns[name] for name in names})


def _check_pages(
    source: Source, parquet: pq.ParquetFile, fragment: Fragment, leaves: Sequence[int], left: _Allowance
) -> int:
    """Read what is wanted, and compare what its pages say with the footer; returns the largest page's bytes."""
    columns = [
        parquet.metadata.row_group(group).column(leaf) for group in _groups(fragment) for leaf in leaves
    ]
    left.check(sum(column.total_compressed_size for column in columns))
    largest = total = 0
    for column, chunk in zip(columns, source.hold([_range_of(column) for column in columns]), strict=True):
        num_values = num_pages = 0
        for page in pages_in(chunk):
            num_pages += 1
            num_values += page.num_values or 0
            largest = max(largest, page.num_bytes)
            total += page.num_bytes
            # One of them may be a dictionary; and pages of nothing would have no end.
            if num_values > column.num_values or num_pages > column.num_values + 2:
                break
        if num_values != column.num_values or num_pages > column.num_values + 2:
            raise CorpusError(
                f"shard {fragment.shard.path!r}: the pages of column {quoted(column.path_in_schema)} hold {num_values} "
                f"values in {num_pages} pages, as far as they were read, in one of {_row_groups(fragment)}, and the "
                f"footer says {column.num_values}; {_MEND}"
            )
    left.check(total)
    return largest


def _range_of(column: pq.ColumnChunkMetaData) -> tuple[int, int]:
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:
        start = min(start, column.dictionary_page_offset)
    return start, start + column.total_compressed_size


def _columns(
    names: Sequence[str], batches: Sequence[pa.RecordBatch], fragment: Fragment
) -> dict[str, pa.ChunkedArray]:
    num_rows = sum(batch.num_rows for batch in batches)
    if names and num_rows != fragment.num_rows:
        raise CorpusError(
            f"shard {fragment.shard.path!r}: {_row_groups(fragment)} hold {num_rows} rows, and the footer promises "
            f"{fragment.num_rows}; {_MEND}"
        )
    return {name: pa.chunked_array([batch.column(name) for batch in batches]) for name in names}


class _Allowance:
    """The bytes that a fragment may still take."""

    def __init__(self, max_bytes: int, fragment: Fragment) -> None:
        self.max_bytes = self._left = max_bytes
        self._fragment = fragment

    def take(self, num_bytes: int) -> None:
        """Count some.

        Raises:
            CorpusError: They are too many.
        """
        self.check(num_bytes)
        self._left -= num_bytes

    def check(self, num_bytes: int) -> None:
        """Whether so many may come.

        Raises:
            CorpusError: They are too many.
        """
        if num_bytes > self._left:
            raise CorpusError(
                f"shard {self._fragment.shard.path!r}: {_row_groups(self._fragment)} take more than "
                f"{self.max_bytes:,} bytes once they are decoded; raise input.max_fragment_bytes, lower "
                "input.fragment_rows if these are several row groups, or go on without their rows: "
                "input.on_bad_shard=skip"
            )


def _plain_batches(
    parquet: pq.ParquetFile, fragment: Fragment, names: Sequence[str], largest_page: int, left: _Allowance
) -> Iterator[pa.RecordBatch]:
    rows = min(left.max_bytes // _BATCHES // max(1, largest_page), _BATCH_ROWS)
    for batch in parquet.iter_batches(max(1, rows), row_groups=_groups(fragment), columns=list(names)):
        left.take(batch.nbytes)
        yield batch


def _coded_batches(
    parquet: pq.ParquetFile, fragment: Fragment, name: str, left: _Allowance
) -> Iterator[pa.RecordBatch]:
    for batch in parquet.iter_batches(_CODED_BATCH_ROWS, row_groups=_groups(fragment), columns=[name]):
        column = batch.column(0)
        left.take(batch.nbytes)
        if pa.types.is_dictionary(column.type):
            left.take(_looked_up_bytes(column))
            column = column.cast(column.type.value_type)
        yield pa.record_batch([column], [name])


def _looked_up_bytes(column: pa.DictionaryArray) -> int:
    """What the values take, each as often as it stands there."""
    kind = column.dictionary.type
    if pa.types.is_fixed_size_binary(kind) or not (is_string(kind) or is_binary(kind)):
        return (int(kind.bit_width) // 8 + 1) * len(column)
    return int(pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0)


def _has_dictionary(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) or any(
        _has_dictionary(kind.field(index).type) for index in range(kind.num_fields)
    )


def _groups(fragment: Fragment) -> list[int]:
    return list(range(fragment.first_row_group, fragment.first_row_group + fragment.num_row_groups))


def _row_groups(fragment: Fragment) -> str:
    return (
        f"row groups {fragment.first_row_group} to {fragment.first_row_group + fragment.num_row_groups - 1}"
    )
