"""The cluster file: Ray accepts it, and what its comments promise holds, by Ray's own scheduler where that decides."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(TEXT)
    return loaded


def leaves(node: Any) -> Iterator[str]:
    """Every key and every value of a tree, as text."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key)
            yield from leaves(value)
    elif isinstance(node, list):
        for item in node:
            yield from leaves(item)
    else:
        yield str(node)


def launches(cluster: Mapping[str, Any], num_gpus: int) -> dict[str, int]:
    """What Ray's scheduler launches on an empty cluster for so many requests of one GPU."""
    configs = {
        name: NodeTypeConfig(
            name=name,
            min_worker_nodes=node["min_workers"],
            max_worker_nodes=node["max_workers"],
            resources=node["resources"],
            priority=node.get("priority", 0),
        )
        for name, node in cluster["available_node_types"].items()
    }
    demand = [ResourceRequestUtil.make({"CPU": 1, "GPU": 1})] * num_gpus
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=configs,
        max_num_nodes=cluster["max_workers"],
        resource_requests=ResourceRequestUtil.group_by_count(demand),
    )
    reply = ResourceDemandScheduler(lambda _: None).schedule(request)
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def pins() -> dict[str, str]:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", lock, re.MULTILINE))


def test_the_file_is_what_rays_schema_allows(cluster: dict[str, Any]) -> None:
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(cluster, json.loads(schema.read_text(encoding="utf-8")))


def test_the_head_offers_neither_gpu_nor_cpu_and_is_never_a_worker(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert head["min_workers"] == head["max_workers"] == 0
    assert not re.match(r"[gp]\d", head["node_config"]["InstanceType"])


def test_no_worker_runs_until_it_is_needed_and_never_more_than_eight(cluster: dict[str, Any]) -> None:
    workers = {name: node for name, node in cluster["available_node_types"].items() if name != "head"}
    assert {(node["min_workers"], node["max_workers"]) for node in workers.values()} == {(0, 8)}
    assert cluster["max_workers"] == 8
    assert launches(cluster, 0) == {}
    assert sum(launches(cluster, 20).values()) == 8


def test_the_two_kinds_of_workers_differ_in_the_market_and_in_nothing_that_ray_scores(
    cluster: dict[str, Any],
) -> None:
    spot, on_demand = (cluster["available_node_types"][name] for name in ("gpu-spot", "gpu-on-demand"))
    assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot["node_config"] == on_demand["node_config"]
    assert spot["resources"] == on_demand["resources"]


def test_ray_asks_for_spot_first_and_for_on_demand_once_the_priorities_are_exchanged(
    cluster: dict[str, Any],
) -> None:
    assert launches(cluster, 3) == {"gpu-spot": 3}
    types = cluster["available_node_types"]
    types["gpu-spot"]["priority"], types["gpu-on-demand"]["priority"] = 0, 10
    assert launches(cluster, 3) == {"gpu-on-demand": 3}


def test_ray_does_not_turn_away_from_a_type_whose_launch_failed() -> None:
    """What the comment on the fallback rests on; once a newer Ray breaks this, the comment can go."""
    monitor = CloudResourceMonitor()
    failed = InstanceUpdateEvent(new_instance_status=Instance.ALLOCATION_FAILED, instance_type="gpu-spot")
    monitor.notify([failed])
    assert monitor.get_resource_availabilities() == monitor.get_recoverable_resource_availabilities() == {}


def test_access_keys_stand_nowhere_and_every_machine_has_an_instance_profile(cluster: dict[str, Any]) -> None:
    forbidden = re.compile(
        r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|access_?key|secret|aws_credentials|session_?token", re.I
    )
    assert not [leaf for leaf in leaves(cluster) if forbidden.search(leaf)]
    profiles = {
        name: node["node_config"]["IamInstanceProfile"]
        for name, node in cluster["available_node_types"].items()
    }
    worker = {"Name": "taskvec-worker"}
    assert profiles == {"head": {"Name": "taskvec-head"}, "gpu-spot": worker, "gpu-on-demand": worker}


def test_the_dashboard_listens_on_the_heads_loopback_only(cluster: dict[str, Any]) -> None:
    (start,) = (command for command in cluster["head_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in shlex.split(start)
    assert not [leaf for leaf in leaves(cluster) if "0.0.0.0" in leaf]


def test_ray_makes_no_security_group_of_its_own(cluster: dict[str, Any]) -> None:
    assert all(node["node_config"]["SecurityGroupIds"] for node in cluster["available_node_types"].values())
    assert "security_group" not in cluster["provider"]


def test_every_machine_gets_the_token_and_demands_it(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in cluster["setup_commands"]
    assert any("export RAY_AUTH_MODE=token" in command for command in cluster["initialization_commands"])
    assert not any("initialization_commands" in node for node in cluster["available_node_types"].values())


def test_versions_are_those_of_the_lock(cluster: dict[str, Any]) -> None:
    named = re.findall(r"\bray==([\d.]+\d)", TEXT)
    assert named == [pins()["ray"]] == [ray.__version__]
    assert "boto3" in pins()
    for command in (*cluster["setup_commands"], *cluster["head_setup_commands"]):
        if "pip install" in command:
            assert "--constraint ~/taskvec/requirements.lock" in command


def test_python_is_one_that_the_project_supports(cluster: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    named = {
        tuple(map(int, text.split(".")))
        for text in re.findall(r"python(3\.\d+)", str(cluster["setup_commands"]))
    }
    assert named == {(3, 12)}
    assert min(named) >= lowest


def test_what_is_copied_to_the_machines_exists(cluster: dict[str, Any]) -> None:
    local = {source for source in cluster["file_mounts"].values() if not source.startswith("~")}
    assert local == {"pyproject.toml", "requirements.lock"}
    assert all((ROOT / source).is_file() for source in local)


def test_a_submitted_working_directory_leaves_out_what_can_be_made_again() -> None:
    (excluded,) = get_excludes_from_ignore_files(ROOT, include_gitignore=False)
    left_out = [
        ".git/HEAD",
        ".venv/bin/python",
        "demo/corpus/docs.parquet",
        "corpus/a.parquet",
        "vectors/task=retrieval/role=document/part-0.parquet",
        "jobs/__pycache__/embed.cpython-312.pyc",
    ]
    assert all(excluded(ROOT / path) for path in left_out)
    assert not [
        path
        for path in ("jobs/embed.py", "jobs/corpus.py", "encoders/encoder.py", "examples/demo.yaml")
        if excluded(ROOT / path)
    ]
