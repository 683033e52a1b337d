"""Fragments through Ray Data: read and tokenize (CPU tasks) -> encode (actor pool) -> write (CPU tasks).

One Ray row is one fragment, in a block of its own, and every operator takes one at a time. Ray may retry any of
them, on any machine: what is written is created once, so a retry changes nothing. All dataset operations of the
project stand here.

On a machine without accelerator an encoder takes most of a core, and readers and writers what is left of each, so
that on two cores two encoders run and are still fed.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import pickle
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.exceptions import RayError

from encoders.errors import TaskvecError
from jobs.config import ComputeConfig
from jobs.corpus import Shard
from jobs.errors import ConfigurationError, JobError
from jobs.footers import BadShard, Columns, Footer, read_footers
from jobs.run_spec import RunSpec, Work
from jobs.storage import Location

# Shares of a core. An encoder on the CPU computes with one thread; readers and writers mostly wait for storage.
_CPU_ENCODER_CPUS = 0.8
_CPU_HELPER_CPUS = 0.1
_CPU_ENCODERS_PER_READER = 8
# Beside an accelerator a reader's tokenizer is what needs cores.
_GPU_ENCODER_CPUS = 1.0
_GPU_READER_CPUS = 1.0
_GPU_WRITER_CPUS = 0.5
# One in the encoder, one waiting beside it; with a single one Ray never sees a queue and the pool never grows.
_FRAGMENTS_IN_FLIGHT = 2
_SHARDS_PER_FOOTER_TASK = 256


def connect(address: str | None, num_cpus: int | None) -> None:
    """Join the cluster of an address or of RAY_ADDRESS (which `ray job submit` sets), else start Ray here.

    Raises:
        JobError: There is no such cluster, it does not let us in, or Ray cannot start here.
    """
    if ray.is_initialized():
        return
    local = _is_local(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address="local" if local else address,
            num_cpus=num_cpus if local else None,
            include_dashboard=False if local else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except SystemExit:  # Ray handles SIGTERM itself and would leave with exit code 15
        raise KeyboardInterrupt from None
    except (OSError, ValueError, RuntimeError, RayError) as error:
        first_line = str(error).partition("\n")[0].rstrip(".:")
        reason = f"{type(error).__name__}: {first_line}"
        if local:
            raise JobError(
                f"Ray does not start here: {reason}; check that it can write its token below ~/.ray and its files "
                "below /tmp (or RAY_TMPDIR)"
            ) from error
        raise JobError(
            f"cannot join the Ray cluster {address or os.environ['RAY_ADDRESS']}: {reason}; check --ray-address or "
            "RAY_ADDRESS (host:port of the head, not its dashboard's), and on a cluster with tokens set "
            "RAY_AUTH_MODE=token and give its token"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)


def _is_local(address: str | None) -> bool:
    return address == "local" or (address is None and "RAY_ADDRESS" not in os.environ)


def choose_device(compute: ComputeConfig) -> str:
    """`auto` is CUDA if the cluster has a GPU now.

    Raises:
        ConfigurationError: This machine lacks the GPUs of an encoder; a cluster may still grow to have them.
    """
    num_gpus = ray.cluster_resources().get("GPU", 0)
    device = compute.device if compute.device != "auto" else "cuda" if num_gpus else "cpu"
    if device == "cuda" and _is_local(compute.ray_address) and num_gpus < compute.gpus_per_actor:
        raise ConfigurationError(
            f"an encoder was to have {compute.gpus_per_actor:g} GPU (compute.device={compute.device}), and this "
            f"machine has {num_gpus:g}; use compute.device=cpu, or a cluster with GPUs: compute.ray_address"
        )
    return device


def read_footers_on_cluster(
    location: Location, shards: Sequence[Shard], wanted: Columns
) -> list[Footer | BadShard]:
    """Footers of many shards, a slice of them a task, in the order of the shards."""
    slices = [
        shards[start : start + _SHARDS_PER_FOOTER_TASK]
        for start in range(0, len(shards), _SHARDS_PER_FOOTER_TASK)
    ]
    task = ray.remote(num_cpus=_CPU_HELPER_CPUS)(read_footers)
    pending = [task.remote(location, piece, wanted) for piece in slices]
    return [footer for piece in ray.get(pending) for footer in piece]


def embed_fragments(run: RunSpec, work: Sequence[Work], compute: ComputeConfig) -> Iterator[dict[str, Any]]:
    """Run the fragments through the three stages; yields what the writer says of each, as they finish.

    Raises:
        TaskvecError: What a worker raised on purpose.
        JobError: Anything else that a worker died of.
    """
    _configure(compute.no_progress_timeout_seconds)
    on_gpu = run.device == "cuda"
    shipped = pickle.dumps(run)
    dataset = ray.data.from_items(
        [{"work": piece.to_json()} for piece in work], override_num_blocks=len(work)
    )
    dataset = dataset.map_batches(
        _read,
        fn_args=[shipped],
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=_GPU_READER_CPUS if on_gpu else _CPU_HELPER_CPUS,
        compute=TaskPoolStrategy(_num_readers(compute, on_gpu=on_gpu)),
    )
    dataset = dataset.map_batches(
        _Encode,
        fn_constructor_args=[shipped],
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=_GPU_ENCODER_CPUS if on_gpu else _CPU_ENCODER_CPUS,
        num_gpus=compute.gpus_per_actor if on_gpu else None,
        compute=_actor_pool(compute, on_gpu=on_gpu, num_fragments=len(work)),
    )
    dataset = dataset.map_batches(
        _write,
        fn_args=[shipped],
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=_GPU_WRITER_CPUS if on_gpu else _CPU_HELPER_CPUS,
    )
    try:
        yield from dataset.iter_rows()
    except RayError as error:
        raise _own_cause(error) from error


def _actor_pool(compute: ComputeConfig, *, on_gpu: bool, num_fragments: int) -> ActorPoolStrategy:
    """As many encoders as there are cores, or as the cluster's autoscaler finds GPUs; never more than fragments."""
    most = compute.max_actors
    if most is None and not on_gpu:
        most = int(ray.cluster_resources().get("CPU", 1))
    most = max(1, min(most or num_fragments, num_fragments))
    least = min(compute.min_actors, most)
    return ActorPoolStrategy(
        min_size=least,
        max_size=most,
        initial_size=least if on_gpu else most,
        max_tasks_in_flight_per_actor=_FRAGMENTS_IN_FLIGHT,
    )


def _num_readers(compute: ComputeConfig, *, on_gpu: bool) -> int | None:
    """Beside encoders on the CPU few readers will do: tokenizing takes 2 % of the time, and each costs an import."""
    if compute.tokenize_concurrency is not None or on_gpu:
        return compute.tokenize_concurrency
    cores: float = ray.cluster_resources().get("CPU", 1)
    return math.ceil(cores / _CPU_ENCODERS_PER_READER)


def _own_cause(error: BaseException) -> TaskvecError:
    """What a worker raised on purpose, out of the layers that Ray puts around it."""
    layer: BaseException | None = error
    while layer is not None:
        if isinstance(layer, TaskvecError):
            return type(layer)(*layer.args)
        layer = getattr(layer, "cause", None) or layer.__cause__
    return JobError(f"the pipeline failed, nothing is published, the same command goes on from here: {error}")


def _configure(no_progress_timeout_seconds: int) -> None:
    context = DataContext.get_current()
    context.target_max_block_size = None  # a fragment's block is never split
    context.enable_progress_bars = False  # rows and tokens say more than blocks do; the job shows its own
    context.execution_options.preserve_order = False
    context.execution_options.verbose_progress = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = no_progress_timeout_seconds
    logging.getLogger("ray.data").setLevel(logging.ERROR)


# Imported where they run: torch and transformers take seconds, and the writer and the driver need neither.


@functools.lru_cache(maxsize=1)
def _reader(run: bytes) -> Any:
    from jobs.read import Reader

    return Reader(pickle.loads(run))


@functools.lru_cache(maxsize=1)
def _writer(run: bytes) -> Any:
    from jobs.write import Writer

    return Writer(pickle.loads(run))


def _read(row: pa.Table, run: bytes) -> pa.Table:
    return _reader(run)(row)


def _write(row: pa.Table, run: bytes) -> pa.Table:
    return _writer(run)(row)


class _Encode:
    def __init__(self, run: bytes) -> None:
        from jobs.encode import EncodeFragment

        self._stage = EncodeFragment(pickle.loads(run))

    def __call__(self, row: pa.Table) -> pa.Table:
        return self._stage(row)
