"""Workers are killed in the middle of a fragment; the run goes on and gives what it would have given."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.corpora import num_rows_of, write_corpus
from tests.chaos.datasets import Reader, assert_same, published
from tests.chaos.killers import KILLS, STAGES, Killer
from tests.chaos.plain import rebuild
from tests.chaos.sites import location, on_cluster
from tests.integration.clusters import Cluster
from tests.integration.commands import finish


@pytest.mark.chaos
def test_readers_encoders_and_writers_killed_three_times_each_change_nothing(
    cluster: Cluster, model: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus", 3, 2500)
    site = on_cluster(cluster, model, corpus, tmp_path / "out")
    with Reader(location(site)) as reader:
        process = site.start()
        killers = [Killer(cluster, stage) for stage in STAGES]
        with killers[0], killers[1], killers[2]:
            outcome = finish(process)
    assert outcome.summary["rows"] == 7500
    killed = {killer.stage: len(set(killer.killed)) for killer in killers}
    assert killed == dict.fromkeys(STAGES, KILLS)
    clean = site.at(tmp_path / "clean")
    rebuild(clean)
    assert_same(published(location(site)), published(location(clean)), num_rows_of(corpus))
    assert reader.faults == []
    assert len(reader.seen) == 1
