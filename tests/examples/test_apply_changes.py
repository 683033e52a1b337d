"""A table in LanceDB that applies what changed equals the dataset, however many commits it slept through."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from examples.apply_changes import apply_changes
from jobs.cargo import as_lists
from jobs.changes import report_changes
from jobs.commit import publish
from jobs.holdings import take_stock
from jobs.parts import file_record, part_bytes, part_table
from jobs.record_files import find_manifest
from jobs.records import PartRecord
from jobs.rows import text_hashes
from jobs.storage import Store, open_store
from jobs.store import Location
from jobs.sweep import sweep
from tests.jobs.test_changes import VIEW, manifest_of, never

Texts = dict[Any, str]


def commit(store: Store, shards: list[Texts], repeated_ids: dict[str, str] | None) -> None:
    """Publish a dataset of a part for each shard, with vectors that a text decides."""
    parts = []
    for texts in filter(None, shards):
        vectors = np.array([[len(text), sum(text.encode())] for text in texts.values()], np.float32)
        rows = pa.table({"id": pa.array(list(texts)), "text_hash": text_hashes(list(texts.values()))})
        counts = pa.array([1] * len(texts), pa.int32())
        table = part_table(rows, as_lists(vectors), counts, pa.array([False] * len(texts)))
        content = part_bytes(table, {}, compression_level=1, row_group_rows=10)
        path = f"task=retrieval/role=document/part-{file_record('', content).sha256[:32]}.parquet"
        store.create(path, content)
        record = file_record(path, content).model_dump()
        parts.append(PartRecord(**record, num_rows=len(texts), num_tokens=1, num_truncated=0))
    manifest = manifest_of(parts)
    view = manifest.views[VIEW].model_copy(update={"dim": 2})
    manifest = manifest.model_copy(update={"views": {VIEW: view}, "repeated_ids": repeated_ids})
    report_changes(store, take_stock(store), manifest, never)
    version = publish(store, manifest, replacing=find_manifest(store)[1])
    sweep(store, manifest, version, confirm=lambda: None, keep_manifests=2, orphan_grace_hours=0)


def copied(database: Path) -> list[tuple[Any, ...]]:
    """Id, vector and hash of all rows, by id."""
    table = lancedb.connect(str(database)).open_table("vectors").to_arrow()
    rows = table.select(["id", "embedding", "text_hash"]).sort_by("id").to_pylist()
    return [(row["id"], tuple(row["embedding"]), row["text_hash"]) for row in rows]


@pytest.mark.parametrize("seed", range(3))
def test_a_copy_is_the_dataset_whenever_it_is_brought_up_to_date(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    store = open_store(Location(str(tmp_path / "out")))
    steady, late = tmp_path / "steady", tmp_path / "late"
    first: Texts = {}
    for step in range(6):
        numbers = chance.sample(range(12), chance.randint(3, 10))
        ids = [f"it's {one}" for one in numbers] if seed % 2 else numbers
        shards = [{one: f"{one} {chance.randint(0, 2)}" for one in ids[half::3]} for half in (0, 1, 2)]
        if first and step % 3:  # a part that stays
            shards[0] = first
            shards[1:] = [
                {one: text for one, text in shard.items() if one not in first} for shard in shards[1:]
            ]
        first = shards[0]
        commit(store, shards, {} if seed % 3 else None)
        apply_changes(tmp_path / "out", steady)
        if step in (0, 5) or chance.random() < 0.3:
            apply_changes(tmp_path / "out", late)
            assert copied(late) == copied(steady)
        texts = dict(sorted({**shards[0], **shards[1], **shards[2]}.items()))
        assert [(row[0], row[2]) for row in copied(steady)] == list(
            zip(texts, text_hashes(list(texts.values())).to_pylist(), strict=True)
        )
        assert [row[1] for row in copied(steady)] == [
            (float(len(text)), float(sum(text.encode()))) for text in texts.values()
        ]
    assert apply_changes(tmp_path / "out", late) == {"deleted": 0, "inserted": 0}
