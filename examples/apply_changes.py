"""Keep a table in DuckDB equal to a dataset: the first time all of it is loaded, then what each commit changed.

    python examples/apply_changes.py demo/embeddings vectors.duckdb

What changed stands in the dataset's `_changes/`, from one manifest to the next; the table remembers the manifest that
it is at. Rows of all ids that changed since are removed, and those that the dataset has now are put in their place,
so nothing breaks if this is stopped and started again. Any store that deletes and inserts by id is kept like this.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import duckdb

from jobs.changes import Changes
from jobs.records import CHANGES, Manifest, read_manifest
from jobs.storage import Location, open_store


def main() -> None:
    """Bring the table up to date."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", type=Path, help="a folder that jobs.embed wrote")
    parser.add_argument("database", type=Path, help="a file of DuckDB's; made where there is none")
    args = parser.parse_args()
    print(json.dumps(apply_changes(args.dataset, args.database)))


def apply_changes(dataset: Path, database: Path) -> dict[str, int]:
    """Make the table `vectors` equal to a dataset of one view; returns how many rows went and came."""
    manifest = read_manifest(open_store(Location(str(dataset))))
    if manifest is None:
        raise SystemExit(f"{dataset} holds no manifest: nothing was published there")
    parts = [str(dataset / part.path) for receipt in manifest.receipts for part in receipt.parts.values()]
    with duckdb.connect(str(database)) as store:
        store.begin()
        store.execute("create table if not exists position (manifest varchar)")
        at = store.execute("select manifest from position").fetchone()
        reports = _reports(dataset, at[0] if at else None, manifest.digest)
        if reports is None:
            counts = _load(store, manifest, parts)
        else:
            counts = _replace(store, manifest, parts, [str(file) for report in reports for file in report])
        store.execute("delete from position")
        store.execute("insert into position values (?)", [manifest.digest])
        store.commit()
    return counts


def _reports(dataset: Path, since: str | None, until: str) -> list[list[Path]] | None:
    """The files of each commit from one manifest to another; None where that way is not known to the end."""
    reports: list[list[Path]] = []
    while since != until:
        found = list(dataset.glob(f"{CHANGES}/*/since={since}/_report.json")) if since else []
        if len(found) != 1 or len(reports) > 1000:
            return None
        changes = Changes.model_validate_json(found[0].read_text())
        if changes.lost:
            return None
        reports.append(sorted(found[0].parent.rglob("*.parquet")))
        since = changes.manifest
    return reports


def _columns(manifest: Manifest) -> str:
    (view,) = manifest.views.values()
    key = manifest.reading.id_column
    return f'"{key}" as id, embedding::float[{view.dim}] as embedding, text_hash'


def _load(store: duckdb.DuckDBPyConnection, manifest: Manifest, parts: list[str]) -> dict[str, int]:
    store.execute(
        f"create or replace table vectors as select {_columns(manifest)} from read_parquet(?, hive_partitioning=false)",
        [parts],
    )
    (count,) = store.execute("select count(*) from vectors").fetchone() or (0,)
    return {"deleted": 0, "inserted": count}


def _replace(
    store: duckdb.DuckDBPyConnection, manifest: Manifest, parts: list[str], files: list[str]
) -> dict[str, int]:
    if not files:
        return {"deleted": 0, "inserted": 0}
    key = manifest.reading.id_column
    store.execute(
        f'create temp table changed as select distinct "{key}" as id from read_parquet(?, hive_partitioning=false)',
        [files],
    )
    deleted = store.execute("delete from vectors where id in (from changed)").fetchone()
    inserted = store.execute(
        f"insert into vectors select {_columns(manifest)} from read_parquet(?, hive_partitioning=false) "
        f'where "{key}" in (from changed)',
        [parts],
    ).fetchone()
    return {"deleted": deleted[0] if deleted else 0, "inserted": inserted[0] if inserted else 0}


if __name__ == "__main__":
    main()
