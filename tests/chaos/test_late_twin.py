"""Workers of an attempt that was given up finish after the commit: nothing that counts changes, nothing stays."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.corpora import change_corpus, num_rows_of, write_corpus
from tests.chaos.datasets import Reader, assert_same, published
from tests.chaos.plain import rebuild
from tests.chaos.sites import Site, location, on_cluster
from tests.integration.clusters import Cluster
from tests.integration.commands import finish


class Twin:
    """The given up attempt, held before its first write."""

    def __init__(self, site: Site, gate: Path) -> None:
        self._gate = gate
        command = [sys.executable, "-m", "tests.chaos.late", str(gate), *site.arguments()]
        self.process = subprocess.Popen(
            command,
            cwd=site.cwd,
            env=dict(site.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 120
        while not gate.with_suffix(".ready").exists():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def let_go(self) -> None:
        self._gate.touch()
        assert finish(self.process).exit_code == 1


def files(folder: Path, pattern: str) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob(pattern)}


@pytest.mark.chaos
def test_a_twin_that_writes_after_the_commit_changes_nothing(
    cluster: Cluster, model: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus", 2, 250)
    site = on_cluster(cluster, model, corpus, tmp_path / "out")
    out = tmp_path / "out"
    with ExitStack() as stack:
        twins = [Twin(site, tmp_path / name) for name in ("first", "second")]
        for twin in twins:
            stack.callback(twin.process.kill)
        assert site.run().summary["embedded"] == 490
        with Reader(location(site)) as reader:
            # of the same dataset: every name is taken
            old, before = published(location(site)), files(out, "*.parquet")
            twins[0].let_go()
            assert files(out, "*.parquet") == before
            assert published(location(site)) == old
            assert site.run().summary["embedded"] == 0
            # of the dataset before: names that nobody knows any more
            change_corpus(corpus, 250)
            assert site.run().summary["embedded"] == 490
            new, manifest = published(location(site)), files(out, "_manifest.json")
            twins[1].let_go()
            assert published(location(site)) == new
            assert files(out, "_manifest.json") == manifest
            assert len(published(location(site)).strangers) > 10
            assert site.run().summary["embedded"] == 0
        assert published(location(site)) == new
        assert published(location(site)).strangers == frozenset()
        assert reader.faults == []
        assert len(reader.seen) == 2
    clean = site.at(tmp_path / "clean")
    assert rebuild(clean)["embedded"] == 490
    assert_same(new, published(location(clean)), num_rows_of(corpus))
