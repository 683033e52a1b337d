"""Keep a table of LanceDB equal to a dataset: the first time all of it is loaded, then what each commit changed.

    python examples/apply_changes.py demo/embeddings vectors.lancedb

What changed stands in the dataset's `_changes/`, from one manifest to the next; a second table remembers the manifest
that the first is at, and is written last. Rows of all ids that changed since are removed, and those that the dataset
has now are put in their place, so nothing breaks if this is stopped and started again. Any store that deletes and
inserts by id is kept like this. Parts that no commit on the way has touched are not read.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from jobs.changes import Changes
from jobs.compare import UNCHANGED
from jobs.record_files import read_manifest
from jobs.records import CHANGES, Manifest
from jobs.storage import Location, open_store

_IDS_PER_DELETE = 10_000


def main() -> None:
    """Bring the table up to date."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", type=Path, help="a folder that jobs.embed wrote")
    parser.add_argument("database", type=Path, help="a folder of LanceDB's; made where there is none")
    args = parser.parse_args()
    print(json.dumps(apply_changes(args.dataset, args.database)))


def apply_changes(dataset: Path, database: Path) -> dict[str, int]:
    """Make the table `vectors` equal to a dataset of one view; returns how many rows went and came."""
    manifest = read_manifest(open_store(Location(str(dataset))))
    if manifest is None:
        raise SystemExit(f"{dataset} holds no manifest: nothing was published there")
    store = lancedb.connect(str(database))
    at = _position(store)
    reports = _reports(dataset, at, manifest.digest)
    counts = (
        _load(store, dataset, manifest) if reports is None else _replace(store, dataset, manifest, reports)
    )
    if at != manifest.digest:
        store.create_table("position", pa.table({"manifest": [manifest.digest]}), mode="overwrite")
    return counts


def _position(store: Any) -> str | None:
    """Digest of the manifest that the table is at."""
    if not {"position", "vectors"} <= set(store.list_tables().tables):
        return None
    (digest,) = store.open_table("position").to_arrow()["manifest"].to_pylist()
    return str(digest)


def _reports(dataset: Path, since: str | None, until: str) -> list[Path] | None:
    """The report of each commit from one manifest to another; None where that way is not known to the end."""
    reports: list[Path] = []
    while since != until:
        found = list(dataset.glob(f"{CHANGES}/*/since={since}/_report.json")) if since else []
        if len(found) != 1 or len(reports) > 1000:
            return None
        changes = Changes.model_validate_json(found[0].read_text())
        if changes.lost:
            return None
        reports.append(found[0].parent)
        since = changes.manifest
    return reports


def _load(store: Any, dataset: Path, manifest: Manifest) -> dict[str, int]:
    rows = _rows(dataset, manifest, _parts(manifest))
    table = store.create_table("vectors", rows, mode="overwrite")
    return {"deleted": 0, "inserted": table.count_rows()}


def _replace(store: Any, dataset: Path, manifest: Manifest, reports: list[Path]) -> dict[str, int]:
    files = [
        file
        for report in reports
        for folder in report.glob("change=*")
        if folder.name != f"change={UNCHANGED}"
        for file in folder.rglob("*.parquet")
    ]
    if not files:
        return {"deleted": 0, "inserted": 0}
    changed = ds.dataset(files).to_table(columns=[manifest.reading.id_column]).column(0).unique()
    table = store.open_table("vectors")
    before = table.count_rows()
    for start in range(0, len(changed), _IDS_PER_DELETE):
        ids = changed.slice(start, _IDS_PER_DELETE).to_pylist()
        table.delete(f"id in ({', '.join(map(_literal, ids))})")
    kept = table.count_rows()
    parts = _parts(manifest)
    if manifest.repeated_ids is not None:  # else a row of one of these ids may stand anywhere
        untouched = set.intersection(*map(_untouched, reports))
        parts = [path for path in parts if path not in untouched]
    if parts:
        table.add(_rows(dataset, manifest, parts, changed))
    return {"deleted": before - kept, "inserted": table.count_rows() - kept}


def _parts(manifest: Manifest) -> list[str]:
    if len(manifest.views) != 1:
        raise SystemExit(f"the dataset has the views {', '.join(manifest.views)}; this keeps a table of one")
    return [part.path for receipt in manifest.receipts for part in receipt.parts.values()]


def _untouched(report: Path) -> set[str]:
    """The parts that a commit left as they were."""
    file = report / f"change={UNCHANGED}" / "_parts.json"
    return (
        {path for paths in json.loads(file.read_text()).values() for path in paths}
        if file.exists()
        else set()
    )


def _rows(
    dataset: Path, manifest: Manifest, parts: list[str], ids: pa.Array | None = None
) -> pa.RecordBatchReader:
    """What the table holds of these parts: id, embedding, text_hash; of some ids, or of all."""
    source = ds.dataset([dataset / path for path in parts])
    key = pc.field(manifest.reading.id_column)
    columns = {"id": key, "embedding": pc.field("embedding"), "text_hash": pc.field("text_hash")}
    scanner = source.scanner(columns=columns, filter=None if ids is None else key.isin(ids))
    return scanner.to_reader()


def _literal(one: object) -> str:
    """An id as SQL writes it."""
    if isinstance(one, int):
        return str(one)
    if isinstance(one, str):
        return "'" + one.replace("'", "''") + "'"
    raise SystemExit(f"an id is {type(one).__name__}; this keeps tables of integers and texts")


if __name__ == "__main__":
    main()
