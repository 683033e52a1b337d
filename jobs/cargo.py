"""What travels between the stages: one Arrow table of one row a fragment, its cells Arrow streams.

A fragment's rows stay together in one `large_binary` cell, which reads back without a copy, so nothing between the
stages can split, merge or reorder them, and the accelerator's batches are the encoder's affair alone.

    read    -> work, rows, rejects, tokens, and seconds spent
    encode  -> the same with tokens, a set for each prompt, replaced by vectors, a set for each prompt and adapter
    write   -> a receipt, and what was spent
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from encoders.tokenizer import TokenizedTexts


def pack(cells: Mapping[str, object]) -> pa.Table:
    """One row; a table becomes the stream in its cell."""
    return pa.table(
        {name: _stream(value) if isinstance(value, pa.Table) else [value] for name, value in cells.items()}
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
    ids = pa.LargeListArray.from_arrays(pa.array(texts.offsets), pa.array(texts.token_ids))
    return {
        f"token_ids_{key}": ids,
        f"prompt_length_{key}": pa.array(texts.prompt_lengths),
        f"truncated_{key}": pa.array(texts.truncated),
    }


def tokens_of(table: pa.Table, key: int) -> TokenizedTexts:
    """Ragged token ids back from their columns."""
    ids = table[f"token_ids_{key}"].combine_chunks()
    if isinstance(ids, pa.ChunkedArray):  # no text at all
        ids = pa.array([], pa.large_list(pa.int32()))
    return TokenizedTexts(
        token_ids=ids.values.to_numpy(),
        offsets=ids.offsets.to_numpy(),
        prompt_lengths=table[f"prompt_length_{key}"].to_numpy(),
        truncated=table[f"truncated_{key}"].to_numpy(),
    )


def vector_columns(key: int, texts: TokenizedTexts, vectors: np.ndarray) -> dict[str, pa.Array]:
    """Vectors `[num_texts, dim]` and what is known of their texts, as columns of `[num_texts]`."""
    dim = vectors.shape[1]
    return {
        f"embedding_{key}": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim),
        f"num_tokens_{key}": pa.array(texts.lengths.astype(np.int32)),
        f"truncated_{key}": pa.array(texts.truncated),
    }
