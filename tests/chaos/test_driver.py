"""The driver is killed or told to stop, at exact points; the same command goes on, and readers notice nothing."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from jobs.records import RECEIPTS
from tests.chaos.corpora import change_corpus, num_rows_of, write_corpus
from tests.chaos.datasets import Reader, assert_same, published
from tests.chaos.dying import SENT_AT, Point
from tests.chaos.plain import rebuild
from tests.chaos.sites import Site, location, on_cluster
from tests.integration.clusters import Cluster
from tests.integration.commands import finish

NUM_ROWS = 250
# In the order of a run; each run begins with what the one before it left.
POINTS = {
    "taking stock": Point("jobs.store:Store.list", when="after"),
    "Ray is there": Point("jobs.cluster:connect", when="after"),
    "first receipt": Point("jobs.progress:Tally.add"),
    "fourth receipt": Point("jobs.progress:Tally.add", number=4, when="after"),
    "all parts, no commit": Point("jobs.finish:build_manifest"),
    "before the checks": Point("jobs.finish:publish"),
    "before the manifest": Point("jobs.store:Store.swap", "_manifest.json"),
    "the manifest is written and has no name": Point("pathlib:Path.replace", "_manifest.json"),
    "committed, and not yet told so": Point("jobs.store:Store.swap", "_manifest.json", when="after"),
    "half of the old parts removed": Point("jobs.store:Store.delete", "task=", when="middle"),
    "the rest not yet removed": Point("jobs.store:Store.delete", "task="),
}
COMMITTED = {"committed, and not yet told so", "half of the old parts removed", "the rest not yet removed"}


@pytest.fixture(scope="module")
def site(cluster: Cluster, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A job that has run once, and whose corpus has changed since."""
    folder = tmp_path_factory.mktemp("site")
    corpus = write_corpus(folder / "corpus", 3, NUM_ROWS)
    made = on_cluster(cluster, model, corpus, folder / "out")
    assert made.run().summary["rows"] == 3 * NUM_ROWS
    change_corpus(corpus, NUM_ROWS)
    return made


@pytest.fixture(scope="module")
def clean(site: Site) -> Site:
    """An uninterrupted run over the same corpus."""
    clean = site.at(f"{site.out}-clean")
    assert clean.run().summary["existing"] == 0
    return clean


def kill_at_first_new_part(site: Site) -> subprocess.Popen[str]:
    """From outside: the workers write parts, and only a listing shows when."""
    receipts = Path(site.out) / RECEIPTS
    before = set(receipts.glob("*.json"))
    process = site.start()
    while not set(receipts.glob("*.json")) - before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.kill()
    return process


@pytest.mark.slow
def test_a_driver_killed_at_twelve_points_in_turn_ends_with_the_dataset_of_an_undisturbed_one(
    site: Site, clean: Site
) -> None:
    old, new = published(location(site)), published(location(clean))
    with Reader(location(site)) as reader:
        for name, point in POINTS.items():
            killed = site.run(point)
            assert killed.exit_code == -signal.SIGKILL, (name, killed.stdout, killed.stderr)
            assert published(location(site)) == (new if name in COMMITTED else old), name
            if name == "first receipt":
                outside = finish(kill_at_first_new_part(site))
                assert outside.exit_code == -signal.SIGKILL
                assert published(location(site)) == old
        last = site.run().summary
    assert last["embedded"] == 0
    assert_same(published(location(site)), new, num_rows_of(Path(site.corpus)))
    assert reader.faults == []
    assert len(reader.seen) == 2
    assert reader.num_polls > 100


@pytest.fixture(scope="module")
def small(cluster: Cluster, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A job of two fragments, undisturbed."""
    folder = tmp_path_factory.mktemp("small")
    corpus = write_corpus(folder / "corpus", 1, 100)
    made = on_cluster(cluster, model, corpus, folder / "out")
    rebuild(made)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "told"),
    [
        (Point("jobs.store:Store.list", when="after", signal="SIGINT"), "nothing is published"),
        (Point("jobs.progress:Tally.add", signal="SIGINT"), "nothing is published"),
        (Point("jobs.progress:Tally.add", signal="SIGTERM"), "nothing is published"),
        (Point("jobs.store:Store.delete", RECEIPTS, signal="SIGTERM"), "the old dataset or the new one"),
    ],
    ids=["planning", "embedding", "embedding, SIGTERM", "cleaning up, SIGTERM"],
)
def test_a_signal_ends_the_command_soon_with_exit_code_1_and_says_how_to_go_on(
    small: Site, tmp_path: Path, point: Point, told: str
) -> None:
    site = small.at(tmp_path / "out")
    with Reader(location(site)) as reader:
        stopped = site.run(point)
        ended_at = time.time()
        there = (tmp_path / "out" / "_manifest.json").exists()
        again = site.run().summary
    assert stopped.exit_code == 1, stopped.stderr
    sent_at = float(stopped.stderr.partition(SENT_AT)[2].split()[0])
    assert ended_at - sent_at < 30
    assert stopped.stdout == ""
    assert told in stopped.stderr
    assert "the same command goes on from here" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    committed = "delete" in point.target
    assert there == committed
    assert again["existing"] + again["embedded"] == 98
    assert not committed or again["embedded"] == 0
    assert not list((tmp_path / "out" / RECEIPTS).iterdir())
    assert_same(published(location(site)), published(location(small)), num_rows_of(Path(site.corpus)))
    assert reader.faults == []
    assert len(reader.seen) == 1
