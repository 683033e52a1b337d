"""The whole job against other ways to embed the same shards, with the same model and cores.

    python benchmarks/job.py docs.parquet --model "$(python examples/minilm.py)" --rows 8000 --rounds 3
    python benchmarks/job.py docs.parquet --model MODEL --rows 20000 --shards 40 --against encoder ray daft processes \
        --daft-python /path/to/another/venv/bin/python

Rounds take the ways in turn, so that a machine whose speed drifts drifts under all; what counts is the ratio.
The job's time is that of the whole command but for Ray's start: planning, loading a model in every encoder, reading,
tokenizing, encoding, writing, committing. What the times of the others hold stands in `benchmarks/rivals.py`; each
runs in a process of its own. Daft wants an older pyarrow than we do, so it needs an environment of its own, with
sentence-transformers beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rivals import WAYS


def main() -> None:
    """Run the rounds and print a line for each, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", help="a Parquet file with the columns id and text")
    parser.add_argument("--model", required=True, help="a folder in the sentence-transformers format")
    parser.add_argument("--rows", type=int, default=8000, help="how many of the first rows (default 8000)")
    parser.add_argument("--shards", type=int, default=4, help="files that they are split into (default 4)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--against",
        nargs="+",
        choices=list(WAYS),
        default=["encode"],
        help="the ways of benchmarks/rivals.py (default: encode)",
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        help="of the job, `encoder` and `actor`; the others compute in float32 (default auto, the job's own)",
    )
    parser.add_argument(
        "--cpus-per-actor", type=int, help="cores of each of the job's encoders (default: one has all)"
    )
    parser.add_argument(
        "--daft-python", default=sys.executable, help="the interpreter of an environment that has Daft"
    )
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    seconds: dict[str, list[float]] = {way: [] for way in ("job", *args.against)}
    with tempfile.TemporaryDirectory() as folder:
        table = pq.read_table(args.corpus, columns=["id", "text"]).slice(0, args.rows)
        shards = write_shards(table, Path(folder, "corpus"), args.shards)
        for number in range(args.rounds):
            for way in args.against:
                output = Path(folder, f"{way}-{number}")
                python = args.daft_python if way == "daft" else sys.executable
                seconds[way].append(run_rival(python, way, shards, output, args.model, cores, args.dtype))
            output = Path(folder, f"job-{number}")
            summary = run_job(shards, output, args.model, cores, args.dtype, args.cpus_per_actor)
            seconds["job"].append(summary["seconds"] - summary["ray_start_seconds"])
            found = ", ".join(f"{way} {summary['tokens'] / times[-1]:,.0f}" for way, times in seconds.items())
            print(f"round {number + 1}, tokens/s: {found}", flush=True)
    tokens = summary["tokens"]
    print(
        f"{table.num_rows:,} rows, {tokens:,} tokens, {args.shards} shards, {args.dtype}, {cores} cores, medians:"
    )
    print("| way | tokens/s | the job's to it |\n|---|---|---|")
    for way, times in seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(times, seconds["job"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {way} | {tokens / statistics.median(times):,.0f} | {'' if way == 'job' else spread} |")


def write_shards(table: pa.Table, folder: Path, num_shards: int) -> Path:
    """Split a table into files of like size."""
    folder.mkdir()
    rows = -(-table.num_rows // num_shards)
    for number in range(num_shards):
        pq.write_table(table.slice(number * rows, rows), folder / f"shard-{number:02}.parquet")
    return folder


def run_rival(python: str, way: str, corpus: Path, output: Path, model: str, cores: int, dtype: str) -> float:
    """Seconds of one run of another way, in a process of this interpreter."""
    script = str(Path(__file__).with_name("rivals.py"))
    options = ("--model", model, "--cores", str(cores), "--output", str(output), "--dtype", dtype)
    return float(run_json(python, script, way, str(corpus), *options))


def run_job(
    corpus: Path, output: Path, model: str, cores: int, dtype: str = "auto", cpus_per_actor: int | None = None
) -> dict[str, Any]:
    """The summary of one run of the job."""
    places = ("--input", str(corpus), "--output", str(output), "--model", model)
    view = ("--task", "retrieval", "--role", "document", "--dtype", dtype)
    here = ["--ray-address", "local", "--num-cpus", str(cores)]
    if cpus_per_actor is not None:
        here += ["--set", f"compute.cpus_per_actor={cpus_per_actor}"]
    summary: dict[str, Any] = run_json(sys.executable, "-m", "jobs.embed", *places, *view, *here)
    return summary


def run_json(*command: str) -> Any:
    """What a command prints in its last line; its complaints are shown if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
