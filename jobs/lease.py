"""One run at a time on an output: who has it says so in OUT/_lock.json, and says it anew as long as it lives.

The lease is taken before stock is taken and given back at the end, whatever the end is. Every change of it is a swap,
so of two runs that want it one gets it. A second run refuses as long as there are signs of life, or waits for so long
as it is told to, and takes over

    at once                            if the holder was a process of this very machine and is gone
    after EXPIRY_SECONDS               without a sign of life, by the clock of this machine, and
    after two intervals of watching    in which no sign came, by no clock but its own
    after EXPIRY_SECONDS of watching   whatever the clocks say, if it waits that long

so clocks that differ delay a takeover and never cause one. A run that has lost its lease (it was suspended, or cut off
from the store) stops before it commits or removes anything, for it looks each time. Between that look and the deed it
may be suspended too, and no lease can help there: a late commit finds another manifest than it took stock of, and
loses; parts are created once; what is left, where a removal is late, or a commit and nobody else had any, `jobs.sweep`
says; and a late giving back makes the next holder stop as if it had lost its lease.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from jobs.errors import OutputBusyError, StorageError
from jobs.store import Store

LOCK = "_lock.json"
# Four signs fit into the time after which a run counts as dead: a store may fail for a minute and a half.
RENEW_SECONDS = 30.0
EXPIRY_SECONDS = 120.0
# For the last two requests of a run, which may have been told to end because the store does not answer.
_RELEASE_SECONDS = 10.0

_LOG = logging.getLogger(__name__)


class Holder(BaseModel):
    """Who has an output.

    Attributes:
        run: Random, so that no two runs are the same.
        host: For people.
        pid: On that host.
        machine: The running kernel and its process numbers; None where there is no /proc.
        born: When the process started, in the kernel's ticks, for a pid is used again.
        since: POSIX seconds.
        seen: The last sign of life, POSIX seconds, by the holder's clock.
    """

    model_config = ConfigDict(frozen=True)

    run: str
    host: str
    pid: PositiveInt
    machine: str | None
    born: int | None
    since: float
    seen: float

    @classmethod
    def this_process(cls) -> Holder:
        """A new run here and now."""
        now = time.time()
        return cls(
            run=uuid4().hex,
            host=platform.node(),
            pid=os.getpid(),
            machine=_machine(),
            born=_born(os.getpid()),
            since=now,
            seen=now,
        )

    @property
    def is_known_dead(self) -> bool:
        """Whether it was a process of this machine, and is gone."""
        return self.machine is not None and self.machine == _machine() and _is_gone(self.pid, self.born)

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).isoformat(timespec="seconds")
        return f"process {self.pid} on {self.host}, since {since}"


def _machine() -> str | None:
    """This boot of this kernel, and the namespace that gives pids: containers of one name have different ones."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _born(pid: int) -> int | None:
    """Start time of a process; None if nothing says so, 0 if it is dead and its parent has not noticed yet."""
    try:
        # The name in brackets may hold anything; behind it stand the state and then numbers.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if fields[0] in "ZX" else int(fields[19])


def _is_gone(pid: int, born: int | None) -> bool:
    now = _born(pid)
    if now is not None:
        return now != born
    try:
        os.kill(pid, 0)  # sends nothing; /proc may hide what is another user's
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


@dataclass(frozen=True)
class Patience:
    """How a run holds an output, and waits for one; in seconds.

    Attributes:
        renew: Between two signs of life.
        expiry: Without one, after which a run counts as dead.
        wait: For another run's end or death, before this one is refused.
    """

    renew: float = RENEW_SECONDS
    expiry: float = EXPIRY_SECONDS
    wait: float = 0.0


class Lease:
    """An output that this process has, renewed by a thread."""

    def __init__(self, store: Store, holder: Holder, version: str, patience: Patience) -> None:
        self._store = store
        self._holder = holder
        self._version: str | None = version
        self._patience = patience
        self._turn = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Cheap, for every step of a run.

        Raises:
            OutputBusyError: Another run has taken the output over.
        """
        if self._version is None:
            raise OutputBusyError(
                f"another run has taken over {self._store.location.uri}, since this one ({self._holder}) gave no sign "
                f"of life for more than {self._patience.expiry:g} seconds; nothing is published, and the same command "
                "goes on from here once the other one is done"
            )

    def confirm(self) -> None:
        """Renew now, before something that only the holder may do.

        Raises:
            OutputBusyError: Another run has taken the output over.
            StorageError: The store does not answer.
        """
        with self._turn:
            self.check()
            self._holder = self._holder.model_copy(update={"seen": time.time()})
            content = self._holder.model_dump_json().encode()
            version = self._store.swap(LOCK, content, self._version)
            if version is None:  # perhaps an earlier sign of ours arrived, and the answer to it did not
                found, expected = _find(self._store)
                if found is not None and found.run == self._holder.run:
                    version = self._store.swap(LOCK, content, expected)
            self._version = version
        self.check()

    def release(self) -> None:
        """Give the output back; a lease that was lost meanwhile is left to its new holder.

        A store that does not answer is not waited for: then the lease stays, and expires.
        """
        self._done.set()
        giving_back = threading.Thread(target=self._give_back, name="lease", daemon=True)
        giving_back.start()
        giving_back.join(_RELEASE_SECONDS)

    def _give_back(self) -> None:
        self._thread.join()
        try:
            self.confirm()  # what is removed now is ours, and fresh
            self._store.delete([LOCK])
        except (OutputBusyError, StorageError) as error:
            _LOG.debug("the lease stays: %s", error)  # and expires; the run's own end is what counts

    def _keep_renewing(self) -> None:
        while not self._done.wait(self._patience.renew):
            try:
                self.confirm()
            except OutputBusyError:
                return  # the run's next check says so
            except StorageError as error:
                _LOG.debug("the lease could not be renewed: %s", error)  # the next turn may


@contextmanager
def held_lease(store: Store, say: Callable[[str], None], patience: Patience | None = None) -> Iterator[Lease]:
    """Have an output from here to the end of the block.

    Args:
        store: The output.
        say: Told why it takes time, where it does.
        patience: None: as the constants say, and no waiting.

    Raises:
        OutputBusyError: Another run has it.
        StorageError: The store failed.
    """
    lease = _taken(store, say, patience or Patience())
    try:
        yield lease
    finally:
        lease.release()


def _taken(store: Store, say: Callable[[str], None], patience: Patience) -> Lease:
    found, version = _find(store)
    started = silent_since = time.monotonic()
    is_told = False
    while True:
        now = time.monotonic()
        if found is None or found.is_known_dead or _is_silent(found, now - silent_since, patience):
            holder = Holder.this_process()
            if (taken := store.swap(LOCK, holder.model_dump_json().encode(), version)) is not None:
                return Lease(store, holder, taken, patience)
            may_be_dead = False  # another one was faster
        else:
            may_be_dead = silent_since == started and _seems_dead(found, patience)
        if not may_be_dead and now - started >= patience.wait:
            raise _busy(store, _find(store)[0], patience)
        if not is_told:
            is_told = True
            say(_told(found, may_be_dead=may_be_dead, patience=patience))
        time.sleep(min(1.0, patience.renew / 4))
        found, seen = _find(store)
        if seen != version:
            version, silent_since = seen, time.monotonic()


def _seems_dead(found: Holder, patience: Patience) -> bool:
    """By its clock and ours."""
    return abs(time.time() - found.seen) > patience.expiry


def _is_silent(found: Holder, seconds: float, patience: Patience) -> bool:
    """Whether a run that has given no sign of life while we watched is dead."""
    return seconds >= (2 * patience.renew if _seems_dead(found, patience) else patience.expiry)


def _told(found: Holder | None, *, may_be_dead: bool, patience: Patience) -> str:
    if may_be_dead:
        return f"The output was left by another run ({found}); watching for {2 * patience.renew:g} s whether it is dead"
    return f"Waiting up to {patience.wait:g} s for another run ({found or 'it has just begun'}) to end"


def _find(store: Store) -> tuple[Holder | None, str | None]:
    """Who has an output, and the version of the file that says so."""
    try:
        content, version = store.read_version(LOCK)
    except FileNotFoundError:
        return None, None
    try:
        return Holder.model_validate_json(content), version
    except ValidationError as error:
        raise OutputBusyError(
            f"{store.location.uri}/{LOCK} is no lock that this version can read; if no run is using the output, remove "
            "that file"
        ) from error


def _busy(store: Store, holder: Holder | None, patience: Patience) -> OutputBusyError:
    who = "another run" if holder is None else f"another run ({holder}"
    if holder is not None:
        who += f", last sign of life {max(0.0, time.time() - holder.seen):.0f} s ago)"
    return OutputBusyError(
        f"{who} has the output {store.location.uri}; wait for its end, or stop it, and run the same command again. If "
        f"it is dead, that works {patience.expiry:g} s after its last sign of life"
    )
