"""Whether a run is alive: workers say that they are at work, and where none does for too long the driver ends it.

Capacity that never comes must end a run, and a fragment that takes hours must not. Ray Data's own guard cannot tell
the two apart: it counts fragments that are done, and ended every run with one that takes longer than its timeout. So
who has a fragment in hand says so every few seconds, in the key-value store that each Ray cluster has, and the driver
looks there. A model that is loaded is no sign yet: workers that are killed while they load would give it for ever.

In the same place a worker that was started again asks for the `Deaths` of its run. It is the driver that starts them,
for what a driver owns ends with it, be it killed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from encoders.space import digest
from jobs.deaths import Deaths
from jobs.errors import JobError
from jobs.run_spec import RunSpec

_LOOK_SECONDS = 0.5
_SIGNS_PER_TIMEOUT = 10
_MOST_SIGN_SECONDS = 60.0  # a thousand workers, 17 messages a second


@dataclass(frozen=True)
class Board:
    """A few keys of the cluster's store, the same ones for all runs on an output, so that killed runs do not add up."""

    prefix: str

    @classmethod
    def of(cls, run: RunSpec) -> Board:
        """That of a run."""
        return cls(f"taskvec:{digest(run.output.uri)}:")

    def write(self, name: str, value: str) -> None:
        """For whoever looks next."""
        _internal_kv_put(self.prefix + name, value)

    def read(self, name: str) -> str | None:
        """What was last written."""
        found: bytes | None = _internal_kv_get(self.prefix + name)
        return None if found is None else found.decode()

    def clear(self) -> None:
        """Forget all of it."""
        _internal_kv_del(self.prefix, del_by_prefix=True)


def sign_seconds(timeout_seconds: int) -> float:
    """How often a worker gives a sign, for many of them to fit into a timeout."""
    return min(timeout_seconds / _SIGNS_PER_TIMEOUT, _MOST_SIGN_SECONDS)


class Need(NamedTuple):
    """What a worker takes of a node.

    Attributes:
        worker: For people, "an encoder".
        num_cpus: Cores.
        num_gpus: GPUs, or parts of one.
    """

    worker: str
    num_cpus: float
    num_gpus: float = 0.0

    def fits(self, resources: dict[str, float]) -> bool:
        """Whether a node with nothing else on it has that."""
        return resources.get("CPU", 0) >= self.num_cpus and resources.get("GPU", 0) >= self.num_gpus

    def __str__(self) -> str:
        gpus = f" and {self.num_gpus:g} GPU" if self.num_gpus else ""
        return f"{self.worker} needs {self.num_cpus:g} CPU{gpus}"


def nobody_came(
    timeout_seconds: int, needs: Sequence[Need], waited: str = "nobody was at work on this run"
) -> JobError:
    """The end of a run that waited too long: what is missing, and how to go on."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    missing = [need for need in needs if not any(need.fits(resources) for resources in nodes)]
    if missing:
        cpus, gpus = (max((node.get(name, 0) for node in nodes), default=0) for name in ("CPU", "GPU"))
        why = (
            f"{missing[0]}, and no node of the cluster has that (of {len(nodes)} none has more than {cpus:g} CPU or "
            f"{gpus:g} GPU); bring nodes that have it"
        )
    else:
        has, free = ray.cluster_resources(), ray.available_resources()
        shares = [
            f"{free.get(name, 0):g} of {has.get(name, 0):g} {name}" for name in ("CPU", "GPU") if name in has
        ]
        why = (
            f"the cluster has {', '.join(shares)} free, so either others hold it and should make room, or this run's "
            "own workers do and are not ready: then a model takes longer to load, or they die of it (see Ray's logs)"
        )
    return JobError(
        f"{waited} for {timeout_seconds:,} s (compute.no_progress_timeout_seconds): {why}. "
        "Nothing is published; then run the same command again, it goes on from here"
    )


class Signs:
    """What a worker says to its driver.

    Args:
        run: Of the driver.
    """

    def __init__(self, run: RunSpec) -> None:
        self._board = Board.of(run)
        self._seconds = run.sign_seconds
        self._in_hand = self._taken = self._told = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._tell, daemon=True).start()

    def __enter__(self) -> None:
        """From here on it is at work."""
        with self._lock:
            self._in_hand += 1
            self._taken += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._in_hand -= 1

    def _tell(self) -> None:
        while True:
            if self._in_hand or self._taken != self._told:
                self._told = self._taken
                with contextlib.suppress(Exception):  # the next one may arrive
                    self._board.write("alive", str(time.time_ns()))
            time.sleep(self._seconds)


def deaths_of(run: RunSpec) -> Any:
    """What a run knows of its deaths: the driver starts it when the first worker asks."""
    Board.of(run).write("died", "1")
    while True:
        try:
            return ray.get_actor(run.deaths)
        except ValueError:  # not yet
            time.sleep(_LOOK_SECONDS / 5)


@dataclass
class Watch(ExecutionCallback):  # type: ignore[misc]
    """The driver's side, called by Ray Data at each of its steps, about ten times a second.

    Attributes:
        board: Where the run's workers write.
        deaths: Name of the actor that knows of their deaths.
        most_deadly: Rows that the run may leave out.
        timeout_seconds: So long nobody may be at work.
        needs: Of the workers of each stage.
    """

    board: Board
    deaths: str
    most_deadly: int
    timeout_seconds: int
    needs: Sequence[Need]
    _handle: Any = None
    _sign: str | None = None
    _looked: float = 0.0
    _seen: float = 0.0

    def before_execution_starts(self, executor: Any) -> None:  # noqa: ARG002
        """Nothing on the board is from an earlier run."""
        self.board.clear()
        self._seen = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:  # noqa: ARG002
        """Look for signs, and for workers that were started again.

        Raises:
            JobError: Nobody was at work for too long.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if self._handle is None and self.board.read("died") is not None:
            actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Deaths)
            self._handle = actor.options(name=self.deaths).remote(self.most_deadly)
        sign = self.board.read("alive")
        if sign != self._sign:
            self._sign, self._seen = sign, now
        elif now - self._seen > self.timeout_seconds:
            raise nobody_came(self.timeout_seconds, self.needs)

    def after_execution_succeeds(self, executor: Any) -> None:  # noqa: ARG002
        """Leave nothing behind: an actor ends with its last handle."""
        self.board.clear()
        self._handle = None

    def after_execution_fails(self, executor: Any, error: Exception) -> None:  # noqa: ARG002
        """The same."""
        self.after_execution_succeeds(executor)
