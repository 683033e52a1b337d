"""Shards that lie are an error that names them, and take no more memory than they may."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.corpus import list_corpus
from jobs.decoding import decode
from jobs.errors import CorpusError
from jobs.footers import BadShard, Columns, read_footer
from jobs.rows import read_rows
from jobs.storage import Location, open_store
from tests.integration.commands import REPOSITORY
from tests.jobs.builders import COLUMNS, layout_of, only_fragment, write_shard

TABLE = {"id": [f"id{n % 7}" for n in range(40)], "text": [f"text {n}" * 3 for n in range(40)]}


def pages_of(path: Path) -> slice:
    """Where the pages stand: between the first four bytes and the footer."""
    content = path.read_bytes()
    return slice(4, len(content) - 8 - int.from_bytes(content[-8:-4], "little"))


def edit(path: Path, old: bytes, new: bytes) -> None:
    """Replace the first of some bytes in the pages; nothing changes its place."""
    content = path.read_bytes()
    assert len(old) == len(new)
    place = content.index(old, 4, pages_of(path).stop)
    path.write_bytes(content[:place] + new + content[place + len(old) :])


def is_refused(folder: Path, columns: Columns = COLUMNS) -> str:
    with pytest.raises(CorpusError, match=r"shard 's\.parquet'.*input\.on_bad_shard=skip") as caught:
        read_rows(*only_fragment(folder, columns))
    assert len(str(caught.value)) < 1000
    return str(caught.value)


PLAIN = {"compression": "none", "use_dictionary": False}


def test_a_dictionary_whose_values_reach_beyond_it_is_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path, "s.parquet", TABLE, compression="none")
    edit(path, b"\x03\0\0\0id0", b"\xff\xff\xff\x7fid0")
    is_refused(tmp_path)


def test_a_dictionary_that_is_smaller_than_its_keys_is_refused(tmp_path: Path) -> None:
    path = write_shard(
        tmp_path, "s.parquet", {"id": ["a", "b", "c"] * 9, "text": ["t"] * 27}, compression="none"
    )
    dictionary = b"\x01\0\0\0a\x01\0\0\0b\x01\0\0\0c"
    content = path.read_bytes()
    header = content[4 : content.index(dictionary)]
    assert header.count(b"\x15\x06") == 1  # three values, as a zigzag varint
    path.write_bytes(content[:4] + header.replace(b"\x15\x06", b"\x15\x02") + content[4 + len(header) :])
    is_refused(tmp_path)


def test_a_length_beyond_the_page_is_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path, "s.parquet", TABLE, **PLAIN)
    edit(path, b"\x12\0\0\0text 7", b"\x12\0\1\0text 7")
    is_refused(tmp_path)


@pytest.mark.parametrize("compression", ["none", "zstd", "snappy", "gzip"])
def test_a_page_whose_end_is_lost_is_refused_where_it_has_a_checksum(
    tmp_path: Path, compression: str
) -> None:
    options = {"compression": compression, "use_dictionary": False, "write_page_checksum": True}
    path = write_shard(tmp_path, "s.parquet", TABLE, **options)
    content, place = path.read_bytes(), pages_of(path)
    column = pq.read_metadata(path).row_group(0).column(1)
    start = column.data_page_offset + column.total_compressed_size - 10
    assert start + 10 <= place.stop
    path.write_bytes(content[:start] + b"\0" * 10 + content[start + 10 :])
    is_refused(tmp_path)


def test_a_file_that_lost_a_piece_of_its_middle_is_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path, "s.parquet", TABLE)
    content, place = path.read_bytes(), pages_of(path)
    path.write_bytes(content[:100] + content[150 : place.stop] + content[place.stop :])
    assert read_footer_of(tmp_path) is not None
    is_refused(tmp_path)


def read_footer_of(folder: Path, **options: Any) -> Any:
    corpus = list_corpus(Location(str(folder)))
    return read_footer(open_store(corpus.location), corpus.shards[0], COLUMNS, **options)


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_no_damage_to_pages_is_anything_but_our_own_error_or_all_the_rows(
    tmp_path: Path, compression: str, *, use_dictionary: bool
) -> None:
    options = {"compression": compression, "use_dictionary": use_dictionary, "row_group_size": 20}
    path = write_shard(tmp_path, "s.parquet", TABLE, **options)
    good, place, draw = path.read_bytes(), pages_of(path), random.Random(7)
    refused = 0
    for _ in range(150):
        damaged = bytearray(good)
        for position in draw.sample(range(place.start, place.stop), draw.choice([1, 1, 8])):
            damaged[position] = draw.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            rows = read_rows(*only_fragment(tmp_path))
        except CorpusError:
            refused += 1
        else:
            assert len(rows.texts) + rows.rejects.num_rows == 40
    assert 20 < refused < 150


# Little on disk, and much in memory

LIMIT = 50_000_000


def bomb(folder: Path, **options: Any) -> Path:
    """Texts of 200 MB in a file of a thousandth of that."""
    table = {"id": range(200), "text": ["x" * 1_000_000 + str(n) for n in range(200)]}
    path = write_shard(folder, "s.parquet", table, compression="zstd", use_dictionary=False, **options)
    assert path.stat().st_size < 200_000
    return path


def test_a_row_group_that_says_what_it_takes_is_a_bad_shard_before_a_page_is_read(tmp_path: Path) -> None:
    path = bomb(tmp_path)
    content, place = path.read_bytes(), pages_of(path)
    path.write_bytes(content[:4] + b"\0" * (place.stop - 4) + content[place.stop :])
    bad = read_footer_of(tmp_path, max_fragment_bytes=LIMIT)
    assert isinstance(bad, BadShard)
    assert "row group 0 takes 200,0" in bad.reason
    assert f"input.max_fragment_bytes allows {LIMIT:,}" in bad.reason
    assert not isinstance(read_footer_of(tmp_path, max_fragment_bytes=210_000_000), BadShard)


def test_a_row_group_of_next_to_nothing_but_nulls_is_counted_too(tmp_path: Path) -> None:
    table = {"id": pa.array([1] * 2_000_000), "text": pa.nulls(2_000_000, pa.string())}
    write_shard(tmp_path, "s.parquet", table, row_group_size=2_000_000)
    assert (tmp_path / "s.parquet").stat().st_size < 20_000
    bad = read_footer_of(tmp_path, max_fragment_bytes=20_000_000)
    assert isinstance(bad, BadShard)
    assert "takes 24,000,000 bytes" in bad.reason
    assert not isinstance(read_footer_of(tmp_path, max_fragment_bytes=24_000_000), BadShard)


def fixed_size(width: int, num_rows: int) -> dict[str, Any]:
    """Columns of nulls that take next to nothing in a file."""
    return {"id": pa.nulls(num_rows, pa.binary(width)), "text": pa.nulls(num_rows, pa.string())}


def test_nulls_of_a_fixed_size_are_counted_too(tmp_path: Path) -> None:
    path = write_shard(tmp_path, "s.parquet", fixed_size(width=10_000_000, num_rows=4))
    assert path.stat().st_size < 2000
    bad = read_footer_of(tmp_path, max_fragment_bytes=20_000_000)
    assert isinstance(bad, BadShard)
    assert "takes 40,000,0" in bad.reason
    assert not isinstance(read_footer_of(tmp_path, max_fragment_bytes=41_000_000), BadShard)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32(), 1_000_000),
        pa.list_(pa.list_(pa.float32(), 1000), 1000),
        pa.struct([("a", pa.list_(pa.float64(), 500_000))]),
        pa.list_(pa.decimal128(9), 250_000),
        pa.list_(pa.bool_(), 32_000_000),
        pa.list_(pa.string(), 1_000_000),
        pa.list_(pa.dictionary(pa.int32(), pa.string()), 1_000_000),
    ],
    ids=str,
)
def test_lists_of_a_fixed_size_are_counted_where_they_are_null(tmp_path: Path, kind: pa.DataType) -> None:
    is_refused_with(tmp_path, pa.nulls(10, kind))


def test_nulls_of_a_fixed_size_are_counted_in_lists_too(tmp_path: Path) -> None:
    is_refused_with(tmp_path, pa.array([[None] * 4] * 10, pa.list_(pa.binary(1_000_000))))


def is_refused_with(folder: Path, column: pa.Array) -> None:
    """Of a column that takes 40 MB in memory the footer is enough."""
    path = write_shard(folder, "s.parquet", {"id": range(10), "text": ["t"] * 10, "title": column})
    assert path.stat().st_size < 3000
    columns = Columns("id", ("text",), ("title",))
    (shard,) = list_corpus(Location(str(folder))).shards
    bad = read_footer(open_store(Location(str(folder))), shard, columns, 20_000_000)
    assert isinstance(bad, BadShard)
    assert "takes 40,000," in bad.reason


def test_no_more_is_read_than_a_fragment_may_take(tmp_path: Path) -> None:
    texts = [random.Random(n).randbytes(4_000_000).hex() for n in range(30)]
    write_shard(tmp_path, "s.parquet", {"id": range(30), "text": texts}, compression="none", row_group_size=1)
    done = decoded_with(tmp_path, 10_000_000)
    assert "take more than 10,000,000 bytes" in done["said"]
    assert done["bytes"] < 10_000_000


def decoded_with(folder: Path, max_bytes: int) -> dict[str, Any]:
    """Decode the one fragment of a folder in a process of its own: what it said, and the memory that it took more."""
    code = f"""
        import json, re
        from pathlib import Path
        import pyarrow as pa
        from jobs.decoding import decode
        from jobs.errors import CorpusError
        from tests.jobs.builders import only_fragment
        store, fragment, reading = only_fragment(Path({str(folder)!r}))
        pa.set_memory_pool(pa.system_memory_pool())
        def most():  # of this program; what getrusage says begins with what its parent had
            return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
        before = most()
        try:
            said = decode(store, fragment, reading.columns.names, {max_bytes}).num_rows
        except CorpusError as error:
            said = str(error)
        print(json.dumps({{"said": said, "bytes": 1024 * (most() - before)}}))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_dictionary_that_repeats_a_long_text_takes_no_more_than_it_may(tmp_path: Path) -> None:
    # 20 GB, of which the footer knows a megabyte
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), ["x" * 1_000_000])
    for folder in ("plain", "coded"):
        table = {"id": range(20_000), "text": text}
        write_shard(tmp_path / folder, "s.parquet", table, store_schema=folder == "coded")
        assert isinstance(read_footer_of(tmp_path / folder, max_fragment_bytes=LIMIT).row_group_rows, tuple)
        done = decoded_with(tmp_path / folder, LIMIT)
        assert "take more than 50,000,000 bytes once they are decoded" in done["said"]
        assert "shard 's.parquet': row groups 0 to 0" in done["said"]
        assert done["bytes"] < 4 * LIMIT, folder


def varint(value: int, length: int = 1) -> bytes:
    """A number as it stands in a footer: zigzag, seven bits a byte, as many bytes as are wanted."""
    value *= 2
    found = b""
    while value > 0x7F or len(found) + 1 < length:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def test_a_footer_that_hides_what_a_row_group_takes_is_found_out_while_it_is_read(tmp_path: Path) -> None:
    path = bomb(tmp_path, data_page_size=1_000_000)
    size = pq.read_metadata(path).row_group(0).column(1).total_uncompressed_size
    content, place = path.read_bytes(), pages_of(path)
    told = varint(size)
    assert content.count(told, place.stop) == 1
    path.write_bytes(content[: place.stop] + content[place.stop :].replace(told, varint(10_000, len(told))))
    assert pq.read_metadata(path).row_group(0).column(1).total_uncompressed_size == 10_000
    done = decoded_with(tmp_path, LIMIT)
    assert "take more than 50,000,000 bytes" in done["said"]
    assert done["bytes"] < 5 * LIMIT


def test_what_is_allowed_is_decoded_whatever_its_layout(tmp_path: Path) -> None:
    texts = [f"text {n % 100}" for n in range(3000)]
    for kind in ("plain", "coded"):
        column = pa.array(texts) if kind == "plain" else pa.array(texts).dictionary_encode()
        nested = pa.array([["a", str(n)] for n in range(3000)])
        table = {"id": range(3000), "text": column, "tags": nested}
        write_shard(tmp_path / kind, "s.parquet", table, row_group_size=700)
        store, fragment, reading = only_fragment(tmp_path / kind, Columns("id", ("text",), ("tags",)))
        found = decode(store, fragment, reading.columns.names)
        assert found.column_names == ["id", "tags", "text"]
        assert found["text"].to_pylist() == texts
        assert found["tags"].to_pylist() == nested.to_pylist()
        with pytest.raises(CorpusError, match=r"raise input\.max_fragment_bytes"):
            decode(store, fragment, reading.columns.names, 30_000)


def test_a_bad_row_group_is_a_bad_shard_of_the_layout(tmp_path: Path) -> None:
    write_shard(tmp_path, "s.parquet", {"id": [1, 2], "text": ["a", "b"]})
    assert layout_of(tmp_path).bad_shards == ()
    assert isinstance(read_footer_of(tmp_path, max_fragment_bytes=1), BadShard)
