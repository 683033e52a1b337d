"""What is packed for the way between the stages is what is unpacked."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.cargo import pack, token_columns, tokens_of, unpack_table, vector_columns
from tests.jobs.builders import texts_of


def travelled(table: pa.Table, name: str = "cell") -> pa.Table:
    """Through a packed row that Ray stores as one more stream."""
    sink = pa.BufferOutputStream()
    row = pack({name: table, "work": b"{}"})
    with pa.ipc.new_stream(sink, row.schema) as writer:
        writer.write_table(row)
    return unpack_table(pa.ipc.open_stream(sink.getvalue()).read_all(), name)


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=8))
def test_token_ids_come_back_as_they_left(token_ids: list[list[int]]) -> None:
    texts = texts_of(token_ids)
    back = tokens_of(travelled(pa.table(token_columns(3, texts))), 3)
    for name in ("token_ids", "offsets", "prompt_lengths", "truncated"):
        np.testing.assert_array_equal(getattr(back, name), getattr(texts, name))
    assert back.token_ids.dtype == np.int32
    assert back.offsets.dtype == np.int64
    assert back.prompt_lengths.dtype == np.int32
    assert back.truncated.dtype == np.bool_


def test_several_prompts_travel_side_by_side() -> None:
    table = pa.table(token_columns(0, texts_of([[1], [2]])) | token_columns(1, texts_of([[9, 1], [9, 2]])))
    assert tokens_of(travelled(table), 0).token_ids.tolist() == [1, 2]
    assert tokens_of(travelled(table), 1).token_ids.tolist() == [9, 1, 9, 2]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("num_texts", [0, 1, 5])
def test_vectors_are_fixed_size_lists_of_their_own_type(dtype: type, num_texts: int) -> None:
    vectors: np.ndarray = np.random.default_rng(0).normal(size=(num_texts, 8)).astype(dtype)
    table = travelled(pa.table(vector_columns(0, texts_of([[1, 2, 3]] * num_texts), vectors)))
    assert table.schema.field("embedding_0").type == pa.list_(pa.from_numpy_dtype(dtype), 8)
    assert table["num_tokens_0"].type == pa.int32()
    assert table["truncated_0"].type == pa.bool_()
    flat = table["embedding_0"].combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(flat.reshape(-1, 8), vectors)
    assert table["num_tokens_0"].to_pylist() == [3] * num_texts


def test_a_packed_fragment_is_one_row_whatever_it_holds() -> None:
    table = pa.table({"x": range(1000), "s": [{"a": [1]}] * 1000})
    row = pack({"rows": table, "seconds": 0.5, "actor": "a"})
    assert row.num_rows == 1
    assert row.schema.field("rows").type == pa.large_binary()
    assert (row["seconds"][0].as_py(), row["actor"][0].as_py()) == (0.5, "a")
    assert unpack_table(row, "rows").equals(table)


def test_unpacking_copies_nothing() -> None:
    row = pack({"rows": pa.table({"x": np.arange(10**6)})})
    before = pa.total_allocated_bytes()
    table = unpack_table(row, "rows")
    assert pa.total_allocated_bytes() - before < 10**5
    assert table.num_rows == 10**6


def test_chunks_dictionaries_and_metadata_survive() -> None:
    table = pa.table({"d": pa.chunked_array([pa.array(["a", "b"]).dictionary_encode()] * 2)})
    table = table.replace_schema_metadata({"k": "v"})
    back = travelled(table)
    assert back.equals(table, check_metadata=True)
