"""What a footer says of columns' types: which may be ids and texts, how many leaves they have, what a row takes."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.types as pt

# At the least: large and view types take more.
_OFFSET_BITS = 32


def is_string(kind: pa.DataType) -> bool:
    """Text in any layout but a dictionary."""
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def is_binary(kind: pa.DataType) -> bool:
    """Bytes of any length in any layout but a dictionary."""
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind))


def is_id(kind: pa.DataType) -> bool:
    """Whether it may name rows; a dictionary counts as what it holds."""
    kind = _plain(kind)
    return bool(pt.is_integer(kind) or is_string(kind) or is_binary(kind) or pt.is_fixed_size_binary(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether it may be embedded; a dictionary counts as what it holds."""
    kind = _plain(kind)
    return bool(is_string(kind) or is_binary(kind) or pt.is_null(kind))


def _plain(kind: pa.DataType) -> pa.DataType:
    return _plain(kind.value_type) if pt.is_dictionary(kind) else kind


def normalised(kind: pa.DataType) -> pa.DataType:
    """A type without what only says how it is laid out in memory."""
    plain = _plain(kind)
    if is_string(plain):
        return pa.string()
    return pa.binary() if is_binary(plain) else plain


def row_bits(kind: pa.DataType) -> int:
    """What a row takes whatever it holds: for Parquet a null list of fixed size is one value, for Arrow all of them.

    Below a list of any length it is not known how many there are.
    """
    if pt.is_fixed_size_list(kind):
        return int(kind.list_size) * row_bits(kind.value_type)
    if pt.is_struct(kind):
        return sum(row_bits(kind.field(index).type) for index in range(kind.num_fields))
    if pt.is_null(kind):
        return 0
    try:
        return int(kind.bit_width)
    except ValueError:  # of any length: where it starts
        return _OFFSET_BITS


def leaves_of(schema: pa.Schema, wanted: Sequence[str]) -> list[int]:
    """Parquet's leaf columns below the wanted ones; counted, since "a.b" may be a column's name or a path."""
    names = set(wanted)
    leaves: list[int] = []
    start = 0
    for field in schema:
        stop = start + _num_leaves(field.type)
        if field.name in names:
            leaves.extend(range(start, stop))
        start = stop
    return leaves


def _num_leaves(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _num_leaves(kind.storage_type)
    if pt.is_dictionary(kind) or kind.num_fields == 0:
        return 1
    return sum(_num_leaves(kind.field(index).type) for index in range(kind.num_fields))
