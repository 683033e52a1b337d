"""Vectors of two runs over two halves of a corpus are one dataset's, if the second takes the ranges of the first."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from encoders.quantization import Ranges
from jobs.record_files import read_manifest
from jobs.records import RangesRecord
from jobs.storage import Location, open_store
from tests.integration.commands import Outcome
from tests.integration.conftest import (
    FRAGMENT_ROWS,
    ROWS_PER_SHARD,
    Embed,
    parts,
    read_view,
    snapshot,
    table_of,
    vectors_of,
)

DIM = 32
HALVES = ("first", "second")


@dataclass(frozen=True)
class Halves:
    """A corpus of two shards, each in a folder of its own too, and what was made of them."""

    folder: Path
    model: Path
    embed: Embed
    first: Outcome

    def arguments(self, corpus: str, out: str, *more: str) -> tuple[str, ...]:
        texts = [f"--text-column={name}" for name in ("title", "text")]
        places = ["--input", str(self.folder / corpus), "--output", str(self.folder / out)]
        view = ["--model", str(self.model), "--task", "retrieval", "--role", "document", "--dtype", "float32"]
        size = ["--fragment-rows", str(FRAGMENT_ROWS), "--max-actors", "1", "--precision", "int8"]
        return (*places, *view, *texts, *size, *more)

    def run(self, corpus: str, out: str, *more: str) -> Outcome:
        return self.embed(*self.arguments(corpus, out, *more))

    def ranges_of(self, out: str) -> str:
        return f"encoder.ranges_from={self.folder / out}"

    def record(self, out: str) -> RangesRecord:
        manifest = read_manifest(open_store(Location(str(self.folder / out))))
        assert manifest is not None
        return manifest.ranges["retrieval"]

    def space(self, out: str) -> str:
        manifest = json.loads((self.folder / out / "_manifest.json").read_text())
        space: str = manifest["views"]["retrieval/document"]["space_id"]
        return space


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory, model: Path, embed: Embed) -> Halves:
    folder = tmp_path_factory.mktemp("int8")
    for number, name in enumerate(HALVES):
        table = table_of(number * ROWS_PER_SHARD, ROWS_PER_SHARD).select(["id", "title", "text"])
        (folder / name).mkdir()
        pq.write_table(table, folder / name / f"{name}.parquet", row_group_size=10)
    (folder / "whole").mkdir()
    for name in HALVES:
        shutil.copy2(folder / name / f"{name}.parquet", folder / "whole")
    made = Halves(folder, model, embed, Outcome(1, "", "", 0))
    first = made.run("first", "out-first", "--set", "output.calibration_rows=20")
    assert first.exit_code == 0, first.stderr
    return Halves(folder, model, embed, first)


@pytest.fixture(scope="module")
def second(halves: Halves) -> Outcome:
    return halves.run("second", "out-second", "--set", halves.ranges_of("out-first"))


def test_the_first_run_calibrates_on_a_sample_and_keeps_the_ranges(halves: Halves) -> None:
    assert "Calibrating the ranges of int8 on 20 rows" in halves.first.stderr
    assert halves.first.summary["embedded"] == ROWS_PER_SHARD
    record = halves.record("out-first")
    assert (record.num_vectors, len(record.ranges.low)) == (20, DIM)
    assert not any((halves.folder / "out-first" / "_ranges").iterdir())
    for content in parts(halves.folder / "out-first").values():
        schema = pq.read_schema(pa.BufferReader(content))
        assert schema.field("embedding").type == pa.list_(pa.int8(), DIM)
        assert schema.metadata[b"taskvec.precision"] == b"int8"
        assert schema.metadata[b"taskvec.ranges_digest"].decode() == record.ranges.digest
        assert schema.metadata[b"taskvec.space_id"].decode() == halves.space("out-first")


def test_two_halves_are_the_bytes_of_one_run_with_the_same_ranges(halves: Halves, second: Outcome) -> None:
    assert "Calibrating" not in second.stderr
    whole = halves.run("whole", "out-whole", "--set", halves.ranges_of("out-second"))
    assert (second.summary["embedded"], whole.summary["embedded"]) == (ROWS_PER_SHARD, 2 * ROWS_PER_SHARD)
    assert halves.space("out-first") == halves.space("out-second") == halves.space("out-whole")
    assert halves.record("out-whole") == halves.record("out-first")
    apart = [content for name in HALVES for content in parts(halves.folder / f"out-{name}").values()]
    assert sorted(parts(halves.folder / "out-whole").values()) == sorted(apart)


def test_int8_says_what_float32_says(halves: Halves, second: Outcome) -> None:
    assert second.exit_code == 0
    out = halves.run("second", "out-float", "--precision", "float32")
    assert out.exit_code == 0, out.stderr
    ranges = halves.record("out-second").ranges
    exact, stored = (vectors_of(read_view(halves.folder / name)) for name in ("out-float", "out-second"))
    np.testing.assert_array_equal(ranges.quantize(exact), stored)
    inside = (exact >= np.float32(ranges.low)) & (exact <= np.float32(ranges.high))
    step = np.subtract(ranges.high, ranges.low) / 255
    assert inside.mean() > 0.8
    assert (np.abs(ranges.restore(stored) - exact) <= 0.501 * step)[inside].all()
    assert halves.space("out-float") != halves.space("out-second")


def test_a_rerun_finds_its_ranges_and_embeds_nothing(halves: Halves, second: Outcome) -> None:
    assert second.exit_code == 0
    for out, corpus in (("out-first", "first"), ("out-second", "second")):
        before = snapshot(halves.folder / out)
        for more in ((), ("--overwrite",) if out == "out-first" else ()):
            again = halves.run(corpus, out, "--set", "output.calibration_rows=20", *more)
            assert again.summary["embedded"] == 0
            assert "Calibrating" not in again.stderr
            assert snapshot(halves.folder / out) == before


@pytest.fixture(scope="module")
def killed(halves: Halves) -> tuple[RangesRecord, Outcome]:
    """A run over the first half where another one had calibrated the same sample, with other ranges, and then died."""
    record = halves.record("out-first")
    wider = Ranges(tuple(np.floor(record.ranges.low).tolist()), (2.0,) * DIM)
    left = record.model_copy(update={"ranges": wider})
    store = open_store(Location(str(halves.folder / "out-killed")))
    store.create(f"_ranges/{record.sample}.json", left.model_dump_json().encode())
    return left, halves.run("first", "out-killed", "--set", "output.calibration_rows=20")


def test_a_run_takes_the_ranges_that_a_killed_one_left(
    halves: Halves, killed: tuple[RangesRecord, Outcome]
) -> None:
    left, outcome = killed
    assert outcome.summary["embedded"] == ROWS_PER_SHARD
    assert "Calibrating" not in outcome.stderr
    assert halves.record("out-killed") == left
    assert halves.space("out-killed") != halves.space("out-first")


def test_other_ranges_than_an_output_has_are_refused(
    halves: Halves, second: Outcome, killed: tuple[RangesRecord, Outcome]
) -> None:
    assert (second.exit_code, killed[1].exit_code) == (0, 0)
    before = snapshot(halves.folder / "out-second")
    others = (
        (("--set", halves.ranges_of("out-killed")), "cannot be compared"),
        (("--set", halves.ranges_of("first")), "holds no manifest"),
        (("--set", halves.ranges_of("out-first"), "--truncate-dim", "16"), "this run needs ranges for"),
        (("--precision", "float32"), "cannot be compared"),
    )
    for arguments, cause in others:
        outcome = halves.run("second", "out-second", *arguments)
        assert outcome.exit_code == 2
        assert cause in outcome.stderr
    assert snapshot(halves.folder / "out-second") == before


def test_a_dry_run_calibrates_nothing(halves: Halves) -> None:
    outcome = halves.run("first", "out-dry", "--dry-run")
    assert outcome.summary["missing_parts"] == outcome.summary["parts"] > 0
    assert "ranges to be calibrated" in " ".join(outcome.stderr.split())
    assert not (halves.folder / "out-dry").exists()


def test_binary_is_a_bit_a_dimension(halves: Halves) -> None:
    out = halves.folder / "out-binary"
    outcome = halves.run("first", "out-binary", "--precision", "binary")
    assert outcome.summary["embedded"] == ROWS_PER_SHARD
    table = ds.dataset(out, partitioning="hive").to_table()
    assert table.schema.field("embedding").type == pa.list_(pa.uint8(), DIM // 8)
    refused = halves.run("first", "out-odd", "--precision", "binary", "--truncate-dim", "30")
    assert refused.exit_code == 2
    assert "packs 8 dimensions to a byte" in refused.stderr
