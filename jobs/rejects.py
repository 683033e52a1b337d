"""How many rows may go without a vector: a run that rejects more stops before its commit, and as soon as that is sure.

A dataset that lost a third of its rows is well-formed, and its counts balance; only a limit can tell a corpus with a
few bad rows from a broken one. Every reject counts, whatever its reason, those of an undecodable shard too. Two do not:
a shard that was skipped because its footer cannot be read, for nobody knows its rows; and rows that repeat an id, for
who says `on_duplicate_id: keep_first` has said so, and their id has its vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from jobs.errors import TooManyRejectsError
from jobs.records import REJECTS, Receipt
from jobs.rows import DUPLICATE_ID, OF_THE_MACHINE


class RejectLimit:
    """Counts rejects against what is allowed, of receipts in any order.

    Args:
        num_rows: Of the corpus.
        max_rows: Rejects that are allowed; None: any number.
        max_fraction: Of the rows of the corpus.
        output: URI of the dataset.
    """

    def __init__(self, num_rows: int, max_rows: int | None, max_fraction: float, output: str) -> None:
        self._num_rows = num_rows
        self._max_rows = max_rows
        self._max_fraction = max_fraction
        self._output = output
        self._rejected: dict[str, Mapping[str, int]] = {}
        self._total = 0

    @property
    def left(self) -> int:
        """Rejects that may still come."""
        most = int(self._max_fraction * self._num_rows)
        most += (most + 1) / self._num_rows <= self._max_fraction  # 0.29 times 100 is 28.999...
        return (most if self._max_rows is None else min(most, self._max_rows)) - self._total

    def add(self, receipt: Receipt) -> None:
        """Take in what became of a fragment; two views that were made apart reject the same rows once.

        Raises:
            TooManyRejectsError: That is more than is allowed.
        """
        before = self._rejected.get(receipt.fragment, {})
        counted = {reason: count for reason, count in receipt.rejected.items() if reason != DUPLICATE_ID}
        more = sum(counted.values()) - sum(before.values())
        if more <= 0:
            return
        self._rejected[receipt.fragment] = counted
        self._total += more
        if self._max_rows is not None and self._total > self._max_rows:
            raise self._error(f"output.max_rejected_rows={self._max_rows}")
        if self._total / self._num_rows > self._max_fraction:
            raise self._error(f"output.max_rejected_fraction={self._max_fraction:g}")

    def _error(self, limit: str) -> TooManyRejectsError:
        reasons = sum((Counter(rejected) for rejected in self._rejected.values()), Counter[str]())
        counts = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        larger = (
            ""
            if OF_THE_MACHINE.isdisjoint(reasons)
            else "take a larger machine, or another encoder.dtype, and output.retry_rejects=true, "
        )
        return TooManyRejectsError(
            f"at least {self._total:,} of {self._num_rows:,} rows would go without a vector ({counts}), and {limit} "
            f"allows fewer; nothing is published. {self._output.rstrip('/')}/{REJECTS} names them, with the reason, "
            f"shard and row of each: mend the corpus, {larger}or allow more, and run the same command again"
        )
