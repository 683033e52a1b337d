"""What a run reports as changed keeps a copy of the dataset in a database equal to it."""

from __future__ import annotations

from pathlib import Path

import lancedb
import pyarrow.dataset as ds
import pytest

from examples.apply_changes import apply_changes
from jobs.compare import KINDS
from tests.integration.conftest import Embed, manifest_of, read_view, snapshot
from tests.integration.test_carry_over import arguments, rewritten, rows_of, write

pytestmark = pytest.mark.slow


def check_copy(database: Path, out: Path) -> None:
    """The table holds the dataset's ids, vectors and hashes, no more and no less."""
    columns = ["id", "embedding", "text_hash"]
    copy = lancedb.connect(str(database)).open_table("vectors").to_arrow().select(columns)
    assert copy.sort_by("id").combine_chunks().equals(read_view(out).select(columns).cast(copy.schema))


def test_a_database_that_applies_what_changed_equals_the_dataset(
    model: Path, tmp_path: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(0)
    corpus, out = write(tmp_path / "corpus", rows, 3), tmp_path / "out"
    database, late = tmp_path / "vectors", tmp_path / "late"
    command = arguments(model, corpus, out, views=["retrieval/document"])
    first = embed(*command).summary
    num_texts = first["rows"] - first["rejected"]
    assert (first["added"], first["updated"], first["deleted"]) == (num_texts, 0, 0)
    assert ds.dataset(f"{first['changes']}/change=added").count_rows() == num_texts
    for copy in (database, late):
        assert apply_changes(out, copy) == {"deleted": 0, "inserted": num_texts}
    check_copy(database, out)

    again, fresh = rewritten(rows)
    write(corpus, again, 2)
    monkeypatch.setattr("jobs.changes.SMALL_ROWS", 0)  # on the cluster
    monkeypatch.setattr("jobs.changes._BUCKET_ROWS", 100)
    second = embed(*command).summary
    assert (second["added"], second["updated"], second["deleted"]) == (2, 2, 2)
    assert second["unchanged"] == num_texts - 4
    assert len(fresh) == 3
    changes = ds.dataset(second["changes"], partitioning="hive").to_table().to_pylist()
    assert sum(row["change"] == "unchanged" for row in changes) == num_texts - 4
    assert {(row["change"], row["id"]) for row in changes if row["change"] != "unchanged"} == {
        *(("updated", number) for number in (50, 150)),
        *(("deleted", number) for number in (60, 101)),
        *(("added", number) for number in (5019, 5020)),
    }
    assert apply_changes(out, database) == {"deleted": 4, "inserted": 4}
    check_copy(database, out)
    before = snapshot(out)
    again_summary = embed(*command).summary
    assert again_summary["changes"] is None  # and yet it says what it found
    assert [again_summary[kind] for kind in KINDS] == [0, 0, 0, num_texts]
    assert snapshot(out) == before

    write(corpus, again[:150], 1)
    third = embed(*command).summary
    removed = num_texts - manifest_rows(out)
    assert (third["added"], third["updated"], third["deleted"]) == (0, 0, removed)
    assert apply_changes(out, database) == {"deleted": removed, "inserted": 0}
    assert apply_changes(out, late)["deleted"] > removed  # two commits at once
    assert apply_changes(out, late) == {"deleted": 0, "inserted": 0}
    for copy in (database, late):
        check_copy(copy, out)


def manifest_rows(out: Path) -> int:
    """Vectors of the committed dataset."""
    return sum(
        part["num_rows"] for receipt in manifest_of(out)["receipts"] for part in receipt["parts"].values()
    )
