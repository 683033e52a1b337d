"""Ranges of int8: a function of corpus and configuration, written once, and the same for whoever comes later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.encoder import Encoder
from encoders.protocol import resolve_protocol
from encoders.quantization import Ranges
from encoders.tasks import Role, View
from encoders.tokenizer import Tokenizer
from jobs.commit import build_manifest, publish
from jobs.corpus import Shard
from jobs.encode import EncodeFragment
from jobs.errors import ConfigurationError, CorpusError
from jobs.fragments import Fragment
from jobs.holdings import take_stock
from jobs.plan import fragments_of
from jobs.ranges import Calibrator, calibrated, held_ranges, keep, ranges_from, sample_of, with_ranges
from jobs.read import Reader
from jobs.records import RANGES, Manifest, RangesRecord, ViewRecord
from jobs.rows import Reading
from jobs.run_spec import RunSpec, ViewSpec, Work
from jobs.storage import Location, Store, open_store
from jobs.sweep import is_tidy
from tests.encoders.repositories import write_repository
from tests.jobs.builders import (
    COLUMNS,
    DOCUMENT,
    QUERY,
    clean,
    corpus_of,
    layout_of,
    plan_of,
    run_spec,
    write_shard,
)

NUM_ROWS = 60
RANGES_OF_4 = Ranges((-1.0, -2.0, 0.0, 0.25), (1.0, 2.0, 0.5, 0.75))
RECORD = RangesRecord(ranges=RANGES_OF_4, sample="a" * 32, num_vectors=10)
OTHER = RangesRecord(ranges=Ranges((0.0,) * 4, (1.0,) * 4), sample="a" * 32, num_vectors=10)


def fragments_with(sizes: Sequence[int]) -> list[Fragment]:
    return [
        Fragment(f"f{number}", Shard(f"{number}.parquet", "1", 1), 0, 1, 0, size, 1)
        for number, size in enumerate(sizes)
    ]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=80), st.integers(1, 300))
def test_a_sample_has_the_rows_that_were_asked_for_from_few_fragments(
    sizes: list[int], num_rows: int
) -> None:
    sample = sample_of(fragments_with(sizes), num_rows)
    by_id = {fragment.id: fragment.num_rows for fragment in sample.fragments}
    assert by_id.keys() == sample.rows.keys()
    assert all(0 < sample.rows[name] <= size for name, size in by_id.items())
    if sum(sizes) <= num_rows:
        assert list(by_id.values()) == sizes == list(sample.rows.values())
    else:
        assert len(by_id) <= 32
        assert sum(sample.rows.values()) <= num_rows
        if min(sizes) >= num_rows:  # no fragment runs out of rows
            assert sum(sample.rows.values()) == num_rows


def test_a_sample_is_spread_over_the_corpus_by_rows() -> None:
    sample = sample_of(fragments_with([10_000] * 90 + [900_000]), 1000)
    assert sum(sample.rows.values()) == 1000
    assert 450 < sample.rows["f90"] < 550  # the large one holds half of the rows
    small = [int(name[1:]) for name in sample.rows if name != "f90"]
    assert np.diff(small).max() - np.diff(small).min() <= 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = {"query": "query: ", "document": "", "clustering": "query: "}
    return write_repository(tmp_path_factory.mktemp("model"), settings={"prompts": prompts})


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name, first in (("a", 0), ("b", NUM_ROWS // 2)):
        numbers = range(first, first + NUM_ROWS // 2)
        texts = [None if number % 10 == 3 else f"number {number} of {number * 7919}" for number in numbers]
        table = pa.table({"id": list(numbers), "text": pa.array(texts, pa.string())})
        write_shard(tmp_path / "corpus", f"{name}.parquet", table, row_group_size=10)
    return tmp_path / "corpus"


VIEWS = (
    View("retrieval", Role.QUERY),
    View("retrieval", Role.DOCUMENT),
    View("clustering", Role.DOCUMENT),
)


def run_of(corpus: Path, model: Path, views: Sequence[View] = VIEWS) -> tuple[RunSpec, tuple[Fragment, ...]]:
    layout = layout_of(corpus)
    reading = Reading(COLUMNS, " ", layout.carried)
    protocol = resolve_protocol(str(model))
    specs = tuple(
        ViewSpec(view, protocol.prompt(view), protocol.space(view.task, "int8"), {}) for view in views
    )
    run = run_spec(corpus, corpus.with_name("out"), reading, protocol, specs)
    return run, fragments_of(corpus_of(corpus), layout, reading)


def calibrate(run: RunSpec, fragments: Sequence[Fragment], num_rows: int, order: int = 1) -> Any:
    """The stages of a calibration without Ray, the fragments in order or backwards."""
    sample = sample_of(fragments, num_rows)
    reader, encoder, calibrator = Reader(run), EncodeFragment(run), Calibrator(run)
    bounds = [
        said
        for work in sample.work(run.views)[::order]
        for said in calibrator(encoder(reader(row_of(work)))).to_pylist()
    ]
    return calibrated(bounds, sample, run.views)


def row_of(work: Work) -> pa.Table:
    return pa.table({"work": pa.array([work.to_json()], pa.binary())})


def test_ranges_are_those_of_the_vectors_of_all_views_of_a_task(corpus: Path, model: Path) -> None:
    run, fragments = run_of(corpus, model)
    records = calibrate(run, fragments, num_rows=10**6)
    tokenizer, encoder = Tokenizer(run.protocol), Encoder.load(run.protocol, device="cpu")
    texts = [f"number {n} of {n * 7919}" for n in range(NUM_ROWS) if n % 10 != 3]
    vectors = {prompt: encoder.encode(tokenizer.prepare(texts, prompt)).vectors for prompt in ("query: ", "")}
    wanted = {
        "retrieval": Ranges.calibrated(np.concatenate(list(vectors.values()))),
        "clustering": Ranges.calibrated(vectors["query: "]),
    }
    assert records.keys() == wanted.keys()
    for task, ranges in wanted.items():
        np.testing.assert_allclose(records[task].ranges.low, ranges.low, atol=1e-6)
        np.testing.assert_allclose(records[task].ranges.high, ranges.high, atol=1e-6)
    assert {task: record.num_vectors for task, record in records.items()} == {
        "retrieval": 2 * len(texts),
        "clustering": len(texts),
    }


def test_ranges_do_not_depend_on_the_order_in_which_fragments_finish(corpus: Path, model: Path) -> None:
    run, fragments = run_of(corpus, model)
    forwards, backwards = (calibrate(run, fragments, 20, order) for order in (1, -1))
    assert forwards == backwards
    assert forwards["clustering"].num_vectors == 20


def test_rows_of_a_sample_are_rows_that_have_a_text(corpus: Path, model: Path) -> None:
    run, fragments = run_of(corpus, model, VIEWS[:1])
    assert calibrate(run, fragments, 7)["retrieval"].num_vectors == 7


def test_a_sample_without_any_vector_is_an_error(corpus: Path, model: Path) -> None:
    write_shard(corpus, "a.parquet", {"id": [1, 2], "text": pa.nulls(2)})
    (corpus / "b.parquet").unlink()
    run, fragments = run_of(corpus, model)
    with pytest.raises(CorpusError, match=r"none of the 2 rows .* encoder\.ranges_from"):
        calibrate(run, fragments, 10)


def test_whatever_decides_the_ranges_decides_their_key(corpus: Path, model: Path) -> None:
    run, fragments = run_of(corpus, model)
    sample, views = sample_of(fragments, 20), run.views
    other_space = [replace(spec, space=DOCUMENT.space) for spec in views]
    keys = [
        sample.key("retrieval", views),
        sample.key("retrieval", views[1:]),
        sample.key("clustering", views),
        sample.key("retrieval", other_space),
        sample_of(fragments, 21).key("retrieval", views),
        sample_of(fragments[1:], 20).key("retrieval", views),
    ]
    assert len(set(keys)) == len(keys)
    assert sample_of(tuple(fragments), 20).key("retrieval", views[::-1]) == keys[0]


def test_a_sample_finds_what_was_calibrated_on_it_and_nothing_else(corpus: Path, tmp_path: Path) -> None:
    fragments, views = plan_of(corpus).fragments, (QUERY, DOCUMENT)
    sample = sample_of(fragments, 20)
    store = store_of(tmp_path / "out")
    assert sample.ranges(views, take_stock(store)) == {}
    left = keep(store, RECORD.model_copy(update={"sample": sample.key("retrieval", views)}))
    assert sample.ranges(views, take_stock(store)) == {"retrieval": left}
    assert sample_of(fragments, 30).ranges(views, take_stock(store)) == {}
    assert sample.ranges((QUERY,), take_stock(store)) == {}
    manifest = manifest_of(corpus, tmp_path / "out", {"retrieval": left})
    clean(tmp_path / "out", manifest, orphan_grace_hours=24)
    assert sample.ranges(views, take_stock(store)) == {"retrieval": left}


def manifest_of(corpus: Path, out: Path, ranges: dict[str, RangesRecord]) -> Manifest:
    """What a run publishes that has ranges, and no rows."""
    specs, records = with_ranges((QUERY, DOCUMENT), records_of((QUERY, DOCUMENT)), ranges)
    assert all(spec.space.id == records[str(spec.view)].space_id for spec in specs)
    plan = replace(plan_of(corpus, specs), fragments=(), num_parts=0, work=())
    reading = Reading(COLUMNS, " ", layout_of(corpus).carried).record()
    manifest = build_manifest(
        plan, [], corpus=str(corpus), reading=reading, fragment_rows=10, views=records, ranges=ranges
    )
    publish(store_of(out), manifest, replacing=take_stock(store_of(out)).version)
    return manifest


def records_of(specs: Sequence[ViewSpec]) -> dict[str, ViewRecord]:
    return {
        str(spec.view): ViewRecord(
            task=spec.view.task,
            role=spec.view.role,
            space_id=spec.space.id,
            space_name=spec.space.name,
            model="m",
            revision="1",
            adapter=None,
            prompt=spec.prompt,
            dim=4,
            precision="int8",
            normalized=True,
        )
        for spec in specs
    }


def store_of(out: Path) -> Store:
    return open_store(Location(str(out)))


def test_ranges_make_a_space_of_their_own_and_stand_in_every_label(corpus: Path) -> None:
    (one,), records = with_ranges((DOCUMENT,), records_of((DOCUMENT,)), {"retrieval": RECORD})
    (other,), _ = with_ranges((DOCUMENT,), records_of((DOCUMENT,)), {"retrieval": OTHER})
    assert len({one.space.id, other.space.id, DOCUMENT.space.id}) == 3
    assert one.labels["ranges_digest"] == records["retrieval/document"].ranges_digest == RANGES_OF_4.digest
    assert one.labels["space_id"] == records["retrieval/document"].space_id == one.space.id
    (fragment, *_) = plan_of(corpus, (DOCUMENT,)).fragments
    assert fragment.part_path(one.view, one.space) != fragment.part_path(other.view, other.space)
    (bare,), _ = with_ranges((DOCUMENT,), records_of((DOCUMENT,)), {})
    assert bare == DOCUMENT


def test_the_ranges_of_a_manifest_serve_the_space_that_they_are_of(corpus: Path, tmp_path: Path) -> None:
    manifest = manifest_of(corpus, tmp_path / "out", {"retrieval": RECORD})
    stored = take_stock(store_of(tmp_path / "out")).manifest
    assert stored is not None
    assert stored.equals(manifest)
    assert held_ranges(manifest, (QUERY, DOCUMENT)) == {"retrieval": RECORD}
    other_model = replace(DOCUMENT, space=replace(DOCUMENT.space, id="6" * 32))
    assert held_ranges(manifest, (other_model,)) == {}
    other_task = replace(DOCUMENT, view=View("clustering", Role.DOCUMENT))
    assert held_ranges(manifest, (other_task,)) == {}


def test_ranges_of_another_dataset_must_be_of_the_same_space(corpus: Path, tmp_path: Path) -> None:
    manifest_of(corpus, tmp_path / "out", {"retrieval": RECORD})
    manifest_of(corpus, tmp_path / "plain", {})
    location = Location(str(tmp_path / "out"))
    assert ranges_from(location, (QUERY,)) == {"retrieval": RECORD}
    other_model = replace(DOCUMENT, space=replace(DOCUMENT.space, id="6" * 32, name="other@1/retrieval"))
    with pytest.raises(ConfigurationError, match=r"holds retrieval/query in m@1.* needs ranges for other@1"):
        ranges_from(location, (other_model,))
    with pytest.raises(ConfigurationError, match="needs ranges for"):
        ranges_from(Location(str(tmp_path / "plain")), (QUERY,))
    with pytest.raises(ConfigurationError, match="holds no manifest"):
        ranges_from(Location(str(tmp_path / "nothing")), (QUERY,))


def test_the_first_ranges_stay_whatever_later_attempts_find(tmp_path: Path) -> None:
    """An attempt that was killed after its calibration, and two that run at the same time."""
    store = store_of(tmp_path / "out")
    assert keep(store, RECORD) == RECORD
    assert keep(store, OTHER) == RECORD
    assert take_stock(store).ranges == (RECORD,)
    another_sample = OTHER.model_copy(update={"sample": "b" * 32})
    assert keep(store, another_sample) == another_sample


def test_ranges_beside_the_parts_go_once_a_manifest_holds_what_is_wanted(
    corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    keep(store_of(out), RECORD)
    manifest = manifest_of(corpus, out, {"retrieval": RECORD})
    assert not is_tidy(take_stock(store_of(out)), 1)
    clean(out, manifest, orphan_grace_hours=24)
    stock = take_stock(store_of(out))
    assert is_tidy(stock, 1)
    assert stock.ranges == ()
    assert not list((out / RANGES).iterdir())
    assert stock.manifest is not None
    assert stock.manifest.ranges == {"retrieval": RECORD}


def test_files_of_a_run_count_by_what_they_are(tmp_path: Path) -> None:
    keep(store_of(tmp_path / "out"), RECORD)
    found = Counter(path.parent.name for path in (tmp_path / "out").rglob("*.json"))
    assert found == {RANGES: 1}
    assert take_stock(store_of(tmp_path / "out")).files == {}
