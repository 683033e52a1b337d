"""What the pages of a column say of themselves, looked at before any of them is decompressed.

A footer may lie: it says how many values a column has and what they take, and readers stop at the one and allocate for
the other. Each page has a header of its own in front of it, which the decompressor must obey, so the sums of these are
the truth. They stand in the bytes that are read anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

_DATA_PAGES = {0: 5, 3: 8}  # type of a page -> the field of its header that counts its values
_DEEPEST = 16


class Page(NamedTuple):
    """One page.

    Attributes:
        num_values: Nulls included; None for a page of another kind, a dictionary's say.
        num_bytes: That it takes once it is decompressed.
    """

    num_values: int | None
    num_bytes: int


def pages_in(chunk: memoryview) -> Iterator[Page]:
    """The pages of a column in one row group, in their order.

    Raises:
        pa.ArrowInvalid: These are no pages.
    """
    place = 0
    while place < len(chunk):
        try:
            header, start = _struct(chunk, place, 0)
            kind, num_bytes, compressed = (int(header[field]) for field in (1, 2, 3))
            counted = _DATA_PAGES.get(kind)
            num_values = None if counted is None else int(header[counted][1])
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise pa.ArrowInvalid("a page has no header that could be read") from error
        if num_bytes < 0 or compressed < 0 or (num_values is not None and num_values < 0):
            raise pa.ArrowInvalid("the header of a page has a negative size")
        place = start + compressed
        if place > len(chunk):
            raise pa.ArrowInvalid(f"a page reaches {place - len(chunk):,} bytes beyond its column")
        yield Page(num_values, num_bytes)


def _struct(data: memoryview, place: int, depth: int) -> tuple[dict[int, Any], int]:
    """The fields of a struct by their number, and where it ends. Source: Thrift's compact protocol."""
    if depth > _DEEPEST:
        raise ValueError("structs in structs")
    fields: dict[int, Any] = {}
    number = 0
    while data[place]:
        kind, delta = data[place] & 15, data[place] >> 4
        place += 1
        if delta:
            number += delta
        else:
            number, place = _signed(data, place)
        fields[number], place = _value(data, place, kind, depth)
    return fields, place + 1


def _value(data: memoryview, place: int, kind: int, depth: int) -> tuple[Any, int]:
    match kind:
        case 1 | 2:
            return kind == 1, place
        case 3:
            return data[place], place + 1
        case 4 | 5 | 6:
            return _signed(data, place)
        case 7:
            return None, place + 8
        case 8:
            length, place = _unsigned(data, place)
            return data[place : place + length], place + length
        case 12:
            return _struct(data, place, depth + 1)
    raise ValueError(f"no page header has a field of kind {kind}")


def _unsigned(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while data[place] >= 0x80:
        value |= (data[place] & 0x7F) << shift
        shift += 7
        place += 1
        if shift > 63:
            raise ValueError("a number without end")
    return value | data[place] << shift, place + 1


def _signed(data: memoryview, place: int) -> tuple[int, int]:
    value, place = _unsigned(data, place)
    return (value >> 1) ^ -(value & 1), place
