"""The whole job over many tiny fragments: what a fragment costs, and whether any process grows with their number.

    python benchmarks/tiny.py 200 2000 --model "$(python examples/minilm.py)"

Every shard is a file with one short row, so nearly all of the time is Ray's and the file system's. While the command
runs, the memory of its processes is looked at once a second. Printed for each kind of process: how much of it was
resident after a quarter of the run, in the middle, after three quarters, at its end and at most. What leaks grows from
quarter to quarter; at the end the driver also holds the manifest that it writes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq


def main() -> None:
    """Run the job on each number of shards."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shards", type=int, nargs="+", help="how many; several runs one after the other")
    parser.add_argument("--model", required=True, help="a folder in the sentence-transformers format")
    parser.add_argument("--num-cpus", type=int, default=2)
    args = parser.parse_args()
    for num_shards in args.shards:
        with tempfile.TemporaryDirectory(prefix="tiny") as folder:
            measure(Path(folder), num_shards, args.model, args.num_cpus)


def measure(folder: Path, num_shards: int, model: str, num_cpus: int) -> None:
    """One run in a process of its own; prints its seconds and its processes."""
    (folder / "corpus").mkdir()
    for number in range(num_shards):
        table = pa.table({"id": [number], "text": [f"the text of row {number}"]})
        pq.write_table(table, folder / "corpus" / f"shard-{number:06}.parquet")
    command = [sys.executable, "-m", "jobs.embed", "--input", str(folder / "corpus")]
    command += ["--output", str(folder / "output"), "--model", model, "--task", "clustering"]
    command += ["--ray-address", "local", "--num-cpus", str(num_cpus)]
    sizes: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    with (folder / "errors").open("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        watcher = threading.Thread(target=watch, args=(process, sizes))
        watcher.start()
        stdout, _ = process.communicate()
        watcher.join()
        errors.seek(0)
        complaints = errors.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{complaints}")
    summary = json.loads(stdout)
    seconds = summary["seconds"] - summary["ray_start_seconds"]
    print(
        f"{num_shards:,} shards: {seconds:.1f} s without Ray's start, {1000 * seconds / num_shards:.1f} ms each; "
        f"starved % {list(summary['starved_percent'].values())}"
    )
    print(*(line for line in complaints.splitlines() if "worker seconds" in line))
    ended = max(when for looks in sizes.values() for when, _ in looks)
    print("| process | MiB after 25 % | 50 % | 75 % | at the end | at most |\n|---|---|---|---|---|---|")
    for (name, _), looks in sorted(sizes.items()):
        if looks[-1][0] > 0.8 * ended and len(looks) > 5:  # those that were there to the end
            quarters = [
                min(looks, key=lambda look: abs(look[0] - share * ended))[1] for share in (0.25, 0.5, 0.75)
            ]
            marks = [*quarters, looks[-2][1], max(size for _, size in looks)]
            print(f"| {name} | " + " | ".join(f"{mark:.0f}" for mark in marks) + " |")
    sys.stdout.flush()


def watch(process: subprocess.Popen[str], sizes: dict[tuple[str, int], list[tuple[float, float]]]) -> None:
    """Note what each process has in memory, once a second until the first has ended."""
    started = time.monotonic()
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            driver = psutil.Process(process.pid)
            for one in [driver, *driver.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    name = "driver" if one.pid == process.pid else name_of(one)
                    if name is not None:
                        sizes[name, one.pid].append(
                            (time.monotonic() - started, one.memory_info().rss / 2**20)
                        )
        time.sleep(1)


def name_of(process: psutil.Process) -> str | None:
    """Which of Ray's processes it is; None for those of no interest."""
    command = " ".join(process.cmdline())
    actor = re.search(r"ray::MapWorker\(MapBatches\((\w+)\)\)|ray::(_StatsActor)", command)
    if actor is not None:
        return f"actor {actor[1] or actor[2]}"
    daemon = re.match(r"\S*/(raylet|gcs_server)\b", command)
    return daemon[1] if daemon else None


if __name__ == "__main__":
    main()
