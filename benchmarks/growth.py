"""How planning and committing grow with the number of shards: seconds of each step, and the driver's memory.

    python benchmarks/growth.py 1000 10000 100000
    python benchmarks/growth.py 10000 --s3
    python benchmarks/growth.py 10000 --profile rerun

Shards are real Parquet files of one row, each a fragment. The steps are the job's own functions in the job's order,
without Ray and without a model: what the workers would leave behind (a receipt each, and a part, here of one byte)
is written between the processes and not timed. Three processes for each size, so that each has a peak of its own:

    first   an empty output: list, read footers, plan, take in the receipts as they arrive, commit, sweep
    resume  the same corpus after a driver that died before its commit: every receipt lies beside its part
    rerun   the finished dataset: find out that there is nothing to do

`--s3` puts everything into a bucket of a moto server in the first process, which is most of what it measures then.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import logging
import os
import pstats
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from encoders.family import Prompt
from encoders.space import Space, digest
from encoders.tasks import view_of
from jobs.commit import build_manifest, publish
from jobs.corpus import list_corpus
from jobs.footers import Columns, read_footers
from jobs.holdings import take_stock
from jobs.plan import lay_out, make_plan, unknown_shards
from jobs.progress import Tally
from jobs.records import MANIFEST, RECEIPTS, Manifest, PartRecord, Receipt, ViewRecord
from jobs.rows import Reading
from jobs.run_spec import ViewSpec, Work
from jobs.storage import Location, Store, open_store
from jobs.sweep import is_tidy, sweep

PHASES = ("first", "resume", "rerun")
COLUMNS = Columns("id", ("text",), ())
FRAGMENT_ROWS = 1000
PART = b"x"
VIEW = view_of("retrieval", "document")
SPEC = ViewSpec(VIEW, Prompt("passage: "), Space(digest("growth"), "growth-retrieval-384-float16"), {})
RECORD = ViewRecord(
    task=VIEW.task,
    role=VIEW.role,
    space_id=SPEC.space.id,
    space_name=SPEC.space.name,
    model="growth",
    revision="0" * 40,
    adapter=None,
    prompt=SPEC.prompt.prefix,
    dim=384,
    precision="float16",
    normalized=True,
)


def main() -> None:
    """Measure every size, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "shards", type=int, nargs="+", help="how many shards; several sizes one after the other"
    )
    parser.add_argument("--s3", action="store_true", help="in a bucket of moto's, not on disk")
    parser.add_argument("--profile", choices=PHASES, help="print where a phase spends its time")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.phase:
        print(json.dumps(run_phase(args.phase, args.root, profiled=args.phase == args.profile)))
        return
    print(
        "| shards | phase | seconds of each step | all, s | CPU, s | peak MiB (of them imports) | manifest, MB |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for num_shards in args.shards:
        with place(s3=args.s3) as root:
            write_shards(open_store(Location(f"{root}/corpus")), num_shards)
            for phase in PHASES:
                found = in_process(phase, root, args.profile)
                steps = ", ".join(f"{step} {seconds:.2f}" for step, seconds in found["seconds"].items())
                print(
                    f"| {num_shards:,} | {phase} | {steps} | {sum(found['seconds'].values()):.1f} "
                    f"| {found['cpu_seconds']:.1f} "
                    f"| {found['peak_mib']:.0f} ({found['imports_mib']:.0f}) | {found['manifest_bytes'] / 1e6:.1f} |",
                    flush=True,
                )


@contextmanager
def place(*, s3: bool) -> Iterator[str]:
    """A folder or a bucket that is gone afterwards."""
    with ExitStack() as stack:
        if not s3:
            folder = tempfile.mkdtemp(prefix="growth")
            stack.callback(shutil.rmtree, folder)
            yield folder
            return
        import boto3
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it has a line for each request
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        stack.callback(server.stop)
        host, port = server.get_host_and_port()
        keys = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        os.environ |= {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
        boto3.client("s3").create_bucket(Bucket="growth")
        yield "s3://growth"


def write_shards(store: Store, num_shards: int) -> None:
    """Files of one row; the same in each, for only their names make them different fragments."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": [0], "text": ["a text"]}), sink)
    write_files(
        store, [f"shard-{number:06}.parquet" for number in range(num_shards)], sink.getvalue().to_pybytes()
    )


def write_files(store: Store, paths: Sequence[str], content: bytes | Sequence[bytes]) -> None:
    """Write files fast: on disk without waiting for the disk."""
    contents = [content] * len(paths) if isinstance(content, bytes) else content
    if store.location.uri.startswith("s3://"):
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(store.create, paths, contents))
        return
    for path, data in zip(paths, contents, strict=True):
        file = Path(store.location.uri, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def in_process(phase: str, root: str, profile: str | None) -> dict[str, Any]:
    """One phase in a process of its own."""
    command = [sys.executable, __file__, "0", "--phase", phase, "--root", root]
    command += ["--profile", profile] if profile else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Stopwatch:
    """Seconds of each step, by its name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def run_phase(phase: str, root: str, *, profiled: bool) -> dict[str, Any]:
    """The steps of one phase in this process."""
    imports, started = peak_mib(), time.process_time()
    profile = cProfile.Profile()
    if profiled:
        profile.enable()
    watch = Stopwatch()
    store = open_store(Location(f"{root}/output"))
    manifest = go(phase, watch, Location(f"{root}/corpus"), store)
    if profiled:
        profile.disable()
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    peak, cpu_seconds = peak_mib(), time.process_time() - started
    if phase == "first":  # for the second phase: receipts, which the sweep took away, and no manifest
        names = (
            digest(sorted(part.path for part in receipt.parts.values())) for receipt in manifest.receipts
        )
        contents = [receipt.model_dump_json().encode() for receipt in manifest.receipts]
        write_files(store, [f"{RECEIPTS}/{name}.json" for name in names], contents)
        store.delete([MANIFEST])
    size = 0 if phase == "first" else len(store.read(MANIFEST))
    return {
        "seconds": watch.seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mib": peak,
        "imports_mib": imports,
        "manifest_bytes": size,
    }


def go(phase: str, watch: Stopwatch, source: Location, store: Store) -> Manifest:
    """What `jobs.embed` does, but for Ray; the manifest as it ought to be."""
    with watch.step("list"):
        corpus = list_corpus(source)
    with watch.step("stock"):
        holdings = take_stock(store)
    with watch.step("footers"):
        unknown = unknown_shards(corpus, holdings.manifest, COLUMNS, FRAGMENT_ROWS)
        footers = read_footers(corpus.location, unknown, COLUMNS)
    with watch.step("plan"):
        layout = lay_out(corpus, holdings.manifest, footers, COLUMNS, FRAGMENT_ROWS)
        reading = Reading(COLUMNS, " ", layout.carried)
        plan = make_plan(corpus, layout, reading, [SPEC], holdings)
    assert len(plan.work) == (len(corpus.shards) if phase == "first" else 0)
    tally = Tally()
    if plan.work:
        write_files(store, [path for work in plan.work for path in work.parts.values()], PART)
        for work in plan.work:
            spent = spent_on(work)
            with watch.step("receipts"):
                tally.add(spent)
    with watch.step("manifest"):
        manifest = build_manifest(
            plan,
            [*plan.existing, *tally.receipts],
            corpus=source.uri,
            reading=reading.record(),
            fragment_rows=FRAGMENT_ROWS,
            views={str(VIEW): RECORD},
            ranges={},
            held=holdings.manifest,
        )
    if phase == "rerun":
        with watch.step("compare"):
            assert holdings.manifest is not None
            assert manifest.equals(holdings.manifest)
            assert is_tidy(holdings, 1)
        return manifest
    with watch.step("publish"):
        version = publish(store, manifest, replacing=holdings.version)
    with watch.step("sweep"):
        sweep(store, manifest, version, confirm=lambda: None, keep_manifests=1, orphan_grace_hours=0)
    return manifest


def spent_on(work: Work) -> dict[str, Any]:
    """What the writer would say of a fragment."""
    parts = {
        view: PartRecord(
            path=path, num_bytes=len(PART), sha256=digest(path) * 2, num_rows=1, num_tokens=7, num_truncated=0
        )
        for view, path in work.parts.items()
    }
    fragment = work.fragment
    receipt = Receipt(
        fragment=fragment.id,
        shard=fragment.shard.path,
        num_rows=fragment.num_rows,
        rejected={},
        rejects=None,
        parts=parts,
    )
    seconds = {f"{stage}_seconds": 0.001 for stage in ("read", "tokenize", "encode", "starved", "write")}
    return {
        "receipt": receipt.model_dump_json().encode(),
        "num_encoded_tokens": 7,
        "num_padding": 0,
        "why_padded": "",
        "device": "cpu",
        "dtype": "float32",
        "max_batch_tokens": 2048,
        "num_prompts": 1,
        "num_encodings": 1,
        "num_carried": 0,
        "budget_halved": False,
        "preflight_cosine": 1.0,
        "preflight_compared": "",
        "actor": "growth:1",
        **seconds,
    }


def peak_mib() -> float:
    """The most memory that this process had so far; `getrusage` counts what its parent had, too."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


if __name__ == "__main__":
    main()
