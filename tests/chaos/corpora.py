"""Corpora of many small fragments, and what a dataset made of one must account for."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.encoders.repositories import TRAINING_TEXT

ROW_GROUP_ROWS = 50
_WORDS = " ".join(TRAINING_TEXT).split()


def shard(name: str, num_rows: int, *, seed: int = 0) -> bytes:
    """Rows with texts of many lengths that only `name` and `seed` decide; in each row group one is null.

    Of two seeds the rows are the same ones, in another order, and a third of them has another text.
    """
    numbers = list(range(num_rows))
    random.Random(f"{name}/{seed}").shuffle(numbers)
    texts = [_text(f"{name}/{number}/{seed if number % 3 == 0 else 0}") for number in numbers]
    table = pa.table(
        {
            "id": [f"{name}-{number}" for number in numbers],
            "text": [None if n % ROW_GROUP_ROWS == 7 else text for n, text in enumerate(texts)],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=ROW_GROUP_ROWS)
    return sink.getvalue()


def _text(seed: str) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choices(_WORDS, k=draw.randint(3, 40)))


def write_corpus(folder: Path, num_shards: int, num_rows: int) -> Path:
    """Shards in two partitions."""
    for number in range(num_shards):
        path = folder / f"half={number % 2}" / f"s{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(shard(f"s{number}", num_rows))
    return folder


def change_corpus(folder: Path, num_rows: int, *, seed: int = 1) -> None:
    """One shard gets other texts, one goes, one is new."""
    (folder / "half=0" / "s0.parquet").write_bytes(shard("s0", num_rows, seed=seed))
    (folder / "half=1" / "s1.parquet").unlink()
    (folder / "half=0" / "new.parquet").write_bytes(shard("new", num_rows, seed=seed))


def num_rows_of(folder: Path) -> int:
    """Rows of all shards, as their footers say."""
    return sum(pq.read_metadata(path).num_rows for path in folder.rglob("*.parquet"))
