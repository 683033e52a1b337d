"""What a benchmark costs the machine: memory, processes and processor time of this process and all that it starts."""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
from collections.abc import Iterator

import psutil


class Usage:
    """Watches until it is stopped; a look at many processes costs a core for a second, so let them be seldom.

    Args:
        every: Seconds between two looks.

    Attributes:
        most_processes: At once.
        most_bytes: All of them together had at once, each shared page divided among those that share it.
        most_own_bytes: One of them had alone, without what it shares (the object store, say).
        busy_cores: Of the whole machine, the median of all looks.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self.most_processes = self.most_bytes = self.most_own_bytes = 0
        self._loads: list[float] = []
        self._seconds: dict[int, float] = {}
        self._look()
        self._before = sum(self._seconds.values())
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._done.set()
        self._thread.join()

    @property
    def busy_cores(self) -> float:
        """Zero before the second look."""
        return statistics.median(self._loads or [0.0])

    @property
    def cpu_seconds(self) -> float:
        """Of all of them, those that have ended too; says more than the clock where others are at work."""
        return sum(self._seconds.values()) - self._before

    def _watch(self) -> None:
        psutil.cpu_percent()  # a thread's first one is of no time at all
        while not self._done.wait(self._every):
            self._loads.append(psutil.cpu_percent() / 100 * (os.cpu_count() or 1))
            self._look()

    def _look(self) -> None:
        this = psutil.Process()
        sizes = []
        for process in (this, *this.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # gone since it was listed
                times = process.cpu_times()
                self._seconds[process.pid] = times.user + times.system
                sizes.append(process.memory_full_info())
        self.most_processes = max(self.most_processes, len(sizes))
        self.most_bytes = max(self.most_bytes, sum(size.pss for size in sizes))
        self.most_own_bytes = max([self.most_own_bytes, *(size.uss for size in sizes)])


@contextlib.contextmanager
def watched(every: float) -> Iterator[Usage]:
    """Watch what happens inside."""
    usage = Usage(every)
    try:
        yield usage
    finally:
        usage.stop()
