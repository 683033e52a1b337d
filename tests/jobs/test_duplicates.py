"""Ids that stand twice: found in any corpus, and what becomes of their rows is a function of the corpus alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.corpus import Corpus
from jobs.duplicates import KEYS, NUM_NAMED, Ids, IdScan, repeated_ids, repeats
from jobs.embed import _nothing_left_of_a_refusal
from jobs.errors import CorpusError, StorageError
from jobs.fragments import Fragment, as_ranges, rows_in
from jobs.holdings import take_stock
from jobs.id_bits import save, sharing
from jobs.job import Job
from jobs.lease import LOCK, held_lease
from jobs.plan import Layout, fragments_of, make_plan
from jobs.records import Manifest, Receipt, bits_path
from jobs.rejects import RejectLimit
from jobs.rows import Reading, read_rows
from jobs.storage import Location, open_store
from tests.jobs.builders import (
    COLUMNS,
    DOCUMENT,
    QUERY,
    commit,
    corpus_of,
    finish,
    layout_of,
    stock_of,
    store_of,
    write_shard,
)
from tests.jobs.test_changes import manifest_of

Table = Mapping[str, Sequence[Any]]


def nowhere(_: IdScan) -> Iterable[Mapping[str, Any]]:
    raise AssertionError("this is small")


def laid_out(folder: Path, fragment_rows: int = 1000) -> tuple[Corpus, Layout, Reading]:
    layout = layout_of(folder, fragment_rows=fragment_rows)
    return corpus_of(folder), layout, Reading(COLUMNS, " ", layout.carried)


def scan_of(folder: Path, fragment_rows: int = 1000, **changes: Any) -> IdScan:
    corpus, layout, reading = laid_out(folder, fragment_rows)
    fragments = fragments_of(corpus, layout, reading)
    return replace(IdScan(corpus.location, kept(folder), reading, fragments, False, 2**30), **changes)


def kept(folder: Path) -> Location:
    """Where the bits of a corpus's ids go."""
    return Location(f"{folder}-bits")


def fragments_without(folder: Path, fragment_rows: int = 1000) -> tuple[Fragment, ...]:
    """What `keep_first` makes of a folder."""
    corpus, layout, reading = laid_out(folder, fragment_rows)
    found = repeated_ids("keep_first", scan_of(folder, fragment_rows), None, nowhere)
    return fragments_of(corpus, replace(layout, repeated_ids=found), reading)


def outcome(folder: Path, fragment_rows: int = 1000) -> tuple[list[tuple[Any, str]], list[tuple[Any, ...]]]:
    """Ids with their texts, and rejects, of all fragments."""
    _, _, reading = laid_out(folder, fragment_rows)
    kept, rejected, num_rows = [], [], 0
    for fragment in fragments_without(folder, fragment_rows):
        rows = read_rows(store_of(folder), fragment, reading)
        kept += list(zip(rows.carried["id"].to_pylist(), rows.texts, strict=True))
        rejected += [tuple(reject.values()) for reject in rows.rejects.to_pylist()]
        num_rows += fragment.num_rows
    assert len(kept) + len(rejected) == num_rows
    return kept, rejected


def write(folder: Path, row_group_size: int = 1000, **shards: Table) -> Path:
    for name, table in shards.items():
        write_shard(folder, f"{name}.parquet", dict(table), row_group_size=row_group_size)
    return folder


def refusal(folder: Path, fragment_rows: int = 1000) -> str:
    with pytest.raises(CorpusError) as caught:
        repeated_ids("fail", scan_of(folder, fragment_rows), None, nowhere)
    return str(caught.value)


ONE = {"id": ["x", "y", "x", "z", "y"], "text": ["1", "2", "3", "4", "5"]}


def test_the_first_row_of_an_id_is_kept_within_a_shard(tmp_path: Path) -> None:
    kept, rejected = outcome(write(tmp_path, a=ONE))
    assert kept == [("x", "1"), ("y", "2"), ("z", "4")]
    assert rejected == [("x", "duplicate_id", "a.parquet", 2), ("y", "duplicate_id", "a.parquet", 4)]


def test_the_first_row_of_an_id_is_kept_across_shards(tmp_path: Path) -> None:
    write(tmp_path, b=ONE, a={"id": ["z", "y"], "text": ["6", "7"]})
    kept, rejected = outcome(tmp_path)
    assert kept == [("z", "6"), ("y", "7"), ("x", "1")]
    assert [reject[:2] + reject[3:] for reject in rejected] == [
        (name, "duplicate_id", row) for name, row in (("y", 1), ("x", 2), ("z", 3), ("y", 4))
    ]


def test_it_is_the_same_in_one_fragment_and_in_many(tmp_path: Path) -> None:
    ids = [str(number * number % 23) for number in range(60)]
    table = {"id": ids, "text": [f"text {number}" for number in range(60)]}
    write(tmp_path, row_group_size=3, a=table, b=table)
    few, many = outcome(tmp_path), outcome(tmp_path, fragment_rows=3)
    assert len(scan_of(tmp_path).fragments) == 2
    assert len(scan_of(tmp_path, 3).fragments) == 40
    assert few == many
    assert len(few[0]) == len(set(ids))


def test_nulls_and_undecodable_ids_repeat_nothing(tmp_path: Path) -> None:
    raw = pa.array([b"\xff", b"\xff", b"a", b"a", None, None], pa.binary())
    ids = pa.Array.from_buffers(pa.string(), 6, raw.buffers())
    write_shard(tmp_path, "a.parquet", {"id": ids, "text": ["t"] * 6})
    _, rejected = outcome(tmp_path)
    assert [(reject[1], reject[3]) for reject in rejected] == [
        ("undecodable", 0),
        ("undecodable", 1),
        ("duplicate_id", 3),
        ("null_id", 4),
        ("null_id", 5),
    ]


def test_the_first_row_counts_as_such_even_if_it_gets_no_vector(tmp_path: Path) -> None:
    kept, rejected = outcome(write(tmp_path, a={"id": [1, 1, 2], "text": [None, "t", None]}))
    assert kept == []
    assert [reject[:2] for reject in rejected] == [(1, "null_text"), (1, "duplicate_id"), (2, "null_text")]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([0, -1, 2**62, -1, 0], pa.int64()),
        pa.array([0, 2**64 - 1, 2**63, 2**64 - 1, 0], pa.uint64()),
        pa.array([0, -1, 127, -1, 0], pa.int8()),
        pa.array(["", "a", "A", "a", ""]),
        pa.array(["", "a", "A", "a", ""], pa.large_string()),
        pa.array(["", "a", "A", "a", ""], pa.string_view()),
        pa.array(["", "a", "A", "a", ""]).dictionary_encode(),
        pa.array([b"", b"a\0", b"a", b"a\0", b""]),
        pa.array([b"ab", b"a\0", b"aa", b"a\0", b"ab"], pa.binary(2)),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_of_every_type_are_compared(tmp_path: Path, ids: pa.Array) -> None:
    write_shard(tmp_path, "a.parquet", {"id": ids, "text": ["t"] * 5}, row_group_size=2)
    (a, b, c) = fragments_without(tmp_path, fragment_rows=2)
    assert (a.dropped, b.dropped, c.dropped) == ("", "1", "0")


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 4)), max_size=40),
    st.none() | st.integers(1, 5),
)
def test_exactly_the_later_rows_of_each_id_are_found(
    rows: list[tuple[int, int, int]], limit: int | None
) -> None:
    numbered = [(high, low, fragment, number) for number, (high, low, fragment) in enumerate(rows)]
    columns = [np.array([row[column] for row in numbered], np.int64) for column in range(4)]
    arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, KEYS, strict=True)]
    found = repeats(pa.Table.from_arrays(arrays, schema=KEYS), limit).to_pylist()
    first: dict[tuple[int, int], tuple[int, int]] = {}
    wanted = []
    for fragment, row, high, low in sorted((one[2], one[3], one[0], one[1]) for one in numbered):
        if (before := first.setdefault((high, low), (fragment, row))) != (fragment, row):
            wanted.append((fragment, row, *before))
    assert [tuple(one.values())[:4] for one in found] == wanted[:limit]
    assert sum(one["num_repeats"] for one in found) == len(wanted)


@given(st.sets(st.integers(0, 30)))
def test_ranges_read_back_as_they_were_written(rows: set[int]) -> None:
    assert rows_in(as_ranges(sorted(rows))) == sorted(rows)


def test_ranges_are_short() -> None:
    assert as_ranges([3, 7, 8, 9, 11]) == "3,7-9,11"


# Parts are named by what made them


def test_a_fragment_that_loses_rows_is_another_one_and_all_others_stay_what_they_are(tmp_path: Path) -> None:
    write(tmp_path, a={"id": [1, 2], "text": ["t"] * 2}, b={"id": [3, 2], "text": ["t"] * 2})
    whole, without = scan_of(tmp_path).fragments, fragments_without(tmp_path)
    assert whole[0] == without[0]
    assert (without[1].dropped, without[1].id != whole[1].id) == ("1", True)
    assert Fragment.without(whole[1], "0").id != without[1].id
    assert repeated_ids("keep_all", scan_of(tmp_path), None, nowhere) is None


# A run that would do nothing looks at nothing


def published(folder: Path, out: Path, found: Mapping[str, str] | None) -> Manifest:
    """A dataset of a folder without its repeated rows."""
    corpus, layout, reading = laid_out(folder)
    layout = replace(layout, repeated_ids=found)
    plan = make_plan(corpus, layout, reading, (QUERY, DOCUMENT), stock_of(out))
    receipts = [*plan.existing, *(finish(out, work) for work in plan.work)]
    manifest = commit(out, plan, receipts, folder)
    return manifest.model_copy(update={"repeated_ids": found})


def closed(folder: Path) -> IdScan:
    """A scan that must not read."""
    return replace(scan_of(folder), corpus=Location("/nowhere/at/all"))


def test_what_a_run_found_is_known_to_the_next_as_long_as_the_fragments_are_the_same(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus", a=ONE, b={"id": ["w"], "text": ["8"]})
    found = repeated_ids("keep_first", scan_of(corpus), None, nowhere)
    assert found
    manifest = published(corpus, tmp_path / "out", found)
    assert repeated_ids("keep_first", closed(corpus), manifest, nowhere) == found
    with pytest.raises(CorpusError):
        repeated_ids("fail", scan_of(corpus), manifest, nowhere)
    (corpus / "b.parquet").unlink()  # which repeats nothing, but nobody knows that without a look
    assert repeated_ids("keep_first", scan_of(corpus), manifest, nowhere) == found
    with pytest.raises(StorageError):
        repeated_ids("keep_first", closed(corpus), manifest, nowhere)


@pytest.mark.parametrize("mode", ["fail", "keep_first", "keep_all"])
def test_of_a_corpus_that_repeats_nothing_any_part_is_known(tmp_path: Path, mode: Any) -> None:
    corpus = write(tmp_path / "corpus", a={"id": [1], "text": ["t"]}, b={"id": [2], "text": ["t"]})
    found = repeated_ids("fail", scan_of(corpus), None, nowhere)
    assert found == {}
    manifest = published(corpus, tmp_path / "out", found)
    assert repeated_ids(mode, closed(corpus), manifest, nowhere) == {}
    (corpus / "a.parquet").unlink()
    assert repeated_ids(mode, closed(corpus), manifest, nowhere) == {}


def test_a_dataset_that_nobody_looked_at_is_not_looked_at_before_something_is_new(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus", a=ONE)
    manifest = published(corpus, tmp_path / "out", None)
    assert repeated_ids("fail", closed(corpus), manifest, nowhere, is_made=lambda: True) is None
    with pytest.raises(CorpusError, match="2 of 5 rows"):  # another view, say, is to be made
        repeated_ids("fail", scan_of(corpus), manifest, nowhere, is_made=lambda: False)
    write(corpus, b={"id": ["new"], "text": ["t"]})
    with pytest.raises(CorpusError, match="2 of 6 rows"):
        repeated_ids("fail", scan_of(corpus), manifest, nowhere)


def test_a_new_shard_that_repeats_an_id_of_an_old_one(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus", b={"id": [1, 2], "text": ["t", "u"]}, c={"id": [3], "text": ["v"]})
    manifest = published(corpus, tmp_path / "out", {})
    old = scan_of(corpus).fragments
    write(corpus, d={"id": [2, 4], "text": ["w", "x"]})
    found = repeated_ids("keep_first", scan_of(corpus), manifest, nowhere)
    assert found == {scan_of(corpus).fragments[2].id: "0"}
    assert fragments_without(corpus)[:2] == old
    # one whose name comes first takes the id from the old shard, whose fragment becomes another
    write(corpus, a={"id": [2, 5], "text": ["w", "x"]})
    new = fragments_without(corpus)
    assert [fragment.dropped for fragment in new] == ["", "1", "", "0"]
    assert new[2] == old[1]
    assert new[1].id not in {fragment.id for fragment in old}
    assert "2 of 7 rows repeat" in refusal(corpus)


# Shards that did not change are not read


def only(folder: Path, *names: str) -> IdScan:
    """A scan that may read no other shards than these, as the others are gone."""
    scan = scan_of(folder)
    for path in set(folder.iterdir()) - {folder / f"{name}.parquet" for name in names}:
        path.rename(folder.parent / path.name)
    return scan


def test_new_ids_are_compared_with_those_of_shards_that_nobody_reads(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus", a={"id": [1, None], "text": ["t"] * 2}, b={"id": [2], "text": ["t"]})
    found = repeated_ids("fail", scan_of(corpus), None, nowhere)
    manifest = published(corpus, tmp_path / "out", found)
    write(corpus, c={"id": [3, None], "text": ["t"] * 2})
    assert repeated_ids("fail", only(corpus, "c"), manifest, nowhere) == {}


@pytest.mark.parametrize("ids", [[1, 2, 3, 2], ["1", "2", "3", "2"]])
def test_of_them_only_those_are_read_that_hold_an_id_again(tmp_path: Path, ids: list[Any]) -> None:
    shards = {name: {"id": [one], "text": ["t"]} for name, one in zip("abc", ids, strict=False)}
    corpus = write(tmp_path / "corpus", **shards)
    manifest = published(corpus, tmp_path / "out", repeated_ids("fail", scan_of(corpus), None, nowhere))
    write(corpus, d={"id": ids[3:], "text": ["t"]})
    scan = only(corpus, "b", "d")
    with pytest.raises(
        CorpusError, match=r"1 of 4 rows .*in 'd\.parquet' row 0, before in 'b\.parquet' row 0"
    ):
        repeated_ids("fail", scan, manifest, nowhere)
    assert repeated_ids("keep_first", scan, manifest, nowhere) == {scan.fragments[3].id: "0"}


@pytest.mark.parametrize("damage", [b"", b"\0" * 24, None])
def test_bits_that_are_lost_or_damaged_are_made_again(tmp_path: Path, damage: bytes | None) -> None:
    corpus = write(tmp_path / "corpus", a={"id": ["x"], "text": ["t"]})
    manifest = published(corpus, tmp_path / "out", repeated_ids("fail", scan_of(corpus), None, nowhere))
    (path,) = (Path(kept(corpus).uri) / "_ids").iterdir()
    whole = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    write(corpus, b={"id": ["x"], "text": ["t"]})
    with pytest.raises(CorpusError, match="1 of 2 rows"):
        repeated_ids("fail", scan_of(corpus), manifest, nowhere)
    assert path.read_bytes() == whole


def remembered(corpus: Path, found: Mapping[str, str] | None) -> Manifest:
    """What the next run is told of a dataset; without its parts, which no comparison reads."""
    held = [one.without((found or {}).get(one.id, "")) for one in scan_of(corpus).fragments]
    receipts = tuple(
        Receipt(fragment=one.id, shard="", num_rows=one.num_rows, rejected={}, rejects=None, parts={})
        for one in held
    )
    return manifest_of([]).model_copy(update={"receipts": receipts, "repeated_ids": found})


CORPORA = st.lists(
    st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1),
    min_size=2,
    max_size=4,
)


@settings(max_examples=20, deadline=None)
@given(CORPORA, st.integers(1, 2))
def test_what_a_corpus_became_step_by_step_is_what_it_is(
    tmp_path_factory: pytest.TempPathFactory, corpora: list[dict[str, list[int]]], block: int
) -> None:
    """Shards come, go and change; what is found is what a first look at the last of these corpora finds."""
    folder = tmp_path_factory.mktemp("steps")
    corpus, manifest = folder / "corpus", None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.id_bits._BLOCK_IDS", block)
        for shards in corpora:
            for path in corpus.glob("*.parquet"):
                if path.stem not in shards or pq.read_table(path)["id"].to_pylist() != shards[path.stem]:
                    path.unlink()
            write(
                corpus,
                **{
                    name: {"id": ids, "text": ["t"] * len(ids)}
                    for name, ids in shards.items()
                    if not (corpus / f"{name}.parquet").exists()
                },
            )
            found = repeated_ids("keep_first", scan_of(corpus), manifest, nowhere)
            fresh = scan_of(corpus, output=Location(str(folder / "fresh")))
            assert found == repeated_ids("keep_first", fresh, None, nowhere)
            manifest = remembered(corpus, found)


# What is said


def test_a_refusal_names_the_first_few_with_their_places(tmp_path: Path) -> None:
    write(tmp_path, row_group_size=2, a=ONE, b={"id": list("xyzxyz"), "text": list("123456")})
    told = refusal(tmp_path, fragment_rows=2)
    assert told.startswith(
        "8 of 11 rows repeat the id of an earlier one ('x' in 'a.parquet' row 2, before in "
    )
    assert "'x' in 'b.parquet' row 0, before in 'a.parquet' row 0; 'y' in 'b.parquet' row 1" in told
    assert told.count("before in") == NUM_NAMED
    for mend in ("; ...)", "input.id_column", "on_duplicate_id=keep_first", "keep_all"):
        assert mend in told


def test_an_id_of_megabytes_is_named_in_part(tmp_path: Path) -> None:
    told = refusal(write(tmp_path, a={"id": ["x" * 2_000_000] * 2, "text": ["t", "u"]}))
    assert "'xxx" in told
    assert len(told) < 600


def test_a_corpus_without_repeats_is_not_refused(tmp_path: Path) -> None:
    write(tmp_path, a={"id": [1, 2, None, None], "text": ["t"] * 4}, b={"id": [3], "text": ["t"]})
    assert repeated_ids("fail", scan_of(tmp_path), None, nowhere) == {}


def test_a_shard_that_cannot_be_decoded_fails_or_has_no_ids(tmp_path: Path) -> None:
    write(tmp_path, a={"id": [1, 1], "text": ["t"] * 2}, b={"id": [1, 2], "text": ["t"] * 2})
    path = tmp_path / "a.parquet"
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    path.write_bytes(content[:4] + b"\xff" * (len(content) - footer - 4) + content[-footer:])
    with pytest.raises(CorpusError, match=r"'a\.parquet' cannot be read"):
        repeated_ids("keep_first", scan_of(tmp_path), None, nowhere)
    assert repeated_ids("keep_first", scan_of(tmp_path, skip_bad_shards=True), None, nowhere) == {}


def test_what_is_large_goes_to_the_cluster_and_comes_back_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [str(number * number % 23) for number in range(60)]
    write(tmp_path, row_group_size=3, a={"id": ids, "text": ids}, b={"id": ids, "text": ids})
    here = repeated_ids("keep_first", scan_of(tmp_path, 3), None, nowhere)
    told = refusal(tmp_path, 3)
    monkeypatch.setattr("jobs.duplicates.SMALL_ROWS", 0)

    def in_buckets(scan: IdScan) -> list[Mapping[str, Any]]:
        reader = Ids(scan)
        keys = pa.concat_tables([reader.keys(number) for number in range(len(scan.fragments))])
        bucket = keys["low"].to_numpy() % 5
        return [
            one for b in (3, 1, 4, 0, 2) for one in repeats(keys.filter(bucket == b), scan.limit).to_pylist()
        ]

    assert repeated_ids("keep_first", scan_of(tmp_path, 3), None, in_buckets) == here
    with pytest.raises(CorpusError) as caught:
        repeated_ids("fail", scan_of(tmp_path, 3), None, in_buckets)
    assert str(caught.value) == told


def test_rows_that_repeat_an_id_count_against_no_limit(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus", a=ONE)
    found = repeated_ids("keep_first", scan_of(corpus), None, nowhere)
    manifest = published(corpus, tmp_path / "out", found)
    (receipt,) = manifest.receipts
    limit = RejectLimit(5, 0, 0.0, "out")
    limit.add(receipt.model_copy(update={"rejected": {"duplicate_id": 2}}))
    with pytest.raises(Exception, match=r"at least 1 of 5 rows .*\(null_text 1\)"):
        limit.add(receipt.model_copy(update={"rejected": {"duplicate_id": 2, "null_text": 1}}))


def test_where_bits_were_removed_meanwhile_any_fragment_may_share_an_id(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus", a={"id": [1], "text": ["t"]}, b={"id": [2], "text": ["t"]})
    scan, store = scan_of(corpus), open_store(kept(corpus))
    new, old = scan.fragments
    for fragment in (new, old):
        save(store, fragment, np.array([int(fragment.id[:8], 16)], np.uint64))
    assert sharing(store, [new], [old]) == ()
    store.delete([bits_path(new.id)])
    assert sharing(store, [new], [old]) == (old,)


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_refusal_clears_up_what_it_wrote_if_the_output_is_still_its_own(
    tmp_path: Path, is_ours: bool
) -> None:
    store, path = store_of(tmp_path), bits_path("0" * 32)
    job = cast(Job, SimpleNamespace(store=store, holdings=take_stock(store)))

    def refused() -> None:
        with held_lease(store, print) as lease, _nothing_left_of_a_refusal(job, lease):
            store.create(path, b"bits")
            if not is_ours:
                store.delete([LOCK])
            raise CorpusError

    with pytest.raises(CorpusError):
        refused()
    assert store.exists(path) is not is_ours
