"""Many reads at a time, by threads that nobody waits for who wants to end.

A store that hangs is given up after minutes, and a signal or an error is not to wait for that. An executor joins its
threads at its end, and the interpreter joins them once more at its own. Those of `multiprocessing.pool` are daemons,
and left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from multiprocessing.pool import ThreadPool
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_threads(act: Callable[[T], R], items: Iterable[T], num_threads: int) -> Iterator[R]:
    """What `act` gives for each item, in their order.

    Raises:
        Exception: What it raises; of several, that of the first item.
    """
    with ThreadPool(num_threads) as pool:
        yield from pool.imap(act, items)
