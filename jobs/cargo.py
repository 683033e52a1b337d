"""What travels between the stages: one Arrow table of one row a fragment, its cells Arrow streams.

A fragment's rows stay together in one `large_binary` cell, which reads back without a copy, so nothing between the
stages can split, merge or reorder them, and the accelerator's batches are the encoder's affair alone.

    read    -> work, rows and their numbers in the shard, rejects, tokens, which rows have their vectors from before,
               and seconds spent
    encode  -> work, rows, rejects, sources, and in place of tokens, a set for each prompt, float vectors, a set for
               each prompt and adapter
    write   -> a receipt, and what was spent
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from encoders.stretches import Stretches
from encoders.tokenized import TokenizedTexts


def pack(cells: Mapping[str, object]) -> pa.Table:
    """One row; a table becomes the stream in its cell."""
    return pa.table(
        {name: _stream(value) if isinstance(value, pa.Table) else [value] for name, value in cells.items()}
    )


def replaced(row: pa.Table, cells: Mapping[str, object], without: Sequence[str] = ()) -> pa.Table:
    """The same row with these cells, in place of those of the same names, and without some others."""
    kept = row.drop_columns([name for name in row.column_names if name in cells or name in without])
    packed = pack(cells)
    return pa.Table.from_arrays(
        [*kept.columns, *packed.columns], names=[*kept.column_names, *packed.column_names]
    )


def unpack_table(row: pa.Table, name: str) -> pa.Table:
    """The table in a cell, without a copy."""
    return pa.ipc.open_stream(row[name][0].as_buffer()).read_all()


def _stream(table: pa.Table) -> pa.Array:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    buffer = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, buffer.size], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, buffer])


def token_columns(key: int, texts: TokenizedTexts) -> dict[str, pa.Array]:
    """Ragged token ids as columns of `[num_texts]`."""
    columns = {
        f"token_ids_{key}": pa.LargeListArray.from_arrays(pa.array(texts.offsets), pa.array(texts.token_ids)),
        f"prompt_length_{key}": pa.array(texts.prompt_lengths),
        f"truncated_{key}": pa.array(texts.truncated),
    }
    if texts.stretches is not None:
        first_and_length = (
            ("stretch_starts", texts.stretches.starts),
            ("stretch_lengths", texts.stretches.lengths),
        )
        offsets = pa.array(texts.stretches.offsets)
        for name, values in first_and_length:
            columns[f"{name}_{key}"] = pa.LargeListArray.from_arrays(offsets, pa.array(values))
    return columns


def tokens_of(table: pa.Table, key: int) -> TokenizedTexts:
    """Ragged token ids back from their columns."""
    ids = _lists(table, f"token_ids_{key}", pa.int32())
    stretches = None
    if f"stretch_starts_{key}" in table.column_names:
        starts, lengths = (
            _lists(table, f"stretch_{name}_{key}", pa.int64()) for name in ("starts", "lengths")
        )
        stretches = Stretches(starts.offsets.to_numpy(), starts.values.to_numpy(), lengths.values.to_numpy())
    return TokenizedTexts(
        token_ids=ids.values.to_numpy(),
        offsets=ids.offsets.to_numpy(),
        prompt_lengths=table[f"prompt_length_{key}"].to_numpy(),
        truncated=table[f"truncated_{key}"].to_numpy(),
        stretches=stretches,
    )


def _lists(table: pa.Table, name: str, kind: pa.DataType) -> pa.LargeListArray:
    lists = table[name].combine_chunks()
    # It stays chunked where there is no text at all.
    return pa.array([], pa.large_list(kind)) if isinstance(lists, pa.ChunkedArray) else lists


def vector_columns(key: int, texts: TokenizedTexts, vectors: np.ndarray) -> dict[str, pa.Array]:
    """Vectors `[num_vectors, dim]` and what is known of their texts, as columns of `[num_vectors]`."""
    return {
        f"embedding_{key}": as_lists(vectors),
        f"num_tokens_{key}": pa.array(texts.pooled_lengths.astype(np.int32)),
        f"truncated_{key}": pa.array(texts.pooled_truncated),
    }


def as_lists(vectors: np.ndarray) -> pa.Array:
    """Fixed-size lists from vectors `[num_texts, dim]`."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def as_vectors(lists: pa.ChunkedArray) -> np.ndarray:
    """Vectors `[num_texts, dim]` from fixed-size lists."""
    flat: np.ndarray = lists.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(lists), lists.type.list_size)


def grouped(table: pa.Table, column: str) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each value of an integer column."""
    table = table.sort_by(column).combine_chunks()
    values, starts = np.unique(table[column].to_numpy(), return_index=True)
    stops = np.append(starts, table.num_rows)[1:]
    for value, start, stop in zip(values, starts, stops, strict=True):
        yield int(value), table.slice(start, stop - start)
