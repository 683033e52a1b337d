"""The vectors that a fragment gets from the dataset before it, as its reader and its writer see them.

One file a fragment, with a row for each text and view: view, text_hash, num_tokens, truncated, embedding (its bytes).
Every text in it has a row in each view of the work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.cargo import as_lists, as_vectors
from jobs.errors import OutputError
from jobs.parquet import open_plain, reason_of
from jobs.run_spec import Work
from jobs.storage import Store


def carried_hashes(store: Store, work: Work) -> pa.Array:
    """Hashes of the texts that one fragment need not encode, `[num_texts]`; none where nothing is carried."""
    if work.carried is None:
        return pa.array([], pa.binary(16))
    table = _read(store, work.carried, ["view", "text_hash"])
    hashes: pa.Array = _of_view(table, min(work.parts))["text_hash"].combine_chunks()
    return hashes


@dataclass(frozen=True)
class Embedded:
    """What a part says of its texts, `[num_texts]`: vectors as lists, tokens, and whether texts were cut."""

    embedding: pa.ChunkedArray
    num_tokens: pa.ChunkedArray
    truncated: pa.ChunkedArray


class CarriedVectors:
    """The vectors of one fragment's file."""

    def __init__(self, store: Store, work: Work) -> None:
        self._name = f"{store.location.uri}/{work.carried}"
        self._table = None if work.carried is None else _read(store, work.carried)

    def merged(self, fresh: Embedded, sources: pa.ChunkedArray, view: str) -> Embedded:
        """Vectors in the order of the fragment's rows.

        Args:
            fresh: Those that were made now, in their order.
            sources: Of each row its number among the carried ones, null where the vector is a fresh one; `[num_rows]`.
            view: Whose vectors.

        Raises:
            OutputError: The carried vectors are not like the fresh ones.
        """
        if self._table is None:
            return fresh
        held = _of_view(self._table, view)
        vectors = as_vectors(fresh.embedding)
        width = vectors.shape[1] * vectors.itemsize
        if held["embedding"].type != pa.binary(width):
            raise OutputError(
                f"{self._name} holds vectors of {held['embedding'].type}, and this run makes such of {width} bytes; "
                "remove the file and run again"
            )
        numbers = sources.to_numpy()  # floats where some are null
        is_fresh = np.isnan(numbers)
        places = np.where(is_fresh, np.cumsum(is_fresh) - 1, len(vectors) + numbers).astype(np.int64)
        buffer = held["embedding"].combine_chunks().buffers()[1]
        old = np.frombuffer(buffer, vectors.dtype)[: held.num_rows * vectors.shape[1]]
        both = np.concatenate([vectors, old.reshape(-1, vectors.shape[1])])
        return Embedded(
            pa.chunked_array([as_lists(both[places])]),
            pa.chunked_array([*fresh.num_tokens.chunks, *held["num_tokens"].chunks]).take(pa.array(places)),
            pa.chunked_array([*fresh.truncated.chunks, *held["truncated"].chunks]).take(pa.array(places)),
        )


def _of_view(table: pa.Table, view: str) -> pa.Table:
    return table.filter(pc.equal(table["view"], view)).combine_chunks()


def _read(store: Store, path: str, columns: list[str] | None = None) -> pa.Table:
    try:
        with store.open(path) as file:
            return open_plain(file).read(columns)
    except (pa.ArrowException, OSError) as error:
        raise OutputError(
            f"{store.location.uri}/{path} cannot be read: {reason_of(error)}; it holds vectors to be "
            "carried over; remove it and run again"
        ) from error
