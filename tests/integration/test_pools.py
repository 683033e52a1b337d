"""How many encoders a run begins with: as many as the nodes have room for, each by itself; and what each is sent.

Beside accelerators: how many writers start, and how many fragments each writes at once. And how many fragments an
encoder on the CPU may have in hand.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pytest
import ray

from encoders.protocol import resolve_protocol
from jobs.actors import Actor
from jobs.config import ComputeConfig
from jobs.pipeline import stream
from jobs.rows import Reading
from jobs.run_spec import RunSpec, Work
from tests.integration.clusters import Cluster, cluster_of
from tests.integration.commands import REPOSITORY, finish, start
from tests.jobs.builders import COLUMNS, QUERY, plan_of, run_spec, write_shard

NUM_GPUS = 4  # that Ray is told of
ENCODES_SECONDS, WRITES_SECONDS = 0.1, 1.0

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

def sizes(**actors):
    made = pool(ComputeConfig(device="cuda", **actors), None, place=2)
    return made.min_size, made.initial_size, made.max_size

apart = ComputeConfig(device="cpu", tokenize_concurrency=1)
print(json.dumps({
    "encoders": [pool(compute, int(cores)).initial_size for cores in sys.argv[2:]],
    "many": at_once(pool(compute, 3, at_once=4)),
    "few": at_once(pool(compute, 3, at_once=4, num_blocks=8)),
    "fewer": at_once(pool(compute, 3, at_once=4, num_blocks=2)),
    "one thread": at_once(pool(compute, 1, at_once=1)),
    "readers apart": at_once(pool(apart, 2, place=1)),
    "writers": [sizes(), sizes(max_actors=8), sizes(min_actors=9, max_actors=17)],
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
    # One for each eight encoders, of which there may be as many as the hundred blocks where nothing is said.
    assert said["writers"] == [[1, 1, 13], [1, 1, 1], [2, 2, 3]]


class Through:
    """Stands in for a stage."""

    def __init__(self, run: bytes) -> None:
        pass

    def __call__(self, row: pa.Table) -> pa.Table:
        return row


class Quick(Through):
    """An encoder."""

    def __call__(self, row: pa.Table) -> pa.Table:
        time.sleep(ENCODES_SECONDS)
        return row


class Slow(Through):
    """A writer; says in which process, and how many it had in hand."""

    def __init__(self, run: bytes) -> None:
        super().__init__(run)
        self._in_hand, self._lock = 0, Lock()

    def __call__(self, row: pa.Table) -> pa.Table:  # noqa: ARG002
        with self._lock:
            self._in_hand += 1
            in_hand = self._in_hand
        time.sleep(WRITES_SECONDS)
        with self._lock:
            self._in_hand -= 1
        return pa.table({"process": [os.getpid()], "in_hand": [in_hand]})


@pytest.fixture(scope="module")
def accelerators() -> Iterator[None]:
    """Ray here, which believes that it has some; the session's own starts again with the next run."""
    ray.shutdown()
    ray.init(address="local", num_cpus=20, num_gpus=NUM_GPUS, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class DiesOfTwo(Actor):
    """A writer that cannot have two fragments in hand."""

    doing = "written"

    def _load(self, run: RunSpec) -> Callable[[pa.Table], pa.Table]:  # noqa: ARG002
        alone = Lock()

        def write(row: pa.Table) -> pa.Table:
            if not alone.acquire(blocking=False):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(ENCODES_SECONDS)
            alone.release()
            return row

        return write


class Passes(Actor):
    """A stage of a process that holds all of them."""

    doing = "passed on"

    def _load(self, run: RunSpec) -> Callable[[pa.Table], pa.Table]:  # noqa: ARG002
        return lambda row: row


class Tells(Actor):
    """The last one; says how many fragments an encoder of its run may have in hand."""

    doing = "told"

    def _load(self, run: RunSpec) -> Callable[[pa.Table], pa.Table]:
        return lambda _: pa.table({"at_once": [run.fragments_at_once]})


def fragments_of_a_row(folder: Path, model: Path, num_fragments: int) -> tuple[RunSpec, Sequence[Work]]:
    """A run over so many, and what it has to do."""
    corpus, reading = folder / "corpus", Reading(COLUMNS, " ", ())
    texts = {"id": range(num_fragments), "text": ["a"] * num_fragments}
    write_shard(corpus, "a.parquet", texts, row_group_size=1)
    run = run_spec(corpus, folder / "out", reading, resolve_protocol(str(model)), (QUERY,))
    work = plan_of(corpus, (QUERY,), fragment_rows=1).work
    assert len(work) == num_fragments
    return run, work


def embedded(
    folder: Path, model: Path, num_fragments: int, max_actors: int, writer: type
) -> list[dict[str, Any]]:
    """What the writers say of a corpus that encoders beside accelerators are done with."""
    run, work = fragments_of_a_row(folder, model, num_fragments)
    run = replace(run, device="cuda", num_threads=None)
    compute = ComputeConfig(device="cuda", min_actors=NUM_GPUS, max_actors=max_actors, tokenize_concurrency=1)
    return list(stream(run, work, compute, (Through, Quick, writer)))


@pytest.mark.usefixtures("accelerators")
@pytest.mark.parametrize(("num_readers", "at_once"), [(None, 3), (1, 1)])
def test_readers_apart_give_an_encoder_one_fragment_after_the_other(
    model: Path, tmp_path: Path, num_readers: int | None, at_once: int
) -> None:
    """One that reads itself has one for each of its threads, and one more."""
    run, work = fragments_of_a_row(tmp_path, model, 4)
    compute = ComputeConfig(device="cpu", max_actors=1, tokenize_concurrency=num_readers)
    said = stream(replace(run, num_threads=2), work, compute, (Passes, Passes, Tells))
    assert [row["at_once"] for row in said] == [at_once] * 4


@pytest.mark.usefixtures("accelerators")
def test_writers_beside_accelerators_are_few_and_write_several_at_once(model: Path, tmp_path: Path) -> None:
    """However many fragments wait for them."""
    said = embedded(tmp_path, model, 60, 9, Slow)
    assert len(said) == 60
    assert len({row["process"] for row in said}) == 2  # one for each eight encoders that there may be
    assert max(row["in_hand"] for row in said) == 4


@pytest.mark.usefixtures("accelerators")
def test_a_writer_that_was_started_again_writes_one_at_a_time(model: Path, tmp_path: Path) -> None:
    """Else each death is put down to all that it had in hand, and ends the run."""
    assert len(embedded(tmp_path, model, 30, 8, DiesOfTwo)) == 30
