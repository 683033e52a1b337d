"""Rows whose text did not fit the encoder's memory even alone: they leave as rejects, and the fragment goes on.

A row of the corpus goes as a whole, from all views that are made with it, and with all its chunks: counts must balance.
Which rows those are depends on the machine, unlike all other rejects; the reason says so.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.cargo import unpack_table

OUT_OF_MEMORY = "out_of_memory"


def without_lost(
    row: pa.Table, vectors: pa.Table, lost: npt.NDArray[np.int64], shard: str
) -> dict[str, pa.Table]:
    """A fragment's rows and vectors without those of the rows that have a lost one, and its rejects with them.

    Args:
        row: What the reader said of the fragment.
        vectors: Those of all its texts.
        lost: Places of vectors that there are not.
        shard: Path of the fragment's shard.
    """
    rows, rejects, sources = (unpack_table(row, name) for name in ("rows", "rejects", "sources"))
    numbers = unpack_table(row, "row_numbers")["row"].to_numpy()
    # A vector that is carried over is none of the encoder's.
    fresh = numbers[sources["source"].is_null().to_numpy()]
    gone = np.isin(numbers, fresh[lost])
    # Chunks of a row have its number, and stand side by side.
    _, first = np.unique(numbers, return_index=True)
    first = first[gone[first]]
    more = pa.Table.from_arrays(
        [
            rows[rejects.schema.names[0]].take(pa.array(first)),
            pa.array([OUT_OF_MEMORY] * len(first), pa.string()),
            pa.array([shard] * len(first), pa.string()),
            pa.array(numbers[first], pa.int64()),
        ],
        schema=rejects.schema,
    )
    kept = pa.array(~gone)
    return {
        "rows": rows.filter(kept),
        "sources": sources.filter(kept),
        "vectors": vectors.filter(pa.array(~np.isin(fresh, fresh[lost]))),
        "rejects": pa.concat_tables([rejects, more]),
    }
