"""How many encoders a run begins with: as many as the nodes of the cluster have room for, each by itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.integration.clusters import Cluster, cluster_of
from tests.integration.commands import REPOSITORY, finish, start

# Encoders to begin with, of as many cores each as an argument says.
DRIVER = """
import json, sys
from jobs.actors import Encode, Read, Write
from jobs.cluster import connect
from jobs.config import ComputeConfig
from jobs.pipeline import _stages

connect(sys.argv[1], None)
compute = ComputeConfig(device="cpu")
print(json.dumps([
    _stages(compute, int(cores), (Read, Encode, Write), num_blocks=100, at_once=2)[0].pool.initial_size
    for cores in sys.argv[2:]
]))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of three cores."""
    with cluster_of(num_cpus=3, more={"PYTHONPATH": str(REPOSITORY)}) as made:
        made.join("other", num_cpus=3)
        yield made


def test_what_two_nodes_have_left_over_makes_no_encoder(cluster: Cluster) -> None:
    command = [sys.executable, "-c", DRIVER, cluster.gcs_address, "1", "2", "3", "4"]
    done = finish(start(command, cluster.room.elsewhere[2], cluster.environment))
    assert done.exit_code == 0, done.stderr
    # One of four cores finds no node; an autoscaler may bring one.
    assert json.loads(done.stdout.splitlines()[-1]) == [6, 2, 2, 1]
