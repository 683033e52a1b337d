"""One run whose nodes come late, whose workers are killed, that loses a node and gets another; all data is on S3."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.storage import Location, open_store
from tests.chaos.conftest import CREDENTIALS
from tests.chaos.corpora import shard
from tests.chaos.datasets import Reader, assert_same, published
from tests.chaos.faulty_s3 import FaultyS3, faulty_s3
from tests.chaos.killers import KILLS, LOADING, STAGES, Killer
from tests.chaos.plain import rebuild
from tests.chaos.sites import Site, on_cluster, through
from tests.integration.clusters import Cluster, cluster_of
from tests.integration.commands import REPOSITORY, finish
from tests.stores import put

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

NUM_SHARDS, NUM_ROWS = 4, 2500
ON_EACH_NODE = (
    "--set",
    "compute.min_actors=2",
)  # of whom Ray would else wait for a need, which a standstill is not
SOON = ("--set", "compute.no_progress_timeout_seconds=5")
# Of each request, while somebody is to be killed: small fragments then take about a second, and hardly any work.
DELAY_SECONDS = 0.15
# And while nodes go and come, which takes Ray a minute: the run all but stands still, and is not over before.
STANDSTILL_SECONDS = 5.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that takes no work, as in most clusters that grow, and nobody else yet."""
    with cluster_of(num_cpus=0, more={"PYTHONPATH": str(REPOSITORY), **CREDENTIALS}) as made:
        yield made


def wait(is_so: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 400) -> None:
    """For something that has to happen while the run is at work."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def nodes_of_encoders(cluster: Cluster) -> set[str]:
    """Where encoders are that have loaded their model."""
    actors = cluster.listed("actors")
    return {one["node_id"] for one in actors if "(Encode)" in one["class_name"] and one["state"] == "ALIVE"}


def num_encoded(cluster: Cluster, node: str) -> int:
    """Blocks of fragments that a node's encoders have finished."""
    tasks = cluster.listed("tasks", node_id=node, state="FINISHED")
    return sum("(Encode)" in one["name"] and one["name"].endswith(".submit") for one in tasks)


def test_without_nodes_a_run_ends_soon_and_says_what_it_needs(
    cluster: Cluster, model: Path, tmp_path: Path
) -> None:
    """More shards than the driver opens itself: their footers are the first thing that nobody comes for."""
    one, corpus = tmp_path / "one.parquet", tmp_path / "corpus"
    pq.write_table(pa.table({"id": ["a"], "text": ["a"]}), one)
    corpus.mkdir()
    for number in range(600):
        (corpus / f"{number}.parquet").hardlink_to(one)
    nobody = on_cluster(cluster, model, corpus, tmp_path / "out").run(None, *SOON)
    assert nobody.exit_code == 1
    assert "no task of this run came to an end for 5 s" in nobody.stderr
    assert "reading footers needs 0.1 CPU, and no node of the cluster has that" in nobody.stderr
    assert "the same command again" in nobody.stderr
    assert "Traceback" not in nobody.stderr


def test_nodes_that_come_late_workers_that_die_and_a_node_that_goes_change_nothing(
    cluster: Cluster, model: Path, s3: str, s3_server: str
) -> None:
    corpus = open_store(Location(f"{s3}/corpus", s3_server))
    for number in range(NUM_SHARDS):
        put(corpus, f"half={number % 2}/s{number}.parquet", shard(f"s{number}", NUM_ROWS))
    plain = replace(on_cluster(cluster, model, Path(), Path()), corpus=f"{s3}/corpus", out=f"{s3}/out")
    plain = replace(plain, more=(*plain.more, *ON_EACH_NODE))
    out = Location(plain.out, s3_server)
    with faulty_s3(s3_server, 0.0, seed=0) as proxy, Reader(out) as reader:
        site = through(plain, proxy.url)
        nobody = site.run(None, *SOON)
        assert nobody.exit_code == 1
        assert "nobody was at work on this run for 5 s" in nobody.stderr
        assert (
            "a reader needs 0.1 CPU, and no node of the cluster has that (of 1 none has more than 0 CPU"
            in nobody.stderr
        )
        assert "the same command again" in nobody.stderr
        assert "Traceback" not in nobody.stderr
        play(cluster, site, proxy)
    clean = through(plain.at(f"{s3}/clean"), s3_server)
    rebuild(clean)
    assert_same(published(out), published(Location(clean.out, s3_server)), NUM_SHARDS * NUM_ROWS)
    assert reader.faults == []
    assert len(reader.seen) == 1


def play(cluster: Cluster, site: Site, proxy: FaultyS3) -> None:
    """The command that found no nodes, once more: now two have come, and nobody is left alone."""
    head = cluster.alive_nodes()
    cluster.join("one")
    other = cluster.join("other")
    proxy.delay_seconds = DELAY_SECONDS
    process = site.start()
    killers = [Killer(cluster, "Encode", 1, at=LOADING), *(Killer(cluster, stage) for stage in STAGES)]
    with ExitStack() as stack:
        for killer in killers:
            stack.enter_context(killer)
        wait(lambda: all(killer.is_done for killer in killers), process)
    assert [len(set(killer.killed)) for killer in killers] == [1, *[KILLS] * len(STAGES)]

    proxy.delay_seconds = STANDSTILL_SECONDS
    both = cluster.alive_nodes() - head
    wait(lambda: nodes_of_encoders(cluster) == both, process)
    cluster.lose(other)
    wait(lambda: len(cluster.alive_nodes() - head) == 1, process)
    before = cluster.alive_nodes()
    cluster.join("late")
    (late,) = cluster.alive_nodes() - before
    wait(lambda: late in nodes_of_encoders(cluster), process)
    proxy.delay_seconds = DELAY_SECONDS
    wait(lambda: num_encoded(cluster, late) > 0, process)
    proxy.delay_seconds = 0.0
    assert finish(process, 400).summary["rows"] == NUM_SHARDS * NUM_ROWS
