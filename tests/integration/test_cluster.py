"""The job on a cluster of two nodes, submitted as README says: `ray job submit --working-dir . -- python -m ...`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from jobs.storage import Location
from tests.chaos.datasets import Reader, assert_same, published
from tests.chaos.plain import embed as rebuild
from tests.integration.clusters import NUM_NODES, Cluster, two_nodes
from tests.integration.commands import embed, job, read_dataset, room, shard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with two_nodes() as made:
        yield made


PROGRAM = job()[:3]


def command(corpus: Path, output: Path, *arguments: str) -> list[str]:
    return [*job(), "--input", str(corpus), "--output", str(output), *arguments]


def summary(log: str) -> dict[str, Any]:
    """The last line that is a JSON object."""
    found: dict[str, Any] = json.loads([line for line in log.splitlines() if line.startswith("{")][-1])
    return found


def test_a_submitted_job_publishes_with_encoders_on_both_nodes(cluster: Cluster, tmp_path: Path) -> None:
    corpus, output = tmp_path / "corpus.parquet", tmp_path / "vectors"
    # Long enough texts for one encoder to be still at work when the other is up.
    corpus.write_bytes(shard("a", 240, num_words=300))
    finished = cluster.submit("publishes", command(corpus, output))
    assert finished.exit_code == 0, finished.stdout + finished.stderr
    assert summary(finished.stdout)["embedded"] == 228
    assert summary(cluster.ray("job", "logs", "publishes").stdout)["embedded"] == 228
    assert read_dataset(str(output)).num_rows == 228
    told = cluster.job("publishes")
    assert (told["status"], told["driver_exit_code"]) == ("SUCCEEDED", 0)
    # An encoder takes the one core of a node: with two of them each node has its own.
    encoders = [actor["node_id"] for actor in cluster.listed("actors") if "(Embed)" in actor["class_name"]]
    assert sorted(encoders) == sorted(cluster.alive_nodes())
    assert len(encoders) == NUM_NODES


def test_a_wrong_configuration_is_told_in_the_logs_and_gives_exit_code_2(
    cluster: Cluster, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.parquet"
    corpus.write_bytes(shard("a", 20))
    finished = cluster.submit("wrong", [*job(), "--input", str(corpus), "--output", "vectors/"])
    assert finished.exit_code == 1  # Ray's command has one code for all failures
    told = cluster.job("wrong")
    assert (told["status"], told["driver_exit_code"]) == ("FAILED", 2)
    log = cluster.ray("job", "logs", "wrong").stdout
    assert "is where Ray unpacks the files of this job, and goes with them; give an absolute path" in log
    assert "Traceback" not in log


def test_a_submission_id_is_good_for_one_job(cluster: Cluster) -> None:
    version = [*PROGRAM, "--version"]
    assert cluster.submit("once", version).exit_code == 0
    first = cluster.job("once")
    again = cluster.submit("once", version)
    assert again.exit_code == 1
    assert "already exists" in again.stderr
    assert cluster.job("once") == first


def test_who_has_no_token_is_not_let_in(cluster: Cluster) -> None:
    with pytest.raises(HTTPError, match="401") as caught:
        urlopen(f"{cluster.address}/api/jobs/", timeout=30)
    caught.value.close()


def test_a_stopped_job_publishes_nothing_and_the_same_command_goes_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    corpus, output = tmp_path / "corpus.parquet", tmp_path / "vectors"
    corpus.write_bytes(shard("a", 240, num_words=300))  # as long as the model takes them
    stopped = command(corpus, output, "--max-actors", "1")
    with Reader(Location(str(output))) as reader:
        assert cluster.submit("stopped", stopped, "--no-wait").exit_code == 0
        deadline = time.monotonic() + 240
        while not list(output.glob("_receipts/*.json")):
            assert time.monotonic() < deadline, cluster.ray("job", "logs", "stopped").stdout
            time.sleep(0.05)
        asked = time.monotonic()
        assert cluster.ray("job", "stop", "stopped").exit_code == 0
        while cluster.job("stopped")["status"] != "STOPPED":
            assert time.monotonic() - asked < 30, cluster.job("stopped")
            time.sleep(0.1)
        assert "nothing is published" in cluster.ray("job", "logs", "stopped").stdout
        assert not (output / "_manifest.json").exists()

        finished = cluster.submit("goes-on", stopped)
    assert finished.exit_code == 0, finished.stdout + finished.stderr
    counts = summary(finished.stdout)
    assert counts["existing"] > 0
    assert counts["embedded"] > 0
    assert counts["existing"] + counts["embedded"] == 228
    clean = tmp_path / "clean"
    rebuild(*command(corpus, clean)[len(PROGRAM) :])
    assert_same(published(Location(str(output))), published(Location(str(clean))), 240)
    assert reader.faults == []
    assert len(reader.seen) == 1


def test_a_cluster_that_cannot_be_joined_is_named_with_the_reason(cluster: Cluster, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.parquet"
    corpus.write_bytes(shard("a", 20))
    arguments = ["--input", str(corpus), "--output", str(tmp_path / "vectors")]
    no_token = {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": cluster.gcs_address}
    with room() as where:
        for environment, reason in (
            (no_token, "no authentication token"),
            ({"RAY_ADDRESS": cluster.address}, "HTTP"),
        ):
            finished = embed(where, environment, *arguments)
            assert finished.exit_code == 1
            assert f"cannot join the Ray cluster {environment['RAY_ADDRESS']}: " in finished.stderr
            assert reason in finished.stderr
            assert "Traceback" not in finished.stderr
