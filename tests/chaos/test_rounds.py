"""A short piece of the chaos; `make chaos` plays more of it."""

from __future__ import annotations

import pytest

from tests.chaos.rounds import run


@pytest.mark.slow
def test_after_rounds_of_drawn_faults_the_dataset_is_that_of_an_undisturbed_run() -> None:
    tallied = run(num_rounds=3, seed=20)
    assert tallied.runs > 3
    assert sum(tallied.faults.values()) > 3
