"""The processes that a run's stages live in, as Ray Data makes them: one for each stage, or one for all.

Readers and writers are actors as the encoders are, since Ray ends a task's process when it has been idle for a second,
and the next task would import and set up everything anew. On machines without accelerators an encoder takes up to eight
cores, and reads and writes itself: while fragments are encoded the next is read, and two processes fewer start.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from threading import Lock
from typing import Any

import pyarrow as pa
import ray

from encoders.errors import TaskvecError
from jobs.deaths import survive
from jobs.run_spec import RunSpec
from jobs.watch import Signs, deaths_of


class Actor:
    """One stage in a process of its own; if Ray has started it again, it says before each step what it has in hand.

    What goes wrong while it loads is told with the first row: of a constructor's error Ray keeps the text alone, and
    starts the actor again.

    Attributes:
        doing: What it does to a fragment; Ray gives the class another name.
        one_at_a_time: Whether it has a fragment in hand until it is done; else it sees to that itself.
        restarted: Whether one before it has died.
    """

    doing: str
    one_at_a_time = True

    def __init__(self, run: bytes) -> None:
        spec: RunSpec = pickle.loads(run)
        self.restarted: bool = ray.get_runtime_context().was_current_actor_reconstructed
        self._deaths = deaths_of(spec) if self.restarted else None
        self._signs = Signs(spec)
        self._failure: TaskvecError | None = None
        self._alone = Lock()
        try:
            with _quick_imports():
                self._stage = self._load(spec)
        except TaskvecError as error:
            self._failure = error

    def __call__(self, row: pa.Table) -> pa.Table:
        """Do one fragment."""
        if self._failure is not None:
            raise self._failure
        with self._signs:
            if self._deaths is None:
                return self._stage(row)
            with self._alone:  # so that no other fragment is blamed
                return survive(self._stage, self.doing, row, self._ask)

    def _ask(self, method: str, *arguments: Any) -> Any:
        return ray.get(getattr(self._deaths, method).remote(*arguments))

    def _load(self, run: RunSpec) -> Callable[[pa.Table], pa.Table]:
        """Imports where it runs: torch and transformers take seconds, and the writer and the driver need neither."""
        raise NotImplementedError


class Read(Actor):
    """The first stage."""

    doing = "read and tokenized"

    def _load(self, run: RunSpec) -> Callable[[pa.Table], pa.Table]:
        _limit_tokenizer_threads()
        from jobs.read import Reader

        return Reader(run)


class Encode(Actor):
    """The second."""

    doing = "encoded"
    one_at_a_time = False

    def _load(self, run: RunSpec) -> Callable[[pa.Table], pa.Table]:
        from jobs.encode import EncodeFragment

        return EncodeFragment(run)


class Write(Actor):
    """The last."""

    doing = "written"

    def _load(self, run: RunSpec) -> Callable[[pa.Table], pa.Table]:
        from jobs.write import Writer

        return Writer(run)


class Calibrate(Actor):
    """The last of a sample, in the place of `Write`."""

    doing = "calibrated on"

    def _load(self, run: RunSpec) -> Callable[[pa.Table], pa.Table]:
        from jobs.ranges import Calibrator

        return Calibrator(run)


def _limit_tokenizer_threads() -> None:
    """As many as the actor has cores, which Ray says for OpenMP; else there is one for each core of the machine.

    Only before the first of them is made. What the user has set stays.
    """
    granted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # a list is one number a level
    if granted.isdecimal():
        os.environ.setdefault("RAYON_NUM_THREADS", str(max(1, int(granted))))


@contextlib.contextmanager
def _quick_imports() -> Iterator[None]:
    """Load without the garbage collector: it looks through all that imports make, again and again, and finds little.

    torch's and transformers' imports take a quarter less (benchmarks/LOG.md). What is there then stays to the end, so
    the collector leaves it out from then on.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


class Embed:
    """All stages in one process: while fragments are encoded, the next one is read.

    Where an earlier process died there is one at a time in all of them, so that no other fragment is blamed.
    """

    def __init__(self, run: bytes, actors: Sequence[type[Actor]]) -> None:
        alone = Lock()
        stages = [actor(run) for actor in actors]
        free: AbstractContextManager[Any] = contextlib.nullcontext()
        self._stages = [
            (alone if stage.restarted else Lock() if stage.one_at_a_time else free, stage) for stage in stages
        ]

    def __call__(self, row: pa.Table) -> pa.Table:
        """Do one fragment, stage by stage."""
        for lock, stage in self._stages:
            with lock:
                row = stage(row)
        return row
