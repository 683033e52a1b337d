"""A short piece of the chaos; `make chaos` plays more of it."""

from __future__ import annotations

import pytest

from tests.chaos.rounds import run
from tests.integration.clusters import Cluster


@pytest.mark.chaos
def test_after_rounds_of_drawn_faults_the_dataset_is_that_of_an_undisturbed_run(cluster: Cluster) -> None:
    tallied = run(cluster, num_rounds=2, seed=20)
    assert tallied.runs > 2
    assert sum(tallied.faults.values()) > 2
