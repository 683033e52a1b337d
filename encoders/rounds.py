"""One round of batches within a budget of tokens: which vectors came, and which batches did not fit the memory.

A batch that did not fit says something of the others: of its round none of more than half the budget is tried after
it, since that would only fail one after the other. What follows from it for the next round, `encoders.encoder` decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from encoders.batching import Batch
from encoders.copies import Fetch
from encoders.memory import Result, if_it_fits

Tried = tuple[Batch, npt.NDArray[np.float32] | None]


class Round:
    """Batches that go through with the same budget, by one call of `in_turn` or `by_threads`.

    Args:
        encode: Queues a batch; what it gives waits for the vectors.
        num_computed: Tokens of a batch, with what texts are filled up with.
        device: Where.
        budget: Tokens of a batch.
    """

    def __init__(
        self,
        encode: Callable[[Batch], Fetch],
        num_computed: Callable[[Batch], int],
        device: torch.device,
        budget: int,
    ) -> None:
        self._encode = encode
        self._num_computed = num_computed
        self._device = device
        self._budget = self._worth_a_try = budget

    def in_turn(self, batches: Iterable[Batch], num_ahead: int) -> Iterator[Tried]:
        """One after the other, some of them queued before the vectors of the one ahead are waited for.

        Yields:
            A batch and its vectors `[num_vectors, dim]`; None for one that did not fit the memory.
        """
        queued: deque[tuple[Batch, Fetch | None]] = deque()
        for batch in batches:
            queued.append((batch, self._start(batch)))
            if len(queued) > num_ahead:
                first, fetch = queued.popleft()
                yield first, self._end(first, fetch)
        for batch, fetch in queued:
            yield batch, self._end(batch, fetch)

    def by_threads(self, batches: Iterable[Batch], threads: ThreadPoolExecutor) -> Iterator[Tried]:
        """Each thread takes the next one; yields the same."""
        each = list(batches)
        return zip(each, threads.map(self._try, each), strict=True)

    def _try(self, batch: Batch) -> npt.NDArray[np.float32] | None:
        return self._end(batch, self._start(batch))

    def _start(self, batch: Batch) -> Fetch | None:
        """Queue a batch; None if it does not fit the memory, or would not by what others took."""
        if len(batch.rows) > 1 and self._num_computed(batch) > self._worth_a_try:
            return None
        return self._if_it_fits(batch, lambda: self._encode(batch))

    def _end(self, batch: Batch, fetch: Fetch | None) -> npt.NDArray[np.float32] | None:
        """The vectors of a batch, once they are there."""
        return None if fetch is None else self._if_it_fits(batch, fetch)

    def _if_it_fits(self, batch: Batch, action: Callable[[], Result]) -> Result | None:
        result = if_it_fits(action, self._device)
        if result is None and len(batch.rows) > 1:  # others as large would only fail, one after the other
            self._worth_a_try = self._budget // 2
        return result
