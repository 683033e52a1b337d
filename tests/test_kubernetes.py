"""The manifests of examples/kubernetes are what Kubernetes and KubeRay take: no unknown field, no wrong type.

Kubernetes' own schemas come with kubernetes-validate. KubeRay's are a megabyte a kind, and no package brings them, so
those of its fields that a run may need are written out below.

Source: github.com/ray-project/kuberay v1.7.0 (59d663aeec13760646da3db9c1cf8cfe883e30b7),
helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml and ray.io_raycronjobs.yaml, Apache-2.0. In v1.6.2 a RayCronJob has
no `timeZone`; all else is the same there.
"""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.test_scheduling import MANIFESTS

OLDEST, NEWEST = "1.31", kubernetes_validate.latest_version()  # podFailurePolicy is stable from 1.31 on

TEXT, FLAG, NUMBER = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
TEMPLATE = {"type": "object", "required": ["spec"]}  # a pod's, which is looked at as such


def fields(*required: str, **known: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": known,
        "required": list(required),
        "additionalProperties": False,
    }


GROUP = {"rayStartParams": TEXTS, "resources": TEXTS, "labels": TEXTS, "template": TEMPLATE}
WORKERS = fields(
    *("groupName", "minReplicas", "maxReplicas", "template"),
    **GROUP,
    groupName=TEXT,
    **dict.fromkeys(
        ("replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds", "priority"), NUMBER
    ),
    suspend=FLAG,
)
CLUSTER = fields(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=fields(mode={"enum": ["disabled", "token"]}, secretName=TEXT, enableK8sTokenAuth=FLAG),
    enableInTreeAutoscaling=FLAG,
    suspend=FLAG,
    headGroupSpec=fields("template", **GROUP, serviceType=TEXT, enableIngress=FLAG),
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
RAY_JOB = fields(
    **dict.fromkeys(("entrypoint", "jobId", "submissionMode", "runtimeEnvYAML", "managedBy"), TEXT),
    **dict.fromkeys(("activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"), NUMBER),
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
    rayClusterSpec=CLUSTER,
)
RAY_CRON_JOB = fields(
    "jobTemplate", "schedule", jobTemplate=RAY_JOB, schedule=TEXT, timeZone=TEXT, suspend=FLAG
)
SCHEMAS = {"RayJob": RAY_JOB, "RayCronJob": RAY_CRON_JOB}


def check(document: dict[str, Any]) -> None:
    """Against the schema of its kind, which knows all of its fields."""
    if document["kind"] not in SCHEMAS:
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(document, version, strict=True)
        return
    assert document["apiVersion"] == "ray.io/v1"
    spec = document["spec"]
    jsonschema.Draft202012Validator(SCHEMAS[document["kind"]]).validate(spec)
    cluster = spec.get("jobTemplate", spec)["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
        kubernetes_validate.validate(pod, NEWEST, strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_has_the_fields_of_its_kind(name: str) -> None:
    check(MANIFESTS[name])


@pytest.mark.parametrize(
    ("name", "path", "wrong"),
    [
        ("CronJob in cronjob.yaml", ("spec", "schedul"), "17 3 * * *"),
        ("CronJob in cronjob.yaml", ("spec", "jobTemplate", "spec", "backoffLimit"), "2"),
        ("ConfigMap in rayjob.yaml", ("data", "job.yaml"), {"input": {}}),
        ("RayJob in rayjob.yaml", ("spec", "backofLimit"), 2),
        ("RayJob in rayjob.yaml", ("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (
            "RayJob in rayjob.yaml",
            ("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"),
            0,
        ),
        (
            "RayJob in rayjob.yaml",
            ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "volume"),
            [],
        ),
        ("RayCronJob in raycronjob.yaml", ("spec", "jobTemplate", "rayClusterSpec", "headGroupSpec"), None),
    ],
)
def test_a_wrong_one_is_found(name: str, path: tuple[str, ...], wrong: Any) -> None:
    document = copy.deepcopy(MANIFESTS[name])
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = wrong
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(document)
