"""Kills workers of a cluster while they are at work, found by the titles that Ray gives to its processes."""

from __future__ import annotations

import threading
import time

import psutil

from tests.integration.clusters import Cluster, title_of

STAGES = ("_Read", "_Encode", "_Write")
KILLS = 3


class Killer(threading.Thread):
    """Kills actors of one stage, each while it has a fragment in hand, as often as it is told to.

    Attributes:
        stage: `_Read`, `_Encode` or `_Write`.
        killed: Process ids.
    """

    def __init__(self, cluster: Cluster, stage: str, kills: int = KILLS) -> None:
        super().__init__(daemon=True)
        self.killed: list[int] = []
        self._cluster = cluster
        self.stage = stage
        self._kills = kills
        self._done = threading.Event()

    def run(self) -> None:
        workers: list[psutil.Process] = []
        looked = 0.0
        while len(self.killed) < self._kills and not self._done.is_set():
            if time.monotonic() - looked > 0.3:
                looked = time.monotonic()
                workers = self._cluster.workers(f"({self.stage})")
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
