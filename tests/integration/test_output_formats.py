"""The output opens as it stands in what people use, with the partition columns of the output and of the corpus."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import (
    KEPT,
    ROWS_PER_SHARD,
    SHARDS,
    Dataset,
    Embed,
    manifest_of,
    parts,
    read_view,
    table_of,
    vectors_of,
)

NUM_ROWS = len(SHARDS) * ROWS_PER_SHARD
NUM_VECTORS = 2 * NUM_ROWS
DIM = 32
COLUMNS = ["id", *KEPT, "embedding", "num_tokens", "truncated", "text_hash"]
PARTITIONS = ["task", "role", "lang", "year"]


@pytest.fixture(scope="module")
def table(dataset: Dataset) -> pa.Table:
    return ds.dataset(dataset.out, partitioning="hive").to_table()


def test_pyarrow_opens_the_folder_with_all_columns_and_partitions(table: pa.Table) -> None:
    assert table.num_rows == NUM_VECTORS
    assert table.column_names == [*COLUMNS, *PARTITIONS]
    assert table["task"].unique().to_pylist() == ["retrieval"]
    assert sorted(table["role"].unique().to_pylist()) == ["document", "query"]
    assert set(table["lang"].unique().to_pylist()) == {"en", "pt BR", "a/b", "de"}
    assert sorted(table["year"].unique().to_pylist()) == [2023, 2024]


def test_every_row_stands_in_the_partition_of_its_shard(table: pa.Table) -> None:
    languages = ["en", "en", "en", "pt BR", "a/b", "de"]
    for row in table.select(["id", "lang", "year"]).to_pylist():
        shard = row["id"] // ROWS_PER_SHARD
        assert (row["lang"], row["year"]) == (languages[shard], 2023 if shard == 0 else 2024)


def test_types_are_as_promised(table: pa.Table) -> None:
    types = {field.name: field.type for field in table.schema}
    assert types["embedding"] == pa.list_(pa.float32(), DIM)
    assert types["num_tokens"] == pa.int32()
    assert types["truncated"] == pa.bool_()
    assert types["text_hash"] == pa.binary(16)
    corpus = table_of(0, NUM_ROWS).schema
    assert {name: types[name] for name in ("id", *KEPT)} == {
        name: corpus.field(name).type for name in ("id", *KEPT)
    }


def test_kept_columns_hold_what_the_corpus_holds(table: pa.Table) -> None:
    corpus = table_of(0, NUM_ROWS).select(["id", *KEPT])
    for role in ("query", "document"):
        view = table.filter(pa.compute.field("role") == role).select(["id", *KEPT])
        assert view.sort_by("id").to_pylist() == corpus.to_pylist()


def test_the_hash_is_that_of_the_joined_text(table: pa.Table) -> None:
    for row in table.select(["id", "text_hash"]).to_pylist():
        source = table_of(row["id"], 1).to_pylist()[0]
        text = " ".join(filter(None, (source["title"], source["text"])))
        assert row["text_hash"] == hashlib.blake2b(text.encode(), digest_size=16).digest()


def test_every_part_says_what_its_vectors_are(dataset: Dataset) -> None:
    views = manifest_of(dataset.out)["views"]
    for path in parts(dataset.out):
        metadata = pq.read_metadata(dataset.out / path).metadata
        labels = {
            key.decode().removeprefix("taskvec."): value.decode()
            for key, value in metadata.items()
            if key.startswith(b"taskvec.")
        }
        view = views[f"{labels['task']}/{labels['role']}"]
        assert path.startswith(f"task={labels['task']}/role={labels['role']}/")
        assert labels == {name: str(value) for name, value in view.items() if value is not None}
        assert labels["prompt"] == {"query": "query: ", "document": "passage: "}[labels["role"]]
    assert len({view["space_id"] for view in views.values()}) == 1


def test_pandas_opens_the_folder(dataset: Dataset) -> None:
    frame = pd.read_parquet(dataset.out)
    assert len(frame) == NUM_VECTORS
    assert set(frame.columns) == {*COLUMNS, *PARTITIONS}
    assert frame["embedding"].iloc[0].shape == (DIM,)


def query(dataset: Dataset, select: str, where: str = "true") -> list[tuple[Any, ...]]:
    files = f"{dataset.out}/task=*/**/*.parquet"
    with duckdb.connect() as connection:
        return connection.sql(
            f"SELECT {select} FROM read_parquet('{files}', hive_partitioning = true) WHERE {where}"
        ).fetchall()


def test_duckdb_opens_the_folder(dataset: Dataset) -> None:
    assert query(dataset, "count(*), min(id), max(id)") == [(NUM_VECTORS, 0, NUM_ROWS - 1)]
    assert query(dataset, "DISTINCT lang", "role = 'query' AND year = 2024 ORDER BY lang") == [
        ("a/b",),
        ("de",),
        ("en",),
        ("pt BR",),
    ]
    ((kind,),) = query(dataset, "DISTINCT typeof(embedding)")
    assert kind == "FLOAT[]"  # DuckDB knows no fixed-size lists in Parquet
    assert query(dataset, "DISTINCT len(embedding)") == [(DIM,)]


def test_a_query_finds_the_nearest_document_in_duckdb(dataset: Dataset) -> None:
    files = f"{dataset.out}/task=*/**/*.parquet"
    with duckdb.connect() as connection:
        found = connection.sql(
            f"""WITH v AS (SELECT * FROM read_parquet('{files}', hive_partitioning = true))
            SELECT d.id, list_cosine_similarity(q.embedding, d.embedding) AS cosine FROM v q, v d
            WHERE q.role = 'query' AND d.role = 'document' AND q.id = 7
            ORDER BY cosine DESC"""
        ).fetchall()
    question = vectors_of(read_view(dataset.out, "query"))[7].astype(np.float64)
    documents = vectors_of(read_view(dataset.out, "document")).astype(np.float64)
    cosines = documents @ question / np.linalg.norm(documents, axis=1) / np.linalg.norm(question)
    ids, scores = zip(*found, strict=True)
    assert sorted(ids) == list(range(NUM_ROWS))
    np.testing.assert_allclose(scores, cosines[list(ids)], atol=1e-6)
    assert scores[0] > scores[1]
    assert ids[0] == cosines.argmax()


def test_ray_data_opens_the_folder(dataset: Dataset, embed: Embed) -> None:
    assert embed(*dataset.arguments, "--dry-run").exit_code == 0
    import ray

    from jobs.cluster import connect

    connect("local", 2)
    rows = (
        ray.data.read_parquet(str(dataset.out)).select_columns(["id", "role", "lang", "embedding"]).take_all()
    )
    assert len(rows) == NUM_VECTORS
    assert {row["role"] for row in rows} == {"query", "document"}
    assert len({row["lang"] for row in rows}) == 4
    assert len(rows[0]["embedding"]) == DIM


def test_a_single_part_opens_alone(dataset: Dataset, tmp_path: Path) -> None:
    path, content = next(iter(parts(dataset.out).items()))
    (tmp_path / "copied.parquet").write_bytes(content)
    assert pq.read_table(tmp_path / "copied.parquet").column_names == COLUMNS
    assert path.endswith(".parquet")
