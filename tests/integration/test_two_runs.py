"""Two runs on one output: one is refused, or loses at the commit, and the dataset is whole."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

import jobs.commit
import jobs.finish
from jobs.lease import LOCK
from jobs.manifests import id_of
from jobs.record_files import read_manifest
from jobs.records import MANIFEST, RECEIPTS
from jobs.storage import Location, Store, open_store
from tests.chaos.datasets import Reader, assert_same, published
from tests.chaos.plain import without_ray
from tests.integration.commands import finish
from tests.integration.conftest import (
    ROWS_PER_SHARD,
    SHARDS,
    Dataset,
    arguments_for,
    embed_here,
    parts,
    start_embed,
    write_corpus,
)
from tests.stores import put

pytestmark = pytest.mark.slow

NUM_ROWS = len(SHARDS) * ROWS_PER_SHARD


@pytest.fixture(params=["disk", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    place = str(tmp_path) if request.param == "disk" else request.getfixturevalue("s3")
    return open_store(Location(f"{place}/out"))


def arguments_to(out: Store, model: Path, dataset: Dataset) -> tuple[str, ...]:
    """Of a run that makes the dataset once more, somewhere else."""
    arguments = list(arguments_for(model, dataset.corpus, Path("somewhere")))
    arguments[arguments.index("--output") + 1] = out.location.uri
    return tuple(arguments)


def wait_for(store: Store, process: Popen[str], folder: str) -> None:
    deadline = time.monotonic() + 120
    while not list(store.list(folder)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_two_runs_at_once_the_second_is_refused_and_the_first_publishes(
    dataset: Dataset, model: Path, out: Store
) -> None:
    arguments = arguments_to(out, model, dataset)
    with Reader(out.location) as reader:
        first = start_embed(*arguments)
        wait_for(out, first, LOCK)
        second = finish(start_embed(*arguments))
        looked = embed_here(*arguments, "--dry-run")
        outcome = finish(first)
    assert second.exit_code == 1, second.stderr
    assert f"another run (process {first.pid} on " in second.stderr
    assert "Traceback" not in second.stderr
    assert second.stdout == ""
    assert looked.exit_code == 0  # looks, and takes nothing
    assert outcome.exit_code == 0, outcome.stderr
    assert_same(published(out.location), published(Location(str(dataset.out))), NUM_ROWS)
    assert reader.faults == []
    assert len(reader.seen) == 1
    assert not out.exists(LOCK)
    assert embed_here(*arguments).summary["embedded"] == 0


def test_a_run_that_was_killed_does_not_keep_the_next_one_from_its_output(
    dataset: Dataset, model: Path, tmp_path: Path
) -> None:
    arguments = arguments_for(model, dataset.corpus, tmp_path / "out")
    out = open_store(Location(str(tmp_path / "out")))
    process = start_embed(*arguments)
    wait_for(out, process, LOCK)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert out.exists(LOCK)
    assert embed_here(*arguments).exit_code == 0
    assert not out.exists(LOCK)


def test_a_clean_up_that_fails_says_that_the_dataset_is_published(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "corpus", ("a.parquet",), 20)
    arguments = arguments_for(model, corpus, tmp_path / "out")
    out = open_store(Location(str(tmp_path / "out")))
    unlink, sweep = Path.unlink, jobs.finish.sweep

    def refusing(path: Path, *, missing_ok: bool = False) -> None:
        if RECEIPTS in path.parts and path.suffix == ".json":
            raise PermissionError(13, "not yours")
        unlink(path, missing_ok=missing_ok)

    def without_lease(*arguments: Any, **more: Any) -> None:
        out.delete([LOCK])  # as a run would that gives back a lease which it thinks is its own
        sweep(*arguments, **more)

    for told, (owner, name, trouble) in {
        "could not delete": (Path, "unlink", refusing),
        "another run has the output by now": (jobs.finish, "sweep", without_lease),
    }.items():
        with monkeypatch.context() as patch, without_ray():
            patch.setattr(owner, name, trouble)
            outcome = embed_here(*arguments)
        assert outcome.exit_code == 1
        live = read_manifest(out)
        assert live is not None
        assert f"the dataset is published ({id_of(live)}); only the clean-up behind it" in outcome.stderr
        assert told in outcome.stderr
        assert "nothing is published" not in outcome.stderr
        assert list(out.list(RECEIPTS))
    with without_ray():
        assert embed_here(*arguments).summary["embedded"] == 0
    assert not list(out.list(RECEIPTS))


def test_a_run_that_loses_the_output_after_its_last_look_at_the_files_publishes_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "corpus", ("a.parquet",), 20)
    arguments = arguments_for(model, corpus, tmp_path / "out")
    out, look = open_store(Location(str(tmp_path / "out"))), jobs.commit.lost_files

    def suspended(*looked: Any) -> Any:
        found = look(*looked)
        out.delete([LOCK])  # another run has had it meanwhile, and has swept
        return found

    with monkeypatch.context() as patch, without_ray():
        patch.setattr(jobs.commit, "lost_files", suspended)
        outcome = embed_here(*arguments)
    assert outcome.exit_code == 1
    assert "another run has taken over" in outcome.stderr
    assert read_manifest(out) is None
    with without_ray():
        assert embed_here(*arguments).summary["embedded"] == 0


def test_a_run_that_did_not_see_another_one_publish_loses_without_harm(
    dataset: Dataset, model: Path, out: Store
) -> None:
    arguments = arguments_to(out, model, dataset)
    process = start_embed(*arguments)
    wait_for(out, process, RECEIPTS)
    theirs = (dataset.out / MANIFEST).read_bytes()
    put(out, MANIFEST, theirs)  # as a run that knows of no lock would
    outcome = finish(process)
    assert outcome.exit_code == 1
    assert "another run published into" in outcome.stderr
    assert out.read(MANIFEST) == theirs
    assert {entry.path for entry in out.list("task=retrieval")} == set(parts(dataset.out))
    # The rerun reconciles: everything is there already.
    again = embed_here(*arguments)
    assert again.summary["embedded"] == 0
    assert not list(out.list(RECEIPTS))
    assert_same(published(out.location), published(Location(str(dataset.out))), NUM_ROWS)
