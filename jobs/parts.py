"""A part: the embeddings of one fragment in one view, as a Parquet file that opens anywhere as it stands.

    <id>, <kept columns>, embedding (fixed-size list), num_tokens, truncated, text_hash

with chunk_index, char_start and char_end after the id where texts are cut into chunks.

What the vectors are stands in the file's key-value metadata under `taskvec.*`, so a part that was copied somewhere
still says its space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import ConfigurationError
from jobs.footers import Columns
from jobs.records import FileRecord
from jobs.sections import CHUNK_COLUMNS, OUTPUT_COLUMNS

METADATA_PREFIX = "taskvec."
_ELEMENTS = "embedding.list.element"  # Parquet's path to the values of the lists


def refuse_clashes(partition_keys: Sequence[str], columns: Columns, *, chunks: bool = False) -> None:
    """Refuse a corpus whose columns or partition folders would give a part a second column of some name.

    Readers differ in which of the two they take, and some take neither. Names that differ in case only clash in SQL.

    Raises:
        ConfigurationError: One would; the names that a configuration gives are refused by itself, but for those that
            only chunks have.
    """
    own = (*OUTPUT_COLUMNS, *CHUNK_COLUMNS) if chunks else OUTPUT_COLUMNS
    for name in (columns.id_column, *columns.keep_columns):
        if chunks and name.lower() in CHUNK_COLUMNS:
            raise ConfigurationError(
                f"column {name!r} would clash with the output's own {name.lower()!r}, which chunks have; rename it in "
                "the corpus, leave it out of keep_columns, or take another encoder.long_text"
            )
    for number, key in enumerate(partition_keys):
        if key.lower() in [other.lower() for other in partition_keys[:number]]:
            raise ConfigurationError(
                f"the corpus is partitioned by {key!r} twice (in SQL, which tells no case: "
                f"{', '.join(map(repr, partition_keys))}); rename the folders of one of them"
            )
        if key.lower() in own:
            raise ConfigurationError(
                f"the corpus is partitioned by {key!r}, and so is the output, where {key.lower()!r} has a meaning of "
                "its own; rename the folders, or name the shards of one of them as the input"
            )
        if key.lower() == columns.id_column.lower():
            raise ConfigurationError(
                f"the id column {columns.id_column!r} is also a partition key of the corpus, which every part gets by "
                "its folder; rename the folders or the column, or take another column as id"
            )
        for name in columns.keep_columns:
            if key.lower() == name.lower():
                raise ConfigurationError(
                    f"keep_columns holds {name!r}, which is a partition key of the corpus: every part gets it by its "
                    "folder anyway; leave it out of keep_columns"
                )


def part_table(carried: pa.Table, embedding: pa.Array, num_tokens: pa.Array, truncated: pa.Array) -> pa.Table:
    """The columns of a part.

    Args:
        carried: Id, where the chunk stands, kept columns and, last, `text_hash`; `[num_rows]`.
        embedding: Fixed-size lists of float32, float16, int8, or uint8 with eight signs each.
        num_tokens: int32; tokens that the model saw, prompt and special tokens included.
        truncated: bool; whether the model did not see the whole text.
    """
    columns = dict(zip(carried.column_names, carried.columns, strict=True))
    text_hash = columns.pop("text_hash")
    columns |= {
        "embedding": embedding,
        "num_tokens": num_tokens,
        "truncated": truncated,
        "text_hash": text_hash,
    }
    return pa.table(columns)


def part_bytes(
    table: pa.Table, labels: Mapping[str, str], *, compression_level: int, row_group_rows: int
) -> bytes:
    """The file's content; equal tables give equal bytes."""
    labelled = table.replace_schema_metadata(
        {METADATA_PREFIX + name: value for name, value in labels.items()}
    )
    # Floats and hashes never repeat: a dictionary of them is tried, grown and thrown away. Bytes are stored as int32
    # without one: Parquet knows no smaller numbers.
    repeating = [name for name in table.column_names if name not in ("embedding", "text_hash")]
    with_dictionary = [*repeating, *([_ELEMENTS] if _holds_bytes(table.schema) else [])]
    sink = pa.BufferOutputStream()
    pq.write_table(
        labelled,
        sink,
        row_group_size=row_group_rows,
        compression="zstd",
        compression_level=compression_level,
        use_dictionary=with_dictionary,
        write_statistics=repeating,
    )
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _holds_bytes(schema: pa.Schema) -> bool:
    return bool(schema.field("embedding").type.value_type.bit_width == 8)


def file_record(path: str, content: bytes) -> FileRecord:
    """What a receipt says of a file."""
    return FileRecord(path=path, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
