"""Workers that die of what they have in hand: which row it was, and when the run has to end.

Ray starts a worker that died again, gives it the same fragment, and would do so for ever. Nearly always that is
right: machines go, and processes are killed for what their neighbours do. But a fragment may end its process itself
(a text that needs more memory than there is, a fault in native code). A worker that was restarted therefore tells what
it takes in hand and what it puts down; after a second death the fragment is taken apart (`jobs.isolation`), and a row
that is found deadly becomes a reject. Where no row is to blame, the run ends with the fragment's name.

A run without deaths pays nothing for it. What is known is in memory, for one run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.errors import JobError, TooManyRejectsError
from jobs.isolation import Hand, Isolation
from jobs.run_spec import MOST_DEADLY_ROWS, Work

# The first of them, of a worker that was never restarted, is not seen.
MOST_DEATHS = 5
# Two of the whole, two of pieces, two of each row: four deadly rows side by side, and workers that die of everything.
MOST_DEATHS_IN_A_ROW = 12


class Orders(NamedTuple):
    """What a worker is told.

    Attributes:
        hand: What it has in hand from now on.
        deadly: Numbers of rows that it must not touch.
        deaths: Of the fragment, if there are too many; else 0.
        num_deadly: Deadly rows of the run, if there are too many; else 0.
    """

    hand: Hand
    deadly: frozenset[int]
    deaths: int
    num_deadly: int


class Deaths:
    """What is known in one run, by what is done to which fragment; lives in one process that all workers reach.

    Args:
        most_deadly: Rows that the run may leave out.
    """

    def __init__(self, most_deadly: int) -> None:
        self._most_deadly = most_deadly
        self._known: dict[tuple[str, str], Isolation] = {}

    def take(self, doing: str, fragment: str, rows: range) -> Orders:
        """A restarted worker takes a fragment in hand."""
        known = self._isolation(doing, fragment, rows)
        return self._orders(known, known.take())

    def go_on(self, doing: str, fragment: str, rows: range) -> Orders:
        """It has put down a piece of it, and takes the next."""
        known = self._isolation(doing, fragment, rows)
        return self._orders(known, known.go_on())

    def put_down(self, doing: str, fragment: str, rows: range) -> None:
        """It has put the whole down: without its deadly rows the fragment is no danger."""
        known = self._known.pop((doing, fragment), None)
        if known is not None and known.deadly:
            self._known[doing, fragment] = Isolation(rows, known.deadly)

    def _isolation(self, doing: str, fragment: str, rows: range) -> Isolation:
        return self._known.setdefault((doing, fragment), Isolation(rows))

    def _orders(self, known: Isolation, hand: Hand) -> Orders:
        deaths, in_a_row = known.deaths + 1, known.deaths_in_a_row + 1
        too_many = deaths >= MOST_DEATHS or in_a_row >= MOST_DEATHS_IN_A_ROW
        num_deadly = sum(len(one.deadly) for one in self._known.values())
        return Orders(
            hand,
            known.deadly,
            max(deaths, in_a_row) if too_many else 0,
            num_deadly if num_deadly > self._most_deadly else 0,
        )


@runtime_checkable
class Divisible(Protocol):
    """A stage that can do some rows of a fragment alone. Calling it does the same at once, with all of them."""

    def open(self, row: pa.Table) -> Any:
        """Take up a fragment, of which the other methods then make their own."""

    def keep(self, opened: Any, numbers: npt.NDArray[np.int64]) -> Any:
        """Only the rows of these numbers, and rejects as they come."""

    def reject(self, opened: Any, numbers: npt.NDArray[np.int64]) -> Any:
        """Without the rows of these numbers, which become rejects."""

    def run(self, opened: Any) -> pa.Table:
        """What the stage makes of it."""


# Calls a method of `Deaths` by its name.
Ask = Callable[[str, str, str, range], Any]


def survive(stage: Callable[[pa.Table], pa.Table], doing: str, row: pa.Table, ask: Ask) -> pa.Table:
    """Do a fragment in a worker that was restarted, saying before each step what is in hand.

    Raises:
        JobError: It has ended too many processes, and no row is to blame.
        TooManyRejectsError: Too many rows are.
    """
    work = Work.from_json(row["work"][0].as_py())
    fragment = work.fragment
    num_rows = fragment.num_rows if isinstance(stage, Divisible) else 0
    rows = range(fragment.first_row, fragment.first_row + num_rows)

    def orders_for(method: str) -> Orders:
        orders: Orders = ask(method, doing, fragment.id, rows)
        _refuse(doing, work, orders)
        return orders

    try:
        orders = orders_for("take")
        if not isinstance(stage, Divisible):
            return stage(row)
        opened = stage.open(row)
        while orders.hand != "whole":
            orders = orders_for("go_on")
            if isinstance(orders.hand, range):
                stage.run(stage.keep(opened, np.setdiff1d(orders.hand, list(orders.deadly))))
        if orders.deadly:
            opened = stage.reject(opened, np.array(sorted(orders.deadly), np.int64))
        return stage.run(opened)
    finally:
        ask("put_down", doing, fragment.id, rows)


def _refuse(doing: str, work: Work, orders: Orders) -> None:
    fragment = work.fragment
    if orders.num_deadly:
        numbers = ", ".join(map(str, sorted(orders.deadly)))
        raise TooManyRejectsError(
            f"{orders.num_deadly:,} rows ended every worker process that had nothing else in hand; in shard "
            f"{fragment.shard.path!r} row {numbers}, while {doing}. Fewer are allowed by output.max_rejected_rows, "
            f"output.max_rejected_fraction or the most of a run ({MOST_DEADLY_ROWS}); nothing is published. "
            "Take them out of the corpus, give the workers more memory, or allow more, and run the same command again"
        )
    if orders.deaths:
        last = fragment.first_row + fragment.num_rows - 1
        raise JobError(
            f"{orders.deaths} worker processes died while rows {fragment.first_row} to {last} of shard "
            f"{fragment.shard.path!r} (fragment {fragment.id[:12]}) were {doing}, and no few rows of them are "
            "to blame; nothing is published. Most likely they need more memory than there is (a worker without it is "
            "killed without a word): give the workers more, or lower input.fragment_rows or "
            "compute.max_batch_tokens. Then run the same command again"
        )
