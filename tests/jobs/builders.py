"""Shards on disk and what a run makes of them before any model is loaded; shared by the tests of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from encoders.protocol import Protocol
from encoders.space import Space
from encoders.tasks import Role, View
from encoders.tokenized import TokenizedTexts
from jobs.commit import build_manifest, publish
from jobs.corpus import Corpus, list_corpus
from jobs.footers import Columns, read_footers
from jobs.fragments import Fragment
from jobs.holdings import Holdings, take_stock
from jobs.plan import Layout, Plan, lay_out, make_plan, unknown_shards
from jobs.record_files import find_manifest
from jobs.records import RECEIPTS, LongTextRecord, Manifest, PartRecord, Receipt, RunRecord, ViewRecord
from jobs.rows import Reading
from jobs.run_spec import RunSpec, ViewSpec, Work
from jobs.storage import Location, Store, open_store
from jobs.sweep import sweep

COLUMNS = Columns("id", ("text",), ())
QUERY = ViewSpec(View("retrieval", Role.QUERY), "query: ", Space("5" * 32, "m@1/retrieval/4/float32"), {})
DOCUMENT = ViewSpec(View("retrieval", Role.DOCUMENT), "", QUERY.space, {})


def write_shard(folder: Path, name: str, table: pa.Table | dict[str, Any], **options: Any) -> Path:
    """A Parquet file below a folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **options)
    return path


def corpus_of(folder: Path) -> Corpus:
    """The shards of a folder."""
    return list_corpus(Location(str(folder)))


def layout_of(
    folder: Path, columns: Columns = COLUMNS, fragment_rows: int = 10, manifest: Manifest | None = None
) -> Layout:
    """How a run cuts a folder."""
    corpus = corpus_of(folder)
    unknown = unknown_shards(corpus, manifest, columns, fragment_rows)
    footers = read_footers(corpus.location, unknown, columns)
    return lay_out(corpus, manifest, footers, columns, fragment_rows)


def plan_of(
    folder: Path,
    views: tuple[ViewSpec, ...] = (QUERY, DOCUMENT),
    holdings: Holdings | None = None,
    columns: Columns = COLUMNS,
    fragment_rows: int = 10,
    *,
    retry_rejects: bool = False,
) -> Plan:
    """What a run has to do, with a joiner of one space."""
    manifest = holdings.manifest if holdings else None
    layout = layout_of(folder, columns, fragment_rows, manifest)
    reading = Reading(columns, " ", layout.carried)
    stock = holdings or Holdings(None, (), {})
    return make_plan(corpus_of(folder), layout, reading, views, stock, retry_rejects=retry_rejects)


def only_fragment(
    folder: Path, columns: Columns = COLUMNS, joiner: str = " ", long_text: LongTextRecord | None = None
) -> tuple[Store, Fragment, Reading]:
    """The store, the one fragment and the reading of a folder that holds one small shard."""
    layout = layout_of(folder, columns, fragment_rows=10**6)
    reading = Reading(columns, joiner, layout.carried, long_text)
    (shard,) = corpus_of(folder).shards
    ((cut,),) = layout.cuts.values()
    return open_store(Location(str(folder))), cut.of(shard, reading.record().digest), reading


def run_spec(
    corpus: Path,
    out: Path,
    reading: Reading,
    protocol: Protocol,
    views: tuple[ViewSpec, ...],
    **changes: Any,
) -> RunSpec:
    """What the workers of a run are told; `changes` are fields that are to differ."""
    run = RunSpec(
        corpus=Location(str(corpus)),
        reading=reading,
        skip_bad_shards=False,
        protocol=protocol,
        views=views,
        device="cpu",
        num_threads=2,
        dtype="float32",
        precision="float32",
        preflight=True,
        max_batch_tokens="auto",
        output=Location(str(out)),
        compression_level=3,
        row_group_rows=100,
    )
    return replace(run, **changes)


def stock_of(folder: Path) -> Holdings:
    """What an output holds."""
    return take_stock(open_store(Location(str(folder))))


def texts_of(token_ids: Sequence[Sequence[int]]) -> TokenizedTexts:
    """Ragged token ids; every text a prompt token longer than the one before, every second one truncated."""
    return TokenizedTexts(
        token_ids=np.array([token for text in token_ids for token in text], np.int32),
        offsets=np.cumsum([0, *map(len, token_ids)], dtype=np.int64),
        prompt_lengths=np.arange(len(token_ids), dtype=np.int32),
        truncated=np.arange(len(token_ids)) % 2 == 1,
    )


def store_of(out: Path) -> Store:
    """The store of an output."""
    return open_store(Location(str(out)))


def view_record(spec: ViewSpec, **changes: Any) -> ViewRecord:
    """What a manifest says of a view."""
    record = ViewRecord(
        task=spec.view.task,
        role=spec.view.role,
        space_id=spec.space.id,
        space_name=spec.space.name,
        model="m",
        revision="1",
        adapter=None,
        prompt=spec.prompt,
        dim=4,
        precision="float32",
        normalized=True,
    )
    return record.model_copy(update=changes)


def finish(out: Path, work: Work, rejected: int = 0, reason: str = "null_text") -> Receipt:
    """Stand in for the stages: files of the right names with something in them, and the receipt."""
    store = store_of(out)
    parts = {}
    for view, path in work.parts.items():
        store.create(path, b"vectors")
        parts[view] = PartRecord(
            path=path,
            num_bytes=7,
            sha256="",
            num_rows=work.fragment.num_rows - rejected,
            num_tokens=1,
            num_truncated=0,
        )
    receipt = Receipt(
        fragment=work.fragment.id,
        shard=work.fragment.shard.path,
        num_rows=work.fragment.num_rows,
        rejected={reason: rejected} if rejected else {},
        rejects=None,
        parts=parts,
        take=work.fragment.take,
    )
    store.create(f"{RECEIPTS}/{work.id}.json", receipt.model_dump_json().encode())
    return receipt


def clean(out: Path, live: Manifest, version: str | None = None, **retention: Any) -> None:
    """Sweep; keep nothing that is not live, unless told."""
    store = store_of(out)
    version = version or find_manifest(store)[1]
    assert version is not None
    known = {"keep_manifests": 1, "orphan_grace_hours": 0, "confirm": lambda: None}
    sweep(store, live, version, **{**known, **retention})


def commit(
    out: Path, plan: Plan, receipts: list[Receipt], corpus: Path, columns: Columns = COLUMNS, **retention: Any
) -> Manifest:
    """Publish and sweep; keep nothing that is not live, unless told."""
    store = store_of(out)
    held, version = find_manifest(store)
    manifest = build_manifest(
        plan,
        receipts,
        corpus=str(corpus),
        reading=Reading(columns, " ", layout_of(corpus, columns).carried).record(),
        fragment_rows=10,
        views={str(spec.view): view_record(spec) for spec in (QUERY, DOCUMENT)},
        ranges={},
        held=held,
    )
    run = RunRecord(configuration={"of": manifest.digest}, python="", packages={})
    manifest = manifest.model_copy(update={"run": run})
    published = publish(store, manifest, replacing=version)
    clean(out, manifest, published, **retention)
    return manifest


def embed(corpus: Path, out: Path, **retention: Any) -> Plan:
    """A whole run, without a model."""
    plan = plan_of(corpus, holdings=stock_of(out))
    commit(out, plan, [*plan.existing, *(finish(out, work) for work in plan.work)], corpus, **retention)
    return plan
