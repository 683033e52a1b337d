"""Fragments through Ray Data: read and tokenize -> encode -> write, each a pool of actors.

One Ray row is one fragment, and every operator takes each by itself. A block holds one, or several small ones
(`jobs.blocks`). Ray may retry any of them, on any machine: what is written is created once, so a retry changes nothing.
Dataset operations that bring rows of many files together stand in `jobs.joins`, all others here.

What is in the processes of a stage stands in `jobs.actors`, what ends a run that has none of them in `jobs.watch`.
"""

from __future__ import annotations

import functools
import logging
import math
import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from uuid import uuid4

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError

from encoders.errors import TaskvecError
from jobs.actors import Calibrate, Embed, Encode, Read, Write
from jobs.blocks import blocks_of, fragments_at_once
from jobs.cluster import node_cores
from jobs.config import ComputeConfig
from jobs.corpus import Shard
from jobs.errors import JobError
from jobs.footers import BadShard, Columns, Footer, read_footers
from jobs.machine import room_for
from jobs.parquet import reason_of
from jobs.run_spec import RunSpec, Work
from jobs.storage import Location
from jobs.watch import Board, Need, Watch, nobody_came, sign_seconds

# Beside an encoder on the CPU: tokenizing takes 2 % of its time, writing less.
_CPU_HELPER_CPUS = 0.1
_CPU_SPARED_CPUS = 2 * _CPU_HELPER_CPUS
_THREADS_PER_HELPER = 16
# Beside an accelerator a reader's tokenizer is what needs cores.
_GPU_ENCODER_CPUS = 1.0
_GPU_READER_CPUS = 1.0
_GPU_WRITER_CPUS = 0.5
# Ray makes a writer for each fragment that waits, and encoders that began together end together. A write is native code
# and waiting for storage, so one process does several at once.
_ENCODERS_PER_WRITER = 8
_WRITES_AT_ONCE = 4
_POOL_GROWS_AT = 1.25  # fragments sent to an actor for each that it takes at once
_SHARDS_PER_FOOTER_TASK = 256
_READER, _ENCODER, _WRITER = "a reader", "an encoder", "a writer"
# What iterating a dataset raises of its own; TaskvecErrors of workers come inside of the first.
PIPELINE_ERRORS = (RayError, ExecutionTimeoutError, SystemException)
NOTHING_ENDED = "no task of this run came to an end"


def read_footers_on_cluster(
    location: Location,
    shards: Sequence[Shard],
    wanted: Columns,
    max_fragment_bytes: int,
    compute: ComputeConfig,
) -> list[Footer | BadShard]:
    """Footers of many shards, a slice of them a task, in the order of the shards.

    Raises:
        TaskvecError: What a task raised on purpose.
        JobError: Anything else that a task died of, or none came to an end for too long.
    """
    slices = [
        shards[start : start + _SHARDS_PER_FOOTER_TASK]
        for start in range(0, len(shards), _SHARDS_PER_FOOTER_TASK)
    ]
    task = ray.remote(num_cpus=_CPU_HELPER_CPUS)(read_footers)
    pending = [task.remote(location, piece, wanted, max_fragment_bytes) for piece in slices]
    left, timeout = list(pending), compute.no_progress_timeout_seconds
    found: dict[Any, list[Footer | BadShard]] = {}
    try:
        while left:
            done, left = ray.wait(left, timeout=timeout)
            if not done:
                raise nobody_came(timeout, [Need("reading footers", _CPU_HELPER_CPUS)], NOTHING_ENDED)
            found |= zip(done, ray.get(done), strict=True)  # the first that failed ends the run
        return [footer for piece in pending for footer in found[piece]]
    except RayError as error:
        raise own_cause(error) from error
    finally:
        for task_left in left:
            ray.cancel(task_left)


def embed_fragments(
    run: RunSpec, work: Sequence[Work], compute: ComputeConfig
) -> Generator[dict[str, Any], None, None]:
    """Run the fragments through the three stages; yields what the writer says of each, as they finish.

    Raises:
        TaskvecError: What a worker raised on purpose.
        JobError: Anything else that a worker died of.
    """
    return stream(run, work, compute, (Read, Encode, Write))


def calibrate_fragments(
    run: RunSpec, work: Sequence[Work], compute: ComputeConfig
) -> Iterator[dict[str, Any]]:
    """Run a sample through the same stages, but for the last: yields what the calibrators say, and writes nothing.

    Raises:
        TaskvecError: What a worker raised on purpose.
        JobError: Anything else that a worker died of.
    """
    return stream(run, work, compute, (Read, Encode, Calibrate))


def stream(
    run: RunSpec, work: Sequence[Work], compute: ComputeConfig, actors: tuple[type, type, type]
) -> Generator[dict[str, Any], None, None]:
    """Run the fragments through a reader, an encoder and a last stage; yields what the last one says of each.

    Raises:
        TaskvecError: What a worker raised on purpose.
        JobError: Anything else that a worker died of.
    """
    timeout = compute.no_progress_timeout_seconds
    run = replace(
        run,
        deaths=f"deaths-{uuid4().hex}",
        sign_seconds=sign_seconds(timeout),
        # An encoder that is a process of its own beside readers is given one after the other.
        fragments_at_once=fragments_at_once(work, run.num_threads or 1)
        if compute.tokenize_concurrency is None
        else 1,
    )
    blocks = [pa.table({"work": [piece.to_json() for piece in block]}) for block in blocks_of(work)]
    at_once = run.fragments_at_once
    stages = _stages(compute, run.num_threads, actors, num_blocks=len(blocks), at_once=at_once)
    needs = [Need(stage.worker, stage.num_cpus, stage.num_gpus or 0.0) for stage in stages]
    watch = functools.partial(Watch, Board.of(run), run.deaths, run.most_deadly, timeout, needs)
    configure(-1, watch)
    dataset = ray.data.from_blocks(blocks)  # from_arrow sends a task for each, and waits for it without end
    shipped = pickle.dumps(run)
    for stage in stages:
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
    except PIPELINE_ERRORS as error:
        raise own_cause(error) from error


class _Stage(NamedTuple):
    """One operator: its actors, what each of them takes, and how many there are."""

    worker: str
    actor: type
    num_cpus: float
    num_gpus: float | None
    pool: ActorPoolStrategy
    arguments: tuple[Any, ...] = ()


def _stages(
    compute: ComputeConfig,
    num_threads: int | None,
    actors: tuple[type, type, type],
    *,
    num_blocks: int,
    at_once: int,
) -> list[_Stage]:
    """Encoders by GPUs or cores; helpers by the encoders, but readers beside GPUs by the cores that are there."""

    def pool(least: int, most: int | None, first: int, calls: int = 1) -> ActorPoolStrategy:
        """Never more actors than blocks; between least and most it is Ray that decides."""
        most = min(most or num_blocks, num_blocks)
        return ActorPoolStrategy(
            min_size=min(least, most),
            max_size=most,
            initial_size=min(first, most),
            max_concurrent_calls_per_actor=calls,
            enable_true_multi_threading=calls > 1,
            # Some wait beside those in the actor: else Ray never sees a queue, and the pool never grows.
            max_tasks_in_flight_per_actor=math.floor(calls * _POOL_GROWS_AT) + 1,
        )

    reader, encoder, last = actors
    least, most, readers = compute.min_actors, compute.max_actors, compute.tokenize_concurrency
    if num_threads is None:
        first, writers = (-(-encoders // _ENCODERS_PER_WRITER) for encoders in (least, most or num_blocks))
        return [
            _Stage(_READER, reader, _GPU_READER_CPUS, None, pool(readers or 1, readers, readers or 1)),
            _Stage(_ENCODER, encoder, _GPU_ENCODER_CPUS, compute.gpus_per_actor, pool(least, most, least)),
            _Stage(_WRITER, last, _GPU_WRITER_CPUS, None, pool(first, writers, first, _WRITES_AT_ONCE)),
        ]
    room = max(1, room_for(node_cores(), num_threads))  # an autoscaler may find more
    most = most or max(least, room)
    first = max(least, min(most, room))
    if readers is None:
        # And one that is read; but no more than its share, for what an actor was sent no other one gets.
        share = math.floor(num_blocks / most / _POOL_GROWS_AT)
        whole = pool(least, most, first, min(at_once + 1, max(2, share)))
        return [_Stage(_ENCODER, Embed, num_threads, None, whole, (actors,))]
    # Few, and one writer to begin with: what the helpers leave of a node still holds an encoder.
    writers = -(-most * num_threads // _THREADS_PER_HELPER)
    return [
        _Stage(_READER, reader, _CPU_HELPER_CPUS, None, pool(readers, readers, readers)),
        _Stage(_ENCODER, encoder, num_threads - _CPU_SPARED_CPUS, None, pool(least, most, first)),
        _Stage(_WRITER, last, _CPU_HELPER_CPUS, None, pool(1, writers, 1)),
    ]


def own_cause(error: BaseException) -> TaskvecError:
    """What a worker raised on purpose, out of the layers that Ray puts around it."""
    innermost = error
    layer: BaseException | None = error
    while layer is not None:
        if isinstance(layer, TaskvecError) and not isinstance(layer, RayError):
            return layer
        if not isinstance(layer, SystemException):  # Ray's mark on its own failures, which says nothing
            innermost = layer
        layer = getattr(layer, "cause", None) or layer.__cause__
    return JobError(
        "the pipeline failed, nothing is published, the same command goes on from here: "
        f"{type(innermost).__name__}: {reason_of(innermost)}"
    )


def configure(no_progress_timeout_seconds: int, *callbacks: Callable[[], Watch]) -> None:
    """Settings of all datasets: whole fragments, and silence.

    Args:
        no_progress_timeout_seconds: So long no task may come to an end; -1 is for ever.
        callbacks: Make what is called at each step.
    """
    context = DataContext.get_current()
    context.custom_execution_callback_classes = list(callbacks)
    context.target_max_block_size = None  # a fragment's block is never split
    context.enable_progress_bars = False  # rows and tokens say more than blocks do; the job shows its own
    context.execution_options.preserve_order = False
    context.autoscaling_config.actor_pool_util_upscaling_threshold = _POOL_GROWS_AT
    context.execution_options.verbose_progress = False
    context.print_on_execution_start = False
    # Else each process walks through all of its pages once a second, for a figure that nobody reads.
    context.memory_usage_poll_interval_s = None
    context.execution_no_progress_timeout_s = no_progress_timeout_seconds
    context.raise_original_map_exception = True  # Ray's own wrapper forgets what it wraps on its way here
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the exception says it all, and once
