"""Every row that a footer promised becomes a text or a reject, with the reason and the row's number."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import CorpusError, StorageError
from jobs.footers import Columns
from jobs.rows import NO_TOKENS, Rows, read_rows, text_hashes, unreadable_rows
from tests.jobs.builders import COLUMNS, layout_of, only_fragment, write_shard

BAD_UTF8 = b"caf\xe9"


def rows_of(
    folder: Path,
    table: pa.Table | dict[str, Any],
    columns: Columns = COLUMNS,
    joiner: str = " ",
    **options: Any,
) -> Rows:
    write_shard(folder, "s.parquet", table, **options)
    return read_rows(*only_fragment(folder, columns, joiner))


def rejects(rows: Rows) -> list[tuple[Any, ...]]:
    return [tuple(reject.values()) for reject in rows.rejects.to_pylist()]


def damaged_strings(values: list[bytes | None], kind: pa.DataType | None = None) -> pa.Array:
    """A string column with bytes that no check has seen, as careless writers make them."""
    kind = kind or pa.string()
    raw = pa.array(values, pa.large_binary() if pa.types.is_large_string(kind) else pa.binary())
    return pa.Array.from_buffers(kind, len(values), raw.buffers())


def test_rows_come_in_the_order_of_the_shard_with_their_ids(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"id": [3, 1, 2], "text": ["c", "a", "b"]}, row_group_size=1)
    assert rows.texts == ["c", "a", "b"]
    assert rows.carried.to_pydict() == {"id": [3, 1, 2]}
    assert rows.row_numbers == [0, 1, 2]
    assert rows.rejects.num_rows == 0


def test_a_fragment_reads_its_own_row_groups_and_numbers_rows_as_the_shard_does(tmp_path: Path) -> None:
    write_shard(tmp_path, "s.parquet", {"id": range(10), "text": ["t", None] * 5}, row_group_size=2)
    layout = layout_of(tmp_path, fragment_rows=4)
    store, whole, reading = only_fragment(tmp_path)
    second = layout.cuts["s.parquet"][1].of(whole.shard, "reading")
    rows = read_rows(store, second, reading)
    assert rows.carried["id"].to_pylist() == [4, 6]
    assert rows.row_numbers == [4, 6]
    assert rejects(rows) == [(5, "null_text", "s.parquet", 5), (7, "null_text", "s.parquet", 7)]


def test_null_texts_and_null_ids_are_rejects(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"id": ["a", None, "c", None], "text": ["x", "y", None, None]})
    assert rows.texts == ["x"]
    assert rejects(rows) == [
        (None, "null_id", "s.parquet", 1),
        ("c", "null_text", "s.parquet", 2),
        (None, "null_id", "s.parquet", 3),
    ]


def test_an_empty_text_is_a_text(tmp_path: Path) -> None:
    assert rows_of(tmp_path, {"id": [1, 2], "text": ["", " "]}).texts == ["", " "]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_bytes_that_are_no_utf8_are_rejects(tmp_path: Path, kind: pa.DataType) -> None:
    values = [b"good", BAD_UTF8, None, "gr\u00fcn".encode()]
    text = pa.array(values, kind) if "binary" in str(kind) else damaged_strings(values, kind)
    rows = rows_of(tmp_path, {"id": [1, 2, 3, 4], "text": text})
    assert rows.texts == ["good", "gr\u00fcn"]
    assert [reject[:2] for reject in rejects(rows)] == [(2, "undecodable"), (3, "null_text")]


def test_an_id_that_is_no_utf8_is_a_reject_without_an_id(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"id": damaged_strings([b"a", BAD_UTF8]), "text": ["x", "y"]})
    assert rows.carried["id"].to_pylist() == ["a"]
    assert rejects(rows) == [(None, "undecodable", "s.parquet", 1)]


def test_a_kept_text_that_is_no_utf8_is_a_reject_and_never_reaches_a_part(tmp_path: Path) -> None:
    table = {"id": [1, 2], "text": ["x", "y"], "title": damaged_strings([BAD_UTF8, b"t"])}
    rows = rows_of(tmp_path, table, Columns("id", ("text",), ("title",)))
    assert rows.carried.to_pydict() == {"id": [2], "title": ["t"]}
    assert rejects(rows) == [(1, "undecodable", "s.parquet", 0)]


def test_binary_ids_need_not_be_text(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"id": [BAD_UTF8, b"\x00"], "text": ["x", "y"]})
    assert rows.carried["id"].to_pylist() == [BAD_UTF8, b"\x00"]
    assert rows.rejects.num_rows == 0


@pytest.mark.parametrize(
    "text",
    [
        pa.array(["a", None, "a"]),
        pa.array(["a", None, "a"], pa.large_string()),
        pa.array(["a", None, "a"], pa.string_view()),
        pa.array([b"a", None, b"a"]),
        pa.array([b"a", None, b"a"], pa.large_binary()),
        pa.array([b"a", None, b"a"], pa.binary_view()),
        pa.array(["a", None, "a"]).dictionary_encode(),
        pa.array(["a", None, "a"], pa.large_string()).dictionary_encode(),
        pa.array([b"a", None, b"a"]).dictionary_encode(),
    ],
    ids=lambda array: str(array.type),
)
def test_every_layout_of_text_gives_the_same_texts(tmp_path: Path, text: pa.Array) -> None:
    columns = Columns("id", ("text",), ("text",))
    rows = rows_of(tmp_path, {"id": [1, 2, 3], "text": text}, columns)
    assert rows.texts == ["a", "a"]
    assert [reject[:2] for reject in rejects(rows)] == [(2, "null_text")]
    assert str(rows.carried.schema.field("text").type) in ("string", "binary")


def test_dictionary_columns_across_many_batches_are_decoded(tmp_path: Path) -> None:
    values = [f"value {number % 1700}" for number in range(5000)]
    table = {"id": pa.array(values).dictionary_encode(), "text": pa.array(values).dictionary_encode()}
    rows = rows_of(tmp_path, table, row_group_size=700)
    assert rows.texts == values
    assert rows.carried["id"].to_pylist() == values


def test_a_text_column_that_is_null_throughout_gives_rejects_only(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"id": [1, 2], "text": pa.nulls(2)})
    assert rows.texts == []
    assert rows.carried.num_rows == 0
    assert [reject[:2] for reject in rejects(rows)] == [(1, "null_text"), (2, "null_text")]


def test_several_texts_are_joined_in_the_order_named_and_nulls_and_empty_ones_leave_no_joiner(
    tmp_path: Path,
) -> None:
    table = {
        "id": range(6),
        "body": ["body", "body", "body", None, None, ""],
        "title": ["title", None, "", "title", None, ""],
    }
    rows = rows_of(tmp_path, table, Columns("id", ("title", "body"), ()), joiner=" | ")
    assert rows.texts == ["title | body", "body", "body", "title", ""]
    assert [reject[:2] for reject in rejects(rows)] == [(4, "null_text")]


def test_a_row_with_one_undecodable_text_of_several_is_a_reject(tmp_path: Path) -> None:
    table = {"id": [1, 2], "a": pa.array([BAD_UTF8, b"a"]), "b": ["b", "b"]}
    rows = rows_of(tmp_path, table, Columns("id", ("a", "b"), ()))
    assert rows.texts == ["a b"]
    assert rejects(rows) == [(1, "undecodable", "s.parquet", 0)]


def test_the_id_may_also_be_the_text_and_be_kept_once(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"url": ["a", None]}, Columns("url", ("url",), ()))
    assert rows.texts == ["a"]
    assert rows.carried.to_pydict() == {"url": ["a"]}
    assert rejects(rows) == [(None, "null_id", "s.parquet", 1)]


def test_repeated_ids_are_rows_of_their_own(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"id": [7, 7, 7], "text": ["a", "b", "a"]})
    assert rows.carried["id"].to_pylist() == [7, 7, 7]


def test_kept_columns_keep_values_and_types(tmp_path: Path) -> None:
    kept = {
        "tags": pa.array([["a", "b"], None, []], pa.list_(pa.string())),
        "box": pa.array([{"x": 1, "y": [1.5]}, {"x": None, "y": None}, None]),
        "when": pa.array([0, None, 10**15], pa.timestamp("us", "Europe/Berlin")),
        "day": pa.array([1, None, 2], pa.date32()),
        "price": pa.array([1, None, 2]).cast(pa.decimal128(30, 2)),
        "pairs": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int32())),
        "nothing": pa.nulls(3),
        "flag": [True, None, False],
    }
    columns = Columns("id", ("text",), tuple(kept))
    table = pa.table({"id": [1, 2, 3], "text": ["a", "b", "c"], **kept})
    rows = rows_of(tmp_path, table, columns)
    assert rows.carried.equals(table.select(["id", *kept]))


def test_columns_of_one_type_in_another_layout_come_out_alike(tmp_path: Path) -> None:
    columns = Columns("id", ("text",), ("title",))
    plain = {"id": ["a"], "text": ["x"], "title": ["t"]}
    other = {
        "id": pa.array(["b"], pa.large_string()),
        "text": pa.array(["y"]).dictionary_encode(),
        "title": pa.array(["u"]).dictionary_encode(),
    }
    tables = []
    for name, table in (("1", plain), ("2", other)):
        tables.append(rows_of(tmp_path / name, table, columns).carried)
    assert tables[0].schema == tables[1].schema == pa.schema([("id", pa.string()), ("title", pa.string())])


def test_columns_whose_names_begin_alike_are_kept_apart(tmp_path: Path) -> None:
    table = {"text.id": [9], "id": [1], "text": ["a"], "text.embedding": [[0.5]]}
    rows = rows_of(tmp_path, table)
    assert rows.texts == ["a"]
    assert rows.carried.to_pydict() == {"id": [1]}
    dotted = rows_of(tmp_path, table, Columns("text.id", ("text",), ("text.embedding",)))
    assert dotted.carried.to_pydict() == {"text.id": [9], "text.embedding": [[0.5]]}


def test_a_shard_that_was_replaced_since_it_was_listed_is_not_read(tmp_path: Path) -> None:
    write_shard(tmp_path, "s.parquet", {"id": [1], "text": ["a"]})
    store, fragment, reading = only_fragment(tmp_path)
    write_shard(tmp_path, "s.parquet", {"id": [1], "text": ["another"]})
    with pytest.raises(StorageError, match="changed since it was listed"):
        read_rows(store, fragment, reading)


def test_pages_that_cannot_be_decoded_are_an_error_that_names_the_shard(tmp_path: Path) -> None:
    path = write_shard(tmp_path, "s.parquet", {"id": range(500), "text": [f"text {n}" for n in range(500)]})
    content = bytearray(path.read_bytes())
    content[4:2000] = b"\xff" * 1996
    path.write_bytes(bytes(content))
    store, fragment, reading = only_fragment(tmp_path)
    with pytest.raises(CorpusError, match=r"shard 's\.parquet' cannot be read: .*on_bad_shard=skip"):
        read_rows(store, fragment, reading)


def claim_rows(path: Path, claimed: int, *, of_columns: bool) -> None:
    """Make the footer of a shard of 100 rows in one row group claim others.

    The number stands there as a zigzag varint: for the file, then for each column, last for the row group.
    """
    content = bytearray(path.read_bytes())
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    found = [place for place in range(start, len(content)) if content[place : place + 3] == b"\x16\xc8\x01"]
    for place in found if of_columns else (found[0], found[-1]):
        content[place : place + 3] = bytes([0x16, (2 * claimed) & 0x7F | 0x80, 2 * claimed >> 7])
    path.write_bytes(bytes(content))
    metadata = pq.read_metadata(path)
    assert metadata.num_rows == metadata.row_group(0).num_rows == claimed


def test_a_footer_that_promises_more_rows_than_the_pages_hold_is_an_error(tmp_path: Path) -> None:
    path = write_shard(tmp_path, "s.parquet", {"id": range(100), "text": ["t"] * 100})
    claim_rows(path, 101, of_columns=True)
    store, fragment, reading = only_fragment(tmp_path)
    with pytest.raises(CorpusError, match=r"s\.parquet.*on_bad_shard=skip"):
        read_rows(store, fragment, reading)


@pytest.mark.parametrize("claimed", [99, 101])
def test_a_footer_whose_columns_and_row_groups_disagree_is_a_bad_shard(tmp_path: Path, claimed: int) -> None:
    write_shard(
        tmp_path, "lists.parquet", {"id": range(100), "text": ["t"] * 100, "tags": [["a", "b"]] * 100}
    )
    assert layout_of(tmp_path, Columns("id", ("text",), ("tags",))).bad_shards == ()
    path = write_shard(tmp_path, "s.parquet", {"id": range(100), "text": ["t"] * 100})
    claim_rows(path, claimed, of_columns=False)
    (bad,) = layout_of(tmp_path).bad_shards
    assert "the footer lies: row group 0 has columns of other lengths" in bad.reason


def test_all_rows_of_an_unreadable_fragment_are_rejects(tmp_path: Path) -> None:
    write_shard(tmp_path, "s.parquet", {"id": [1, 2], "text": ["a", "b"]})
    _, fragment, reading = only_fragment(tmp_path)
    rows = unreadable_rows(fragment, reading)
    assert rejects(rows) == [
        (None, "unreadable_shard", "s.parquet", 0),
        (None, "unreadable_shard", "s.parquet", 1),
    ]
    assert rows.carried.schema == reading.carried
    assert rows.texts == []


def test_texts_taken_out_later_become_rejects_with_their_ids_and_numbers(tmp_path: Path) -> None:
    write_shard(tmp_path, "s.parquet", {"id": [1, 2, 3, 4], "text": ["a", None, "c", "d"]})
    store, fragment, reading = only_fragment(tmp_path)
    rows = read_rows(store, fragment, reading)
    fewer = rows.without([1], NO_TOKENS, reading, "s.parquet")
    assert fewer.texts == ["a", "d"]
    assert fewer.carried["id"].to_pylist() == [1, 4]
    assert fewer.row_numbers == [0, 3]
    assert rejects(fewer) == [(2, "null_text", "s.parquet", 1), (3, "no_tokens", "s.parquet", 2)]
    assert rows.without([], NO_TOKENS, reading, "s.parquet") is rows


def test_text_hashes_are_blake2b_of_the_bytes() -> None:
    hashes = text_hashes(["a", "gr\u00fcn", "a"])
    assert hashes.type == pa.binary(16)
    assert hashes.to_pylist()[1] == hashlib.blake2b("gr\u00fcn".encode(), digest_size=16).digest()
    assert hashes[0] == hashes[2] != hashes[1]


def test_the_record_of_a_reading_differs_with_whatever_changes_texts_or_columns(tmp_path: Path) -> None:
    write_shard(tmp_path, "s.parquet", {"id": [1], "text": ["a"], "title": ["t"]})
    digests = {
        only_fragment(tmp_path, columns, joiner)[2].record().digest
        for columns, joiner in (
            (COLUMNS, " "),
            (COLUMNS, ", "),
            (Columns("id", ("title",), ()), " "),
            (Columns("id", ("text", "title"), ()), " "),
            (Columns("id", ("title", "text"), ()), " "),
            (Columns("id", ("text",), ("title",)), " "),
            (Columns("title", ("text",), ()), " "),
        )
    }
    assert len(digests) == 7
