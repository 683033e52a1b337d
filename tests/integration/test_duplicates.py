"""Repeated ids through whole runs: what is kept, what a second run does, and the comparison on the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import Embed, manifest_of, parts, read_view, rejects_of, snapshot

pytestmark = pytest.mark.slow


def write(path: Path, ids: list[Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    texts = [f"{path.stem} says {one} {number}" for number, one in enumerate(ids)]
    pq.write_table(pa.table({"id": ids, "text": texts}), path, row_group_size=5)


def test_a_corpus_that_repeats_ids(
    tmp_path: Path, model: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    write(corpus / "b.parquet", [f"id {number}" for number in range(20)])
    write(corpus / "c.parquet", ["id 3", "new", "new", "id 19", None, "last"])
    places = ("--input", str(corpus), "--model", str(model), "--task", "retrieval", "--role", "document")
    options = (*places, "--fragment-rows", "5", "--max-actors", "1", "--set", "output.max_rejected_rows=1")
    options = (*options, "--set", "output.max_rejected_fraction=1")
    options = (*options, "--dtype", "float32")
    first = ("--set", "input.on_duplicate_id=keep_first")

    def run(*more: str, where: Path = out) -> Any:
        outcome = embed(*options, "--output", str(where), *more)
        assert outcome.exit_code == 0, outcome.stderr
        return outcome.summary

    # on the cluster, and again in this process
    monkeypatch.setattr("jobs.duplicates.SMALL_ROWS", 0)
    refused = embed(*options, "--output", str(out))
    assert refused.exit_code == 1
    assert "3 of 26 rows repeat the id of an earlier one ('id 3' in 'c.parquet' row 0" in refused.stderr
    assert not snapshot(out)
    summary = run(*first)
    assert (summary["rows"], summary["embedded"], summary["rejected"]) == (26, 22, 4)
    monkeypatch.undo()
    run(*first, where=tmp_path / "again")
    assert parts(out).keys() == parts(tmp_path / "again").keys()
    assert sorted((row["shard"], row["row"], row["id"], row["reason"]) for row in rejects_of(out)) == [
        ("c.parquet", 0, "id 3", "duplicate_id"),
        ("c.parquet", 2, "new", "duplicate_id"),
        ("c.parquet", 3, "id 19", "duplicate_id"),
        ("c.parquet", 4, None, "null_id"),
    ]
    ids = read_view(out)["id"].to_pylist()
    assert (len(ids), len(set(ids))) == (22, 22)

    # once more: nothing is read, nothing is written
    before = snapshot(out)
    assert run(*first)["embedded"] == 0
    assert snapshot(out) == before
    planned = run(*first, "--dry-run")
    assert (planned["missing_parts"], planned["rows_to_read"]) == (0, 0)

    # a shard whose name comes first takes ids from the old ones; their other rows keep their vectors
    write(corpus / "a.parquet", ["id 7", "id 8"])
    summary = run(*first)
    assert (summary["embedded"], summary["carried"], summary["rejected"]) == (2, 3, 6)
    assert (summary["added"], summary["updated"], summary["deleted"]) == (0, 2, 0)
    assert sum(map(len, manifest_of(out)["repeated_ids"].values())) > 0

    # every row again
    summary = run("--set", "input.on_duplicate_id=keep_all")
    assert (summary["rows"], summary["rejected"]) == (28, 1)
    assert read_view(out)["id"].to_pylist().count("new") == 2
    assert manifest_of(out)["repeated_ids"] is None

    # who has not said so again gets nothing new of it
    assert run()["embedded"] == 0
    views = ("--set", "output.views=[retrieval/document, retrieval/query]")
    without_task = [one for one in options if one not in ("--task", "retrieval", "--role", "document")]
    more = embed(*without_task, "--output", str(out), *views)
    assert more.exit_code == 1
    assert "of 28 rows repeat the id of an earlier one" in more.stderr
