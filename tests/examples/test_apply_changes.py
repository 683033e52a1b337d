"""A table in DuckDB that applies what changed equals the dataset, however many commits it slept through."""

from __future__ import annotations

import random
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from examples.apply_changes import apply_changes
from jobs.cargo import as_lists
from jobs.changes import report_changes
from jobs.commit import publish
from jobs.holdings import take_stock
from jobs.parts import file_record, part_bytes, part_table
from jobs.records import PartRecord, find_manifest
from jobs.rows import text_hashes
from jobs.storage import Store, open_store
from jobs.store import Location
from jobs.sweep import sweep
from tests.jobs.test_changes import VIEW, manifest_of, never

Texts = dict[int, str]


def commit(store: Store, shards: list[Texts]) -> None:
    """Publish a dataset of a part for each shard, with vectors that a text decides."""
    parts = []
    for texts in shards:
        vectors = np.array([[len(text), sum(text.encode())] for text in texts.values()], np.float32)
        rows = pa.table({"id": pa.array(texts, pa.int64()), "text_hash": text_hashes(list(texts.values()))})
        counts = pa.array([1] * len(texts), pa.int32())
        table = part_table(rows, as_lists(vectors), counts, pa.array([False] * len(texts)))
        content = part_bytes(table, {}, compression_level=1, row_group_rows=10)
        path = f"task=retrieval/role=document/part-{file_record('', content).sha256[:32]}.parquet"
        store.create(path, content)
        record = file_record(path, content).model_dump()
        parts.append(PartRecord(**record, num_rows=len(texts), num_tokens=1, num_truncated=0))
    manifest = manifest_of(parts)
    view = manifest.views[VIEW].model_copy(update={"dim": 2})
    manifest = manifest.model_copy(update={"views": {VIEW: view}})
    report_changes(store, take_stock(store), manifest, never)
    version = publish(store, manifest, replacing=find_manifest(store)[1])
    sweep(store, manifest, version, confirm=lambda: None, keep_manifests=2, orphan_grace_hours=0)


def copied(database: Path) -> list[tuple[int, tuple[float, ...], bytes]]:
    with duckdb.connect(str(database)) as store:
        return store.execute("select id, embedding, text_hash from vectors order by id").fetchall()


@pytest.mark.parametrize("seed", range(5))
def test_a_copy_is_the_dataset_whenever_it_is_brought_up_to_date(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    store = open_store(Location(str(tmp_path / "out")))
    steady, late = tmp_path / "steady.duckdb", tmp_path / "late.duckdb"
    for step in range(6):
        numbers = chance.sample(range(12), chance.randint(3, 10))
        shards = [{one: f"{one} {chance.randint(0, 2)}" for one in numbers[half::2]} for half in (0, 1)]
        commit(store, shards)
        apply_changes(tmp_path / "out", steady)
        if step in (0, 5) or chance.random() < 0.3:
            apply_changes(tmp_path / "out", late)
            assert copied(late) == copied(steady)
        texts = dict(sorted({**shards[0], **shards[1]}.items()))
        assert [(row[0], row[2]) for row in copied(steady)] == list(
            zip(texts, text_hashes(list(texts.values())).to_pylist(), strict=True)
        )
        assert [row[1] for row in copied(steady)] == [
            (float(len(text)), float(sum(text.encode()))) for text in texts.values()
        ]
    assert apply_changes(tmp_path / "out", late) == {"deleted": 0, "inserted": 0}
