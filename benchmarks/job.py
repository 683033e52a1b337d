"""The whole job against sentence-transformers' `encode`, on the same texts, model and cores.

    python benchmarks/job.py docs.parquet --model "$(python examples/minilm.py)" --rows 8000 --rounds 3

Rounds alternate between the two, so that a machine whose speed drifts drifts under both; what counts is the ratio.
The job's time is that of the whole command but for Ray's start: planning, loading a model in every encoder, reading,
tokenizing, encoding, writing, committing. Of sentence-transformers only `encode` is timed, with its defaults, not
the loading; each side runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def main() -> None:
    """Run the rounds and print a line for each, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", help="a Parquet file with the columns id and text")
    parser.add_argument("--model", required=True, help="a folder in the sentence-transformers format")
    parser.add_argument("--rows", type=int, default=8000, help="how many of the first rows (default 8000)")
    parser.add_argument("--shards", type=int, default=4, help="files that they are split into (default 4)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encode-only", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.encode_only:
        print(json.dumps(time_sentence_transformers(args.encode_only, args.model)))
        return
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        table = pq.read_table(args.corpus, columns=["id", "text"]).slice(0, args.rows)
        whole = Path(folder, "whole.parquet")
        pq.write_table(table, whole)
        shards = write_shards(table, Path(folder, "corpus"), args.shards)
        rounds = []
        for number in range(args.rounds):
            theirs = run_json(
                sys.executable, __file__, str(whole), "--model", args.model, "--encode-only", str(whole)
            )
            ours = run_job(shards, Path(folder, f"output-{number}"), args.model, cores)
            rounds.append((ours["tokens"] / theirs, ours["tokens_per_second"]))
            print(
                f"round {number + 1}: sentence-transformers {rounds[-1][0]:,.0f} tokens/s, job {rounds[-1][1]:,.0f} "
                f"({rounds[-1][1] / rounds[-1][0]:.2f} x; Ray's start of {ours['ray_start_seconds']:.1f} s left out)",
                flush=True,
            )
    ratios = [job / encode for encode, job in rounds]
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    print(
        f"{table.num_rows:,} rows, {ours['tokens']:,} tokens, {cores} cores, medians of {args.rounds}: "
        f"sentence-transformers {medians[0]:,.0f} tokens/s, job {medians[1]:,.0f} tokens/s, "
        f"{statistics.median(ratios):.2f} x (from {min(ratios):.2f} to {max(ratios):.2f})"
    )


def write_shards(table: pa.Table, folder: Path, num_shards: int) -> Path:
    """Split a table into files of like size."""
    folder.mkdir()
    rows = -(-table.num_rows // num_shards)
    for number in range(num_shards):
        pq.write_table(table.slice(number * rows, rows), folder / f"shard-{number:02}.parquet")
    return folder


def run_job(corpus: Path, output: Path, model: str, cores: int) -> dict[str, float]:
    """The summary of one run of the job."""
    summary: dict[str, float] = run_json(
        *(
            sys.executable,
            "-m",
            "jobs.embed",
            "--input",
            str(corpus),
            "--output",
            str(output),
            "--model",
            model,
        ),
        *("--task", "retrieval", "--role", "document", "--dtype", "float32"),
        *("--ray-address", "local", "--num-cpus", str(cores)),
    )
    return summary


def run_json(*command: str) -> dict[str, float] | float:
    """What a command prints in its last line; its complaints are shown if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def time_sentence_transformers(file: str, model: str) -> float:
    """Seconds that `encode` takes with its defaults."""
    from sentence_transformers import SentenceTransformer

    texts = pq.read_table(file, columns=["text"])["text"].to_pylist()
    encoder = SentenceTransformer(model, device="cpu")
    started = time.perf_counter()
    encoder.encode(texts)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
