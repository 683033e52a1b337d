"""The pipeline without arithmetic: how long encoders wait for work on a cluster that this machine only pretends to be.

    python benchmarks/pipeline.py --model "$(python examples/minilm.py)" --nodes 8 --gpus 8 --late-after 30

Ray's nodes are real processes, their GPUs and cores are only numbers. Reading, tokenizing, writing, Ray Data and the
encoder's actor are the job's own; but for the forward pass the actor sleeps, a fixed time for each token, so that all
encoders together would make `--rows-per-second` if they never waited. One more node joins `--late-after` seconds
after the start. All of it shares this machine's cores, so what is measured bounds a real cluster from below.

Printed: the share of its time that an encoder waited for a fragment (not the wait for its first one), how long it took
until the encoders were there, rows per second while all of them worked, and what the late node did.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from string import ascii_lowercase
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pretended import cluster, sleeping
from usage import watched

from encoders.protocol import Protocol, resolve_protocol
from encoders.tasks import view_of
from jobs.actors import Read, Write
from jobs.config import ComputeConfig
from jobs.corpus import list_corpus
from jobs.footers import Columns, read_footers
from jobs.holdings import take_stock
from jobs.pipeline import stream
from jobs.plan import Plan, lay_out, make_plan
from jobs.progress import Tally
from jobs.rows import Reading
from jobs.run_spec import RunSpec, ViewSpec
from jobs.storage import Location, open_store

COLUMNS = Columns("id", ("text",), ())
FRAGMENTS_PER_SHARD = 50


def main() -> None:
    """Make a corpus and a cluster, run, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", required=True, help="a folder in the sentence-transformers format; its tokenizer"
    )
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=4, help="of each node; an encoder takes one (default 4)")
    parser.add_argument("--least", type=int, default=1, help="compute.min_actors (default 1)")
    parser.add_argument("--readers", type=int, help="compute.tokenize_concurrency (default: Ray decides)")
    parser.add_argument("--rows-per-second", type=int, default=20_000, help="of all encoders together")
    parser.add_argument(
        "--seconds", type=int, default=60, help="that they would take for the corpus (default 60)"
    )
    parser.add_argument("--fragment-rows", type=int, default=1000)
    parser.add_argument("--words", type=int, default=14, help="of a text (default 14)")
    parser.add_argument(
        "--spread",
        type=int,
        default=1,
        help="words of the longest texts to those of the shortest (default 1)",
    )
    parser.add_argument(
        "--late-after", type=float, help="seconds until one more node joins (default: none does)"
    )
    parser.add_argument(
        "--most-starved", type=float, default=100.0, metavar="PERCENT", help="fail if encoders waited longer"
    )
    args = parser.parse_args()
    nodes = args.nodes + (args.late_after is not None)
    most = nodes * args.gpus
    with tempfile.TemporaryDirectory(prefix="pipeline") as folder:
        protocol = resolve_protocol(args.model)
        num_rows = args.rows_per_second * args.seconds
        write_corpus(Path(folder, "corpus"), num_rows, args.fragment_rows, args.words, args.spread)
        run, plan = prepare(folder, protocol, args.fragment_rows)
        compute = ComputeConfig(
            device="cuda", min_actors=args.least, max_actors=most, tokenize_concurrency=args.readers
        )
        seconds_per_token = args.nodes * args.gpus / args.rows_per_second / (args.words + 2)
        print(
            f"{num_rows:,} rows in {len(plan.work):,} fragments; {args.nodes} nodes of {args.gpus} GPUs; a fragment "
            f"takes an encoder {seconds_per_token * args.fragment_rows * (args.words + 2):.2f} s",
            flush=True,
        )
        with cluster(args.nodes, args.gpus) as add_node, watched(every=10) as usage:
            actors = (Read, sleeping(seconds_per_token, protocol.dim), Write)
            started = time.time()
            spent: list[dict[str, Any]] = []
            joined: list[tuple[str, float]] = []
            for row in stream(run, plan.work, compute, actors):
                spent.append(row)
                # Here and not in a thread: Ray sets signal handlers for each node.
                if args.late_after is not None and not joined and time.time() - started > args.late_after:
                    joined.append((add_node(), time.time()))
            starved = report(spent, started, time.time(), joined, args.fragment_rows)
        print(
            f"{usage.most_processes} processes, {usage.most_bytes / 2**30:.1f} GiB, {usage.busy_cores:.1f} cores busy"
        )
    if starved > args.most_starved:
        raise SystemExit(
            f"encoders were starved for {starved:.1f} % of their time, not {args.most_starved:g} at most"
        )


def write_corpus(folder: Path, num_rows: int, fragment_rows: int, words: int, spread: int) -> None:
    """Shards of several row groups, each of which becomes a fragment, whose texts are all of one length."""
    folder.mkdir()
    random = Random(0)
    shortest = 2 * words / (1 + spread)
    rows = FRAGMENTS_PER_SHARD * fragment_rows
    for first in range(0, num_rows, rows):
        ids = range(first, min(first + rows, num_rows))
        texts: list[str] = []
        while len(texts) < len(ids):
            length = round(random.uniform(shortest, spread * shortest))
            texts += [" ".join(random.choices(ascii_lowercase, k=length))] * fragment_rows
        table = pa.table({"id": ids, "text": texts[: len(ids)]})
        pq.write_table(table, folder / f"shard-{first:09}.parquet", row_group_size=fragment_rows)


def prepare(folder: str, protocol: Protocol, fragment_rows: int) -> tuple[RunSpec, Plan]:
    """What the job would make of the corpus before it starts Ray."""
    corpus = list_corpus(Location(f"{folder}/corpus"))
    output = Location(f"{folder}/output")
    layout = lay_out(
        corpus, None, read_footers(corpus.location, corpus.shards, COLUMNS), COLUMNS, fragment_rows
    )
    view = view_of("retrieval", "document")
    spec = ViewSpec(view, protocol.prompt(view), protocol.space(view.task, "float16"), {})
    run = RunSpec(
        corpus=corpus.location,
        reading=Reading(COLUMNS, " ", layout.carried),
        skip_bad_shards=False,
        protocol=protocol,
        views=(spec,),
        device="cuda",
        num_threads=None,
        dtype="auto",
        precision="float16",
        preflight=False,
        max_batch_tokens="auto",
        output=output,
        compression_level=3,
        row_group_rows=10_000,
    )
    return run, make_plan(corpus, layout, run.reading, [spec], take_stock(open_store(output)))


def report(
    spent: Sequence[dict[str, Any]],
    started: float,
    ended: float,
    joined: Sequence[tuple[str, float]],
    fragment_rows: int,
) -> float:
    """Print what the rows that left the pipeline say; returns the percentage that encoders were starved for."""
    tally = Tally()
    for row in spent:
        tally.add(row)
    shares = sorted(tally.starved_percent().values())
    print(f"{tally.rows:,} rows in {ended - started:.1f} s by {len(shares)} encoders")
    total = sum((seconds for seconds in tally.encoders.values()), Counter())
    starved = 100 * total["starved"] / total.total()
    print(
        f"starved: {starved:.1f} % of all encoders' time; "
        f"median encoder {statistics.median(shares):.1f} %, worst {shares[-1]:.1f} %"
    )
    per_fragment = {stage: seconds / len(spent) for stage, seconds in tally.seconds.items()}
    print(
        "seconds of a fragment: " + ", ".join(f"{stage} {value:.3f}" for stage, value in per_fragment.items())
    )
    late = {node for node, _ in joined}
    first: dict[str, float] = {}
    for row in spent:
        if row["node"] not in late:
            first[row["actor"]] = min(first.get(row["actor"], ended), row["began"])
    arrivals = sorted(began - started for began in first.values())
    marks = {share: arrivals[max(0, -(-len(arrivals) * share // 100) - 1)] for share in (1, 25, 50, 75, 100)}
    print(
        "at work: "
        + ", ".join(f"{share} % of encoders after {seconds:.1f} s" for share, seconds in marks.items())
    )
    last = Counter({row["actor"]: row["began"] for row in sorted(spent, key=lambda row: row["began"])})
    steady = started + arrivals[-1], min(began for actor, began in last.items() if actor in first)
    if steady[1] > steady[0]:
        rows = sum(fragment_rows for row in spent if steady[0] <= row["began"] < steady[1])
        print(
            f"while all of them worked ({steady[1] - steady[0]:.1f} s): {rows / (steady[1] - steady[0]):,.0f} rows/s"
        )
        waited = [row for row in spent if steady[0] <= row["began"] < steady[1] and row["node"] not in late]
        busy, idle = (sum(row[f"{what}_seconds"] for row in waited) for what in ("encode", "starved"))
        print(f"starved then: {100 * idle / max(busy + idle, 1e-9):.1f} %")
    for node, when in joined:
        taken = [row for row in spent if row["node"] == node]
        after = f", the first {min(row['began'] for row in taken) - when:.1f} s after" if taken else ""
        print(
            f"the late node joined after {when - started:.1f} s; its {len({row['actor'] for row in taken})} encoders "
            f"took {len(taken)} fragments{after}"
        )
    return float(starved)


if __name__ == "__main__":
    main()
