"""One cluster that all drivers of these tests join: a Ray start costs five seconds, and there are many drivers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.encoders.repositories import write_repository
from tests.integration.clusters import Cluster, cluster_of
from tests.integration.commands import REPOSITORY

# Of a server that lets everybody in.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes, a core each."""
    with cluster_of(num_cpus=1, more={"PYTHONPATH": str(REPOSITORY), **CREDENTIALS}) as made:
        made.join("other")
        yield made


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 32 dimensions with random weights."""
    return write_repository(tmp_path_factory.mktemp("model"))
