"""In which order fragments are embedded, and how many of them are taken in hand together.

The largest come first: else some encoders have large ones in hand at the end, when the others find none.

What Ray does for a block takes longer than a tiny fragment itself, so a block holds several small ones.

Of 1,500 shards of one row each, a fragment a block took more than 50 ms each; together, 46 ms on a busy machine, nearly
all of it the encoder's own (benchmarks/LOG.md). A fragment stays what it is and has its own receipt; a block that is
tried again finds the parts that its first try made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from jobs.run_spec import Work

MOST_ROWS = 1000
MOST_FRAGMENTS = 100
# So many that no worker is without one at the end of a run.
_LEAST_BLOCKS = 256
# What a thread of an encoder should find in hand: a few batches, at 64 tokens a row.
_ROWS_PER_THREAD = 64


def blocks_of(work: Sequence[Work]) -> Iterator[list[Work]]:
    """All of the work, what takes longest first; a fragment of more rows than a block should hold goes alone."""
    most = min(MOST_FRAGMENTS, max(1, len(work) // _LEAST_BLOCKS))
    block: list[Work] = []
    num_rows = 0
    for piece in sorted(work, key=_size, reverse=True):
        if len(block) == most or num_rows + piece.fragment.num_rows > MOST_ROWS:
            if block:
                yield block
            block, num_rows = [], 0
        block.append(piece)
        num_rows += piece.fragment.num_rows
    if block:
        yield block


def fragments_at_once(work: Sequence[Work], num_threads: int) -> int:
    """How many an encoder of so many threads has in hand, for threads not to wait at the end of a fragment.

    One more than would do if all were of a size; as many as threads, and one, where each is a batch or less.
    """
    if num_threads == 1:
        return 1
    rows_each = sum(map(_rows_to_encode, work)) / max(1, len(work))
    enough = math.ceil(num_threads * _ROWS_PER_THREAD / max(1.0, rows_each))
    return min(num_threads, enough) + 1


def _rows_to_encode(work: Work) -> int:
    """About as many; where vectors are carried over, few are left."""
    return 0 if work.carried is not None else work.num_sampled or work.fragment.num_rows


def _size(work: Work) -> tuple[bool, int]:
    """Grows with how long it takes; of a fragment with vectors carried over most texts need no encoding."""
    return work.carried is None, work.fragment.num_bytes * len(work.parts)
