"""One small dataset that many tests look at, and the command in this process (one Ray for all) or in its own.

A Ray start costs seconds, so runs are few: what is found before Ray starts is tested in this process, what only a
real process can show (its streams, its exit code, its death) in one of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs.embed import main
from tests.encoders.repositories import TEXTS, write_repository
from tests.integration.commands import REPOSITORY, Outcome, finish, start

LOCAL = ("--ray-address", "local", "--num-cpus", "2")
ROWS_PER_SHARD = 40
FRAGMENT_ROWS = 20
# Folders as writers encode them, names as people choose them.
SHARDS = (
    "lang=en/year=2023/a.parquet",
    "lang=en/year=2024/with space & 100%25.parquet",
    "lang=en/year=2024/größe.parquet",
    "lang=pt%20BR/year=2024/日本.parquet",
    "lang=a%2Fb/year=2024/__.._x'\"$(y).parquet".replace("__", "-"),
    "lang=de/year=2024/b.parquet",
)
KEPT = ("title", "tags", "meta", "when")
VIEWS = ("retrieval/query", "retrieval/document")
PROMPTS = {"query": "query: ", "document": "passage: "}


Embed = Callable[..., Outcome]


@dataclass(frozen=True)
class Dataset:
    """A corpus, what was made of it, and how."""

    corpus: Path
    out: Path
    arguments: tuple[str, ...]
    outcome: Outcome


def embed_here(*arguments: str) -> Outcome:
    """The command in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    started = time.monotonic()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        exit_code = main([*LOCAL, *arguments])
    return Outcome(exit_code, stdout.getvalue(), stderr.getvalue(), time.monotonic() - started)


def start_embed(*arguments: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return start([sys.executable, "-m", "jobs.embed", *LOCAL, *arguments], REPOSITORY, environment)


@pytest.fixture(scope="session")
def embed() -> Iterator[Embed]:
    """The command in this process; Ray starts with the first run that needs it and ends with the session."""
    yield embed_here
    if "ray" in sys.modules:
        import ray

        ray.shutdown()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 32 dimensions that wants prompts for retrieval and knows no other task."""
    return write_repository(tmp_path_factory.mktemp("model"), settings={"prompts": PROMPTS})


def table_of(first_id: int, num_rows: int) -> pa.Table:
    """Rows with texts of many lengths, some without a title, and columns of every kind to keep."""
    numbers = range(first_id, first_id + num_rows)
    midnight = datetime(2024, 1, 1, tzinfo=UTC)
    return pa.table(
        {
            "id": pa.array(numbers, pa.int64()),
            "title": [None if n % 5 == 0 else "" if n % 5 == 1 else f"title {n}" for n in numbers],
            "text": [f"{TEXTS[n % len(TEXTS)]} {n} " * (n % 7 + 1) for n in numbers],
            "tags": pa.array(
                [None if n % 4 == 0 else ["a", None, str(n)] for n in numbers], pa.list_(pa.string())
            ),
            "meta": [{"score": n / 3, "source": {"name": f"s{n}"}} for n in numbers],
            "when": pa.array(
                [None if n % 3 == 0 else midnight + timedelta(hours=n) for n in numbers],
                pa.timestamp("us", "UTC"),
            ),
        }
    )


def write_corpus(folder: Path, shards: Sequence[str] = SHARDS, num_rows: int = ROWS_PER_SHARD) -> Path:
    """Shards of four row groups each, their ids counted through."""
    for number, name in enumerate(shards):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table_of(number * num_rows, num_rows), path, row_group_size=10)
    return folder


def arguments_for(model: Path, corpus: Path, out: Path, num_encoders: int = 1) -> tuple[str, ...]:
    """Two views in one pass, texts of two columns, every other column kept."""
    views = f"output.views=[{', '.join(VIEWS)}]"
    columns = [
        *(f"--text-column={name}" for name in ("title", "text")),
        *(f"--keep-column={name}" for name in KEPT),
    ]
    return (
        *("--input", str(corpus), "--output", str(out), "--model", str(model), "--set", views),
        *columns,
        *("--fragment-rows", str(FRAGMENT_ROWS), "--max-actors", str(num_encoders), "--dtype", "float32"),
        *("--set", f"compute.min_actors={num_encoders}"),  # which share the two cores
    )


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Dataset:
    """Made by a process of its own with two encoders. Look, but do not touch."""
    folder = tmp_path_factory.mktemp("dataset")
    corpus, out = write_corpus(folder / "corpus"), folder / "out"
    arguments = arguments_for(model, corpus, out, num_encoders=2)
    outcome = finish(start_embed(*arguments))
    assert outcome.exit_code == 0, outcome.stderr
    return Dataset(corpus, out, arguments, outcome)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file below a folder, hidden ones included; empty if there is no such folder."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def parts(folder: Path) -> dict[str, bytes]:
    """Content of every part, by path."""
    return {path: content for path, (content, _) in snapshot(folder).items() if path.startswith("task=")}


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest as JSON."""
    manifest: dict[str, Any] = json.loads((folder / "_manifest.json").read_text())
    return manifest


def read_view(folder: Path, role: str = "document", task: str = "retrieval", key: str = "id") -> pa.Table:
    """All rows of a view that the manifest names, sorted by the id column `key`."""
    receipts = manifest_of(folder)["receipts"]
    paths = [str(folder / receipt["parts"][f"{task}/{role}"]["path"]) for receipt in receipts]
    base = folder / f"task={task}" / f"role={role}"
    view = ds.dataset(paths, partitioning="hive", partition_base_dir=str(base))
    return view.to_table().sort_by(key).combine_chunks()


def vectors_of(table: pa.Table) -> np.ndarray:
    """Embeddings `[num_rows, dim]`."""
    vectors: np.ndarray = table["embedding"].combine_chunks().flatten().to_numpy()
    return vectors.reshape(table.num_rows, -1)


def rejects_of(folder: Path) -> list[dict[str, Any]]:
    """Every rejected row."""
    files = sorted((folder / "_rejects").rglob("*.parquet"))
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
