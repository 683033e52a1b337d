"""How well an output answers queries: nDCG@10 and more, from the files of two runs.

    python benchmarks/retrieval.py DOCUMENTS QUERIES qrels.parquet

DOCUMENTS and QUERIES are outputs of `jobs.embed` with the views retrieval/document and retrieval/query; the qrels have
the columns query_id, doc_id and score. Exact search by dot product. Measures are ir_measures' own.
"""

from __future__ import annotations

import argparse

import ir_measures
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from ir_measures import RR, R, nDCG

from jobs.errors import OutputError
from jobs.records import read_manifest
from jobs.storage import Location, open_store

_DEPTH = 100


def read_view(uri: str, view: str) -> tuple[str, list[str], npt.NDArray[np.float32]]:
    """The space id, ids and vectors `[num_rows, dim]` of one view of a committed output.

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
        flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors.append(flat.reshape(table.num_rows, -1).astype(np.float32))
    return manifest.views[view].space_id, ids, np.concatenate(vectors)


def main() -> None:
    """Print the measures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("documents")
    parser.add_argument("queries")
    parser.add_argument("qrels")
    args = parser.parse_args()
    space, doc_ids, documents = read_view(args.documents, "retrieval/document")
    query_space, query_ids, queries = read_view(args.queries, "retrieval/query")
    if space != query_space:
        raise SystemExit(
            f"documents are in the space {space}, queries in {query_space}: no score means anything"
        )
    scores = queries @ documents.T
    best = np.argpartition(-scores, min(_DEPTH, len(doc_ids) - 1), axis=1)[:, :_DEPTH]
    found = [
        ir_measures.ScoredDoc(query_id, doc_ids[place], float(scores[row, place]))
        for row, query_id in enumerate(query_ids)
        for place in best[row]
    ]
    judged = pq.read_table(args.qrels).to_pylist()
    qrels = [ir_measures.Qrel(str(row["query_id"]), str(row["doc_id"]), int(row["score"])) for row in judged]
    for measure, value in ir_measures.calc_aggregate([nDCG @ 10, R @ 100, RR @ 10], qrels, found).items():
        print(f"{measure}\t{value:.4f}")


if __name__ == "__main__":
    main()
