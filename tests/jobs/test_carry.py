"""Which vectors are carried over, from where, and how they come to stand among those that were made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.cargo import as_lists, as_vectors, grouped
from jobs.carried import CarriedVectors, Embedded, carried_hashes
from jobs.carry import KEYS, CarryPlan, Steps, match, plan_carrying
from jobs.errors import OutputError
from jobs.fragments import part_path
from jobs.holdings import Holdings
from jobs.records import LongTextRecord, Manifest, PartRecord, Receipt, ViewRecord
from jobs.rows import Reading
from jobs.run_spec import Work
from jobs.storage import Location, open_store
from tests.jobs.builders import DOCUMENT, QUERY, only_fragment, plan_of, run_spec, write_shard

HASHES = [bytes([number]) * 16 for number in range(5)]
NEW = st.sets(st.tuples(st.sampled_from(HASHES), st.integers(0, 3)))
OLD = st.dictionaries(st.tuples(st.integers(0, 3), st.integers(0, 5)), st.sampled_from(HASHES), max_size=12)


def keys_of(new: set[tuple[bytes, int]], old: dict[tuple[int, int], bytes]) -> pa.Table:
    """Texts of fragments, and of the rows of parts, of which each second one is of another view."""
    rows = [(one, fragment, -1, -1) for one, fragment in new]
    rows += [(one, -1, part % 2, (part << 32) + row) for (part, row), one in old.items()]
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    arrays = [pa.array(list(values), field.type) for values, field in zip(columns, KEYS, strict=True)]
    return pa.Table.from_arrays(arrays, schema=KEYS)


@given(NEW, OLD)
def test_each_text_gets_the_first_vector_that_each_view_has_for_it(
    new: set[tuple[bytes, int]], old: dict[tuple[int, int], bytes]
) -> None:
    first: dict[tuple[bytes, int], tuple[int, int]] = {}
    for (part, row), one in sorted(old.items()):
        first.setdefault((one, part % 2), (part, row))
    wanted = sorted(
        (fragment, *place) for one, fragment in new for (of, _), place in first.items() if of == one
    )
    found = match(keys_of(new, old))
    assert sorted(tuple(row.values()) for row in found.to_pylist()) == wanted


@given(st.lists(st.integers(0, 4)))
def test_groups_hold_each_row_once(values: list[int]) -> None:
    table = pa.table({"key": pa.array(values, pa.int32())})
    groups = {key: rows["key"].to_pylist() for key, rows in grouped(table, "key")}
    assert groups == {key: [key] * values.count(key) for key in set(values)}


def record_of(view: str, space_id: str) -> ViewRecord:
    return ViewRecord(
        task="retrieval",
        role=view.partition("/")[2],
        space_id=space_id,
        space_name="s",
        model="m",
        revision="r",
        adapter=None,
        prompt="",
        dim=4,
        precision="float32",
        normalized=True,
    )


def receipt_of(fragment: str, spaces: dict[str, str], num_chunked: int | None = None) -> Receipt:
    """A part a view, of a fragment that is no more."""
    parts = {
        view: PartRecord(
            path=part_path(fragment, "s", "retrieval", view.partition("/")[2], space, 0),
            num_bytes=9,
            sha256="",
            num_rows=3,
            num_tokens=3,
            num_truncated=0,
            num_chunked=num_chunked,
        )
        for view, space in spaces.items()
    }
    return Receipt(fragment=fragment, shard="s", num_rows=3, rejected={}, rejects=None, parts=parts)


def committed(reading: Reading, spaces: dict[str, str], num_bytes: int = 9) -> Holdings:
    """A dataset of one fragment."""
    receipt = receipt_of("gone", spaces)
    manifest = Manifest(
        committed_at="",
        corpus="c",
        reading=reading.record(),
        fragment_rows=10,
        views={view: record_of(view, space) for view, space in spaces.items()},
        shards=(),
        bad_shards=(),
        receipts=(receipt,),
    )
    paths = (part.path for part in receipt.parts.values())
    return Holdings(manifest, (receipt,), dict.fromkeys(paths, num_bytes))


def with_loose(holdings: Holdings, *loose: Receipt) -> Holdings:
    """The same beside what an attempt finished that was never committed."""
    files = {part.path: part.num_bytes for receipt in loose for part in receipt.parts.values()}
    return replace(
        holdings,
        loose=loose,
        receipts=(*holdings.receipts, *loose),
        files={**holdings.files, **files},
    )


@pytest.mark.parametrize(
    ("spaces", "num_bytes", "carrying", "rest"),
    [
        ((QUERY.space.id, QUERY.space.id), 9, ["document", "query"], []),
        ((QUERY.space.id, "another"), 9, ["query"], ["document"]),
        (("another", "another"), 9, [], ["document", "query"]),
        ((QUERY.space.id, QUERY.space.id), 8, [], ["document", "query"]),
    ],
)
def test_vectors_are_carried_within_a_space_and_from_parts_that_are_there(
    tmp_path: Path, spaces: tuple[str, str], num_bytes: int, carrying: list[str], rest: list[str]
) -> None:
    write_shard(tmp_path, "s.parquet", {"id": [1], "text": ["a"]})
    plan = plan_of(tmp_path)
    _, _, reading = only_fragment(tmp_path)
    held = dict(zip((str(QUERY.view), str(DOCUMENT.view)), spaces, strict=True))
    found, others = plan_carrying(plan, committed(reading, held, num_bytes), (QUERY, DOCUMENT), reading)

    def roles(pieces: tuple[Work, ...]) -> list[str]:
        return sorted(view.partition("/")[2] for work in pieces for view in work.parts)

    assert (roles(found.work), roles(others)) == (carrying, rest)
    assert sorted(part.view.partition("/")[2] for part in found.parts) == carrying


def test_nothing_is_carried_where_long_texts_are_treated_otherwise(tmp_path: Path) -> None:
    write_shard(tmp_path, "s.parquet", {"id": [1], "text": ["a"]})
    plan = plan_of(tmp_path)
    _, _, reading = only_fragment(tmp_path)
    holdings = committed(reading, {str(QUERY.view): QUERY.space.id})
    assert plan_carrying(plan, holdings, (QUERY, DOCUMENT), reading)[0].parts
    for mode in ("reject", "chunk"):
        other = replace(
            reading, long_text=LongTextRecord(mode=mode, chunk_tokens=None, chunk_overlap=0, prompts=())
        )
        assert plan_carrying(plan, holdings, (QUERY, DOCUMENT), other)[1] == plan.work
    chunked = committed(other, {str(QUERY.view): QUERY.space.id})
    assert plan_carrying(plan, chunked, (QUERY, DOCUMENT), other)[1] == plan.work


SPACES = {str(spec.view): spec.space.id for spec in (QUERY, DOCUMENT)}


def test_what_an_attempt_finished_that_was_never_committed_is_a_source_behind_the_dataset(
    tmp_path: Path,
) -> None:
    write_shard(tmp_path, "s.parquet", {"id": [1], "text": ["a"]})
    plan = plan_of(tmp_path)
    _, _, reading = only_fragment(tmp_path)
    loose = receipt_of("never", SPACES)

    def parts(holdings: Holdings, reading: Reading = reading) -> list[str]:
        return [
            part.record.path for part in plan_carrying(plan, holdings, (QUERY, DOCUMENT), reading)[0].parts
        ]

    def paths(receipt: Receipt) -> list[str]:
        return sorted(part.path for part in receipt.parts.values())

    nothing, dataset = Holdings(None, (), {}), committed(reading, SPACES)
    assert parts(nothing) == []
    assert parts(with_loose(nothing, loose)) == paths(loose)
    assert parts(with_loose(dataset, loose)) == [*paths(dataset.receipts[0]), *paths(loose)]
    assert parts(with_loose(dataset, *dataset.receipts)) == paths(dataset.receipts[0])  # not swept yet
    others = receipt_of("never", dict.fromkeys(SPACES, "another")), receipt_of("never", SPACES, num_chunked=1)
    for other in others:
        assert parts(with_loose(nothing, other)) == []
    rejecting = LongTextRecord(mode="reject", chunk_tokens=None, chunk_overlap=0, prompts=())
    assert parts(with_loose(nothing, loose), replace(reading, long_text=rejecting)) == []


def test_other_sources_give_other_files(tmp_path: Path) -> None:
    write_shard(tmp_path, "s.parquet", {"id": [1], "text": ["a"]})
    plan = plan_of(tmp_path)
    _, _, reading = only_fragment(tmp_path)
    dataset = committed(reading, SPACES)
    found = set()
    for holdings in (dataset, with_loose(dataset, receipt_of("never", SPACES)), dataset):
        carrying, _ = plan_carrying(plan, holdings, (QUERY, DOCUMENT), reading)
        found.add(carrying.path(carrying.work[0]))
    assert len(found) == 2


def carried_file(folder: Path) -> Work:
    """A file of one carried text with two dimensions in float32, as the steps of carrying over write it."""
    _, fragment, reading = only_fragment(folder)
    work = Work(fragment, {"q": "p"})
    plan = CarryPlan((work,), (), "")
    run = run_spec(folder, folder, reading, None, (QUERY,))  # type: ignore[arg-type] # no model is asked
    vector = np.array([3.0, 7.0], np.float32).tobytes()
    Steps(run, plan).save(
        pa.table(
            {
                "fragment": pa.array([0], pa.int32()),
                "view": ["q"],
                "text_hash": pa.array([HASHES[0]], pa.binary(16)),
                "num_tokens": pa.array([7], pa.int32()),
                "truncated": [True],
                "embedding": pa.array([vector], pa.binary(8)),
            }
        )
    )
    return replace(work, carried=plan.path(work))


def test_a_carried_vector_that_came_to_harm_is_found_before_it_gets_a_right_checksum(tmp_path: Path) -> None:
    write_shard(tmp_path, "s.parquet", {"id": [1], "text": ["a"]})
    store, work = open_store(Location(str(tmp_path))), carried_file(tmp_path)
    assert carried_hashes(store, work).to_pylist() == [HASHES[0]]
    assert work.carried is not None
    path = tmp_path / work.carried
    content = bytearray(path.read_bytes())
    content[content.index(np.array([3.0, 7.0], np.float32).tobytes()) + 2] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(OutputError, match=r"_carried/.* cannot be read: .*remove it and run again"):
        CarriedVectors(store, work)


def test_a_file_of_other_vectors_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path, "s.parquet", {"id": [1], "text": ["a"]})
    _, fragment, _ = only_fragment(tmp_path)
    store = open_store(Location(str(tmp_path)))
    held = {
        "view": ["q"],
        "text_hash": pa.array([HASHES[0]], pa.binary(16)),
        "num_tokens": pa.array([7], pa.int32()),
    }
    held |= {"truncated": [True], "embedding": pa.array([b"\0" * 8], pa.binary(8))}
    write_shard(tmp_path, "_carried/c.parquet", held)
    work = Work(fragment, {"q": "p"}, carried="_carried/c.parquet")
    sources = pa.chunked_array([pa.array([None, 0], pa.int32())])

    def fresh(kind: type) -> Embedded:
        vectors = as_lists(np.ones((1, 2), kind))
        return Embedded(
            *(pa.chunked_array([one]) for one in (vectors, pa.array([1], pa.int32()), pa.array([False])))
        )

    merged = CarriedVectors(store, work).merged(fresh(np.float32), sources, "q")
    assert as_vectors(merged.embedding).tolist() == [[1, 1], [0, 0]]
    assert merged.num_tokens.to_pylist() == [1, 7]
    assert pc.any(merged.truncated).as_py()
    with pytest.raises(OutputError, match="remove the file and run again"):
        CarriedVectors(store, work).merged(fresh(np.float16), sources, "q")
