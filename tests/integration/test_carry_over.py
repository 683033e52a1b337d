"""A corpus that its producer wrote anew: only texts that are new are embedded, and the output is that of a rebuild."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import JobError
from jobs.records import CARRIED
from tests.chaos.plain import embed as embed_without_ray
from tests.chaos.plain import without_ray
from tests.integration.commands import Outcome, finish
from tests.integration.conftest import (
    VIEWS,
    Embed,
    embed_here,
    manifest_of,
    parts,
    read_view,
    snapshot,
    start_embed,
    vectors_of,
)

pytestmark = pytest.mark.slow

NUM_ROWS = 200
WORDS = ["sun", "Größe", "日本", "قلب", "🙂", "deal", "plan", "á", "the", "of", "river", "stone"]

Row = dict[str, Any]


def rows_of(first: int, num_rows: int = NUM_ROWS) -> list[Row]:
    """Ids and texts; some texts are null, some are said twice, one is empty, all else are unlike."""
    texts: list[str | None] = []
    for n in range(first, first + num_rows):
        words = [WORDS[(n * 7 + place) % len(WORDS)] for place in range(n % 9 + 1)]
        texts.append(f"{n} {' '.join(words)}")
    texts[3] = None
    texts[11] = texts[12] = texts[13]
    texts[20] = ""
    return [{"id": first + place, "text": text, "rank": place} for place, text in enumerate(texts)]


def rewritten(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """In another order, one of a hundred with another text, one gone, one new; and the rows whose text is new."""
    rows = [dict(row) for row in rows]
    changed = [rows[50], rows[150]]
    for row in changed:
        row["text"] = f"another text of {row['id']}"
    del rows[60], rows[100]
    new = rows_of(5000, 21)[19:]  # an empty text among them, which is not new
    rows += new
    random.Random(0).shuffle(rows)
    return rows, [*changed, new[0]]


def write(folder: Path, rows: Sequence[Row], num_shards: int) -> Path:
    """The rows in equal shards, in place of those that are there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    step = -(-len(rows) // num_shards)
    for number in range(num_shards):
        table = pa.Table.from_pylist(rows[number * step : (number + 1) * step])
        pq.write_table(table, folder / f"{len(rows)}-{number}.parquet", row_group_size=20)
    return folder


def arguments(model: Path, corpus: Path, out: Path, *more: str, views: Sequence[str] = VIEWS) -> list[str]:
    return [
        *("--input", str(corpus), "--output", str(out), "--model", str(model), "--fragment-rows", "40"),
        *("--set", f"output.views=[{', '.join(views)}]", "--max-actors", "1", "--dtype", "float32"),
        *("--set", "output.max_rejected_fraction=0.05", *more),
    ]


def hash_of(row: Row) -> bytes:
    return blake2b(row["text"].encode(), digest_size=16).digest()


@dataclass
class Story:
    """A dataset, its corpus written anew, and what the next run made of it."""

    model: Path
    corpus: Path
    out: Path
    before: dict[str, pa.Table]
    fresh: list[Row]
    arguments: list[str]

    def check(self, outcome: Outcome) -> None:
        """Exactly the new texts were embedded; all others have the very vectors that they had."""
        tokens = 0
        for role, before in self.before.items():
            after = read_view(self.out, role)
            fresh = {hash_of(row) for row in self.fresh}
            old = dict(zip(before["text_hash"].to_pylist(), before["embedding"].to_pylist(), strict=True))
            for row in after.select(["id", "text_hash", "embedding", "num_tokens"]).to_pylist():
                if row["text_hash"] in fresh:
                    assert row["text_hash"] not in old
                    tokens += row["num_tokens"]
                else:
                    assert row["embedding"] == old[row["text_hash"]]
        num_views = len(self.before)
        summary = outcome.summary
        assert summary["embedded"] == len(self.fresh) * num_views
        assert summary["tokens"] == tokens
        assert summary["embedded"] + summary["carried"] == (summary["rows"] - summary["rejected"]) * num_views
        assert not (self.out / CARRIED).exists() or not list((self.out / CARRIED).iterdir())


def story_of(model: Path, folder: Path, embed: Embed, *more: str) -> Story:
    rows = rows_of(0)
    corpus, out = write(folder / "corpus", rows, 3), folder / "out"
    command = arguments(model, corpus, out, *more)
    assert embed(*command).summary["carried"] == 0
    before = {role: read_view(out, role) for role in ("query", "document")}
    again, fresh = rewritten(rows)
    write(corpus, again, 2)
    return Story(model, corpus, out, before, fresh, command)


def check_like_rebuild(story: Story, embed: Embed, *more: str) -> None:
    rebuilt = story.out.parent / "rebuilt"
    assert embed(*arguments(story.model, story.corpus, rebuilt, *more)).summary["carried"] == 0
    for role in story.before:
        ours, theirs = read_view(story.out, role), read_view(rebuilt, role)
        assert ours.drop_columns(["embedding"]).equals(theirs.drop_columns(["embedding"]))
        np.testing.assert_allclose(
            vectors_of(ours).astype(np.float64), vectors_of(theirs).astype(np.float64), atol=1e-6
        )
    ours, theirs = manifest_of(story.out), manifest_of(rebuilt)
    for manifest in (ours, theirs):
        for receipt in manifest["receipts"]:
            for part in receipt["parts"].values():
                del part["sha256"], part["num_bytes"]
        del manifest["committed_at"], manifest["run"], manifest["checksum"]
    assert ours == theirs


@pytest.mark.parametrize("precision", ["float32", "int8", pytest.param("binary", marks=pytest.mark.chaos)])
def test_a_corpus_that_was_written_anew_has_only_its_new_texts_embedded(
    model: Path, tmp_path: Path, embed: Embed, precision: str
) -> None:
    story = story_of(model, tmp_path, embed, "--precision", precision)
    story.check(embed(*story.arguments))
    if precision != "int8":
        check_like_rebuild(story, embed, "--precision", precision)
    before = snapshot(story.out)
    assert embed(*story.arguments).summary["embedded"] == 0
    assert snapshot(story.out) == before


def test_the_cluster_carries_over_what_one_process_does(
    model: Path, tmp_path: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = story_of(model, tmp_path, embed, "--precision", "float16")
    monkeypatch.setattr("jobs.carry.SMALL_BYTES", 0)
    monkeypatch.setattr("jobs.joins._BUCKET_ROWS", 100)
    monkeypatch.setattr("jobs.joins._BUCKET_BYTES", 8000)
    story.check(embed(*story.arguments))


def test_what_is_kept_and_how_shards_are_cut_costs_no_embedding(
    model: Path, tmp_path: Path, embed: Embed
) -> None:
    story = story_of(model, tmp_path, embed)
    story.check(embed(*story.arguments))
    cut = [*story.arguments, "--fragment-rows", "20", "--keep-column", "rank"]
    summary = embed(*cut).summary
    assert (summary["embedded"], summary["tokens"]) == (0, 0)
    assert {"rank"} <= set(read_view(story.out).column_names)
    without = [*story.arguments, "--fragment-rows", "60", "--set", "output.carry_over=false"]
    summary = embed(*without).summary
    assert (summary["carried"], summary["embedded"]) == (0, 2 * (summary["rows"] - summary["rejected"]))


def test_a_further_view_is_embedded_and_the_others_are_carried(
    model: Path, tmp_path: Path, embed: Embed
) -> None:
    rows = rows_of(0)
    corpus, out = write(tmp_path / "corpus", rows, 3), tmp_path / "out"
    embed(*arguments(model, corpus, out, views=VIEWS[:1]))
    write(corpus, rows[::-1], 2)
    summary = embed(*arguments(model, corpus, out)).summary
    num_texts = summary["rows"] - summary["rejected"]
    assert (summary["carried"], summary["embedded"]) == (num_texts, num_texts)


def test_chunks_are_embedded_anew(model: Path, tmp_path: Path, embed: Embed) -> None:
    rows = rows_of(0, 40)
    corpus, out = write(tmp_path / "corpus", rows, 1), tmp_path / "out"
    command = arguments(
        model, corpus, out, "--set", "encoder.long_text=chunk", "--set", "encoder.chunk_tokens=4"
    )
    embed(*command)
    write(corpus, rows[::-1], 2)
    summary = embed(*command).summary
    assert summary["carried"] == 0
    assert summary["embedded"] > 2 * (summary["rows"] - summary["rejected"])


def test_a_damaged_part_stops_the_run_and_a_lost_one_is_embedded(
    model: Path, tmp_path: Path, embed: Embed
) -> None:
    story = story_of(model, tmp_path, embed)
    path = story.out / sorted(parts(story.out))[0]
    whole = path.read_bytes()
    vectors = pq.ParquetFile(path).metadata.row_group(0).column(1)
    assert vectors.path_in_schema.startswith("embedding")
    place = vectors.data_page_offset + vectors.total_compressed_size - 8
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    manifest = (story.out / "_manifest.json").read_bytes()
    outcome = embed(*story.arguments)
    assert outcome.exit_code != 0
    assert f"{path} is damaged" in outcome.stderr
    assert (story.out / "_manifest.json").read_bytes() == manifest
    path.unlink()
    summary = embed(*story.arguments).summary
    assert summary["embedded"] > 2 * len(story.fresh)
    check_like_rebuild(story, embed)


def test_what_a_run_had_finished_that_never_committed_is_carried_over_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(0)
    corpus, out = write(tmp_path / "corpus", rows, 3), tmp_path / "out"
    command = arguments(model, corpus, out)
    with monkeypatch.context() as patch, without_ray():
        patch.setattr("jobs.finish.publish", lambda *_, **__: (_ for _ in ()).throw(JobError("killed")))
        assert embed_here(*command).exit_code == 1
    assert not (out / "_manifest.json").exists()
    again, fresh = rewritten(rows)
    write(corpus, again, 2)
    summary = embed_without_ray(*command)
    assert summary["embedded"] == len(fresh) * len(VIEWS)
    assert summary["carried"] == (summary["rows"] - summary["rejected"] - len(fresh)) * len(VIEWS)


@pytest.mark.parametrize("moment", [CARRIED, pytest.param("_receipts", marks=pytest.mark.chaos)])
def test_killed_while_carrying_is_as_if_it_had_not_been(
    model: Path, tmp_path: Path, embed: Embed, moment: str
) -> None:
    story = story_of(model, tmp_path, embed)
    process = start_embed(*story.arguments)
    deadline = time.monotonic() + 120
    while not any(path.suffix != ".tmp" for path in (story.out / moment).glob("*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    finish(process)
    time.sleep(3)  # workers that outlive the driver may finish what they have in hand
    assert embed(*story.arguments).summary["rows"] == NUM_ROWS
    check_like_rebuild(story, embed)
