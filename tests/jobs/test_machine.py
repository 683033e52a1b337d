"""What a machine has no room for is refused before Ray starts; encoders share the cores that there are."""

from __future__ import annotations

import os
from typing import Any

import pytest

from jobs.errors import ConfigurationError
from jobs.machine import check_machine, cores_per_encoder
from jobs.sections import ComputeConfig


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def compute(**fields: Any) -> ComputeConfig:
    return ComputeConfig(ray_address="local", **fields)


@pytest.mark.parametrize(
    ("nodes", "num_encoders", "cores"),
    [
        ([2], 1, 2),
        ([2], 2, 1),
        ([8], 3, 2),
        ([9], 1, 4),
        ([12], 1, 6),
        ([15], 1, 7),
        ([12, 12], 3, 6),
        ([64], 1, 8),
        ([64], 9, 7),
        ([4, 2], 1, 2),
        ([4, 2], 4, 1),
        ([3, 3], 3, 1),  # two cores each would leave room for two
        ([3, 3], 2, 3),
        ([2], 5, 1),  # a cluster that will grow
        ([], 1, 1),
    ],
)
def test_encoders_get_as_many_cores_as_let_all_of_them_run(
    nodes: list[int], num_encoders: int, cores: int
) -> None:
    assert cores_per_encoder(nodes, num_encoders) == cores


@pytest.mark.parametrize(
    "fields",
    [
        {"num_cpus": 2},
        {"num_cpus": 2, "min_actors": 2},
        {"num_cpus": 4, "min_actors": 2, "cpus_per_actor": 2},
        {"num_cpus": 2, "max_actors": 5},
        {"cpus_per_actor": os.cpu_count()},
    ],
)
def test_what_fits_is_let_through(fields: dict[str, Any]) -> None:
    check_machine(compute(**fields))


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"min_actors": 3}, r"3 encoders \(compute\.min_actors\) were to have 1 cores each, and Ray has 2"),
        ({"min_actors": 2, "cpus_per_actor": 2}, r"lower compute\.min_actors or compute\.cpus_per_actor"),
        ({"cpus_per_actor": 3}, r"3 cores \(compute\.cpus_per_actor\), and Ray has 2 here"),
    ],
)
def test_more_than_the_cores_is_refused(device: str, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        check_machine(compute(device=device, num_cpus=2, **fields))


def test_more_than_the_gpus_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"an encoder was to have 1 GPU .*this machine has 0"):
        check_machine(compute(device="cuda"))
    with pytest.raises(ConfigurationError, match=r"2 encoders \(compute\.min_actors\).* 0\.5 GPU each"):
        check_machine(compute(device="cuda", min_actors=2, gpus_per_actor=0.5))


def test_of_a_cluster_nothing_is_said_for_it_may_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: dict[str, Any] = {"device": "cuda", "min_actors": 1000}
    check_machine(ComputeConfig(ray_address="host:6379", **wanted))
    monkeypatch.setenv("RAY_ADDRESS", "host:6379")  # as `ray job submit` does
    check_machine(ComputeConfig(**wanted))
