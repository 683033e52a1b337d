"""Rounds of chaos: a corpus changes, the job meets faults, and is run again until it says that all is well.

    python -m tests.chaos.rounds --rounds 50 --seed 1

After each round the dataset must be, bit for bit, the one that a single process makes of the same corpus without a
fault (where vectors are carried over: but for their last bits), with no file beside it that no manifest knows, and a
reader that looked all the time must have seen the old one and the new one only. In the end nothing of a dead driver
may be left on the cluster. Each round is drawn from the seed and its number alone, so `--first N --rounds 1` draws one
again; where a fault hits depends on the clock too.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from jobs.storage import Location, Store, open_store
from tests.chaos.conftest import CREDENTIALS
from tests.chaos.corpora import shard
from tests.chaos.datasets import Reader, assert_alike, assert_same, published
from tests.chaos.dying import Point
from tests.chaos.faulty_s3 import FaultyS3, faulty_s3
from tests.chaos.killers import AT_WORK, LOADING, STAGES, Killer
from tests.chaos.plain import rebuild
from tests.chaos.sites import TWO_VIEWS, Site, on_cluster, through
from tests.encoders.repositories import write_repository
from tests.integration.clusters import Cluster, cluster_of
from tests.integration.commands import REPOSITORY, finish
from tests.stores import put

SHARD_ROWS = 150
# How likely something happens to each run of a round, in their order; then it is left alone.
FAULTY = (1.0, 0.4, 0.3)
# Where a driver dies; a number of -1 is drawn.
POINTS = {
    "taking stock": Point("jobs.store:Store.list", when="after"),
    "Ray is there": Point("jobs.cluster:connect", when="after"),
    "a receipt": Point("jobs.progress:Tally.add", number=-1),
    "all parts, no commit": Point("jobs.finish:build_manifest"),
    "before the manifest": Point("jobs.store:Store.swap", "_manifest.json"),
    "committed, and not yet told so": Point("jobs.store:Store.swap", "_manifest.json", when="after"),
    "committed, not swept": Point("jobs.finish:sweep"),
    "sweeping parts": Point("jobs.store:Store.delete", "task="),
    "sweeping receipts": Point("jobs.store:Store.delete", "_receipts"),
}


@dataclass
class Place:
    """A corpus and an output that live through many rounds.

    Attributes:
        name: For people.
        site: The job, as its operator runs it.
        endpoint: Where its store is, past the proxy; None is the disk.
        proxy: What its requests go through, if they do.
        shards: Name and seed of what is there.
    """

    name: str
    site: Site
    endpoint: str | None = None
    proxy: FaultyS3 | None = None
    shards: dict[str, int] = field(default_factory=dict)

    @property
    def corpus(self) -> Store:
        """Where shards are changed."""
        return open_store(Location(self.site.corpus, self.endpoint))

    def clean(self, number: int) -> Site:
        """The same job without its history, faults, or anything in its output."""
        return replace(
            self._site(self.endpoint), out=f"{self.site.out}-{number}", carry_over=False, keep_manifests=1
        )

    def faulty(self) -> Site:
        """The job through the proxy."""
        return self._site(self.proxy.url if self.proxy else None)

    def _site(self, endpoint: str | None) -> Site:
        return through(self.site, endpoint) if endpoint else self.site

    def change(self, draw: random.Random) -> None:
        """Add, replace or remove a few shards; at least one stays."""
        for _ in range(draw.randint(1, 2)):
            path = f"half={draw.randrange(2)}/s{draw.randrange(2)}.parquet"
            if path in self.shards and len(self.shards) > 1 and draw.random() < 0.3:
                del self.shards[path]
                self.corpus.delete([path])
            else:
                self.shards[path] = draw.randrange(10**6)
                put(self.corpus, path, shard(path, SHARD_ROWS, seed=self.shards[path]))

    def output(self, site: Site) -> Location:
        """Past the proxy."""
        return Location(site.out, self.endpoint)


@dataclass
class Tallied:
    """What happened in all rounds."""

    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    polls: int = 0


def play(number: int, seed: int, place: Place, cluster: Cluster, tallied: Tallied) -> None:
    """One round.

    Raises:
        AssertionError: The dataset is not what it should be, or a reader saw something else.
    """
    draw = random.Random(f"{seed}/{number}")
    place.change(draw)
    with Reader(place.output(place.site)) as reader:
        before = len(reader.seen)
        for chance in (*FAULTY, 0.0):
            if _ends_well(draw, place, cluster, tallied, faulty=draw.random() < chance):
                break
        else:
            raise AssertionError("the job does not come to an end")
    tallied.polls += reader.num_polls
    clean = place.clean(number)
    rebuild(clean)
    found, wanted = published(place.output(place.site)), published(place.output(clean))
    compare = assert_alike if place.site.carry_over else assert_same
    compare(found, wanted, SHARD_ROWS * len(place.shards))
    assert reader.faults == []
    assert len(reader.seen) <= before + 1


def _ends_well(
    draw: random.Random, place: Place, cluster: Cluster, tallied: Tallied, *, faulty: bool
) -> bool:
    """The command once, with what it meets; False where it has to be run again."""
    point, killers = None, []
    if faulty and draw.random() < 0.6:
        name = draw.choice(list(POINTS))
        point = POINTS[name]
        if point.number < 0:
            point = replace(point, number=draw.randint(1, 4))
        if draw.random() < 0.25:
            point = replace(point, signal=draw.choice(["SIGINT", "SIGTERM"]))
    elif faulty:
        stages = STAGES if place.site.readers != "null" else ("Embed",)
        drawn = draw.sample(stages, min(len(stages), draw.randint(1, 2)))
        killers = [Killer(cluster, stage, 1, draw.choice([AT_WORK, AT_WORK, LOADING])) for stage in drawn]
    site = place.faulty()
    if not killers:  # one worker less to start
        site = replace(site, more=(*site.more, "--max-actors", "1"))
    if place.proxy is not None:
        place.proxy.share = draw.choice([0.0, 0.1, 0.2]) if faulty else 0.0
    earlier = sum(place.proxy.injected.values()) if place.proxy else 0
    with ExitStack() as stack:
        process = site.start(point)
        for killer in killers:
            stack.enter_context(killer)
        outcome = finish(process)
    tallied.runs += 1
    for killer in killers:
        tallied.faults[f"{killer.name} killed"] += len(killer.killed)
    if place.proxy is not None:
        tallied.faults["requests failed"] += sum(place.proxy.injected.values()) - earlier
    if outcome.exit_code == 0:
        return True
    assert point is not None, outcome.stderr
    assert outcome.exit_code == (-9 if point.signal == "SIGKILL" else 1), outcome.stderr
    tallied.faults[f"{point.signal}: {name}"] += 1
    return False


@contextmanager
def places(folder: Path, cluster: Cluster) -> Iterator[list[Place]]:
    """Jobs on a disk, and on S3 behind a proxy that fails requests; two of them with a history.

    What a run takes is the start of its processes: only one has a process for each stage.
    """
    plain, prompted = folder / "plain", folder / "prompted"
    write_repository(plain)
    write_repository(prompted, settings={"prompts": {"query": "query: ", "document": "passage: "}})
    site = replace(on_cluster(cluster, plain, folder, folder), readers="null")
    history = {"model": prompted, "views": TWO_VIEWS, "carry_over": True, "keep_manifests": 3}
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with patch.dict("os.environ", CREDENTIALS), faulty_s3(endpoint, 0.0, seed=0) as proxy:
        S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True).mkdir("chaos")
        made = []
        for number, more in enumerate(({}, {"readers": "1"}, history, history)):
            root = "s3://chaos" if number % 2 else str(folder)
            uris = {"corpus": f"{root}/corpus-{number}", "out": f"{root}/out-{number}"}
            name = f"{'S3' if number % 2 else 'disk'}{', history' if more is history else ''}"
            on_s3 = {"endpoint": endpoint, "proxy": proxy} if number % 2 else {}
            made.append(Place(name, replace(site, **uris, **more), **on_s3))
        yield made
    server.stop()


def run(cluster: Cluster, num_rounds: int, seed: int, first: int = 0) -> Tallied:
    """Play rounds, at each place in turn.

    Raises:
        AssertionError: One failed; its number and the seed are printed.
    """
    started, tallied = time.monotonic(), Tallied()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        all_places = stack.enter_context(places(folder, cluster))
        for number in range(first, first + num_rounds):
            place = all_places[number % len(all_places)]
            runs, since = tallied.runs, time.monotonic()
            try:
                play(number, seed, place, cluster, tallied)
            except BaseException:
                print(f"round {number} of seed {seed} on {place.name} FAILED", flush=True)
                raise
            seconds = time.monotonic() - since
            print(
                f"round {number} {place.name}: {tallied.runs - runs} runs, {seconds:.0f} s, equal", flush=True
            )
    left = [one for one in cluster.listed("actors", state="ALIVE") if one["class_name"] == "Deaths"]
    assert left == []
    tallied.seconds = time.monotonic() - started
    return tallied


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    with cluster_of(num_cpus=2, more={"PYTHONPATH": str(REPOSITORY), **CREDENTIALS}) as cluster:
        tallied = run(cluster, asked.rounds, asked.seed, asked.first)
    print(
        f"{asked.rounds} rounds of seed {asked.seed}: {tallied.runs} runs, {tallied.seconds:.0f} s, every dataset"
    )
    print(
        f"equal to an undisturbed one; {tallied.polls} looks of a reader, each at the whole old or the whole new one"
    )
    for fault, count in sorted(tallied.faults.items()):
        print(f"{count:6} {fault}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
