"""Names that people and writers give to folders, shards and rows stay names: nothing leaves the output by them."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs.corpus import partition_values
from jobs.files import kind_of
from jobs.rows import Reading, read_rows
from jobs.store import checked
from tests.jobs.builders import COLUMNS, DOCUMENT, QUERY, corpus_of, layout_of, plan_of, store_of, write_shard

VALUES: dict[str, str | None] = {
    "plain": "en",
    "null": None,
    "slash": "a/b",
    "up": "..",
    "up and away": "../../../../etc/passwd",
    "absolute": "/etc/passwd",
    "dot": ".",
    "hidden": ".git",
    "encoded slash": "a%2Fb",
    "encoded up": "%2E%2E%2F",
    "percent": "100%",
    "equals": "a=b=c",
    "unicode": "größe 日本 🦆",
    "right to left": "\u202egpj",
    "quotes": "x'\"$(touch y)`;&|",
    "line": "a\nb\tc",
    "backslash": "..\\..\\x",
    "star": "*?[a]",
    "long": "x" * 240,
}


def mirrored(corpus: Path, out: Path) -> None:
    """A part and a rejects file of ids for each fragment, where the writer puts them."""
    store = store_of(corpus)
    reading = Reading(COLUMNS, " ", layout_of(corpus).carried)
    for work in plan_of(corpus).work:
        rows = read_rows(store, work.fragment, reading)
        sink = io.BytesIO()
        pq.write_table(rows.carried, sink)
        for path in work.parts.values():
            assert kind_of(path) == "part"
            assert store_of(out).create(path, sink.getvalue())


def read(folder: Path) -> dict[int, str | None]:
    """Partition value by id, as pyarrow finds it."""
    hive = ds.partitioning(pa.schema([("key", pa.string())]), flavor="hive")
    table = ds.dataset(folder, partitioning=hive).to_table()
    return dict(zip(table["id"].to_pylist(), table["key"].to_pylist(), strict=True))


def test_partition_values_come_back_as_they_were_and_nothing_lies_outside_of_the_output(
    tmp_path: Path,
) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "deep" / "er" / "out"
    values = list(VALUES.values())
    table = pa.table({"id": range(len(values)), "text": ["t"] * len(values), "key": pa.array(values)})
    hive = ds.partitioning(pa.schema([("key", pa.string())]), flavor="hive")
    ds.write_dataset(table, corpus, format="parquet", partitioning=hive)
    assert read(corpus) == dict(enumerate(values))
    mirrored(corpus, out)
    for view in (QUERY, DOCUMENT):
        folder = out / f"task={view.view.task}" / f"role={view.view.role}"
        assert read(folder) == dict(enumerate(values))
    assert {partition_values(shard)["key"] for shard in corpus_of(corpus).shards} == set(values)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "deep"]
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["out"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3 * len(values)


SHARDS = [
    "a..b.parquet",
    "a%2Fb.parquet",
    "%2E%2E%2Fb.parquet",
    "größe 日本.parquet",
    "a=b.parquet",
    "a..=x/a.parquet",
    "y=../a.parquet",
    "x'\"$(touch y)`.parquet",
    "line\nbreak.parquet",
    f"{'x' * 240}.parquet",
]


@pytest.mark.parametrize("name", SHARDS)
def test_names_of_shards_stay_out_of_the_names_of_parts_but_for_their_partitions(
    tmp_path: Path, name: str
) -> None:
    write_shard(tmp_path / "corpus", name, {"id": [1, 2], "text": ["t", None]})
    mirrored(tmp_path / "corpus", tmp_path / "out")
    found = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(found) == 2
    stem = Path(name).stem
    for path in found:
        assert path.resolve().is_relative_to((tmp_path / "out").resolve())
        assert stem == "a" or stem not in path.name
        assert path.relative_to(tmp_path / "out").parts[2:-1] == Path(name).parts[:-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "out"]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a/..", "..", "", "a/", "./a"])
def test_no_store_writes_to_a_path_that_leaves_it(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="no path below a root"):
        checked(path)
    with pytest.raises(ValueError, match="no path below a root"):
        store_of(tmp_path / "out").create(path, b"")
    assert list(tmp_path.iterdir()) == []
