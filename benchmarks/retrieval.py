"""How well an output answers queries: nDCG@10 and more, from the files of two runs.

    python benchmarks/retrieval.py DOCUMENTS QUERIES qrels.parquet

DOCUMENTS and QUERIES are outputs of `jobs.embed` with the views retrieval/document and retrieval/query; the qrels have
the columns query_id, doc_id and score. Exact search by dot product, of int8 vectors after restoring, of binary ones by
Hamming distance. Measures are ir_measures' own.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import ir_measures
import numpy as np
import pyarrow.parquet as pq
from ir_measures import RR, R, nDCG

from encoders.quantization import Ranges, restore, sign_cosines
from jobs.cargo import as_vectors
from jobs.errors import OutputError
from jobs.record_files import read_manifest
from jobs.storage import Location, open_store

_DEPTH = 100


@dataclass(frozen=True)
class Vectors:
    """One view of an output: where it may be compared, its rows' ids, and their vectors as they are stored."""

    space_id: str
    precision: str
    ranges: Ranges | None
    ids: list[str]
    stored: np.ndarray[Any, Any]


def read_view(uri: str, view: str) -> Vectors:
    """One view of a committed output.

    Raises:
        OutputError: Nothing was committed there, or not this view.
    """
    store = open_store(Location(uri))
    manifest = read_manifest(store)
    if manifest is None or view not in manifest.views:
        raise OutputError(f"{uri} holds no {view}; run jobs.embed with that view first")
    ids: list[str] = []
    vectors = []
    for receipt in manifest.receipts:
        with store.open(receipt.parts[view].path) as file:
            table = pq.read_table(file, columns=[manifest.reading.id_column, "embedding"])
        ids += map(str, table[manifest.reading.id_column].to_pylist())
        vectors.append(as_vectors(table["embedding"]))
    held = manifest.views[view]
    calibrated = manifest.ranges.get(held.task)
    ranges = calibrated.ranges if calibrated else None
    return Vectors(held.space_id, held.precision, ranges, ids, np.concatenate(vectors))


def main() -> None:
    """Print the measures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("documents")
    parser.add_argument("queries")
    parser.add_argument("qrels")
    args = parser.parse_args()
    documents = read_view(args.documents, "retrieval/document")
    queries = read_view(args.queries, "retrieval/query")
    if documents.space_id != queries.space_id:
        raise SystemExit(
            f"documents are in the space {documents.space_id}, queries in {queries.space_id}: no score means anything"
        )
    if documents.precision == "binary":
        scores = sign_cosines(queries.stored, documents.stored)
    else:
        scores = restore(queries.stored, queries.ranges) @ restore(documents.stored, documents.ranges).T
    # Stable, for signs give many equal scores: of those the row that comes first is nearer.
    best = np.argsort(-scores, axis=1, kind="stable")[:, :_DEPTH]
    found = [
        ir_measures.ScoredDoc(query_id, documents.ids[place], float(scores[row, place]))
        for row, query_id in enumerate(queries.ids)
        for place in best[row]
    ]
    judged = pq.read_table(args.qrels).to_pylist()
    qrels = [ir_measures.Qrel(str(row["query_id"]), str(row["doc_id"]), int(row["score"])) for row in judged]
    for measure, value in ir_measures.calc_aggregate([nDCG @ 10, R @ 100, RR @ 10], qrels, found).items():
        print(f"{measure}\t{value:.4f}")


if __name__ == "__main__":
    main()
