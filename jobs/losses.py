"""Rows that an encoder cannot have: they leave as rejects, and the fragment goes on.

Some texts do not fit its memory even alone, and are found by trying. Of some it makes vectors that are no numbers.
Others end its process, and are known by their numbers (`jobs.deaths`). A row of the corpus goes as a whole, from all
views that are made with it, and with all its chunks: counts must balance. Which rows those are depends on the machine
and its number format, unlike all other rejects; the reason says so.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.cargo import replaced, unpack_table
from jobs.rows import KILLED_WORKER
from jobs.run_spec import Work


def without_lost(
    row: pa.Table, vectors: pa.Table, lost: Mapping[str, npt.NDArray[np.int64]]
) -> dict[str, pa.Table]:
    """A fragment's rows and vectors without those of the rows that have a lost one, and its rejects with them.

    Args:
        row: What the reader said of the fragment.
        vectors: Those of all its texts.
        lost: Places of vectors that there are not, by reason; of a row's reasons the last counts.
    """
    numbers, fresh = _numbers(row)
    reasons = {number: reason for reason, places in lost.items() for number in fresh[places].tolist()}
    gone = list(reasons)
    kept = pa.array(~np.isin(numbers, gone))
    return {
        "rows": unpack_table(row, "rows").filter(kept),
        "sources": unpack_table(row, "sources").filter(kept),
        "vectors": vectors.filter(pa.array(~np.isin(fresh, gone))),
        "rejects": _with_rejects(row, reasons),
    }


def without_deadly(row: pa.Table, numbers: npt.NDArray[np.int64]) -> pa.Table:
    """What the reader said of a fragment, with the rows of these numbers among its rejects."""
    rejects = _with_rejects(row, dict.fromkeys(numbers.tolist(), KILLED_WORKER))
    return replaced(only(row, np.setdiff1d(_numbers(row)[0], numbers)), {"rejects": rejects})


def only(row: pa.Table, numbers: npt.NDArray[np.int64]) -> pa.Table:
    """What the reader said of a fragment, of the rows of these numbers alone; rejects stay."""
    all_rows, fresh = _numbers(row)
    tokens = unpack_table(row, "tokens")
    # Chunks that are pooled from their text have one entry there for all of them.
    texts = fresh if tokens.num_rows == len(fresh) else np.unique(fresh)
    kept = pa.array(np.isin(all_rows, numbers))
    cells = {name: unpack_table(row, name).filter(kept) for name in ("rows", "sources", "row_numbers")}
    return replaced(row, {**cells, "tokens": tokens.filter(pa.array(np.isin(texts, numbers)))})


def _numbers(row: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers of all rows, and of those whose vectors are not carried over: the encoder has no others."""
    numbers = unpack_table(row, "row_numbers")["row"].to_numpy()
    return numbers, numbers[unpack_table(row, "sources")["source"].is_null().to_numpy()]


def _with_rejects(row: pa.Table, reasons: Mapping[int, str]) -> pa.Table:
    """The rejects of a fragment, and the rows of these numbers with them."""
    rows, rejects = unpack_table(row, "rows"), unpack_table(row, "rejects")
    shard = Work.from_json(row["work"][0].as_py()).fragment.shard.path
    # Chunks of a row have its number, and stand side by side.
    numbers, first = np.unique(_numbers(row)[0], return_index=True)
    is_gone = np.isin(numbers, list(reasons))
    numbers, first = numbers[is_gone], first[is_gone]
    more = pa.Table.from_arrays(
        [
            rows[rejects.schema.names[0]].take(pa.array(first)),
            pa.array([reasons[number] for number in numbers.tolist()], pa.string()),
            pa.array([shard] * len(first), pa.string()),
            pa.array(numbers, pa.int64()),
        ],
        schema=rejects.schema,
    )
    return pa.concat_tables([rejects, more])
