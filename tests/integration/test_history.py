"""Datasets that were live stay readable, and the way back to them is one command."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.history import main as history
from jobs.lease import LOCK
from jobs.records import MANIFEST, MANIFESTS
from tests.integration.conftest import (
    Embed,
    Outcome,
    arguments_for,
    manifest_of,
    parts,
    snapshot,
    table_of,
    write_corpus,
)

pytestmark = pytest.mark.slow

NUM_RUNS = 5
FIRST_NEW_ID = 1000  # of the first run's changed shard; each run's are its own


def look(*arguments: str) -> Outcome:
    """The command in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        exit_code = history(list(arguments))
    return Outcome(exit_code, stdout.getvalue(), stderr.getvalue(), 0)


@dataclass(frozen=True)
class Past:
    """An output that was made from a corpus that changed with each run.

    Attributes:
        corpus: As the last run saw it.
        out: The output.
        arguments: Of each run.
        manifests: After each run.
        configurations: In them.
    """

    corpus: Path
    out: Path
    arguments: tuple[str, ...]
    manifests: list[dict[str, Any]]
    configurations: list[dict[str, Any]]


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory, model: Path, embed: Embed) -> Past:
    folder = tmp_path_factory.mktemp("past")
    corpus, out = (
        write_corpus(folder / "corpus", ("lang=en/a.parquet", "lang=de/b.parquet"), 20),
        folder / "out",
    )
    arguments = arguments_for(model, corpus, out)
    made = Past(corpus, out, arguments, [], [])
    for number in range(NUM_RUNS):
        pq.write_table(table_of(FIRST_NEW_ID * (number + 1), 10 + number), corpus / "lang=de/b.parquet")
        # another configuration of equal vectors, so that it can be told whose stands beside a manifest
        level = f"output.compression_level={number + 3}"
        assert embed(*arguments, "--set", level).summary["rows"] == 30 + number
        made.manifests.append(manifest_of(out))
        made.configurations.append(made.manifests[-1]["run"]["configuration"])
        assert made.configurations[-1]["output"]["compression_level"] == number + 3
    return made


def read_whole(out: Path, manifest: dict[str, Any]) -> dict[str, set[int]]:
    """Ids by view, of the parts that a manifest names."""
    ids: dict[str, set[int]] = {}
    for receipt in manifest["receipts"]:
        for view, part in receipt["parts"].items():
            table = pq.read_table(out / part["path"], partitioning=None)
            assert table.num_rows == part["num_rows"]
            ids.setdefault(view, set()).update(table["id"].to_pylist())
    return ids


def paths_of(manifest: dict[str, Any]) -> set[str]:
    return {part["path"] for receipt in manifest["receipts"] for part in receipt["parts"].values()}


def test_three_datasets_are_readable_and_what_only_older_ones_had_is_gone(past: Past) -> None:
    kept = sorted((past.out / MANIFESTS).glob("*Z-????????????????????????????????.json"))
    read = [json.loads(path.read_text()) for path in kept] + [manifest_of(past.out)]
    assert read == past.manifests[-3:]
    for number, manifest in enumerate(read, start=NUM_RUNS - 3):
        first = FIRST_NEW_ID * (number + 1)
        expected = {*range(20), *range(first, first + 10 + number)}
        assert read_whole(past.out, manifest) == dict.fromkeys(manifest["views"], expected)
    assert parts(past.out).keys() == set().union(*map(paths_of, past.manifests[-3:]))


def test_the_history_is_listed_newest_first_with_the_live_one_on_top(past: Past) -> None:
    outcome = look(str(past.out))
    listed = outcome.summary["manifests"]
    assert [entry["live"] for entry in listed] == [True, False, False]
    assert [entry["rows"] for entry in listed] == [34, 33, 32]
    assert [entry["committed_at"] for entry in listed] == [
        manifest["committed_at"] for manifest in past.manifests[:1:-1]
    ]
    assert [entry["id"] for entry in listed] == sorted((entry["id"] for entry in listed), reverse=True)
    views = past.manifests[-1]["views"]
    for entry in listed:
        assert entry["vectors"] == dict.fromkeys(views, entry["rows"])
        assert entry["spaces"] == {name: view["space_id"] for name, view in views.items()}
        assert entry["id"] in outcome.stderr
    assert outcome.stdout.count("\n") == 1


def test_going_back_is_one_commit_and_the_next_run_goes_on_from_there(past: Past, embed: Embed) -> None:
    before = snapshot(past.out)
    live, *older = look(str(past.out)).summary["manifests"]
    oldest = older[-1]
    outcome = look(str(past.out), "--rollback", oldest["digest"][:10])
    summary = outcome.summary
    assert (summary["was_live"], summary["digest"], summary["live"]) == (live["id"], oldest["digest"], True)

    now = manifest_of(past.out)
    assert now["committed_at"] > live["committed_at"]
    ours = {"committed_at", "checksum"}
    then = past.manifests[2]
    assert {name for name in now if now[name] != then[name]} == ours
    assert now["run"]["configuration"] == past.configurations[2]
    assert read_whole(past.out, now).keys() == now["views"].keys()
    after = snapshot(past.out)
    assert before.keys() - after.keys() == set()
    changed = {path for path in before if after[path] != before[path]}
    assert changed == {MANIFEST}
    listed = look(str(past.out)).summary["manifests"]
    assert [entry["digest"] for entry in listed] == [oldest["digest"], live["digest"], older[0]["digest"]]

    again = embed(*past.arguments)
    assert (again.summary["embedded"], again.summary["existing"]) == (0, 2 * 34)
    listed = look(str(past.out)).summary["manifests"]
    assert [entry["digest"] for entry in listed] == [live["digest"], oldest["digest"], older[0]["digest"]]
    assert manifest_of(past.out)["receipts"] == past.manifests[-1]["receipts"]


def test_who_loses_the_output_on_the_way_back_changes_nothing(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (past.out / MANIFEST).read_bytes()

    def suspended(*_: Any) -> list[Any]:
        (past.out / LOCK).unlink()  # another run has had it meanwhile, and has swept
        return []

    monkeypatch.setattr("jobs.history.lost_files", suspended)
    _, *kept = look(str(past.out)).summary["manifests"]
    outcome = look(str(past.out), "--rollback", kept[0]["id"])
    assert outcome.exit_code == 1
    assert "another run has taken over" in outcome.stderr
    assert (past.out / MANIFEST).read_bytes() == before
    assert look(str(past.out)).summary["manifests"][1:] == kept


def test_a_dataset_whose_files_are_gone_is_not_gone_back_to(past: Past) -> None:
    live, *older = look(str(past.out)).summary["manifests"]
    victim = past.manifests[2 if older[-1]["rows"] == 32 else 3]
    only_there = min(paths_of(victim) - paths_of(manifest_of(past.out)))
    content = (past.out / only_there).read_bytes()
    before = snapshot(past.out)[MANIFEST]
    kept = next(entry["id"] for entry in older if entry["rows"] == 30 + past.manifests.index(victim))
    for damage in (content[:-1], None):
        if damage is None:
            (past.out / only_there).unlink()
        else:
            (past.out / only_there).write_bytes(damage)
        outcome = look(str(past.out), "--rollback", kept)
        assert (outcome.exit_code, outcome.stdout) == (2, "")
        assert "1 files of" in outcome.stderr
        assert only_there in outcome.stderr
        assert "what was live is live" in outcome.stderr
        assert snapshot(past.out)[MANIFEST] == before
    (past.out / only_there).write_bytes(content)
    assert live["live"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rollback", "f" * 32], "is no manifest that is kept there"),
        (["--rollback", "2"], "is the beginning of several"),
        (["--rollback"], "requires an argument"),
        (["and", "more"], "unexpected extra arguments"),
    ],
)
def test_what_cannot_be_done_is_said_with_exit_code_2(past: Past, arguments: list[str], told: str) -> None:
    outcome = look(str(past.out), *arguments)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert told in " ".join(outcome.stderr.split())


def test_the_live_dataset_is_not_gone_back_to(past: Past) -> None:
    live = look(str(past.out)).summary["manifests"][0]
    outcome = look(str(past.out), "--rollback", live["id"])
    assert (outcome.exit_code, "is the live manifest" in outcome.stderr) == (2, True)


def test_where_nothing_was_published_there_is_no_history(tmp_path: Path) -> None:
    for arguments in ([], ["--rollback", "2"]):
        outcome = look(str(tmp_path / "none"), *arguments)
        assert (outcome.exit_code, outcome.stdout) == (2, "")
        assert "holds no manifest" in outcome.stderr


def test_help_goes_to_stdout() -> None:
    outcome = look("--help")
    assert outcome.exit_code == 0
    assert "--rollback ID" in outcome.stdout
