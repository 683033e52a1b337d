"""What this machine can give to encoders, known before Ray starts on it.

A cluster may grow, so nothing is said of one; a single machine does not, and an encoder that it has no room for would
wait forever.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from jobs.errors import ConfigurationError
from jobs.sections import ComputeConfig

_MOST_CORES_PER_ENCODER = 8  # its threads share Python's lock


def is_local(address: str | None) -> bool:
    """Whether Ray is to start here, rather than be joined."""
    return address == "local" or (address is None and "RAY_ADDRESS" not in os.environ)


def check_machine(compute: ComputeConfig) -> None:
    """Refuse encoders that there is no room for here. Looks for GPUs, which takes seconds, only where it matters.

    Raises:
        ConfigurationError: This machine lacks the cores or GPUs of the encoders that were asked for.
    """
    if not is_local(compute.ray_address):
        return
    if compute.device == "cuda":
        refuse_too_few_gpus(compute, _num_gpus())
        return
    try:
        refuse_too_few_cores(compute, compute.num_cpus or os.cpu_count() or 1)
    except ConfigurationError:
        if compute.device == "cpu" or not _num_gpus():
            raise


def refuse_too_few_gpus(compute: ComputeConfig, num_gpus: float) -> None:
    """Refuse more encoders on GPUs than a machine has GPUs for."""
    each, count = f"{compute.gpus_per_actor:g} GPU", compute.min_actors
    if num_gpus < compute.gpus_per_actor * count:
        wanted = (
            f"an encoder was to have {each}"
            if count == 1
            else f"{count} encoders (compute.min_actors) were to have {each} each"
        )
        raise ConfigurationError(
            f"{wanted} (compute.device={compute.device}), and this machine has {num_gpus:g}; use compute.device=cpu, "
            "or a cluster with GPUs: compute.ray_address"
        )


def refuse_too_few_cores(compute: ComputeConfig, num_cores: int) -> None:
    """Refuse more encoders on the CPU, or larger ones, than a machine has cores for."""
    wanted = compute.cpus_per_actor or 1
    if wanted > num_cores:
        raise ConfigurationError(
            f"an encoder was to have {wanted} cores (compute.cpus_per_actor), and Ray has {num_cores} here; give fewer"
        )
    if wanted * compute.min_actors > num_cores:
        raise ConfigurationError(
            f"{compute.min_actors} encoders (compute.min_actors) were to have {wanted} cores each, and Ray has "
            f"{num_cores} here; lower compute.min_actors or compute.cpus_per_actor"
        )


def cores_per_encoder(nodes: Sequence[int], num_encoders: int) -> int:
    """Cores of one encoder where nobody says: an equal share of the smallest node's, fewer where so many must fit.

    Args:
        nodes: Cores of each node.
        num_encoders: That must have room at the same time.
    """
    smallest = min(nodes, default=1)
    most = smallest // math.ceil(smallest / _MOST_CORES_PER_ENCODER)
    return next((cores for cores in range(most, 0, -1) if room_for(nodes, cores) >= num_encoders), 1)


def room_for(nodes: Sequence[int], cores: int) -> int:
    """Encoders of so many cores that nodes have room for; what two nodes have left over makes none."""
    return sum(node // cores for node in nodes)


def _num_gpus() -> int:
    from encoders.devices import num_gpus  # imports torch

    return num_gpus()
