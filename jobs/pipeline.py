"""Fragments through Ray Data: read and tokenize -> encode -> write, each a pool of actors.

One Ray row is one fragment, and every operator takes one at a time. A block holds one, or several small ones
(`jobs.blocks`). Ray may retry any of them, on any machine: what is written is created once, so a retry changes nothing.
Dataset operations that bring rows of many files together stand in `jobs.joins`, all others here.

Readers and writers are actors too, since Ray ends a task's process when it has been idle for a second, and the
next task would import and set up everything anew. On machines without accelerators an encoder takes up to eight
cores, and reads and writes itself: while one fragment is encoded the next is read, and two processes fewer start.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any, NamedTuple
from uuid import uuid4

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from encoders.errors import TaskvecError
from jobs.blocks import blocks_of
from jobs.config import ComputeConfig
from jobs.corpus import Shard
from jobs.deaths import Deaths, survive
from jobs.errors import JobError
from jobs.footers import BadShard, Columns, Footer, read_footers
from jobs.run_spec import RunSpec, Work
from jobs.storage import Location

# Beside an encoder on the CPU: tokenizing takes 2 % of its time, writing less.
_CPU_HELPER_CPUS = 0.1
_CPU_SPARED_CPUS = 2 * _CPU_HELPER_CPUS
_THREADS_PER_HELPER = 16
# Beside an accelerator a reader's tokenizer is what needs cores.
_GPU_ENCODER_CPUS = 1.0
_GPU_READER_CPUS = 1.0
_GPU_WRITER_CPUS = 0.5
# One waits beside those in the actor; without it Ray never sees a queue and the pool never grows.
_FRAGMENTS_WAITING = 1
_POOL_GROWS_AT = 1.25  # fragments sent to an actor for each that it takes at once
_SHARDS_PER_FOOTER_TASK = 256


def read_footers_on_cluster(
    location: Location, shards: Sequence[Shard], wanted: Columns, max_fragment_bytes: int
) -> list[Footer | BadShard]:
    """Footers of many shards, a slice of them a task, in the order of the shards."""
    slices = [
        shards[start : start + _SHARDS_PER_FOOTER_TASK]
        for start in range(0, len(shards), _SHARDS_PER_FOOTER_TASK)
    ]
    task = ray.remote(num_cpus=_CPU_HELPER_CPUS)(read_footers)
    pending = [task.remote(location, piece, wanted, max_fragment_bytes) for piece in slices]
    return [footer for piece in ray.get(pending) for footer in piece]


def embed_fragments(
    run: RunSpec, work: Sequence[Work], compute: ComputeConfig
) -> Generator[dict[str, Any], None, None]:
    """Run the fragments through the three stages; yields what the writer says of each, as they finish.

    Raises:
        TaskvecError: What a worker raised on purpose.
        JobError: Anything else that a worker died of.
    """
    return stream(run, work, compute, (_Read, _Encode, _Write))


def calibrate_fragments(
    run: RunSpec, work: Sequence[Work], compute: ComputeConfig
) -> Iterator[dict[str, Any]]:
    """Run a sample through the same stages, but for the last: yields what the calibrators say, and writes nothing.

    Raises:
        TaskvecError: What a worker raised on purpose.
        JobError: Anything else that a worker died of.
    """
    return stream(run, work, compute, (_Read, _Encode, _Calibrate))


def stream(
    run: RunSpec, work: Sequence[Work], compute: ComputeConfig, actors: tuple[type, type, type]
) -> Generator[dict[str, Any], None, None]:
    """Run the fragments through a reader, an encoder and a last stage; yields what the last one says of each.

    Raises:
        TaskvecError: What a worker raised on purpose.
        JobError: Anything else that a worker died of.
    """
    configure(compute.no_progress_timeout_seconds)
    deaths = f"deaths-{uuid4().hex}"
    shipped = pickle.dumps(replace(run, deaths=deaths))
    blocks = [pa.table({"work": [piece.to_json() for piece in block]}) for block in blocks_of(work)]
    dataset = ray.data.from_arrow(blocks)
    for stage in _stages(compute, run.num_threads, actors, num_blocks=len(blocks)):
        dataset = dataset.map_batches(
            stage.actor,
            fn_constructor_args=[shipped, *stage.arguments],
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=stage.num_cpus,
            num_gpus=stage.num_gpus,
            compute=stage.pool,
        )
    try:
        yield from dataset.iter_rows()
    except RayError as error:
        raise own_cause(error) from error
    finally:
        with contextlib.suppress(ValueError):  # nobody needed it
            ray.kill(ray.get_actor(deaths))


class _Stage(NamedTuple):
    """One operator: its actors, what each of them takes, and how many there are."""

    actor: type
    num_cpus: float
    num_gpus: float | None
    pool: ActorPoolStrategy
    arguments: tuple[Any, ...] = ()


def _stages(
    compute: ComputeConfig, num_threads: int | None, actors: tuple[type, type, type], *, num_blocks: int
) -> list[_Stage]:
    """Encoders by GPUs or cores; helpers as many as keep up with the GPUs, or few beside encoders on the CPU."""

    def pool(least: int, most: int | None, first: int, at_once: int = 1) -> ActorPoolStrategy:
        """Never more actors than blocks; between least and most it is Ray that decides."""
        most = min(most or num_blocks, num_blocks)
        return ActorPoolStrategy(
            min_size=min(least, most),
            max_size=most,
            initial_size=min(first, most),
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=at_once > 1,
            max_tasks_in_flight_per_actor=at_once + _FRAGMENTS_WAITING,
        )

    reader, encoder, last = actors
    least, most, readers = compute.min_actors, compute.max_actors, compute.tokenize_concurrency
    if num_threads is None:
        return [
            _Stage(reader, _GPU_READER_CPUS, None, pool(readers or 1, readers, readers or 1)),
            _Stage(encoder, _GPU_ENCODER_CPUS, compute.gpus_per_actor, pool(least, most, least)),
            _Stage(last, _GPU_WRITER_CPUS, None, pool(1, None, 1)),
        ]
    room = max(1, int(ray.cluster_resources().get("CPU", 1)) // num_threads)  # an autoscaler may find more
    most = most or max(least, room)
    first = max(least, min(most, room))
    if readers is None:
        whole = pool(least, most, first, at_once=2)
        return [_Stage(_Embed, num_threads, None, whole, (actors,))]
    # Few, and one writer to begin with: what the helpers leave of a node still holds an encoder.
    writers = -(-most * num_threads // _THREADS_PER_HELPER)
    return [
        _Stage(reader, _CPU_HELPER_CPUS, None, pool(readers, readers, readers)),
        _Stage(encoder, num_threads - _CPU_SPARED_CPUS, None, pool(least, most, first)),
        _Stage(last, _CPU_HELPER_CPUS, None, pool(1, writers, 1)),
    ]


def own_cause(error: BaseException) -> TaskvecError:
    """What a worker raised on purpose, out of the layers that Ray puts around it."""
    layer: BaseException | None = error
    while layer is not None:
        if isinstance(layer, TaskvecError) and not isinstance(layer, RayError):
            return layer
        layer = getattr(layer, "cause", None) or layer.__cause__
    return JobError(f"the pipeline failed, nothing is published, the same command goes on from here: {error}")


def configure(no_progress_timeout_seconds: int) -> None:
    """Settings of all datasets: whole fragments, and silence."""
    context = DataContext.get_current()
    context.target_max_block_size = None  # a fragment's block is never split
    context.enable_progress_bars = False  # rows and tokens say more than blocks do; the job shows its own
    context.execution_options.preserve_order = False
    context.autoscaling_config.actor_pool_util_upscaling_threshold = _POOL_GROWS_AT
    context.execution_options.verbose_progress = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = no_progress_timeout_seconds
    context.raise_original_map_exception = True  # Ray's own wrapper forgets what it wraps on its way here
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the exception says it all, and once


class _Actor:
    """One stage in a process of its own; if Ray has started it again, it says before each step what it has in hand.

    What goes wrong while it loads is told with the first row: of a constructor's error Ray keeps the text alone, and
    starts the actor again.

    Attributes:
        doing: What it does to a fragment; Ray gives the class another name.
        restarted: Whether one before it has died.
    """

    doing: str

    def __init__(self, run: bytes) -> None:
        spec: RunSpec = pickle.loads(run)
        self.restarted: bool = ray.get_runtime_context().was_current_actor_reconstructed
        self._deaths = _deaths_of(spec) if self.restarted else None
        self._failure: TaskvecError | None = None
        try:
            self._stage = self._load(spec)
        except TaskvecError as error:
            self._failure = error

    def __call__(self, row: pa.Table) -> pa.Table:
        if self._failure is not None:
            raise self._failure
        if self._deaths is None:
            return self._stage(row)
        return survive(self._stage, self.doing, row, self._ask)

    def _ask(self, method: str, *arguments: Any) -> Any:
        return ray.get(getattr(self._deaths, method).remote(*arguments))

    def _load(self, run: RunSpec) -> Callable[[pa.Table], pa.Table]:
        """Imports where it runs: torch and transformers take seconds, and the writer and the driver need neither."""
        raise NotImplementedError


def _deaths_of(run: RunSpec) -> Any:
    """What a run knows of its deaths; the process starts when a worker has died, for nobody needs it before."""
    deaths = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Deaths)
    return deaths.options(name=run.deaths, get_if_exists=True, lifetime="detached").remote(run.most_deadly)


class _Read(_Actor):
    doing = "read and tokenized"

    def _load(self, run: RunSpec) -> Callable[[pa.Table], pa.Table]:
        from jobs.read import Reader

        return Reader(run)


class _Encode(_Actor):
    doing = "encoded"

    def _load(self, run: RunSpec) -> Callable[[pa.Table], pa.Table]:
        from jobs.encode import EncodeFragment

        return EncodeFragment(run)


class _Write(_Actor):
    doing = "written"

    def _load(self, run: RunSpec) -> Callable[[pa.Table], pa.Table]:
        from jobs.write import Writer

        return Writer(run)


class _Calibrate(_Actor):
    doing = "calibrated on"

    def _load(self, run: RunSpec) -> Callable[[pa.Table], pa.Table]:
        from jobs.ranges import Calibrator

        return Calibrator(run)


class _Embed:
    """All stages in one process, a fragment at a time in each: while one is encoded, the next is read.

    Where an earlier process died there is one at a time in all of them, so that no other fragment is blamed.
    """

    def __init__(self, run: bytes, actors: Sequence[type[_Actor]]) -> None:
        alone = Lock()
        stages = [actor(run) for actor in actors]
        self._stages = [(alone if stage.restarted else Lock(), stage) for stage in stages]

    def __call__(self, row: pa.Table) -> pa.Table:
        for lock, stage in self._stages:
            with lock:
                row = stage(row)
        return row
