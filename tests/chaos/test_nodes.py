"""A node is lost in the middle with its workers and objects; another joins late and takes work."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.conftest import CREDENTIALS
from tests.chaos.corpora import num_rows_of, write_corpus
from tests.chaos.datasets import Reader, assert_same, published
from tests.chaos.plain import rebuild
from tests.chaos.sites import location, on_cluster
from tests.integration.clusters import Cluster, cluster_of
from tests.integration.commands import REPOSITORY, finish


def wait(is_so: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def nodes_of_encoders(cluster: Cluster, state: str = "ALIVE") -> set[str]:
    actors = cluster.get("/api/v0/actors?detail=1")["data"]["result"]["result"]
    return {
        actor["node_id"]
        for actor in actors
        if "_Encode" in actor["class_name"] and actor["state"] == state and actor["node_id"]
    }


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_node_that_is_lost_and_one_that_joins_late_change_nothing(model: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", 4, 5000)
    with cluster_of(num_cpus=1, more={"PYTHONPATH": str(REPOSITORY), **CREDENTIALS}) as cluster:
        first = cluster.alive_nodes()
        other = cluster.join("other")
        site = on_cluster(cluster, model, corpus, tmp_path / "out")
        receipts = tmp_path / "out" / "_receipts"
        with Reader(location(site)) as reader:
            process = site.start()
            wait(lambda: process.poll() is not None or nodes_of_encoders(cluster) == cluster.alive_nodes())
            done = len(list(receipts.glob("*.json")))
            wait(lambda: len(list(receipts.glob("*.json"))) > done + 5)
            cluster.lose(other)
            wait(lambda: cluster.alive_nodes() == first)
            cluster.join("late")
            (late,) = cluster.alive_nodes() - first
            wait(lambda: process.poll() is not None or late in nodes_of_encoders(cluster))
            assert process.poll() is None, "the run was over before the late node could take work"
            outcome = finish(process)
        assert outcome.summary["rows"] == num_rows_of(corpus)
        assert reader.faults == []
        clean = site.at(tmp_path / "clean")
        rebuild(clean)
        assert_same(published(location(site)), published(location(clean)), num_rows_of(corpus))
