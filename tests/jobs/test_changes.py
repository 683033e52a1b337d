"""Which ids a commit adds, updates, deletes and leaves."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.changes import Changes, nothing_changed, report_changes
from jobs.compare import KINDS, Comparison, SidedPart, compare, compare_here
from jobs.errors import OutputError
from jobs.files import kind_of
from jobs.holdings import Holdings
from jobs.manifests import content_of
from jobs.records import MANIFEST, Manifest, PartRecord, ReadingRecord, Receipt, ViewRecord
from jobs.storage import Location, open_store
from tests.jobs.builders import clean, write_shard

VIEW = "retrieval/document"
Side = dict[Any, int]  # a number that stands for the text, by id


def hash_of(text: int) -> bytes:
    return bytes([text]) * 16


def part_of(folder: Path, name: str, ids: pa.Array, texts: list[int]) -> PartRecord:
    """A part with an embedding beside what the report reads."""
    hashes = pa.array([hash_of(text) for text in texts], pa.binary(16))
    embedding = pa.array([[0.0]] * len(ids), pa.list_(pa.float32(), 1))
    path = f"task=retrieval/{name}.parquet"
    write_shard(folder, path, pa.table({"id": ids, "embedding": embedding, "text_hash": hashes}))
    size = (folder / path).stat().st_size
    return PartRecord(path=path, num_bytes=size, sha256="", num_rows=len(ids), num_tokens=1, num_truncated=0)


def manifest_of(parts: list[PartRecord], kind: str = "int64", space_id: str = "5") -> Manifest:
    reading = ReadingRecord(
        id_column="id",
        text_columns=("text",),
        text_joiner=" ",
        keep_columns=(),
        carried=(("id", kind),),
        carried_schema="",
    )
    view = ViewRecord(
        task="retrieval",
        role="document",
        space_id=space_id,
        space_name="s",
        model="m",
        revision="r",
        adapter=None,
        prompt="",
        dim=1,
        precision="float32",
        normalized=True,
    )
    receipts = [
        Receipt(
            fragment=part.path,
            shard="s",
            num_rows=part.num_rows,
            rejected={},
            rejects=None,
            parts={VIEW: part},
        )
        for part in parts
    ]
    return Manifest(
        committed_at="2026-01-01T00:00:00+00:00",
        corpus="c",
        reading=reading,
        fragment_rows=10,
        views={VIEW: view},
        shards=(),
        bad_shards=(),
        receipts=tuple(receipts),
    )


def never(*_: object) -> Counter[tuple[str, str]]:
    raise AssertionError("so few rows need no cluster")


def report(folder: Path, before: Manifest | None, after: Manifest) -> tuple[Changes, dict[str, list[Any]]]:
    """What a commit changes, and the rows of its files."""
    store = open_store(Location(str(folder)))
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in (folder / "task=retrieval").iterdir()
    }
    changes = report_changes(store, Holdings(before, (), sizes), after, never)
    files = {kind: folder / changes.folder / f"change={kind}" for kind in ("added", "updated", "deleted")}
    rows = {
        kind: [tuple(row.values()) for row in ds.dataset(path).to_table().to_pylist()]
        if path.exists()
        else []
        for kind, path in files.items()
    }
    return changes, rows


def rows_of(side: Side, *, is_new: bool) -> pa.Table:
    return pa.table(
        {
            "view": pa.array([0] * len(side), pa.int32()),
            "is_new": pa.array([is_new] * len(side), pa.bool_()),
            "id": pa.array(list(side), pa.string()),
            "text_hash": pa.array([hash_of(text) for text in side.values()], pa.binary(16)),
        }
    )


SIDES = st.dictionaries(st.sampled_from(["a", "b", "é", "", "日本"]), st.integers(0, 2))


@given(SIDES, SIDES)
def test_each_id_is_compared_with_itself(old: Side, new: Side) -> None:
    table = compare(pa.concat_tables([rows_of(old, is_new=False), rows_of(new, is_new=True)]))
    found = {row["id"]: (row["text_hash_before"], row["text_hash"]) for row in table.to_pylist()}
    assert table.num_rows == len(found)
    assert found == {
        one: tuple(hash_of(side[one]) if one in side else None for side in (old, new)) for one in {*old, *new}
    }


@pytest.mark.parametrize("num_buckets", [1, 3])
def test_kinds_counts_and_files_say_what_changed(tmp_path: Path, num_buckets: int) -> None:
    old = part_of(tmp_path, "old", pa.array([1, 2, 3, 4]), [1, 2, 3, 4])
    new = part_of(tmp_path, "new", pa.array([5, 3, 2, 1]), [5, 3, 9, 1])
    parts = (SidedPart(VIEW, False, old), SidedPart(VIEW, True, new))
    comparison = Comparison("id", parts, (), num_buckets, "_changes/x")
    assert Comparison.from_json(comparison.to_json()) == comparison
    counts = compare_here(Location(str(tmp_path)), comparison)
    assert {kind: count for (_, kind), count in counts.items()} == {
        "added": 1,
        "updated": 1,
        "deleted": 1,
        "unchanged": 2,
    }
    table = ds.dataset(tmp_path / "_changes/x", partitioning="hive").to_table()
    rows = {
        row["id"]: (row["change"], row["text_hash_before"], row["text_hash"]) for row in table.to_pylist()
    }
    assert rows == {
        1: ("unchanged", None, hash_of(1)),  # there is no hash before in its file, for it is the same
        3: ("unchanged", None, hash_of(3)),
        2: ("updated", hash_of(2), hash_of(9)),
        4: ("deleted", hash_of(4), None),
        5: ("added", None, hash_of(5)),
    }
    assert table.schema.field("id").type == pa.int64()
    assert set(table["task"].to_pylist()) == {"retrieval"}


def test_parts_that_stay_cancel_out_and_a_first_commit_adds_all(tmp_path: Path) -> None:
    stays = part_of(tmp_path, "stays", pa.array([1, 2]), [1, 2])
    gone = part_of(tmp_path, "gone", pa.array([3]), [3])
    came = part_of(tmp_path, "came", pa.array([4]), [4])
    first, second = manifest_of([stays, gone]), manifest_of([stays, came])
    changes, rows = report(tmp_path, None, first)
    assert (changes.since, changes.count("added"), [row[0] for row in rows["added"]]) == (None, 3, [1, 2, 3])
    changes, rows = report(tmp_path, first, second)
    assert changes.views[VIEW] == {"added": 1, "updated": 0, "deleted": 1, "unchanged": 2}
    assert ([row[0] for row in rows["added"]], [row[0] for row in rows["deleted"]]) == ([4], [3])
    unchanged = tmp_path / changes.folder / "change=unchanged"
    assert json.loads((unchanged / "_parts.json").read_text()) == {VIEW: [stays.path]}
    assert not list(unchanged.rglob("*.parquet"))


def test_every_id_is_reported_once_wherever_it_stands(tmp_path: Path) -> None:
    """Ids of parts that stay are those of the parts; all others are in the files."""
    stays = part_of(tmp_path, "stays", pa.array([1, 2]), [1, 2])
    old = part_of(tmp_path, "old", pa.array([3, 4, 5]), [3, 4, 5])
    new = part_of(tmp_path, "new", pa.array([6, 5, 4]), [6, 5, 9])
    changes, _ = report(tmp_path, manifest_of([stays, old]), manifest_of([stays, new]))
    folder = tmp_path / changes.folder
    found = {
        kind: sorted(row["id"] for row in ds.dataset(folder / f"change={kind}").to_table().to_pylist())
        for kind in KINDS
    }
    (parts,) = json.loads((folder / "change=unchanged/_parts.json").read_text()).values()
    found["unchanged"] += [one for path in parts for one in pq.read_table(tmp_path / path)["id"].to_pylist()]
    assert found == {"added": [6], "updated": [4], "deleted": [3], "unchanged": [5, 1, 2]}
    assert changes.views[VIEW] == {kind: len(ids) for kind, ids in found.items()}
    assert {kind_of(f"{changes.folder}/{path}") for path in snapshot_of(folder)} == {"changes"}


def snapshot_of(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def test_where_nothing_changed_every_id_is_unchanged(tmp_path: Path) -> None:
    manifest = manifest_of([part_of(tmp_path, "a", pa.array([1, 2]), [1, 2])])
    changes = nothing_changed(manifest)
    assert changes.views == {VIEW: {"added": 0, "updated": 0, "deleted": 0, "unchanged": 2}}
    assert changes.since == changes.manifest == manifest.digest


def test_another_space_updates_every_id(tmp_path: Path) -> None:
    old = part_of(tmp_path, "old", pa.array([1, 2]), [1, 2])
    new = part_of(tmp_path, "new", pa.array([2, 3]), [2, 3])
    changes, _ = report(tmp_path, manifest_of([old]), manifest_of([new], space_id="6"))
    assert changes.views[VIEW] == {"added": 1, "deleted": 1, "updated": 1, "unchanged": 0}


def test_ids_of_another_type_are_other_ids(tmp_path: Path) -> None:
    old = part_of(tmp_path, "old", pa.array([1, 2]), [1, 2])
    new = part_of(tmp_path, "new", pa.array(["1", "2"]), [1, 2])
    changes, rows = report(tmp_path, manifest_of([old]), manifest_of([new], kind="string"))
    assert (changes.count("added"), changes.count("deleted")) == (2, 2)
    assert ([row[0] for row in rows["added"]], [row[0] for row in rows["deleted"]]) == (["1", "2"], [1, 2])


def test_the_rows_of_one_id_are_one_text_in_any_order(tmp_path: Path) -> None:
    old = part_of(tmp_path, "old", pa.array([1, 1, 2, 2]), [1, 2, 3, 4])
    new = part_of(tmp_path, "new", pa.array([1, 1, 2, 2]), [2, 1, 3, 3])
    changes, rows = report(tmp_path, manifest_of([old]), manifest_of([new]))
    assert changes.views[VIEW] == {"added": 0, "deleted": 0, "updated": 1, "unchanged": 1}
    assert [row[0] for row in rows["updated"]] == [2]


def test_a_lost_part_is_named_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    old, new = (part_of(tmp_path, name, pa.array([1]), [1]) for name in ("old", "new"))
    (tmp_path / old.path).unlink()
    changes, _ = report(tmp_path, manifest_of([old]), manifest_of([new]))
    assert (changes.lost, changes.count("added")) == ((old.path,), 1)
    again = part_of(tmp_path, "again", pa.array([1]), [1])
    (tmp_path / new.path).write_bytes(b"x" * new.num_bytes)
    with pytest.raises(OutputError, match="cannot be read"):
        report(tmp_path, manifest_of([new]), manifest_of([again]))


def test_a_report_is_written_once_and_those_of_commits_that_never_were_go(tmp_path: Path) -> None:
    parts = [part_of(tmp_path, name, pa.array([number]), [1]) for number, name in enumerate("abc")]
    first, second, third = (manifest_of([part]) for part in parts)
    store = open_store(Location(str(tmp_path)))
    never_was, _ = report(tmp_path, first, second)
    kept, _ = report(tmp_path, second, third)
    changes, _ = report(tmp_path, first, third)
    (tmp_path / parts[0].path).unlink()
    assert report(tmp_path, first, third)[0] == changes  # or it would name a lost part
    store.swap(MANIFEST, content_of(third), None)
    clean(tmp_path, third, orphan_grace_hours=24)
    assert not store.exists(f"{never_was.folder}/_report.json")
    assert store.exists(f"{changes.folder}/_report.json")
    assert store.exists(f"{kept.folder}/_report.json")
