"""Parquet files opened in such a way that none of them runs anybody's code.

A writer keeps its Arrow schema in the footer, in base64, and with it the names of extension types. Whoever has
registered a type of that name is called with bytes of the file as soon as the file is opened, before anybody could
look at its columns, those that nobody wants included: `import ray.data` registers four, which unpickle on demand of
an environment variable, and else fail in ways of their own. So the name is taken out before pyarrow sees the footer:

    ARROW:schema <base64: ... ARROW:extension:name=X ...>  ->  ARROW:schema <base64: ... taskvec:refused:name=X ...>

Not a byte changes its place. Columns come as their storage, and `extensions` says what they were called. Checksums of
pages are looked at wherever the writer left some.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import io
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

_NAME = b"ARROW:extension:name"
_REFUSED = b"taskvec:refused:name"
_SCHEMA = b"ARROW:schema"
# Thrift's compact protocol, as every writer has it: field 1, 12 bytes, the key; field 2, its length, the value.
_BEFORE_KEY, _BEFORE_VALUE = b"\x18\x0c", 0x18
_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")

_TAIL_BYTES = 64 * 2**10  # as much as pyarrow asks for first
_MOST_FOOTER_BYTES = 256 * 2**20
_GAP_BYTES = 8 * 2**10


def open_parquet(file: BinaryIO | Source) -> pq.ParquetFile:
    """Open a file whoever it is from; extension types come as their storage, see `extensions`.

    Raises:
        pa.ArrowException: It is no Parquet file that can be read, or one whose footer hides its Arrow schema.
        OSError: The same.
    """
    # The default of the last option differs between releases; True also tells UUID and JSON columns apart.
    return pq.ParquetFile(
        file if isinstance(file, Source) else Source(file),
        pre_buffer=not isinstance(file, Source),  # who brings its own holds what is going to be read
        page_checksum_verification=True,
        arrow_extensions_enabled=True,
    )


def open_plain(file: BinaryIO) -> pq.ParquetFile:
    """The same, of a file that we wrote: it has no extension types.

    Raises:
        pa.ArrowException: As above, or it has some.
        OSError: As above.
    """
    parquet = open_parquet(file)
    for field in parquet.schema_arrow:
        for path, extension in extensions(field):
            raise pa.ArrowInvalid(f"column {quoted(path)} has the Arrow extension type {quoted(extension)}")
    return parquet


def read_plain_schema(content: bytes) -> pa.Schema:
    """An Arrow schema that was written on its own.

    Raises:
        pa.ArrowException: It is none, or has extension types.
    """
    if _NAME in content:
        raise pa.ArrowInvalid("the schema has extension types")
    return pa.ipc.read_schema(pa.py_buffer(content))


def extensions(field: pa.Field, above: str = "") -> Iterator[tuple[str, str]]:
    """(path, name) of every extension type in a field, whether its type is registered here or not."""
    path = above + field.name
    name = next((field.metadata[key] for key in (_REFUSED, _NAME) if key in (field.metadata or {})), None)
    if isinstance(field.type, pa.BaseExtensionType):
        yield path, field.type.extension_name
    elif name is not None:
        yield path, name.decode(errors="replace")
    else:
        for child in _children(field.type):
            yield from extensions(child, f"{path}.")


def _children(kind: pa.DataType) -> list[pa.Field]:
    if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
        return [pa.field("values", kind.value_type)]
    return [kind.field(index) for index in range(kind.num_fields)]


def quoted(text: object, longest: int = 80) -> str:
    """What a file says, as an error may repeat it: in quotes, and not all of a megabyte."""
    return shortened(repr(text), longest)


def reason_of(error: BaseException) -> str:
    """What a library says, in one line of bounded length."""
    return shortened(" ".join(str(error).split()), 500)


def shortened(text: str, longest: int) -> str:
    """A text without its middle, if it is too long."""
    return text if len(text) <= longest else f"{text[: longest - 10]}...{text[-7:]}"


def listed(names: Sequence[str]) -> str:
    """Names from a file, as many as fit into a line."""
    more = f" and {len(names) - 20:,} others" if len(names) > 20 else ""
    return ", ".join(quoted(name) for name in names[:20]) + more


def _read_at(file: BinaryIO, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


def _without_extensions(footer: bytes) -> bytes:
    """The footer, of the same length, with extension types renamed; one that hides its Arrow schema is refused."""
    found = footer.find(_SCHEMA)
    while found >= 0:
        start, stop = _value_behind(footer, found)
        value = footer[start:stop]
        try:
            schema = base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise _hidden() from error
        if stop > len(footer) or not _BASE64.fullmatch(value):
            raise _hidden()
        if _NAME in schema:
            footer = footer[:start] + base64.b64encode(schema.replace(_NAME, _REFUSED)) + footer[stop:]
        found = footer.find(_SCHEMA, stop)
    return footer


def _value_behind(footer: bytes, key: int) -> tuple[int, int]:
    """Where the value stands whose key is at this place."""
    place = key + len(_SCHEMA)
    if footer[key - 2 : key] != _BEFORE_KEY or footer[place] != _BEFORE_VALUE:
        raise _hidden()
    length = shift = 0
    for place in range(place + 1, place + 6):  # noqa: B020 (the number goes from there)
        length |= (footer[place] & 0x7F) << shift
        shift += 7
        if footer[place] < 0x80:
            return place + 1, place + 1 + length
    raise _hidden()


def _hidden() -> pa.ArrowInvalid:
    return pa.ArrowInvalid("its Arrow schema does not stand in the footer as writers write it")


class Source(io.BufferedIOBase):
    """A file whose footer names no extension type in its Arrow schema; its end is read here, and once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._held: list[tuple[int, memoryview]] = []
        self._place = 0
        self._size = file.seek(0, io.SEEK_END)
        self._start = max(0, self._size - _TAIL_BYTES)
        self._tail = _read_at(file, self._start, self._size)
        length = int.from_bytes(self._tail[-8:-4], "little") + 8
        if length > self._size or not self._tail.endswith(b"PAR1"):
            return  # which pyarrow refuses
        if length > _MOST_FOOTER_BYTES:
            raise pa.ArrowInvalid(
                f"its footer is of {length:,} bytes, and {_MOST_FOOTER_BYTES:,} are allowed"
            )
        start = self._size - length
        if start < self._start:
            self._start, self._tail = start, _read_at(file, start, self._start) + self._tail
        footer = start - self._start
        self._tail = self._tail[:footer] + _without_extensions(self._tail[footer:])

    def hold(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Read some ranges (start, stop) and keep them; those that are near to each other in one go.

        Raises:
            pa.ArrowInvalid: They are not in the file.
        """
        joined: list[list[int]] = []
        for start, stop in sorted(ranges):
            if not 0 <= start <= stop <= self._size:
                raise pa.ArrowInvalid("the footer says of a column that it lies outside of the file")
            if joined and start - joined[-1][1] <= _GAP_BYTES:
                joined[-1][1] = max(joined[-1][1], stop)
            else:
                joined.append([start, stop])
        self._held = [(start, memoryview(self._read_range(start, stop))) for start, stop in joined]
        return [self._piece(start, stop) for start, stop in ranges]

    def _piece(self, start: int, stop: int) -> memoryview:
        found = bisect.bisect_right(self._held, start, key=lambda one: one[0]) - 1
        first, held = self._held[found]
        return held[start - first : stop - first]

    def _read_range(self, start: int, stop: int) -> bytes:
        """From the file, and from the end that is in memory."""
        content = _read_at(self._file, start, min(stop, self._start)) if start < self._start else b""
        start += len(content)
        if self._start <= start < stop:
            last = self._tail[start - self._start : stop - self._start]
            content = content + last if content else last
        return content

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file's."""
        stop = self._size if size is None or size < 0 else min(self._place + size, self._size)
        found = bisect.bisect_right(self._held, self._place, key=lambda one: one[0]) - 1
        if found >= 0 and stop <= self._held[found][0] + len(self._held[found][1]):
            content = bytes(self._piece(self._place, stop))
        else:
            content = self._read_range(self._place, stop)
        self._place += len(content)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """As any file's."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        """As any file's."""
        return self._place

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Close the file below too."""
        self._file.close()
        super().close()
