"""Kills workers of a cluster while they load or are at work, found by the titles that Ray gives to its processes."""

from __future__ import annotations

import threading
import time

import psutil

from tests.integration.clusters import Cluster, title_of

STAGES = ("Read", "Encode", "Write")
KILLS = 3
AT_WORK, LOADING = ".submit", ".__init__"


class Killer(threading.Thread):
    """Kills actors of one stage, each while it has a fragment in hand or while it loads, as often as it is told to.

    Attributes:
        stage: `Read`, `Encode`, `Write`, or `Embed` which is all of them.
        killed: Process ids.
    """

    def __init__(self, cluster: Cluster, stage: str, kills: int = KILLS, at: str = AT_WORK) -> None:
        super().__init__(daemon=True, name=f"{stage}{at}")
        self.killed: list[int] = []
        self.stage = stage
        self._cluster = cluster
        self._kills = kills
        self._at = at
        self._done = threading.Event()

    def run(self) -> None:
        workers: list[psutil.Process] = []
        looked = 0.0
        while not self.is_done and not self._done.is_set():
            if time.monotonic() - looked > 0.7:  # less than a worker takes to load
                looked = time.monotonic()
                workers = self._cluster.workers(f"({self.stage})")
            if any(self._kill_in_the_act(worker) for worker in workers):
                looked = 0.0
            time.sleep(0.003)

    def _kill_in_the_act(self, worker: psutil.Process) -> bool:
        if worker.pid in self.killed or self._at not in title_of(worker):
            return False
        try:
            worker.suspend()
            in_the_act = self._at in title_of(worker)
            (worker.kill if in_the_act else worker.resume)()
        except psutil.NoSuchProcess:
            return False
        if in_the_act:
            self.killed.append(worker.pid)
        return in_the_act

    @property
    def is_done(self) -> bool:
        """Whether it has killed as often as it was told to."""
        return len(self.killed) >= self._kills

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()
