"""A run may reject so many rows and not one more."""

from __future__ import annotations

import pytest

from jobs.errors import TooManyRejectsError
from jobs.records import Receipt
from jobs.rejects import RejectLimit


def receipt(fragment: str, **rejected: int) -> Receipt:
    return Receipt(fragment=fragment, shard="a", num_rows=100, rejected=rejected, rejects=None, parts={})


@pytest.mark.parametrize(
    ("num_rows", "fraction", "allowed"), [(100, 0.29, 29), (1000, 0.07, 70), (10, 0.0, 0)]
)
def test_a_fraction_allows_just_so_many_rows(num_rows: int, fraction: float, allowed: int) -> None:
    RejectLimit(num_rows, None, fraction, "/out").add(receipt("f", null_text=allowed))
    assert RejectLimit(num_rows, None, fraction, "/out").left == allowed
    with pytest.raises(TooManyRejectsError, match=rf"{allowed + 1} of {num_rows:,} rows"):
        RejectLimit(num_rows, None, fraction, "/out").add(receipt("f", null_text=allowed + 1))


def test_a_number_allows_just_so_many_rows_and_all_reasons_are_counted() -> None:
    limit = RejectLimit(1_000_000, 5, 1.0, "s3://bucket/out/")
    limit.add(receipt("a", null_text=2))
    assert limit.left == 3
    limit.add(receipt("b", too_long=3))
    assert limit.left == 0
    with pytest.raises(TooManyRejectsError) as caught:
        limit.add(receipt("c", null_text=2))
    for told in (
        "7 of 1,000,000 rows",
        "null_text 4, too_long 3",
        "max_rejected_rows=5",
        "s3://bucket/out/_rejects",
    ):
        assert told in str(caught.value)


def test_two_views_of_a_fragment_that_were_made_apart_count_once() -> None:
    limit = RejectLimit(100, 5, 1.0, "/out")
    limit.add(receipt("a", null_text=4))
    limit.add(receipt("a", null_text=4))
    limit.add(receipt("a", null_text=4, out_of_memory=1))
    with pytest.raises(
        TooManyRejectsError,
        match=r"6 of 100 .* larger machine, or another encoder\.dtype, and output\.retry_rejects=true",
    ):
        limit.add(receipt("b", null_text=1))


def test_all_rows_may_go_where_that_is_wanted() -> None:
    RejectLimit(100, None, 1.0, "/out").add(receipt("a", null_text=100))
