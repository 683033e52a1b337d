"""What docs/scheduling.md and the manifests tell others to run is what the commands take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli import parse
from jobs.config import JobConfig
from tests.test_readme import README, ROOT

TEXT = (ROOT / "docs" / "scheduling.md").read_text(encoding="utf-8")
MANIFESTS = {
    f"{document['kind']} in {path.name}": document
    for path in sorted((ROOT / "examples" / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
}
RAY_JOBS = {"RayJob in rayjob.yaml": ("spec",), "RayCronJob in raycronjob.yaml": ("spec", "jobTemplate")}


def at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree[key]
    return tree


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """The job.yaml of the ConfigMap, with names in place of its gaps."""
    text = MANIFESTS["ConfigMap in rayjob.yaml"]["data"]["job.yaml"]
    path = tmp_path / "job.yaml"
    path.write_text(re.sub(r"<(\w+)>", r"\1", text))
    return path


def parsed(command: list[str], configuration: Path) -> JobConfig:
    assert command[:3] == ["python", "-m", "jobs.embed"]
    arguments = [str(configuration) if part.endswith("job.yaml") else part for part in command[3:]]
    config = parse(arguments).config
    assert isinstance(config, JobConfig)
    return config


def test_the_manifests_are_all_here() -> None:
    assert set(MANIFESTS) == {"ConfigMap in rayjob.yaml", "CronJob in cronjob.yaml", *RAY_JOBS}


@pytest.mark.parametrize("name", RAY_JOBS)
def test_the_entrypoint_of_a_ray_job_parses_and_asks_for_gpus(name: str, configuration: Path) -> None:
    spec = at(MANIFESTS[name], *RAY_JOBS[name])
    assert parsed(shlex.split(spec["entrypoint"]), configuration).compute.device == "cuda"


@pytest.mark.parametrize("name", RAY_JOBS)
def test_a_ray_job_runs_the_ray_that_is_installed_and_keeps_its_api_closed(name: str) -> None:
    cluster = at(MANIFESTS[name], *RAY_JOBS[name], "rayClusterSpec")
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "requirements.lock").read_text()
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    pods = [cluster["headGroupSpec"]["template"], *(one["template"] for one in cluster["workerGroupSpecs"])]
    assert len({container["image"] for pod in pods for container in pod["spec"]["containers"]}) == 1
    assert len({pod["spec"]["serviceAccountName"] for pod in pods}) == 1


@pytest.mark.parametrize("name", RAY_JOBS)
def test_the_configuration_is_where_the_driver_looks_for_it(name: str) -> None:
    spec = at(MANIFESTS[name], *RAY_JOBS[name])
    pod = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    check_mount(pod, spec["entrypoint"].split()[3])


def check_mount(pod: Any, path: str) -> None:
    (map_name,) = [one["configMap"]["name"] for one in pod["volumes"] if "configMap" in one]
    assert map_name == MANIFESTS["ConfigMap in rayjob.yaml"]["metadata"]["name"]
    (volume,) = [one["name"] for one in pod["volumes"] if "configMap" in one]
    (folder,) = [
        mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == volume
    ]
    assert path == f"{folder}/job.yaml"


def test_the_nightly_run_is_the_single_run_with_a_schedule() -> None:
    single = dict(MANIFESTS["RayJob in rayjob.yaml"]["spec"])
    nightly = dict(MANIFESTS["RayCronJob in raycronjob.yaml"]["spec"]["jobTemplate"])
    assert nightly.pop("activeDeadlineSeconds") < 86400 == single.pop("activeDeadlineSeconds")
    assert single == nightly


def test_the_job_in_a_pod_parses_and_gets_the_cores_that_it_uses(configuration: Path) -> None:
    job = MANIFESTS["CronJob in cronjob.yaml"]["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    config = parsed(container["command"], configuration)
    assert (config.compute.device, config.compute.ray_address) == ("cpu", "local")
    assert str(config.compute.num_cpus) == container["resources"]["requests"]["cpu"]
    check_mount(pod, container["command"][3])
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert pod["restartPolicy"] == "Never"  # which a podFailurePolicy needs


def test_no_manifest_holds_credentials() -> None:
    for path in (ROOT / "examples" / "kubernetes").glob("*.yaml"):
        assert not re.search(r"AWS_|secretKey|password|token:", path.read_text(), re.IGNORECASE)


def test_every_command_of_the_page_parses(configuration: Path) -> None:
    commands = re.findall(r"python -m (jobs\.embed [^>\n`\"]*)", TEXT)
    assert len(commands) == 3
    for command in commands:
        parsed(["python", "-m", *shlex.split(command)], configuration)


def test_the_alarm_looks_at_fields_that_a_summary_has() -> None:
    (condition,) = re.findall(r"jq -e '([^']*)'", TEXT)
    (listed,) = re.findall(r"one JSON object \((.*?)\)", README, re.DOTALL)
    fields = {name.strip() for name in listed.split(",")}
    used = set(re.findall(r"\.([a-z_]+)", condition))
    assert used == {"rejected", "rows", "deleted", "seconds"}
    assert used <= fields
    assert set(re.findall(r"`(\w+)` \((?:the run|a corpus|more than|encoders)", TEXT)) <= fields


def test_the_snippet_of_airflow_is_python() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    compile(snippet, "docs/scheduling.md", "exec")


def test_every_link_to_a_file_leads_somewhere() -> None:
    links = re.findall(r"\]\((\.\./[^)]+)\)", TEXT)
    assert len(links) == 3
    for link in links:
        assert (ROOT / "docs" / link).resolve().is_file()
    assert "docs/scheduling.md" in README
