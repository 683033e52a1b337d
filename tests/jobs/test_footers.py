"""What shards say of themselves, and what is refused before any data is read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.corpus import Shard, list_corpus
from jobs.errors import CorpusError, FileChangedError, StorageError
from jobs.footers import BadShard, Columns, Footer, check_same_columns, read_footer, read_footers
from jobs.storage import Location, open_store

WANTED = Columns("id", ("text",), ())


class Unpickling(pa.ExtensionType):  # type: ignore[misc]
    """A registered extension type, as Ray has one that unpickles its content."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), "test.unpickling")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Unpickling:
        return cls()


@pytest.fixture(params=["registered", "only named"])
def extension(request: pytest.FixtureRequest) -> Iterator[pa.ExtensionArray]:
    if request.param == "registered":
        pa.register_extension_type(Unpickling())
    yield pa.ExtensionArray.from_storage(Unpickling(), pa.array([b"x", b"y"]))
    if request.param == "registered":
        pa.unregister_extension_type("test.unpickling")


def parquet(table: pa.Table | dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), sink, **options)
    return sink.getvalue()


def footer_of(folder: Path, content: bytes, wanted: Columns = WANTED) -> Footer | BadShard:
    (folder / "a.parquet").write_bytes(content)
    corpus = list_corpus(Location(str(folder)))
    return read_footer(open_store(corpus.location), corpus.shards[0], wanted)


def good(folder: Path, table: pa.Table | dict[str, Any], wanted: Columns = WANTED, **options: Any) -> Footer:
    footer = footer_of(folder, parquet(table, **options), wanted)
    assert isinstance(footer, Footer), footer
    return footer


def types(footer: Footer) -> tuple[tuple[str, str], ...]:
    return tuple((field.name, str(field.type)) for field in footer.columns)


def test_columns_are_named_once_and_in_a_stable_order() -> None:
    assert Columns("id", ("title", "text"), ("url", "title", "id")).names == ("id", "url", "title", "text")


def test_a_footer_tells_rows_and_bytes_of_the_wanted_columns_per_row_group(tmp_path: Path) -> None:
    table = pa.table({"id": range(10), "text": ["word " * 50] * 10, "vector": [[0.5] * 64] * 10})
    footer = good(tmp_path, table, row_group_size=4)
    groups = pq.ParquetFile(tmp_path / "a.parquet").metadata
    assert footer.row_group_rows == (4, 4, 2)
    assert footer.row_group_bytes == tuple(
        sum(groups.row_group(group).column(leaf).total_compressed_size for leaf in (0, 1))
        for group in range(3)
    )
    assert types(footer) == (("id", "int64"), ("text", "string"))


def test_every_leaf_of_a_nested_column_counts_and_no_column_whose_name_looks_like_one(tmp_path: Path) -> None:
    table = pa.table(
        {
            "a.x": pa.array([1, 2]),
            "a": pa.array([{"x": 1, "y": [{"z": "s"}]}] * 2),
            "m": pa.array([[("k", 1)]] * 2, pa.map_(pa.string(), pa.int64())),
            "id": pa.array(["i", "j"]).dictionary_encode(),
            "text": pa.array(["t", "u"]),
        }
    )
    footer = good(tmp_path, table, Columns("id", ("text",), ("a",)))
    group = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0)
    paths = [group.column(leaf).path_in_schema for leaf in range(group.num_columns)]
    assert [paths[leaf] for leaf in (1, 2, 5, 6)] == ["a.x", "a.y.list.element.z", "id", "text"]
    assert footer.row_group_bytes == (sum(group.column(leaf).total_compressed_size for leaf in (1, 2, 5, 6)),)


def test_a_shard_without_rows_is_a_footer_without_row_groups(tmp_path: Path) -> None:
    footer = good(tmp_path, {"id": pa.nulls(0), "text": pa.nulls(0)})
    assert sum(footer.row_group_rows) == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"id,text\n1,hello\n" * 10, "magic bytes"),
        (b"PAR1", "not a readable Parquet file"),
        (parquet({"id": [1], "text": ["a"]})[:-1], "magic bytes"),
        (parquet({"id": [1], "text": ["a"]})[:100], "magic bytes"),
        (parquet({"id": [1], "text": ["a"]})[-60:], "not a readable Parquet file"),
    ],
)
def test_what_is_no_parquet_file_is_a_bad_shard_with_the_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    bad = footer_of(tmp_path, content)
    assert isinstance(bad, BadShard)
    assert bad.path == "a.parquet"
    assert reason in bad.reason


def test_no_damage_to_a_footer_is_anything_but_a_value_or_our_own_error(tmp_path: Path) -> None:
    content = parquet({"id": ["i"] * 3, "text": ["t"] * 3, "keep": [{"a": 1}] * 3})
    length = int.from_bytes(content[-8:-4], "little")
    kinds = set()
    for position in range(len(content) - 8 - length, len(content) - 4):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        try:
            kinds.add(type(footer_of(tmp_path, bytes(damaged), Columns("id", ("text",), ("keep",)))))
        except CorpusError:
            kinds.add(CorpusError)
    assert kinds <= {Footer, BadShard, CorpusError}
    assert BadShard in kinds


def test_a_footer_whose_row_groups_do_not_add_up_is_a_bad_shard(tmp_path: Path) -> None:
    content = parquet({"id": range(100), "text": ["t"] * 100})
    # FileMetaData's third field is num_rows, a zigzag varint: 100 is c8 01. The row
    # group has its own, further on
    first = content.index(b"\x16\xc8\x01", len(content) - 8 - int.from_bytes(content[-8:-4], "little"))
    for rows, reason in (
        (b"\x16\xc6\x01", "100 rows in its row groups, 99 in the file"),
        (b"\x16\xc7\x01", "lies"),
    ):
        bad = footer_of(tmp_path, content[:first] + rows + content[first + 3 :])
        assert isinstance(bad, BadShard)
        assert reason in bad.reason


def test_a_footer_that_claims_more_bytes_than_the_file_has_is_a_bad_shard(tmp_path: Path) -> None:
    content = parquet({"id": range(100), "text": ["t"] * 100})
    (tmp_path / "a.parquet").write_bytes(content)
    store = open_store(Location(str(tmp_path)))
    (shard,) = list_corpus(Location(str(tmp_path))).shards
    bad = read_footer(store, Shard(shard.path, shard.version, 50), WANTED)
    assert isinstance(bad, BadShard)
    assert "in a file of 50 bytes" in bad.reason


def test_missing_columns_are_named_with_the_shard_and_those_present(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as caught:
        good(tmp_path, {"id": [1], "body": ["a"]}, Columns("id", ("text", "title"), ()))
    for told in ("'a.parquet'", "'text', 'title'", "'id', 'body'"):
        assert told in str(caught.value)


def test_a_wanted_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array(["a"]), pa.array(["b"])], ["id", "text", "text"])
    with pytest.raises(CorpusError, match="'text' more than once"):
        good(tmp_path, table)


ALLOWED_TEXT = [
    (pa.array(["a"], pa.string()), "string"),
    (pa.array(["a"], pa.large_string()), "string"),
    (pa.array(["a"], pa.string_view()), "string"),
    (pa.array(["a"]).dictionary_encode(), "string"),
    (pa.array(["a"], pa.large_string()).dictionary_encode(), "string"),
    (pa.array([b"a"], pa.binary()), "binary"),
    (pa.array([b"a"], pa.large_binary()), "binary"),
    (pa.array([b"a"], pa.binary_view()), "binary"),
]
ALLOWED_ID = [
    *ALLOWED_TEXT,
    (pa.array([1], pa.int8()), "int8"),
    (pa.array([1], pa.uint64()), "uint64"),
    (pa.array([b"ab"], pa.binary(2)), "fixed_size_binary[2]"),
]


@pytest.mark.parametrize(("text", "kind"), [*ALLOWED_TEXT, (pa.nulls(1), "null")])
def test_text_may_be_strings_binary_or_null_in_any_layout(tmp_path: Path, text: pa.Array, kind: str) -> None:
    assert types(good(tmp_path, {"id": [1], "text": text})) == (("id", "int64"), ("text", kind))


@pytest.mark.parametrize(("ids", "kind"), ALLOWED_ID)
def test_ids_may_be_integers_strings_or_binary(tmp_path: Path, ids: pa.Array, kind: str) -> None:
    assert types(good(tmp_path, {"id": ids, "text": ["a"]}))[0] == ("id", kind)


@pytest.mark.parametrize("text", [pa.array([1]), pa.array([["a"]]), pa.array([1.0]), pa.array([{"a": "b"}])])
def test_other_types_of_text_are_refused_with_what_is_allowed(tmp_path: Path, text: pa.Array) -> None:
    with pytest.raises(
        CorpusError, match=r"'a\.parquet': the text column 'text' has type .* allowed is a string"
    ):
        good(tmp_path, {"id": [1], "text": text})


@pytest.mark.parametrize("ids", [pa.array([1.5]), pa.array([True]), pa.nulls(1), pa.array([["a"]])])
def test_other_types_of_ids_are_refused_with_what_is_allowed(tmp_path: Path, ids: pa.Array) -> None:
    with pytest.raises(
        CorpusError, match=r"'a\.parquet': the id column 'id' has type .* allowed is an integer"
    ):
        good(tmp_path, {"id": ids, "text": ["a"]})


def nested(array: pa.Array) -> list[pa.Array]:
    """The array as a column, and at several depths below one."""
    in_struct = pa.StructArray.from_arrays([array], ["x"])
    in_list = pa.ListArray.from_arrays([0, 1, 2], array)
    in_map = pa.MapArray.from_arrays([0, 1, 2], pa.array(["k", "l"]), in_struct)
    return [array, in_struct, in_list, in_map, pa.ListArray.from_arrays([0, 1, 2], in_struct)]


@pytest.mark.parametrize("depth", range(5))
def test_extension_types_are_refused_at_any_depth(
    tmp_path: Path, extension: pa.ExtensionArray, depth: int
) -> None:
    column = nested(extension)[depth]
    with pytest.raises(CorpusError, match=r"'keep.*extension type 'test\.unpickling'"):
        good(
            tmp_path, {"id": [1, 2], "text": ["a", "b"], "keep": column}, Columns("id", ("text",), ("keep",))
        )


def test_extension_types_are_refused_for_ids_and_text(tmp_path: Path, extension: pa.ExtensionArray) -> None:
    for table in ({"id": extension, "text": ["a", "b"]}, {"id": [1, 2], "text": extension}):
        with pytest.raises(CorpusError, match=r"extension type 'test\.unpickling'"):
            good(tmp_path, table)


@pytest.mark.parametrize("store_schema", [True, False])
def test_uuid_columns_are_extension_types_whoever_wrote_them(tmp_path: Path, *, store_schema: bool) -> None:
    table = pa.table({"id": pa.array([b"0123456789abcdef"], pa.uuid()), "text": ["a"]})
    with pytest.raises(CorpusError, match=r"'arrow\.uuid'"):
        good(tmp_path, table, store_schema=store_schema)


def test_columns_that_are_not_wanted_are_not_looked_at(tmp_path: Path, extension: pa.ExtensionArray) -> None:
    table = pa.table({"other": nested(extension)[4], "id": [1, 2], "text": ["a", "b"]})
    footer = good(tmp_path, table)
    group = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0)
    assert types(footer) == (("id", "int64"), ("text", "string"))
    assert footer.row_group_bytes == (sum(group.column(leaf).total_compressed_size for leaf in (1, 2)),)


def test_a_shard_that_is_gone_or_another_by_now_stops_the_run(tmp_path: Path) -> None:
    good(tmp_path, {"id": [1], "text": ["a"]})
    store = open_store(Location(str(tmp_path)))
    (shard,) = list_corpus(Location(str(tmp_path))).shards
    (tmp_path / "a.parquet").write_bytes(parquet({"id": [1, 2], "text": ["a", "b"]}))
    with pytest.raises(StorageError, match="changed since it was listed"):
        read_footer(store, shard, WANTED)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(FileChangedError, match=r"a\.parquet is gone since it was listed"):
        read_footer(store, shard, WANTED)


def test_many_footers_come_in_the_order_of_their_shards(s3: str) -> None:
    store = open_store(Location(s3 + "/corpus"))
    for index in range(40):
        store.create(
            f"{index:02}.parquet", parquet({"id": range(index), "text": ["t"] * index}) if index else b""
        )
    corpus = list_corpus(Location(s3 + "/corpus"))
    footers = read_footers(corpus.location, corpus.shards, WANTED)
    assert [footer.path for footer in footers] == [shard.path for shard in corpus.shards]
    assert footers[0] == BadShard("00.parquet", "the file is empty (0 bytes, or a link to nothing)")
    rows = [sum(footer.row_group_rows) for footer in footers if isinstance(footer, Footer)]
    assert rows == list(range(1, 40))


def test_the_first_shard_with_wrong_columns_stops_reading(tmp_path: Path) -> None:
    for index in range(10):
        name = "text" if index < 3 else "body"
        (tmp_path / f"{index}.parquet").write_bytes(parquet({"id": [1], name: ["a"]}))
    corpus = list_corpus(Location(str(tmp_path)))
    with pytest.raises(CorpusError, match=r"'3\.parquet' lacks the columns 'text'"):
        read_footers(corpus.location, corpus.shards, WANTED, threads=4)


def footer(path: str, **columns: str) -> Footer:
    return Footer(path, (1,), (1,), pa.schema(list(columns.items())))


def test_type_drift_names_the_column_both_shards_and_both_types() -> None:
    wanted = Columns("id", ("text",), ("year",))
    footers = [
        footer("a", id="int64", year="string", text="string"),
        footer("b", id="int64", year="int32", text="string"),
        footer("c", id="int64", year="int32", text="string"),
    ]
    with pytest.raises(CorpusError) as caught:
        check_same_columns(footers, wanted)
    assert "column 'year': it is int32 in 2 shards ('b') but string in 'a'" in str(caught.value)
    with pytest.raises(CorpusError, match="column 'id'"):
        check_same_columns(
            [footer("a", id="int64", text="string"), footer("b", id="string", text="string")], WANTED
        )


def test_null_fits_any_type_and_text_may_differ() -> None:
    wanted = Columns("id", ("text",), ("year",))
    check_same_columns([], wanted)
    check_same_columns(
        [
            footer("a", id="int64", year="null", text="binary"),
            footer("b", id="int64", year="int32", text="string"),
            footer("c", id="null", year="int32", text="null"),
        ],
        wanted,
    )
