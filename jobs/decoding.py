"""The columns of a fragment, decoded within bounds.

What a footer says of sizes decides first, before anything is read (`jobs.footers`). It may lie, and a dictionary lets
a page of a megabyte stand for gigabytes, so rows are decoded a few at a time and counted as they come: a fragment never
takes much more memory than it is allowed to. The limit of that is the format's: a page is decompressed whole.

Columns that are dictionaries for Arrow too bring theirs with every batch, a copy each (10,000 texts of 5 KB, 64 rows a
batch: 8.5 GB), so they are read in one, and looked up once it is known how long the values are together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import CorpusError
from jobs.footers import MAX_FRAGMENT_BYTES, is_binary, is_string, leaves_of
from jobs.fragments import Fragment
from jobs.parquet import open_parquet, reason_of
from jobs.storage import Store

# Decoding 54 MB of text takes 0.06 s in batches of 1,024 rows, 0.08 s in such of 64, 0.13 s in such of 8.
_BATCH_ROWS = 64
_CODED_BATCH_ROWS = 2**20
_BATCHES = 8  # that fit into the allowed memory, if each of their values were as long as a whole column
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
        with store.open(path, fragment.shard.version) as file, open_parquet(file) as parquet:
            coded = [name for name in names if _has_dictionary(parquet.schema_arrow.field(name).type)]
            plain = [name for name in names if name not in coded]
            for some, batches in (
                (plain, _plain_batches(parquet, fragment, plain, left)),
                *(([name], _coded_batches(parquet, fragment, name, left)) for name in coded),
            ):
                columns |= _columns(some, list(batches), fragment)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"shard {path!r} cannot be read: {reason_of(error)}; {_MEND}") from error
    return pa.table({name: columns[name] for name in names})


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
        self._left -= num_bytes
        if self._left < 0:
            raise CorpusError(
                f"shard {self._fragment.shard.path!r}: {_row_groups(self._fragment)} take more than "
                f"{self.max_bytes:,} bytes once they are decoded; raise input.max_fragment_bytes, lower "
                "input.fragment_rows if these are several row groups, or go on without their rows: "
                "input.on_bad_shard=skip"
            )


def _plain_batches(
    parquet: pq.ParquetFile, fragment: Fragment, names: Sequence[str], left: _Allowance
) -> Iterator[pa.RecordBatch]:
    groups = _groups(fragment)
    sizes = [
        parquet.metadata.row_group(group).column(leaf).total_uncompressed_size
        for group in groups
        for leaf in leaves_of(parquet.schema_arrow, names)
    ]
    rows = min(left.max_bytes // _BATCHES // max(1, 1, *sizes), _BATCH_ROWS)
    for batch in parquet.iter_batches(max(1, rows), row_groups=groups, columns=list(names)):
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
