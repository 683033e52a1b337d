"""Rows whose text is cut into chunks: as many rows as chunks, which say where in the text they stand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from encoders.chunking import Chunks
from jobs.rows import NO_TOKENS, Reading, Rows
from jobs.sections import CHUNK_COLUMNS


def chunk_rows(rows: Rows, chunks: Chunks, reading: Reading, shard: str) -> Rows:
    """One row a chunk, its text the chunk's; rows whose text has no chunk become rejects.

    The id and kept columns are repeated, and where the chunk stands comes after the id.
    """
    counts = chunks.counts
    rows = rows.without(np.flatnonzero(counts == 0).tolist(), NO_TOKENS, reading, shard)
    counts = counts[counts > 0]
    source = np.repeat(np.arange(len(counts)), counts)
    carried = rows.carried.take(pa.array(source))
    index = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    where = (index.astype(np.int32), chunks.char_starts, chunks.char_ends)
    for place, (name, values) in enumerate(zip(CHUNK_COLUMNS, where, strict=True), start=1):
        carried = carried.add_column(place, name, pa.array(values))
    spans = zip(source.tolist(), chunks.char_starts.tolist(), chunks.char_ends.tolist(), strict=True)
    return Rows(
        carried=carried,
        texts=[rows.texts[row][start:end] for row, start, end in spans],
        row_numbers=[rows.row_numbers[row] for row in source],
        rejects=rows.rejects,
    )
