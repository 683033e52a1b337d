"""How many encoders a run begins with: as many as the nodes have room for, each by itself; and what each is sent."""

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

def pool(compute, cores, place=0, num_blocks=100, at_once=2):
    stages = _stages(compute, cores, (Read, Encode, Write), num_blocks=num_blocks, at_once=at_once)
    return stages[place].pool

def at_once(pool):
    return pool.max_concurrent_calls_per_actor, pool.max_tasks_in_flight_per_actor

apart = ComputeConfig(device="cpu", tokenize_concurrency=1)
print(json.dumps({
    "encoders": [pool(compute, int(cores)).initial_size for cores in sys.argv[2:]],
    "many": at_once(pool(compute, 3, at_once=4)),
    "few": at_once(pool(compute, 3, at_once=4, num_blocks=8)),
    "fewer": at_once(pool(compute, 3, at_once=4, num_blocks=2)),
    "one thread": at_once(pool(compute, 1, at_once=1)),
    "readers apart": at_once(pool(apart, 2, place=1)),
    "gpu": at_once(pool(ComputeConfig(device="cuda"), None, place=1)),
}))
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
    said = json.loads(done.stdout.splitlines()[-1])
    # One of four cores finds no node; an autoscaler may bring one.
    assert said["encoders"] == [6, 2, 2, 1]
    # Fragments in hand, one of them only read; and sent to an actor, which no other one gets then.
    assert said["many"] == [5, 7]
    assert said["few"] == [3, 4]
    assert said["fewer"] == [2, 3]
    assert said["one thread"] == [2, 3]
    assert said["readers apart"] == said["gpu"] == [1, 2]
