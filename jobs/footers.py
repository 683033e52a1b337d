"""What a shard says of itself: rows, sizes and types from its footer, no data read.

A footer decides whether the run can go on at all. A shard that is no Parquet file is a value, a `BadShard`
with its reason, because one broken upload in a million is the owner's choice to skip or to mend. A shard
whose columns are not what the configuration promises is a CorpusError, because the next one will be the same;
and if none has them, it is the configuration that is wrong.

Columns with Arrow extension types are refused here, before any page is decoded, at any depth: libraries
register such types with code that runs on the content (Ray's unpickle it). Columns that nobody asked for are
not looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from jobs.column_types import is_id, is_text, leaves_of, normalised, row_bits
from jobs.corpus import Shard
from jobs.errors import ConfigurationError, CorpusError
from jobs.parquet import extensions, listed, open_parquet, quoted, reason_of, shortened
from jobs.storage import Location, Store, open_store
from jobs.threads import in_threads

_ID_TYPES = "an integer, a string or binary (also as a dictionary)"
_TEXT_TYPES = "a string, binary or null (also as a dictionary)"
_NULL = "null"
_FIXED = "FIXED_LEN_BYTE_ARRAY"
_VALUE_BYTES = {"INT32": 4, "INT64": 8, "INT96": 8, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}
# What the columns of a fragment may take, unless the configuration says otherwise.
MAX_FRAGMENT_BYTES = 2_000_000_000
# Shards that must all lack a column before its name is held to be wrong.
_SAMPLED = 16


@dataclass(frozen=True)
class Columns:
    """The columns of a corpus that a job reads.

    Attributes:
        id_column: Names each row.
        text_columns: Are embedded.
        keep_columns: Travel along into the output.
    """

    id_column: str
    text_columns: tuple[str, ...]
    keep_columns: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Id, kept and text columns, each once, in this order."""
        return tuple(dict.fromkeys((self.id_column, *self.keep_columns, *self.text_columns)))


@dataclass(frozen=True)
class Footer:
    """A readable shard.

    Attributes:
        path: The shard's path.
        row_group_rows: Rows of each row group.
        row_group_bytes: Compressed bytes of the wanted columns in each row group.
        columns: The wanted columns in the order of `Columns.names`, their types without what only says how
            they are laid out in memory (dictionaries, large and view types).
    """

    path: str
    row_group_rows: tuple[int, ...]
    row_group_bytes: tuple[int, ...]
    columns: pa.Schema


@dataclass(frozen=True)
class BadShard:
    """A shard that is no readable Parquet file, and why."""

    path: str
    reason: str


def read_footer(
    store: Store, shard: Shard, wanted: Columns, max_fragment_bytes: int = MAX_FRAGMENT_BYTES
) -> Footer | BadShard:
    """Read and check the footer of one shard.

    Raises:
        CorpusError: A wanted column is missing, stands twice, or has a type that is not allowed.
        StorageError: The shard could not be read.
        FileChangedError: It has changed or gone since it was listed.
    """
    if shard.size_bytes == 0:
        return BadShard(shard.path, "the file is empty (0 bytes, or a link to nothing)")
    with store.open(shard.path, shard.version, shard.size_bytes) as file:
        try:
            parquet = open_parquet(file)
            metadata, schema = parquet.metadata, parquet.schema_arrow
        # a corrupt footer is OSError (Thrift), ArrowException or a bad string; a failed read is StorageError
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            return BadShard(shard.path, f"not a readable Parquet file: {reason_of(error)}")
        _check_columns(shard, schema, wanted, num_rows=metadata.num_rows)
        return _footer(shard, metadata, schema, wanted, max_fragment_bytes)


def read_footers(
    location: Location,
    shards: Sequence[Shard],
    wanted: Columns,
    max_fragment_bytes: int = MAX_FRAGMENT_BYTES,
    threads: int = 16,
) -> list[Footer | BadShard]:
    """Read the footers of shards of one corpus, in their order, many at a time.

    Raises:
        CorpusError: As `read_footer`; of several, that of the first shard.
        StorageError: As `read_footer`.
    """
    store = open_store(location)
    return list(
        in_threads(lambda shard: read_footer(store, shard, wanted, max_fragment_bytes), shards, threads)
    )


def check_columns(
    location: Location,
    shards: Sequence[Shard],
    wanted: Columns,
    max_fragment_bytes: int = MAX_FRAGMENT_BYTES,
) -> None:
    """Tell a wrong command from a wrong corpus, whatever the order of the shards: look at a few, spread over all.

    Raises:
        ConfigurationError: None of them has the wanted columns as they are wanted.
        StorageError: As `read_footer`.
    """
    last = len(shards) - 1
    places = sorted({round(place * last / (_SAMPLED - 1)) for place in range(_SAMPLED)}) if shards else []
    refused = []
    for place in places:
        try:
            footer = read_footer(open_store(location), shards[place], wanted, max_fragment_bytes)
        except CorpusError as error:
            refused.append(error)
        else:
            if isinstance(footer, Footer):
                return
    if refused:
        raise ConfigurationError(str(refused[0])) from refused[0]


def check_same_columns(footers: Iterable[Footer], wanted: Columns) -> None:
    """Refuse type drift: id and kept columns need one type in all shards.

    Kept columns that are all null in a shard fit any type, and so does the id of a shard without rows. Text
    columns may differ, since every type that is allowed for them becomes text.

    Raises:
        CorpusError: Two shards differ; the type that more shards have stands first.
    """
    found = [(footer.path, {field.name: str(field.type) for field in footer.columns}) for footer in footers]
    for name in dict.fromkeys((wanted.id_column, *wanted.keep_columns)):
        counts = Counter(types[name] for _, types in found if types[name] != _NULL)
        if len(counts) < 2:
            continue
        usual = counts.most_common(1)[0][0]
        usual_path = next(path for path, types in found if types[name] == usual)
        other_path, other = next(
            (path, types[name]) for path, types in found if types[name] not in {usual, _NULL}
        )
        raise CorpusError(
            f"type drift in column {quoted(name)}: it is {shortened(usual, 200)} in {counts[usual]} shards"
            f" ({usual_path!r}) but {shortened(other, 200)} in {other_path!r}; rewrite the shards that differ"
            " with one type, or leave the column out of keep_columns"
        )


def _footer(
    shard: Shard, metadata: pq.FileMetaData, schema: pa.Schema, wanted: Columns, max_fragment_bytes: int
) -> Footer | BadShard:
    leaves = leaves_of(schema, wanted.names)
    flat = [leaf for leaf in leaves if metadata.schema.column(leaf).max_repetition_level == 0]
    rows: list[int] = []
    sizes: list[int] = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        parts = [group.column(leaf).total_compressed_size for leaf in leaves]
        decoded = [_decoded_bytes(group.column(leaf), metadata.schema.column(leaf)) for leaf in leaves]
        in_rows = group.num_rows * sum(row_bits(schema.field(name).type) for name in wanted.names) // 8
        if group.num_rows < 0 or min(*parts, *decoded) < 0:
            return BadShard(shard.path, f"the footer lies: negative counts in row group {index}")
        # Readers stop at the group's rows, so values beyond them would be lost in silence.
        if any(group.column(leaf).num_values != group.num_rows for leaf in flat):
            return BadShard(
                shard.path, f"the footer lies: row group {index} has columns of other lengths than its own"
            )
        if (num_bytes := max(sum(decoded), in_rows)) > max_fragment_bytes:
            return BadShard(
                shard.path,
                f"row group {index} takes {num_bytes:,} bytes in memory, and input.max_fragment_bytes allows "
                f"{max_fragment_bytes:,}: raise it, or write smaller row groups",
            )
        rows.append(group.num_rows)
        sizes.append(sum(parts))
    if sum(rows) != metadata.num_rows:
        return BadShard(
            shard.path,
            f"the footer lies: {sum(rows)} rows in its row groups, {metadata.num_rows} in the file",
        )
    if sum(sizes) > shard.size_bytes:
        return BadShard(
            shard.path,
            f"the footer lies: {sum(sizes)} bytes of columns in a file of {shard.size_bytes} bytes",
        )
    columns = pa.schema([(name, normalised(schema.field(name).type)) for name in wanted.names])
    return Footer(shard.path, tuple(rows), tuple(sizes), columns)


def _check_columns(shard: Shard, schema: pa.Schema, wanted: Columns, *, num_rows: int) -> None:
    missing = [name for name in wanted.names if name not in schema.names]
    if missing:
        raise CorpusError(
            f"shard {shard.path!r} lacks the columns {listed(missing)}; it has"
            f" {listed(schema.names) or 'none'}. Name columns that every shard has"
        )
    for name in wanted.names:
        if schema.names.count(name) > 1:
            raise CorpusError(
                f"shard {shard.path!r} has {quoted(name)} more than once; rename or remove one of them"
            )
        for path, extension in extensions(schema.field(name)):
            raise CorpusError(
                f"shard {shard.path!r}: column {quoted(path)} has the Arrow extension type {quoted(extension)};"
                " extension types may run code when they are read and are refused. Rewrite the column with"
                " its plain storage type, or leave it out"
            )
    id_type = schema.field(wanted.id_column).type
    if not (is_id(id_type) or (pt.is_null(id_type) and num_rows == 0)):
        raise CorpusError(_wrong_type(shard, "id", wanted.id_column, id_type, _ID_TYPES))
    for name in wanted.text_columns:
        text_type = schema.field(name).type
        if not is_text(text_type):
            raise CorpusError(_wrong_type(shard, "text", name, text_type, _TEXT_TYPES))


def _wrong_type(shard: Shard, role: str, name: str, given: pa.DataType, allowed: str) -> str:
    kind = shortened(str(given), 200)
    return (
        f"shard {shard.path!r}: the {role} column {quoted(name)} has type {kind}; allowed is {allowed}. Cast it,"
        " or name another column"
    )


def _decoded_bytes(column: pq.ColumnChunkMetaData, declared: pq.ColumnSchema) -> int:
    """What a column takes, at the least: of nulls and of numbers from a dictionary, next to nothing is in the file."""
    width = declared.length if column.physical_type == _FIXED else _VALUE_BYTES.get(column.physical_type, 0)
    return -1 if column.num_values < 0 else max(width * column.num_values, column.total_uncompressed_size)
