"""Workers are killed in the middle of a fragment; the run goes on and gives what it would have given."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.chaos.corpora import num_rows_of, write_corpus
from tests.chaos.datasets import Reader, assert_same, published
from tests.chaos.sites import finish, location, on_cluster
from tests.integration.clusters import Cluster, title_of

STAGES = ("_Read", "_Encode", "_Write")
KILLS = 3


class Killer(threading.Thread):
    """Kills actors of one stage, each while it has a fragment in hand, as often as it is told to.

    Attributes:
        killed: Process ids.
    """

    def __init__(self, cluster: Cluster, stage: str, kills: int = KILLS) -> None:
        super().__init__(daemon=True)
        self.killed: list[int] = []
        self._cluster = cluster
        self._stage = stage
        self._kills = kills
        self._done = threading.Event()

    def run(self) -> None:
        workers: list[psutil.Process] = []
        looked = 0.0
        while len(self.killed) < self._kills and not self._done.is_set():
            if time.monotonic() - looked > 0.3:
                looked = time.monotonic()
                workers = self._cluster.workers(f"({self._stage})")
            if any(self._kill_at_work(worker) for worker in workers):
                looked = 0.0
            time.sleep(0.001)

    def _kill_at_work(self, worker: psutil.Process) -> bool:
        if ".submit" not in title_of(worker):
            return False
        try:
            worker.suspend()
            at_work = ".submit" in title_of(worker)
            (worker.kill if at_work else worker.resume)()
        except psutil.NoSuchProcess:
            return False
        if at_work:
            self.killed.append(worker.pid)
        return at_work

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()


@pytest.mark.slow
def test_readers_encoders_and_writers_killed_three_times_each_change_nothing(
    cluster: Cluster, model: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus", 3, 1000)
    site = on_cluster(cluster, model, corpus, tmp_path / "out")
    with Reader(location(site)) as reader:
        process = site.start()
        killers = [Killer(cluster, stage) for stage in STAGES]
        with killers[0], killers[1], killers[2]:
            outcome = finish(process)
    assert outcome.summary["rows"] == 3000
    killed = {killer._stage: len(set(killer.killed)) for killer in killers}
    assert killed == dict.fromkeys(STAGES, KILLS)
    clean = site.at(tmp_path / "clean")
    assert clean.run().summary["existing"] == 0
    assert_same(published(location(site)), published(location(clean)), num_rows_of(corpus))
    assert reader.faults == []
    assert len(reader.seen) == 1
