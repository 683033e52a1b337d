"""The Ray cluster that a run is on: joined or started here, and what an encoder gets of it."""

from __future__ import annotations

import logging
import os
import signal

import ray
from ray.exceptions import RayError

from jobs.config import ComputeConfig
from jobs.errors import JobError
from jobs.machine import cores_per_encoder, is_local, refuse_too_few_cores, refuse_too_few_gpus


def connect(address: str | None, num_cpus: int | None) -> None:
    """Join the cluster of an address or of RAY_ADDRESS (which `ray job submit` sets), else start Ray here.

    Raises:
        JobError: There is no such cluster, it does not let us in, or Ray cannot start here.
    """
    if ray.is_initialized():
        return
    local = is_local(address)
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


def choose_device(compute: ComputeConfig) -> str:
    """`auto` is CUDA if the cluster has a GPU now.

    Raises:
        ConfigurationError: This machine lacks the GPUs of an encoder; a cluster may still grow to have them.
    """
    num_gpus = ray.cluster_resources().get("GPU", 0)
    device = compute.device if compute.device != "auto" else "cuda" if num_gpus else "cpu"
    if device == "cuda" and is_local(compute.ray_address):
        refuse_too_few_gpus(compute, num_gpus)
    return device


def node_cores() -> list[int]:
    """Cores of each node that has some."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return [cores for cores in nodes if cores]


def choose_cores(compute: ComputeConfig) -> int:
    """Cores of one encoder that computes on CPUs, each of them a thread with batches of its own.

    Raises:
        ConfigurationError: This machine has fewer than were asked for; a cluster may still grow to have them.
    """
    nodes = node_cores()
    if is_local(compute.ray_address):
        refuse_too_few_cores(compute, sum(nodes))
    return compute.cpus_per_actor or cores_per_encoder(nodes, compute.min_actors)
