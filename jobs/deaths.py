"""How often a fragment was in hand when its worker's process ended.

Ray starts a worker that died again, gives it the same fragment, and would do so for ever. Nearly always that is
right: machines go, and processes are killed for what their neighbours do. But a fragment that ends its process
itself (a text that needs more memory than there is, a fault in native code) has to end the run at some time, with
its name. Only workers that were restarted keep count, so a run without deaths pays nothing for it.
"""

from __future__ import annotations

from collections import Counter

from jobs.errors import JobError
from jobs.run_spec import Work

# The first of them, of a worker that was never restarted, is not seen.
MOST_DEATHS = 5


class Deaths:
    """The count of one run, by what is done to which fragment; lives in one process that all workers reach."""

    def __init__(self) -> None:
        self._begun: Counter[tuple[str, str]] = Counter()

    def begin(self, doing: str, fragment: str) -> int:
        """A restarted worker takes a fragment in hand; how often one did so before and never put it down."""
        earlier = self._begun[doing, fragment]
        self._begun[doing, fragment] += 1
        return earlier

    def end(self, doing: str, fragment: str) -> None:
        """It has put it down: the fragment is no danger."""
        del self._begun[doing, fragment]


def refuse_deadly(doing: str, work: Work, earlier: int) -> None:
    """Stop at a fragment that has ended too many processes.

    Raises:
        JobError: It has; with the fragment's name.
    """
    if earlier + 1 < MOST_DEATHS:
        return
    fragment = work.fragment
    last = fragment.first_row + fragment.num_rows - 1
    raise JobError(
        f"{MOST_DEATHS} worker processes in a row died while rows {fragment.first_row} to {last} of shard "
        f"{fragment.shard.path!r} (fragment {fragment.id[:12]}) were {doing}; nothing is published. Either "
        "they need more memory than there is (a worker that runs out of it is killed without a word): give the workers "
        "more, or lower input.fragment_rows or compute.max_batch_tokens; or one of these texts is deadly: take it out "
        "of the corpus. Then run the same command again"
    )
