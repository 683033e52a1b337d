"""An output is one run's at a time; what a dead run left is taken over, what a live one has is not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.errors import OutputBusyError
from jobs.lease import LOCK, Holder, Patience, held_lease
from jobs.storage import Location, Store, open_store
from tests.jobs.conftest import Fault
from tests.stores import put

REPOSITORY = Path(__file__).parents[2]
QUICK = Patience(renew=0.1, expiry=1.0)
# Who never gives a second sign of life by itself.
SILENT = Patience(renew=3600.0, expiry=1.0)

HOLD = """
import sys, time
real, skew = time.time, float(sys.argv[2])
time.time = lambda: real() + skew
from jobs.lease import Patience, held_lease
from jobs.storage import Location, open_store
with held_lease(open_store(Location(sys.argv[1])), print, Patience(renew=0.05)):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return open_store(Location(str(tmp_path / "root")))
    return open_store(Location(request.getfixturevalue("s3") + "/some/root"))


def elsewhere(seen: float) -> Holder:
    """A run on another machine."""
    here = Holder.this_process()
    return here.model_copy(update={"host": "elsewhere", "machine": "another", "since": seen, "seen": seen})


def lock(store: Store, holder: Holder) -> None:
    put(store, LOCK, holder.model_dump_json().encode())


def run_of(store: Store) -> str:
    return Holder.model_validate_json(store.read(LOCK)).run


@contextmanager
def holding_process(store: Store, skew: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """A process that has the output, its clock so many seconds off."""
    command = [sys.executable, "-c", HOLD, store.location.uri, str(skew)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_an_output_is_held_until_the_end_of_the_block_and_leaves_no_lock(store: Store) -> None:
    with held_lease(store, print):
        assert store.exists(LOCK)
        with pytest.raises(OutputBusyError), held_lease(store, print):
            pass
        assert store.exists(LOCK)
    assert not store.exists(LOCK)
    with pytest.raises(KeyError), held_lease(store, print):
        raise KeyError
    assert not store.exists(LOCK)


def test_a_live_process_keeps_its_output_and_is_named(store: Store) -> None:
    with holding_process(store) as process:
        with pytest.raises(OutputBusyError) as caught, held_lease(store, print):
            pass
        holder = Holder.model_validate_json(store.read(LOCK))
        assert holder.pid == process.pid
        for told in (
            f"process {process.pid} on {holder.host}, since 20",
            "last sign of life",
            store.location.uri,
        ):
            assert told in str(caught.value)


def test_the_lock_of_a_killed_process_of_this_machine_is_taken_over_at_once(store: Store) -> None:
    with holding_process(store) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        dead = run_of(store)
        started = time.monotonic()
        with held_lease(store, print):
            assert run_of(store) != dead
        assert time.monotonic() - started < 5
    assert not store.exists(LOCK)


def test_a_killed_process_that_nobody_has_waited_for_is_dead_too(store: Store) -> None:
    with holding_process(store) as process:
        process.send_signal(signal.SIGKILL)
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        with held_lease(store, print) as lease:
            lease.confirm()


def test_a_pid_that_is_used_again_is_not_the_holder(store: Store) -> None:
    here = Holder.this_process()
    assert here.born is not None
    lock(store, here.model_copy(update={"born": here.born - 1}))
    with held_lease(store, print) as lease:
        lease.confirm()


def test_the_same_pid_on_another_machine_says_nothing(store: Store) -> None:
    lock(store, elsewhere(time.time()).model_copy(update={"pid": 2**22 + 1}))
    with pytest.raises(OutputBusyError, match="elsewhere"), held_lease(store, print, QUICK):
        pass


def test_a_silent_run_of_another_machine_is_taken_over_after_a_watch(store: Store) -> None:
    lock(store, elsewhere(time.time() - 10))
    started = time.monotonic()
    said: list[str] = []
    with held_lease(store, said.append, QUICK) as lease:
        assert ["elsewhere" in text for text in said] == [True]
        assert time.monotonic() - started >= 2 * QUICK.renew
        lease.confirm()


@pytest.mark.parametrize("skew", [-86_400.0, 86_400.0])
def test_a_live_run_whose_clock_is_a_day_off_keeps_its_output(store: Store, skew: float) -> None:
    # It gives its signs by its own clock; what counts is that they come.
    with holding_process(store, skew) as process:
        said: list[str] = []
        with (
            pytest.raises(OutputBusyError, match=f"process {process.pid}"),
            held_lease(store, said.append, QUICK),
        ):
            pass
        assert len(said) == 1


def test_a_lease_is_renewed_while_the_run_lives(store: Store) -> None:
    with held_lease(store, print, QUICK):
        first = Holder.model_validate_json(store.read(LOCK))
        deadline = time.monotonic() + 60
        while (later := Holder.model_validate_json(store.read(LOCK))).seen - first.seen < 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert (later.run, later.since) == (first.run, first.since)


def test_who_lost_the_output_is_told_and_leaves_the_lock_to_the_winner(store: Store) -> None:
    with held_lease(store, print, SILENT) as lease:
        lease.check()
        lock(store, elsewhere(time.time()))
        winner = run_of(store)
        with pytest.raises(OutputBusyError, match="taken over"):
            lease.confirm()
        with pytest.raises(OutputBusyError, match="nothing is published"):
            lease.check()
    assert run_of(store) == winner


def test_the_renewing_thread_tells_the_run_that_it_lost_the_output(store: Store) -> None:
    with held_lease(store, print, QUICK) as lease:
        lock(store, elsewhere(time.time()))
        deadline = time.monotonic() + 10
        while lease._version is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(OutputBusyError):
            lease.check()


def test_a_sign_whose_answer_was_lost_does_not_cost_the_output(store: Store) -> None:
    with held_lease(store, print, SILENT) as lease:
        lock(store, Holder.model_validate_json(store.read(LOCK)).model_copy(update={"seen": 0.0}))
        lease.confirm()
        lease.check()


def test_a_run_that_waits_gets_the_output_when_the_one_before_ends(store: Store) -> None:
    waiting = replace(QUICK, wait=60.0)
    said: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        with held_lease(store, print):
            first = run_of(store)
            second = pool.submit(take, store, waiting, said)
            while not said:
                time.sleep(0.01)
            assert run_of(store) == first
            assert not second.done()
        assert second.result(30) != first
    (told,) = said
    assert told.startswith("Waiting up to 60 s for another run (process")


def take(store: Store, patience: Patience, said: list[str]) -> str:
    """Have the output once; returns as which run."""
    with held_lease(store, said.append, patience) as lease:
        lease.confirm()
        return run_of(store)


def test_a_run_that_waits_takes_over_what_was_killed_elsewhere_whatever_the_clocks_say(store: Store) -> None:
    """As in Kubernetes, where the pod that comes next sees none of the processes of the one that was killed."""
    patience = Patience(renew=0.1, expiry=4.0)
    lock(store, elsewhere(time.time() + 3.9))  # by its clock it would seem to be alive for twice as long
    with pytest.raises(OutputBusyError, match="elsewhere"), held_lease(store, print, patience):
        pass
    started = time.monotonic()
    take(store, replace(patience, wait=60.0), [])
    assert 4.0 <= time.monotonic() - started < 30
    assert not store.exists(LOCK)


def test_waiting_for_a_live_run_comes_to_its_end(store: Store) -> None:
    with holding_process(store) as process:
        started = time.monotonic()
        with (
            pytest.raises(OutputBusyError, match=f"process {process.pid}"),
            held_lease(store, print, replace(QUICK, wait=1.5)),
        ):
            pass
        assert time.monotonic() - started >= 1.5


def test_giving_the_output_back_does_not_wait_for_a_store_that_fails(
    faulty: tuple[Location, list[Fault]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.lease._RELEASE_SECONDS", 0.5)
    location, faults = faulty
    store = open_store(location)
    with held_lease(store, print, QUICK):
        faults.append(lambda _: ("503 Slow Down", "SlowDown"))
        time.sleep(0.3)  # the thread that renews is in the middle of its attempts
        started = time.monotonic()
    assert time.monotonic() - started < 5
    faults.clear()


def test_a_lock_that_is_none_of_ours_is_not_overwritten(store: Store) -> None:
    put(store, LOCK, b"mine")
    with (
        pytest.raises(OutputBusyError, match=r"_lock\.json is no lock that this version can read"),
        held_lease(store, print),
    ):
        pass
    assert store.read(LOCK) == b"mine"
