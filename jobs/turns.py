"""What fragments that share an encoder need of each other: turns, and a clock for all of them.

On the CPU an encoder's threads take batches of several fragments at a time: the last batches of one would leave threads
without any, and a tiny fragment has one for a single thread. Batches of two fragments may go side by side, as those of
one do. What changes the encoder may not: another adapter's weights, a proof, a text that wants all of the memory.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from threading import Lock, Semaphore


class Turns:
    """A permit for each fragment at work; who must be alone takes all of them.

    Attributes:
        most: Fragments at a time.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._permits = Semaphore(most)
        self._for_more = Lock()  # two who had half of the permits each would wait for ever

    @contextlib.contextmanager
    def beside_others(self, is_ready: Callable[[], bool], prepare: Callable[[], None]) -> Iterator[None]:
        """Be one of several, once what they share is ready for all that is to be done.

        Args:
            is_ready: Whether it is; nobody changes anything while it is asked.
            prepare: Makes it ready, alone; nobody comes between that and the turn.
        """
        with self._held(1):
            if is_ready():
                yield
                return
        with contextlib.ExitStack() as turn:
            with self._for_more:
                turn.enter_context(self._held(1))
                if not is_ready():  # still, after all who asked before
                    with self._held(self.most - 1):
                        prepare()
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one."""
        with self._for_more, self._held(self.most):
            yield

    @contextlib.contextmanager
    def _held(self, number: int) -> Iterator[None]:
        for _ in range(number):
            self._permits.acquire()
        try:
            yield
        finally:
            if number:
                self._permits.release(number)


class Clock:
    """How long somebody was at work, and how long nobody; what several do at the same time counts once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._at_work = 0
        self._counted: float | None = None  # until when

    def begin(self) -> float:
        """Somebody begins; returns the seconds in which nobody was at work since the last one, 0 for the first."""
        with self._lock:
            now = time.perf_counter()
            idle = 0.0 if self._at_work or self._counted is None else now - self._counted
            if not self._at_work:
                self._counted = now
            self._at_work += 1
            return idle

    def end(self) -> float:
        """Somebody ends; returns the seconds of work that nobody has counted yet."""
        with self._lock:
            assert self._counted is not None
            now = time.perf_counter()
            worked, self._counted = now - self._counted, now
            self._at_work -= 1
            return worked
