"""Exactly the deadly rows are found, whoever else is killed meanwhile, and it takes few deaths."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobs.isolation import Hand, Isolation


class Killed(Exception):  # noqa: N818 - no error of anybody's
    """What becomes of a worker that has a deadly row in hand, or that somebody kills."""


def live(isolation: Isolation, rows: range, deadly: set[int], kills: list[bool]) -> list[Hand]:
    """One worker does the fragment as it is told until it is done or dies; what it had in hand.

    Kills say whether somebody kills it as well, for each thing that it takes in hand; they are used up.
    """
    hands: list[Hand] = []

    def hold(hand: Hand) -> Hand:
        hands.append(hand)
        touched = set(hand if isinstance(hand, range) else rows if hand == "whole" else ())
        if touched & deadly - isolation.deadly or (kills and kills.pop()):
            raise Killed
        return hand

    try:
        hand = hold(isolation.take())
        while hand != "whole":
            hand = hold(isolation.go_on())
    except Killed:
        return hands
    return [*hands, "whole"]  # twice: it is done


def worked_off(rows: range, deadly: set[int], kills: list[bool]) -> tuple[Isolation, int]:
    """Workers, one after the other, until one has done the whole; what is known then, and how many died."""
    isolation, deaths = Isolation(rows), 0
    while live(isolation, rows, deadly, kills)[-2:] != ["whole", "whole"]:
        deaths += 1
    return isolation, deaths


ROWS = st.integers(0, 10**6).flatmap(
    lambda first: st.integers(1, 3000).map(lambda n: range(first, first + n))
)


@st.composite
def fragments(draw: st.DrawFn) -> tuple[range, set[int]]:
    rows = draw(ROWS)
    return rows, draw(st.sets(st.sampled_from(rows), max_size=8))


@given(fragments())
def test_exactly_the_deadly_rows_are_found_in_few_deaths(fragment: tuple[range, set[int]]) -> None:
    rows, deadly = fragment
    isolation, deaths = worked_off(rows, deadly, [])
    assert isolation.deadly == deadly
    # One of the whole, then for each row one a level (a piece of 3,000 rows has 30, a piece of those is one), and two.
    assert deaths <= (1 + 3 * len(deadly) if deadly else 0)


@given(fragments(), st.integers(0, 10), st.data())
def test_kills_from_elsewhere_blame_nobody(
    fragment: tuple[range, set[int]], num_kills: int, data: st.DataObject
) -> None:
    """One kill in two things taken in hand at most: nobody is there twice running when the same row is alone."""
    rows, deadly = fragment
    kills: list[bool] = []
    for pause in data.draw(st.lists(st.integers(1, 40), min_size=num_kills, max_size=num_kills)):
        kills += [True, *[False] * (2 * pause)]
    isolation, _ = worked_off(rows, deadly, kills)
    assert isolation.deadly == deadly


def test_a_row_that_comes_back_once_starts_anew() -> None:
    isolation = Isolation(range(2))
    assert isolation.take() == "whole"
    for _ in range(2):
        assert [isolation.take(), isolation.go_on()] == ["opened", range(1)]
        assert [isolation.take(), isolation.go_on(), isolation.go_on()] == [
            "opened",
            range(1),
            range(1, 2),
        ]
        assert isolation.go_on() == "whole"
    assert isolation.deadly == set()


def test_deaths_are_counted_as_a_whole_and_in_a_row() -> None:
    isolation = Isolation(range(0))  # a stage that cannot do rows apart
    for deaths in range(4):
        assert isolation.take() == "whole"
        assert (isolation.deaths, isolation.deaths_in_a_row) == (deaths, deaths)
    isolation = Isolation(range(300))
    isolation.take()
    assert [isolation.take(), isolation.go_on()] == ["opened", range(3)]
    assert [isolation.take(), isolation.go_on()] == ["opened", range(1)]
    assert (isolation.deaths, isolation.deaths_in_a_row) == (1, 2)
    isolation.go_on()
    assert (isolation.deaths, isolation.deaths_in_a_row) == (1, 0)
    isolation.take()
    isolation.take()
    assert (isolation.deaths, isolation.deaths_in_a_row) == (2, 2)
