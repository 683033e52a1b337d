"""A part opens anywhere as it stands, and says what its vectors are."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cargo import as_vectors, vector_columns
from jobs.parts import file_record, part_bytes, part_table
from jobs.rows import text_hashes
from tests.jobs.builders import texts_of

LABELS = {"space_id": "5" * 32, "prompt": "query: ", "dim": "4"}


def part(num_rows: int = 3, dtype: Any = np.float32, **kept: Any) -> pa.Table:
    vectors = np.arange(4 * num_rows, dtype=dtype).reshape(num_rows, 4)
    columns = vector_columns(0, texts_of([[1, 2]] * num_rows), vectors)
    carried = pa.table({"id": pa.array(range(num_rows), pa.int64()), **kept})
    carried = carried.append_column("text_hash", text_hashes(["t"] * num_rows))
    return part_table(carried, columns["embedding_0"], columns["num_tokens_0"], columns["truncated_0"])


def written(table: pa.Table, row_group_rows: int = 10) -> bytes:
    return part_bytes(table, LABELS, compression_level=3, row_group_rows=row_group_rows)


def read(content: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(content))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_columns_stand_in_their_order_with_their_types(dtype: Any) -> None:
    table = read(written(part(dtype=dtype, title=["a", None, "c"])))
    assert [(field.name, field.type) for field in table.schema] == [
        ("id", pa.int64()),
        ("title", pa.string()),
        ("embedding", pa.list_(pa.from_numpy_dtype(dtype), 4)),
        ("num_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("text_hash", pa.binary(16)),
    ]
    assert table.equals(part(dtype=dtype, title=["a", None, "c"]))


def test_vectors_read_back_bit_for_bit() -> None:
    vectors = read(written(part(100)))["embedding"].combine_chunks().values.to_numpy()
    np.testing.assert_array_equal(vectors, np.arange(400, dtype=np.float32))


def test_the_labels_stand_in_the_metadata_and_no_others_of_ours() -> None:
    metadata = pq.read_metadata(pa.BufferReader(written(part()))).metadata
    ours = {key.decode(): value.decode() for key, value in metadata.items() if key.startswith(b"taskvec.")}
    assert ours == {f"taskvec.{name}": value for name, value in LABELS.items()}


def test_equal_tables_give_equal_bytes() -> None:
    assert written(part(50, tags=[["a"]] * 50)) == written(part(50, tags=[["a"]] * 50))
    chunked = pa.concat_tables([part(50).slice(0, 20), part(50).slice(20)])
    assert read(written(chunked)).equals(read(written(part(50))))


def test_row_groups_have_the_wanted_rows() -> None:
    metadata = pq.read_metadata(pa.BufferReader(written(part(25))))
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [10, 10, 5]


def test_vectors_and_hashes_have_neither_dictionaries_nor_statistics_and_ids_have_both() -> None:
    group = pq.read_metadata(pa.BufferReader(written(part(25)))).row_group(0)
    columns = {group.column(leaf).path_in_schema.partition(".")[0]: group.column(leaf) for leaf in range(5)}
    for name in ("embedding", "text_hash"):
        assert not columns[name].is_stats_set
        assert columns[name].dictionary_page_offset is None
    assert columns["id"].statistics.max == 9
    assert columns["id"].dictionary_page_offset is not None
    assert columns["id"].compression == "ZSTD"


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_a_quantised_value_takes_a_byte_and_not_the_four_that_parquet_gives_it(dtype: Any) -> None:
    values = np.random.default_rng(0).integers(0, 256, (2000, 64)).astype(dtype)
    columns = vector_columns(0, texts_of([[1]] * 2000), values)
    embedding = pa.table({"id": range(2000), "embedding": columns["embedding_0"]})
    content = part_bytes(embedding, LABELS, compression_level=3, row_group_rows=1000)
    assert len(content) < 1.1 * values.size
    np.testing.assert_array_equal(as_vectors(read(content)["embedding"]), values)


def test_a_part_may_have_no_rows() -> None:
    table = read(written(part(0, title=pa.array([], pa.string()))))
    assert table.num_rows == 0
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 4)


def test_a_file_record_says_size_and_checksum() -> None:
    record = file_record("task=x/part-1.parquet", b"content")
    assert (record.path, record.num_bytes) == ("task=x/part-1.parquet", 7)
    assert record.sha256 == hashlib.sha256(b"content").hexdigest()
