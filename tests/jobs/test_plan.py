"""The plan is what the output should hold, less what it holds; unchanged shards are not opened."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.commit import publish
from jobs.errors import AccountingError, CorpusError, OutputBusyError, OutputError, StorageError
from jobs.footers import Columns
from jobs.holdings import Holdings, refuse_other_dataset, take_stock
from jobs.plan import Plan, unknown_shards
from jobs.record_files import find_manifest, read_manifest
from jobs.records import MANIFEST, RECEIPTS, FileRecord, Manifest, PartRecord, Receipt, ViewRecord
from tests.jobs.builders import (
    COLUMNS,
    DOCUMENT,
    QUERY,
    commit,
    corpus_of,
    embed,
    finish,
    layout_of,
    plan_of,
    stock_of,
    store_of,
    view_record,
    write_shard,
)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    for name in ("a", "b"):
        write_shard(folder, f"{name}.parquet", {"id": range(20), "text": ["t"] * 20}, row_group_size=10)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def missing(plan: Plan) -> list[tuple[str, int, list[str]]]:
    return [(work.fragment.shard.path, work.fragment.first_row, list(work.parts)) for work in plan.work]


BOTH = ["retrieval/query", "retrieval/document"]


def test_an_empty_output_lacks_every_view_of_every_fragment(corpus: Path) -> None:
    plan = plan_of(corpus)
    assert missing(plan) == [
        ("a.parquet", 0, BOTH),
        ("a.parquet", 10, BOTH),
        ("b.parquet", 0, BOTH),
        ("b.parquet", 10, BOTH),
    ]
    assert (plan.num_parts, plan.num_rows, plan.existing) == (8, 40, ())
    assert len({path for work in plan.work for path in work.parts.values()}) == 8


def test_the_plan_is_the_same_every_time(corpus: Path) -> None:
    assert plan_of(corpus) == plan_of(corpus)


def test_after_the_commit_nothing_is_missing_and_no_receipt_is_left(corpus: Path, out: Path) -> None:
    embed(corpus, out)
    again = plan_of(corpus, holdings=stock_of(out))
    assert again.work == ()
    assert len(again.existing) == 4
    assert list(store_of(out).list(RECEIPTS)) == []


def test_what_an_interrupted_run_finished_is_not_done_again(corpus: Path, out: Path) -> None:
    first = plan_of(corpus)
    finish(out, first.work[2])
    plan = plan_of(corpus, holdings=stock_of(out))
    assert missing(plan) == missing(first)[:2] + missing(first)[3:]
    assert [receipt.fragment for receipt in plan.existing] == [first.work[2].fragment.id]


def test_a_part_without_a_receipt_is_not_there(corpus: Path, out: Path) -> None:
    store_of(out).create(plan_of(corpus).work[0].parts[BOTH[0]], b"half a fragment")
    assert len(plan_of(corpus, holdings=stock_of(out)).work) == 4


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"short")])
def test_a_part_that_is_gone_or_of_another_size_is_made_again(corpus: Path, out: Path, damage: Any) -> None:
    first = embed(corpus, out)
    damage(out / first.work[1].parts[BOTH[1]])
    assert missing(plan_of(corpus, holdings=stock_of(out))) == [("a.parquet", 10, BOTH)]


def test_another_view_asks_for_its_own_parts_only(corpus: Path, out: Path) -> None:
    plan = plan_of(corpus, (DOCUMENT,))
    receipts = [finish(out, work) for work in plan.work]
    more = plan_of(corpus, holdings=stock_of(out))
    assert missing(more) == [(shard, row, BOTH[:1]) for shard, row, _ in missing(plan)]
    assert sorted(receipt.fragment for receipt in more.existing) == sorted(item.fragment for item in receipts)


def test_a_receipt_of_more_views_vouches_for_the_wanted_ones(corpus: Path, out: Path) -> None:
    for work in plan_of(corpus).work:
        finish(out, work)
    fewer = plan_of(corpus, (QUERY,), stock_of(out))
    assert fewer.work == ()
    assert {view for receipt in fewer.existing for view in receipt.parts} == {"retrieval/query"}


def test_a_changed_shard_is_done_again_and_its_old_parts_go(corpus: Path, out: Path) -> None:
    embed(corpus, out)
    before = set(out.rglob("part-*"))
    write_shard(corpus, "b.parquet", {"id": range(8), "text": ["u"] * 8})
    plan = embed(corpus, out)
    assert missing(plan) == [("b.parquet", 0, BOTH)]
    after = set(out.rglob("part-*"))
    assert (len(before & after), len(after)) == (4, 6)


def test_the_parts_of_a_shard_that_is_gone_go(corpus: Path, out: Path) -> None:
    embed(corpus, out)
    (corpus / "a.parquet").unlink()
    assert embed(corpus, out).work == ()
    assert len(list(out.rglob("part-*"))) == 4


def test_shards_that_a_dataset_knows_are_not_opened(corpus: Path, out: Path) -> None:
    embed(corpus, out)
    manifest = stock_of(out).manifest
    assert unknown_shards(corpus_of(corpus), manifest, COLUMNS, 10) == []
    assert len(unknown_shards(corpus_of(corpus), manifest, COLUMNS, 20)) == 2
    assert len(unknown_shards(corpus_of(corpus), manifest, Columns("id", ("text",), ("text",)), 10)) == 2
    write_shard(corpus, "b.parquet", {"id": [1], "text": ["t"]})
    assert [shard.path for shard in unknown_shards(corpus_of(corpus), manifest, COLUMNS, 10)] == ["b.parquet"]


def test_a_new_shard_of_another_type_than_the_known_ones_is_refused(corpus: Path, out: Path) -> None:
    embed(corpus, out)
    write_shard(corpus, "c.parquet", {"id": ["1"], "text": ["t"]})
    with pytest.raises(CorpusError, match="type drift in column 'id'"):
        plan_of(corpus, holdings=stock_of(out))


def test_a_kept_column_that_is_null_in_one_shard_takes_its_type_from_another(tmp_path: Path) -> None:
    write_shard(tmp_path, "a.parquet", {"id": [1], "text": ["t"], "year": pa.nulls(1)})
    write_shard(tmp_path, "b.parquet", {"id": [1], "text": ["t"], "year": pa.array([2024], pa.int16())})
    carried = layout_of(tmp_path, Columns("id", ("text",), ("year",))).carried
    assert carried == pa.schema([("id", pa.int64()), ("year", pa.int16())])


def test_shards_without_rows_have_no_fragments_but_are_shards(tmp_path: Path) -> None:
    write_shard(tmp_path, "a.parquet", {"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())})
    write_shard(tmp_path, "b.parquet", {"id": [1], "text": ["t"]})
    plan = plan_of(tmp_path)
    assert [(shard.path, len(shard.cuts)) for shard in plan.shards] == [("a.parquet", 0), ("b.parquet", 1)]


def test_bad_shards_stand_apart_with_their_reason(tmp_path: Path) -> None:
    write_shard(tmp_path, "a.parquet", {"id": [1], "text": ["t"]})
    (tmp_path / "b.parquet").write_bytes(b"")
    plan = plan_of(tmp_path)
    assert [shard.path for shard in plan.shards] == ["a.parquet"]
    assert [(shard.path, "empty" in shard.reason) for shard in plan.bad_shards] == [("b.parquet", True)]


def test_nothing_is_published_unless_receipts_cover_the_plan(corpus: Path, out: Path) -> None:
    plan = plan_of(corpus)
    receipts = [finish(out, work) for work in plan.work]
    with pytest.raises(AccountingError, match="6 of 8 parts are vouched for"):
        commit(out, plan, receipts[1:], corpus)
    assert not (out / MANIFEST).exists()


@pytest.mark.parametrize(
    "change",
    [{"num_rows": 11}, {"num_rows": 9}, {"rejected": {"null_text": 1}}, {"fragment": "another"}],
    ids=str,
)
def test_nothing_is_published_unless_rows_balance(corpus: Path, out: Path, change: dict[str, Any]) -> None:
    plan = plan_of(corpus)
    first, *others = [finish(out, work) for work in plan.work]
    with pytest.raises(AccountingError, match=r"shard a\.parquet: .* nothing is published"):
        commit(out, plan, [first.model_copy(update=change), *others], corpus)
    assert not (out / MANIFEST).exists()


def test_nothing_is_published_if_a_file_has_gone_in_the_meantime(corpus: Path, out: Path) -> None:
    plan = plan_of(corpus)
    receipts = [finish(out, work) for work in plan.work]
    (out / plan.work[0].parts[BOTH[0]]).unlink()
    with pytest.raises(AccountingError, match="should have 7 bytes, not None"):
        commit(out, plan, receipts, corpus)
    assert not (out / MANIFEST).exists()


def test_the_manifest_does_not_depend_on_the_order_in_which_fragments_finished(
    corpus: Path, out: Path
) -> None:
    plan = plan_of(corpus)
    receipts = [finish(out, work) for work in plan.work]
    one, other = (commit(out, plan, order, corpus) for order in (receipts, receipts[::-1]))
    assert one.digest == other.digest
    assert one.equals(other)


def test_a_manifest_that_was_read_back_equals_the_one_that_was_written_at_another_time(
    corpus: Path, out: Path
) -> None:
    plan = plan_of(corpus)
    written = commit(out, plan, [finish(out, work, rejected=1) for work in plan.work], corpus)
    held = read_manifest(store_of(out))
    assert held is not None
    assert written.model_copy(update={"committed_at": "2001-01-01T00:00:00+00:00"}).equals(held)


@pytest.mark.parametrize("field", sorted(Manifest.model_fields.keys() - {"committed_at", "run", "checksum"}))
def test_manifests_that_differ_in_anything_but_who_committed_them_and_when_are_not_equal(
    corpus: Path, out: Path, field: str
) -> None:
    plan = plan_of(corpus)
    manifest = commit(out, plan, [finish(out, work) for work in plan.work], corpus)
    other = manifest.model_copy(update={field: "another"})
    assert not manifest.equals(other)
    assert not other.equals(manifest)


def test_a_manifest_whose_run_did_not_say_how_its_encoders_computed_is_read(corpus: Path, out: Path) -> None:
    embed(corpus, out)
    held = read_manifest(store_of(out))
    assert held is not None
    record = held.model_dump(mode="json", exclude={"checksum"})
    assert record["run"].pop("encoders") == []
    read = Manifest.model_validate(record)
    assert read.equals(held)
    assert read.digest == held.digest


def test_a_row_that_two_views_lack_counts_as_one_reject(corpus: Path, out: Path) -> None:
    documents = [finish(out, work, rejected=1) for work in plan_of(corpus, (DOCUMENT,)).work]
    plan = plan_of(corpus, holdings=stock_of(out))
    queries = [finish(out, work, rejected=1) for work in plan.work]
    manifest = commit(out, plan, [*documents, *queries], corpus)
    assert manifest.rejected() == {"null_text": 4}


def test_a_sweep_leaves_files_that_are_no_parts(corpus: Path, out: Path) -> None:
    kept = ["README.md", "sub/notes.txt", "_other/x.parquet"]
    for path in kept:
        store_of(out).create(path, b"mine")
    embed(corpus, out)
    assert all((out / path).read_bytes() == b"mine" for path in kept)


def test_the_manifest_reads_back_as_it_was_written(corpus: Path, out: Path) -> None:
    embed(corpus, out)
    manifest = read_manifest(store_of(out))
    assert manifest is not None
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert sum(len(receipt.parts) for receipt in manifest.receipts) == 8


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"layout": 99, "corpus": 3}', b"\xff"])
def test_a_manifest_that_is_none_of_ours_is_refused_and_not_replaced(out: Path, content: bytes) -> None:
    store_of(out).create(MANIFEST, content)
    with pytest.raises(OutputError, match=r"_manifest\.json is no manifest .* another output"):
        stock_of(out)


def test_a_receipt_that_is_none_of_ours_is_refused(out: Path) -> None:
    store_of(out).create(f"{RECEIPTS}/{'0' * 32}.json", b"{}")
    with pytest.raises(OutputError, match=r"_receipts/0+\.json is no receipt"):
        stock_of(out)


def test_a_receipt_that_goes_while_stock_is_taken_is_not_minded(
    corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipts = [finish(out, work) for work in plan_of(corpus).work]
    store, listed = store_of(out), list(store_of(out).list(temporary=True))
    gone = f"{RECEIPTS}/{receipts[0].id}.json"
    store.delete([gone])
    monkeypatch.setattr(type(store), "list", lambda *_, **__: iter(listed))
    assert {receipt.id for receipt in take_stock(store).loose} == {receipt.id for receipt in receipts[1:]}


def test_a_receipt_whose_part_was_removed_or_made_anew_is_void(corpus: Path, out: Path) -> None:
    receipts = [finish(out, work) for work in plan_of(corpus).work]
    assert stock_of(out).void_records() == []
    one, other = receipts[0], receipts[1]
    (out / one.parts["retrieval/query"].path).unlink()
    (out / other.parts["retrieval/document"].path).write_bytes(b"other vectors")
    void = {f"{RECEIPTS}/{receipt.id}.json" for receipt in (one, other)}
    assert set(stock_of(out).void_records()) == void
    store_of(out).delete(void)
    assert stock_of(out).void_records() == []


def test_nothing_goes_live_after_the_output_was_lost(
    corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = held(corpus, out)
    live, store = (out / MANIFEST).read_bytes(), store_of(out)
    version = find_manifest(store)[1]
    manifest = manifest.model_copy(update={"committed_at": "2100-01-01T00:00:00.000000Z"})
    seen: list[str] = []

    def lost_files(*_: Any) -> list[Any]:
        seen.append("files")
        return []

    def confirm() -> None:
        seen.append("confirmed")
        raise OutputBusyError("another run has it")

    monkeypatch.setattr("jobs.commit.lost_files", lost_files)
    with pytest.raises(OutputBusyError, match="another run has it"):
        publish(store, manifest, replacing=version, confirm=confirm)
    assert seen == ["files", "confirmed"]  # what another run removed since the look may be what it looked for
    assert (out / MANIFEST).read_bytes() == live
    assert publish(store, manifest, replacing=version, confirm=lambda: seen.append("ours"))
    assert (out / MANIFEST).read_bytes() != live


def held(corpus: Path, out: Path) -> Manifest:
    embed(corpus, out)
    manifest = stock_of(out).manifest
    assert manifest is not None
    return manifest


def wanted(**changes: Any) -> dict[str, ViewRecord]:
    return {str(spec.view): view_record(spec, **changes) for spec in (QUERY, DOCUMENT)}


def test_the_same_dataset_and_one_of_more_views_are_not_refused(corpus: Path, out: Path) -> None:
    manifest = held(corpus, out)
    refuse_other_dataset(manifest, str(corpus), wanted())
    refuse_other_dataset(manifest, str(corpus), wanted() | {"clustering/document": view_record(QUERY)})


def test_another_space_is_refused_with_both_named(corpus: Path, out: Path) -> None:
    manifest = held(corpus, out)
    with pytest.raises(OutputError) as caught:
        refuse_other_dataset(manifest, str(corpus), wanted(space_id="6" * 32, space_name="other@2"))
    for told in (QUERY.space.name, "5" * 12, "other@2", "6" * 12, "overwrite", "another output"):
        assert told in str(caught.value)


def test_fewer_views_are_refused(corpus: Path, out: Path) -> None:
    manifest = held(corpus, out)
    with pytest.raises(OutputError, match=r"holds the view retrieval/document .* only retrieval/query"):
        refuse_other_dataset(manifest, str(corpus), {"retrieval/query": view_record(QUERY)})


def test_another_corpus_is_refused(corpus: Path, out: Path) -> None:
    manifest = held(corpus, out)
    with pytest.raises(OutputError, match=r"made from .*/corpus, and this run reads /elsewhere"):
        refuse_other_dataset(manifest, "/elsewhere", wanted())


def test_loose_receipts_of_another_configuration_are_ignored_and_swept(corpus: Path, out: Path) -> None:
    for work in plan_of(corpus, fragment_rows=20).work:
        finish(out, work)
    plan = plan_of(corpus, holdings=stock_of(out))
    assert (len(plan.work), plan.existing) == (4, ())
    embed(corpus, out)
    assert len(list(out.rglob("part-*"))) == 8


def test_a_receipt_counts_only_if_all_its_files_are_there() -> None:
    def part(path: str) -> PartRecord:
        return PartRecord(path=path, num_bytes=1, sha256="", num_rows=1, num_tokens=1, num_truncated=0)

    rejects = FileRecord(path="_rejects/r", num_bytes=1, sha256="")
    receipt = Receipt(
        fragment="f",
        shard="s",
        num_rows=2,
        rejected={"null_id": 1},
        rejects=rejects,
        parts={"v": part("task=p")},
    )
    assert Holdings(None, (receipt,), {"task=p": 1}).by_part() == {}
    assert Holdings(None, (receipt,), {"task=p": 1, "_rejects/r": 1}).by_part() == {"task=p": receipt}


@pytest.mark.parametrize("reason", ["out_of_memory", "killed_worker"])
def test_fragments_with_rejects_of_the_machine_are_made_again_where_that_is_asked_for(
    corpus: Path, out: Path, reason: str
) -> None:
    first, second, *others = plan_of(corpus).work
    for work in others:
        finish(out, work)
    rejecting = finish(out, first, 1, reason), finish(out, second, 1, "null_text")
    commit(out, plan_of(corpus, holdings=stock_of(out)), list(stock_of(out).receipts), corpus)
    assert plan_of(corpus, holdings=stock_of(out)).work == ()

    again = plan_of(corpus, holdings=stock_of(out), retry_rejects=True)
    (work,) = again.work
    assert (work.fragment.id, work.fragment.take, list(work.parts)) == (first.fragment.id, 1, BOTH)
    assert set(work.parts.values()).isdisjoint(part.path for part in rejecting[0].parts.values())
    assert work.id != first.id
    assert len(again.existing) == 3

    made = finish(out, work)
    for retry in (False, True):  # a run that goes on after this one, told so or not
        plan = plan_of(corpus, holdings=stock_of(out), retry_rejects=retry)
        assert plan.work == ()
        assert made in plan.existing
    commit(out, plan, list(plan.existing), corpus, keep_manifests=2)
    for retry in (False, True):
        assert plan_of(corpus, holdings=stock_of(out), retry_rejects=retry).work == ()
    commit(out, plan, list(plan.existing), corpus)  # what was there before the second take is forgotten
    assert plan_of(corpus, holdings=stock_of(out)).work == ()


def test_a_take_that_rejects_again_is_followed_by_another_one(corpus: Path, out: Path) -> None:
    for take in range(4):
        plan = plan_of(corpus, holdings=stock_of(out), retry_rejects=True)
        assert [work.fragment.take for work in plan.work] == ([0] * 4 if take == 0 else [take])
        made = [finish(out, work, int(number == 0), "killed_worker") for number, work in enumerate(plan.work)]
        commit(out, plan, [*plan.existing, *made], corpus)
        assert plan_of(corpus, holdings=stock_of(out)).work == ()


def test_who_wants_to_end_does_not_wait_for_a_store_that_hangs(
    corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for work in plan_of(corpus).work:
        finish(out, work)
    hangs, first = threading.Event(), threading.Lock()

    def read(*_: Any) -> bytes:
        if first.acquire(blocking=False):
            raise PermissionError(13, "no")
        hangs.wait(60)
        raise AssertionError

    store = store_of(out)
    monkeypatch.setattr(type(store), "_read", read)
    started = time.monotonic()
    with pytest.raises(StorageError, match="could not read"):
        take_stock(store)
    assert time.monotonic() - started < 30
    hangs.set()
