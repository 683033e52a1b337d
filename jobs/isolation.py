"""Which rows of a fragment end the process that has them, found by giving the fragment out in ever smaller pieces.

A process that dies says nothing. But who takes its place knows what it had in hand, for that was noted before it was
taken up. A piece that is put down again is harmless; one that is not is cut into a hundred, down to single rows. A row
that ends its process twice running, with nothing else in hand, is deadly. In the end the fragment is done as a whole,
without its deadly rows.

What is put down costs a message, a death costs a process that starts and loads its model: hence a hundred and not two.
A deadly row among 10,000 takes four deaths behind the first, which nobody sees. Rows that are deadly only together are
not found: then the fragment dies as a whole, again and again, and so it is if opening it is what kills.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

Hand = range | Literal["whole", "opened"]

_PIECES = 100
_DEATHS_ALONE = 2


class Isolation:
    """What became of one fragment in one stage, by the numbers of its rows.

    Args:
        rows: Those that may be given out apart; none where a stage cannot do that.
        deadly: Those of them that are known.

    Attributes:
        deaths: With the fragment in hand as a whole, or while it was opened.
        deaths_in_a_row: Since a piece was last put down.
    """

    def __init__(self, rows: range, deadly: frozenset[int] = frozenset()) -> None:
        self.deadly = deadly
        self.deaths = 0
        self.deaths_in_a_row = 0
        self._rows = rows
        self._left: list[range] = []
        self._deaths_alone = 0
        self._in_hand: Hand | None = None

    def take(self) -> Hand:
        """A worker takes the fragment: whoever had it in hand and never put it down has died of that."""
        if self._in_hand is not None:
            self._died(self._in_hand)
        self._in_hand = "opened" if self._left else "whole"
        return self._in_hand

    def go_on(self) -> Hand:
        """It has put that down, and gets what comes next: a piece that nothing is known of, or in the end the whole."""
        if isinstance(self._in_hand, range):
            self._left.pop(0)
            self._deaths_alone = self.deaths_in_a_row = 0
        self._in_hand = self._left[0] if self._left else "whole"
        return self._in_hand

    def _died(self, hand: Hand) -> None:
        self.deaths_in_a_row += 1
        if not isinstance(hand, range):
            self.deaths += 1
            if hand == "whole":
                self._left = list(_pieces(self._rows))
        elif len(hand) > 1:
            self._left[:1] = _pieces(hand)
        else:
            self._deaths_alone += 1
            if self._deaths_alone == _DEATHS_ALONE:
                self._deaths_alone = 0
                self.deadly |= {hand.start}
                self._left.pop(0)


def _pieces(rows: range) -> Iterator[range]:
    """Stretches of about the same length."""
    size = max(1, -(-len(rows) // _PIECES))
    return (rows[start : start + size] for start in range(0, len(rows), size))
