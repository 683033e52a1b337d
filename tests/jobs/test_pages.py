"""Pages say of themselves what a decompressor has to obey; a footer that says something else is found out."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.decoding import decode
from jobs.errors import CorpusError
from jobs.footers import Columns
from jobs.pages import Page, pages_in
from jobs.parquet import Source, open_parquet
from jobs.rows import read_rows
from tests.jobs.builders import only_fragment, write_shard
from tests.jobs.test_poison import decoded_with, edit, varint
from tests.jobs.test_rows import claim_rows

TABLE = pa.table(
    {
        "id": pa.array(range(5000), pa.int64()),
        "text": [None if n % 9 == 0 else f"text {n % 700} " * (n % 13) for n in range(5000)],
        "tags": [None if n % 5 == 0 else ["a"] * (n % 4) for n in range(5000)],
        "nothing": pa.nulls(5000, pa.string()),
        "flag": [n % 3 == 0 for n in range(5000)],
    }
)


def chunks_of(content: bytes) -> list[tuple[pq.ColumnChunkMetaData, memoryview]]:
    metadata = pq.read_metadata(io.BytesIO(content))
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    starts = [
        min(one.dictionary_page_offset or one.data_page_offset, one.data_page_offset) for one in columns
    ]
    return [
        (column, memoryview(content)[start : start + column.total_compressed_size])
        for column, start in zip(columns, starts, strict=True)
    ]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_pages_hold_what_a_true_footer_says(version: str, compression: str, *, use_dictionary: bool) -> None:
    sink = io.BytesIO()
    options = {"compression": compression, "use_dictionary": use_dictionary, "data_page_version": version}
    options |= {"write_batch_size": 100, "write_page_checksum": True}
    pq.write_table(TABLE, sink, data_page_size=2000, row_group_size=2048, **options)
    num_pages = 0
    for column, chunk in chunks_of(sink.getvalue()):
        pages = list(pages_in(chunk))
        assert sum(page.num_values or 0 for page in pages) == column.num_values
        assert [page.num_values is None for page in pages] == [
            number == 0 and column.has_dictionary_page for number in range(len(pages))
        ]
        # the footer counts headers too
        taken = sum(page.num_bytes for page in pages)
        assert taken <= column.total_uncompressed_size <= taken + 500 * len(pages)
        num_pages += len(pages)
    assert num_pages > 20


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_what_are_no_pages_is_an_error_of_arrow(content: bytes) -> None:
    with contextlib.suppress(pa.ArrowInvalid):
        assert all(page.num_bytes >= 0 for page in pages_in(memoryview(content)))


def test_damage_to_headers_is_an_error_of_arrow_or_other_pages() -> None:
    sink = io.BytesIO()
    pq.write_table(TABLE, sink, data_page_size=2000)
    draw = random.Random(3)
    refused = 0
    for _, chunk in chunks_of(sink.getvalue()):
        for _ in range(60):
            damaged = bytearray(chunk)
            damaged[draw.randrange(min(60, len(damaged)))] = draw.randrange(256)
            try:
                list(pages_in(memoryview(damaged)))
            except pa.ArrowInvalid:
                refused += 1
    assert refused > 30


def test_structs_without_end_are_no_pages() -> None:
    with pytest.raises(pa.ArrowInvalid, match="no header"):
        list(pages_in(memoryview(b"\x1c" * 10_000)))


@pytest.mark.parametrize("claimed", [99, 1, 101])
def test_a_footer_that_says_other_rows_in_all_its_places_is_found_out(tmp_path: Path, claimed: int) -> None:
    path = write_shard(tmp_path, "s.parquet", {"id": range(100), "text": ["t"] * 100})
    claim_rows(path, claimed, of_columns=True)
    told = rf"shard 's\.parquet': the pages of column 'id' hold 100 values .* the footer says {claimed};"
    with pytest.raises(CorpusError, match=told):
        read_rows(*only_fragment(tmp_path))


def test_pages_of_nothing_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(tmp_path, "s.parquet", {"id": range(100), "text": ["t"] * 100})
    looked_at = 0

    def without_end(_: memoryview) -> Iterator[Page]:
        nonlocal looked_at
        while True:
            looked_at += 1
            yield Page(0, 0)

    monkeypatch.setattr("jobs.decoding.pages_in", without_end)
    with pytest.raises(CorpusError, match=r"hold 0 values in 103 pages"):
        read_rows(*only_fragment(tmp_path))
    assert looked_at == 103


def test_a_page_that_says_that_it_is_huge_is_refused_before_it_gets_the_memory(tmp_path: Path) -> None:
    texts = [f"{number} {'x' * 60}" for number in range(20_000)]
    options = {"compression": "zstd", "use_dictionary": False, "data_page_size": 10**7}
    path = write_shard(tmp_path, "s.parquet", {"id": range(20_000), "text": texts}, **options)
    (page,) = [one for _, chunk in chunks_of(path.read_bytes())[1:] for one in pages_in(chunk)]
    assert page.num_bytes < 2_000_000
    told = varint(page.num_bytes)
    edit(path, told, varint(134_000_000, len(told)))
    done = decoded_with(tmp_path, 100_000_000)
    assert "take more than 100,000,000 bytes" in done["said"]
    assert done["bytes"] < 50_000_000


def test_a_column_outside_of_the_file_is_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path, "s.parquet", TABLE.select(["id", "text"]), compression="none")
    store, fragment, _ = only_fragment(tmp_path)
    with store.open(path.name) as file:
        source = Source(file)
        for wrong in ((-1, 5), (5, 4), (0, path.stat().st_size + 1)):
            with pytest.raises(pa.ArrowInvalid, match="outside of the file"):
                source.hold([wrong])
    assert decode(store, fragment, ["id"]).num_rows == 5000


@given(
    st.lists(st.tuples(st.integers(0, 300_000), st.integers(0, 50_000)), max_size=5),
    st.lists(st.tuples(st.integers(0, 360_000), st.integers(-1, 100_000)), min_size=1, max_size=10),
)
@settings(max_examples=60, deadline=None)
def test_what_is_held_and_what_is_not_reads_as_the_file_does(
    held: list[tuple[int, int]], reads: list[tuple[int, int]]
) -> None:
    content = random.Random(5).randbytes(349_996) + b"PAR0"
    source = Source(io.BytesIO(content))  # type: ignore[arg-type]
    ranges = [(start, min(start + length, len(content))) for start, length in held]
    assert [bytes(piece) for piece in source.hold(ranges)] == [content[start:stop] for start, stop in ranges]
    for start, size in reads:
        source.seek(start)
        assert source.read(size) == (content[start:] if size < 0 else content[start : start + size])
        assert source.tell() == max(start, min(start + size if size >= 0 else len(content), len(content)))


def test_nested_columns_are_counted_by_their_leaves(tmp_path: Path) -> None:
    nested: dict[str, Any] = {"box": [{"x": 1, "y": ["a", "b"]}, None, {"x": None, "y": []}]}
    write_shard(tmp_path, "s.parquet", {"id": [1, 2, 3], "text": ["a", "b", "c"], **nested})
    rows = read_rows(*only_fragment(tmp_path, Columns("id", ("text",), ("box",))))
    assert rows.carried["box"].to_pylist() == nested["box"]
    with (tmp_path / "s.parquet").open("rb") as file:
        assert open_parquet(file).metadata.num_columns == 4
