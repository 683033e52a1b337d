"""A run ends when nobody is at work on it for too long, however long a fragment takes, and leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.data import DataContext
from ray.data.exceptions import SystemException
from ray.exceptions import RayError

from encoders.protocol import resolve_protocol
from jobs import executor
from jobs.actors import Actor
from jobs.cluster import connect
from jobs.config import ComputeConfig
from jobs.errors import JobError, StorageError
from jobs.joins import _shipped
from jobs.pipeline import own_cause, stream
from jobs.rows import Reading
from jobs.run_spec import RunSpec
from jobs.storage import Location
from jobs.watch import Board, Need, Signs, Watch, deaths_of
from tests.integration.conftest import Embed, arguments_for, write_corpus
from tests.jobs.builders import COLUMNS, QUERY, plan_of, run_spec, write_shard

HUGE = Need("an encoder", 1.0, 4096.0)


@pytest.fixture
def run(embed: Embed, model: Path, tmp_path: Path) -> RunSpec:  # noqa: ARG001 - it ends what is started here
    """A run that has joined Ray."""
    connect("local", 2)
    spec = run_spec(
        tmp_path / "corpus",
        tmp_path / "out",
        Reading(COLUMNS, " ", ()),
        resolve_protocol(str(model)),
        (QUERY,),
    )
    return replace(spec, deaths=f"deaths-{tmp_path.name}", sign_seconds=0.01)


def watch_of(run: RunSpec, *needs: Need) -> Watch:
    watch = Watch(Board.of(run), run.deaths, run.most_deadly, 1000, needs or (HUGE,))
    watch.before_execution_starts(None)
    return watch


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let time pass that the driver only believes in."""
    passed = 0.0
    real = time.monotonic

    def more(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    believe(monkeypatch, lambda: real() + passed)
    return more


def believe(monkeypatch: pytest.MonkeyPatch, monotonic: Callable[[], float]) -> None:
    """Another clock for the driver's watch, and for nobody else."""
    clock = SimpleNamespace(monotonic=monotonic, time_ns=time.time_ns, sleep=time.sleep)
    monkeypatch.setattr("jobs.watch.time", clock)


def test_a_worker_with_a_fragment_in_hand_keeps_the_run_alive_and_one_without_does_not(
    run: RunSpec, wait: Callable[[float], None]
) -> None:
    watch, signs = watch_of(run), Signs(run)
    with signs:
        for _ in range(3):
            wait(990)
            before = watch.board.read("alive")
            while watch.board.read("alive") == before:
                time.sleep(0.01)
            watch.on_execution_step(None)
    time.sleep(0.1)
    wait(1)
    watch.on_execution_step(None)
    wait(990)
    watch.on_execution_step(None)
    wait(20)
    with pytest.raises(JobError, match="nobody was at work on this run for 1,000 s"):
        watch.on_execution_step(None)
    watch.after_execution_fails(None, JobError())
    assert watch.board.read("alive") is None


@pytest.mark.parametrize(
    ("need", "said"),
    [
        (
            HUGE,
            r"an encoder needs 1 CPU and 4096 GPU, and no node of the cluster has that \(of 1 none has more than 2 CPU",
        ),
        (Need("a reader", 2.0), r"the cluster has \S+ of 2 CPU free, so either others hold it"),
    ],
)
def test_what_is_missing_is_named_with_the_way_on(
    run: RunSpec, wait: Callable[[float], None], need: Need, said: str
) -> None:
    watch = watch_of(run, Need("a writer", 0.1), need)
    wait(1001)
    with pytest.raises(JobError, match=f"{said}.*the same command again"):
        watch.on_execution_step(None)


def test_what_is_known_of_deaths_ends_with_its_driver(run: RunSpec) -> None:
    @ray.remote(num_cpus=0)
    def restarted(run: RunSpec) -> bool:
        return bool(ray.get(deaths_of(run).take.remote("encoded", "fragment", range(3))))

    watch, asked = watch_of(run), restarted.remote(run)
    while not ray.wait([asked], timeout=0.1)[0]:
        watch.on_execution_step(None)
    assert ray.get(asked)
    (deaths,) = [one for one in ray.util.list_named_actors() if one == run.deaths]
    assert not ray.get_actor(deaths)._ray_is_cross_language
    watch.after_execution_succeeds(None)
    while run.deaths in ray.util.list_named_actors():
        time.sleep(0.05)
    assert watch.board.read("died") is None


SLEEP_SECONDS = 3


class Sleeping(Actor):
    """A stage that takes its time."""

    doing = "slept on"

    def _load(self, run: RunSpec) -> Callable[[pa.Table], pa.Table]:  # noqa: ARG002
        return _sleep


def _sleep(row: pa.Table) -> pa.Table:
    time.sleep(SLEEP_SECONDS)
    return row


class Through(Actor):
    """A stage that does nothing."""

    doing = "let through"

    def _load(self, run: RunSpec) -> Callable[[pa.Table], pa.Table]:  # noqa: ARG002
        return lambda row: row


def test_a_fragment_may_take_longer_than_the_timeout(
    run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the driver a second is as twenty, once the fragment is in hand."""
    timeout = 10 * SLEEP_SECONDS
    real, board, began = time.monotonic, Board.of(run), []

    def fast() -> float:
        if not began and board.read("alive") is not None:
            began.append(real())
        return 20 * (real() - began[0]) if began else 0.0

    believe(monkeypatch, fast)
    monkeypatch.setattr("jobs.watch._SIGNS_PER_TIMEOUT", 600)
    write_shard(tmp_path / "corpus", "a.parquet", {"id": range(3), "text": ["a"] * 3})
    (work,) = plan_of(tmp_path / "corpus").work
    compute = ComputeConfig(no_progress_timeout_seconds=timeout)
    (row,) = stream(run, [work], compute, (Through, Sleeping, Through))
    assert row["work"] == work.to_json()
    assert fast() > timeout
    assert (
        DataContext.get_current().execution_no_progress_timeout_s == -1
    )  # Ray's own, which counts fragments


def test_a_footer_that_is_refused_on_the_cluster_is_told_as_it_is_here(
    embed: Embed, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "corpus", ["a.parquet", "b.parquet"])
    table = pq.read_table(corpus / "b.parquet").drop_columns(["title"])
    pq.write_table(table, corpus / "b.parquet")
    arguments = arguments_for(model, corpus, tmp_path / "out")
    here = embed(*arguments)
    monkeypatch.setattr(executor, "_FOOTERS_ON_DRIVER", 0)
    there = embed(*arguments)
    assert (there.exit_code, there.stderr) == (here.exit_code, here.stderr)
    assert here.exit_code == 1
    assert "title" in here.stderr


def test_what_ray_says_of_a_failure_is_cut_to_a_line() -> None:
    told = str(own_cause(RayError("one line\n" * 10_000)))
    assert told.startswith(
        "the pipeline failed, nothing is published, the same command goes on from here: RayError: one"
    )
    assert len(told) < 700
    assert "\n" not in told


def test_the_mark_that_ray_puts_on_its_own_failures_hides_no_reason() -> None:
    error = RayError("no such actor")
    error.__cause__ = SystemException()
    assert "RayError: no such actor" in str(own_cause(error))


def test_a_worker_with_another_disk_than_the_driver_s_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"does not see {tmp_path}"):
        _shipped(Location(str(tmp_path)), "_carried/0.plan")
