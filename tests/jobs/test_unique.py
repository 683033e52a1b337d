"""Ids that stand twice are found, whatever their type, and others are not."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.unique import Register, bits_of

KINDS: dict[str, tuple[list[Any], pa.DataType]] = {
    "int64": ([-1, -2, 0, 2**61 - 2, -(2**63)], pa.int64()),
    "int8": ([-128, -1, 0, 127], pa.int8()),
    "uint64": ([0, 2**64 - 1, 2**63], pa.uint64()),
    "string": (["", "a", "A", "\0", "größe", "日本"], pa.string()),
    "large_string": (["", "a"], pa.large_string()),
    "binary": ([b"", b"\xff", b"a"], pa.binary()),
    "fixed binary": ([b"\xff\xfe", b"ab"], pa.binary(2)),
    "decimal": ([Decimal("1.00"), Decimal("1.01")], pa.decimal128(5, 2)),
    "date": ([date(2024, 1, 1), date(2024, 1, 2)], pa.date32()),
    "timestamp": (
        [datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, 0, 0, 1, tzinfo=UTC)],
        pa.timestamp("us", "UTC"),
    ),
    "nanoseconds": ([1, 2], pa.timestamp("ns")),
    "float": ([0.5, 1.5, float("inf")], pa.float64()),
    "bool": ([True, False], pa.bool_()),
    "struct": ([{"a": 1, "b": "x"}, {"a": 1, "b": "y"}], pa.struct([("a", pa.int32()), ("b", pa.string())])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_equal_ids_have_equal_bits_and_others_have_others(kind: str) -> None:
    values, data_type = KINDS[kind]
    ids = pa.array(values, data_type)
    bits = bits_of(ids, 0)
    assert len(set(bits.tolist())) == len(values)
    # a slice of another batch, in another order
    again = bits_of(pa.array([values[0], *values[::-1]], data_type).slice(1), 0)
    np.testing.assert_array_equal(again, bits[::-1])


def test_an_id_may_stand_in_every_view_and_in_every_chunk() -> None:
    ids = pa.array(["a", "a", "b"])
    chunks = pa.array([0, 1, 0], pa.int32())
    seen = [*bits_of(ids, 0, chunks).tolist(), *bits_of(ids, 1, chunks).tolist()]
    assert len(set(seen)) == 6


@given(st.lists(st.lists(st.integers(-300, 300), max_size=80), max_size=8))
def test_exactly_what_stands_twice_is_found_with_the_files_that_it_stands_in(files: list[list[int]]) -> None:
    places: dict[int, list[int]] = {}
    with Register() as register:
        for number, ids in enumerate(files):
            register.add(number, bits_of(pa.array(ids, pa.int64()), 0))
            for one in ids:
                places.setdefault(one, []).append(number)
        count, found = register.repeated(limit=1000)
    bits = {one: int(bits_of(pa.array([one], pa.int64()), 0)[0]) for one in places}
    expected = {bits[one]: sorted(set(where)) for one, where in places.items() if len(where) > 1}
    assert (count, found) == (len(expected), expected)


def test_of_many_the_first_are_named_and_all_are_counted() -> None:
    ids = pa.array(np.arange(10_000))
    with Register() as register:
        for number in range(3):
            register.add(number, bits_of(ids, 0))
        count, found = register.repeated(limit=7)
    assert (count, len(found)) == (10_000, 7)
    assert set(map(tuple, found.values())) == {(0, 1, 2)}
