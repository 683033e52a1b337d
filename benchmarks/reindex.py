"""What a reindex costs against a rebuild.

    python benchmarks/reindex.py docs.parquet --model "$(python examples/minilm.py)" --rows 8000

Writes a corpus, embeds it, and then for 0, 1, 10 and 100 % takes that share of the rows away (of all rows half: an
empty corpus is refused), changes that share of the texts that are left, writes them in another order and another number
of files, and runs the same command. No row is added. Seconds are those of the command but for Ray's start, and each
reindex begins with what the one before left.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from job import run_job

SHARES = (0, 1, 10, 100)
_MOST_DELETED = 50


def main() -> None:
    """Run the command again and again."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", help="a Parquet file with the columns id and text")
    parser.add_argument("--model", required=True, help="a folder in the sentence-transformers format")
    parser.add_argument("--rows", type=int, default=8000, help="how many of the first rows (default 8000)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        time_reindex(Path(folder), args.corpus, args.model, args.rows)


def time_reindex(folder: Path, file: str, model: str, num_rows: int) -> None:
    """A rebuild, then reindexes of it, each from the state that the one before left."""
    table = pq.read_table(file, columns=["id", "text"]).slice(0, num_rows)
    corpus, output = folder / "corpus", folder / "output"
    write_shards(table, corpus, 4, "first")
    cores = len(os.sched_getaffinity(0))
    print_run("rebuild", run_job(corpus, output, model, cores))
    random = np.random.default_rng(0)
    for share in SHARES:
        num_left = table.num_rows - table.num_rows * min(share, _MOST_DELETED) // 100
        table = table.take(random.permutation(table.num_rows)[:num_left])
        texts = table["text"].to_pylist()
        for row in range(num_left * share // 100):
            texts[row] = f"{share}: {texts[row]}"
        table = pa.table({"id": table["id"], "text": texts}).take(random.permutation(num_left))
        write_shards(table, corpus, 3, f"changed-{share}")
        print_run(f"{share} % changed", run_job(corpus, output, model, cores))


def print_run(name: str, summary: dict[str, Any]) -> None:
    """One line."""
    seconds = summary["seconds"] - summary["ray_start_seconds"]
    print(
        f"{name}: {summary['rows']:,} rows, {summary['embedded']:,} embedded, {summary['carried']:,} carried, "
        f"{summary['deleted']:,} deleted, "
        f"{summary['tokens']:,} tokens, {seconds:.1f} s (Ray's start of {summary['ray_start_seconds']:.1f} s left out)",
        flush=True,
    )


def write_shards(table: pa.Table, folder: Path, num_shards: int, name: str) -> None:
    """In place of what is there."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    rows = -(-table.num_rows // num_shards)
    for number in range(num_shards):
        pq.write_table(table.slice(number * rows, rows), folder / f"{name}-{number}.parquet")


if __name__ == "__main__":
    main()
