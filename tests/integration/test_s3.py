"""The job between S3 and S3: the dataset that a disk would give, and nothing left where it does not belong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import boto3
import pyarrow as pa
import pytest
from moto.core.authorization import enable_iam_authentication
from s3fs import S3FileSystem

from tests.integration.commands import (
    ROW_GROUP_ROWS,
    WORD,
    Outcome,
    Room,
    embed,
    read_dataset,
    read_rejects,
    room,
    shard,
    vector_bits,
)

SHARDS = {"lang=de/a.parquet": ("a", 60), "lang=en/b.parquet": ("b", 40), "lang=en/c.parquet": ("c", 20)}
NUM_ROWS = 120
NUM_REJECTS = 6
NOWHERE = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Bucket:
    """A bucket of one server, and what a process needs to reach it.

    Attributes:
        uri: Of the bucket.
        endpoint: Of the server.
        fs: The test's own way to it.
        secrets: Credentials that appear nowhere else, so that a copy of one is known when it is seen.
    """

    uri: str
    endpoint: str
    fs: S3FileSystem
    secrets: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        places = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": self.endpoint}
        return {**self.secrets, **places, "RAY_AUTH_MODE": "token"}

    def put_corpus(self, folder: str = "corpus", acl: str = "private") -> None:
        for path, (name, num_rows) in SHARDS.items():
            self.put(f"{folder}/{path}", shard(name, num_rows), acl)

    def put(self, path: str, content: bytes, acl: str = "private") -> None:
        self.fs.pipe_file(f"{self.uri}/{path}", content, ACL=acl)

    def listing(self, folder: str) -> dict[str, tuple[str, str]]:
        """Etag and time of every object."""
        found = self.fs.find(f"{self.uri}/{folder}", detail=True)
        return {path: (entry["ETag"], str(entry["LastModified"])) for path, entry in found.items()}


@pytest.fixture(scope="module")
def bucket(s3_server: str) -> Bucket:
    secrets = {
        name: f"{name.lower().replace('_', '-')}-{uuid4().hex}"
        for name in (
            *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
            *("HF_TOKEN", "RAY_AUTH_TOKEN"),  # the Hub's, and what lets one into the cluster
        )
    }
    fs = S3FileSystem(
        endpoint_url=s3_server,
        key="of-the-test",
        secret="of-the-test",
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    name = f"bucket-{uuid4().hex}"
    fs.mkdir(name)
    made = Bucket(f"s3://{name}", s3_server, fs, secrets)
    made.put_corpus()
    return made


@pytest.fixture
def here() -> Iterator[Room]:
    with room() as made:
        yield made


@dataclass(frozen=True)
class Run:
    """A run that is over, its folders, and what the output held after it.

    Attributes:
        finished: The command's answer.
        room: Its folders.
        listing: Objects of the output.
        vectors: Rows of the output's parts.
        rejects: Rows of its rejects.
        corpus_files: Files that were seen with content of the corpus in a place that is not for it.
        told: Names of secrets that stood in the command line of a process, which every user of a machine may read.
        num_processes: Whose command lines were looked at.
    """

    finished: Outcome
    room: Room
    listing: dict[str, tuple[str, str]]
    vectors: pa.Table
    rejects: pa.Table
    corpus_files: frozenset[str]
    told: frozenset[str]
    num_processes: int


class Watch(threading.Thread):
    """Looks for files with content of the corpus, and for secrets in command lines, as long as it runs."""

    def __init__(self, folders: tuple[Path, ...], secrets: Mapping[str, str]) -> None:
        super().__init__(daemon=True)
        self.seen: set[str] = set()
        self.told: set[str] = set()
        self.commands: set[bytes] = set()
        self._folders = folders
        self._secrets = secrets
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            self.seen.update(str(path) for path in files_below(*self._folders) if holds_corpus(path))
            new = set(command_lines()) - self.commands
            self.commands |= new
            for name, secret in self._secrets.items():
                if any(secret.encode() in command for command in new):
                    self.told.add(name)

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()


def files_below(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def command_lines() -> Iterator[bytes]:
    """Of all processes of this machine, the job's among them."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            yield path.read_bytes()


def holds_corpus(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # a temporary file of somebody else
        return False
    return content.startswith(b"PAR1") or WORD.encode() in content


def run(bucket: Bucket, where: Room, environment: Mapping[str, str]) -> Run:
    arguments = ["--input", f"{bucket.uri}/corpus", "--output", f"{bucket.uri}/vectors"]
    arguments += [
        "--set",
        "output.keep_manifests=1",
    ]  # so that the folder holds the live dataset and no other
    with Watch(where.elsewhere, bucket.secrets) as watch:
        finished = embed(where, environment, *arguments)
    assert finished.exit_code == 0, finished.stderr
    output = f"{bucket.uri}/vectors"
    return Run(
        finished,
        where,
        bucket.listing("vectors"),
        read_dataset(output, bucket.fs),
        read_rejects(output, bucket.fs),
        frozenset(watch.seen),
        frozenset(watch.told),
        sum(str(where.path).encode() in command or b"jobs.embed" in command for command in watch.commands),
    )


@pytest.fixture(scope="module")
def rooms() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def first(bucket: Bucket, rooms: ExitStack) -> Run:
    """From S3 to S3."""
    return run(bucket, rooms.enter_context(room()), bucket.environment)


@pytest.fixture(scope="module")
def second(bucket: Bucket, rooms: ExitStack, first: Run) -> Run:
    """The same command once more."""
    assert first.listing
    return run(bucket, rooms.enter_context(room()), bucket.environment)


@pytest.fixture(scope="module")
def third(bucket: Bucket, rooms: ExitStack, second: Run) -> Run:
    """And again after one shard was replaced, with the endpoint in the variable that is for S3 alone."""
    assert second.listing
    bucket.put("corpus/lang=en/c.parquet", shard("c", 20, num_words=9))
    environment = bucket.environment | {"AWS_ENDPOINT_URL_S3": bucket.endpoint, "AWS_ENDPOINT_URL": NOWHERE}
    return run(bucket, rooms.enter_context(room()), environment)


@pytest.mark.slow
def test_s3_and_disk_give_the_same_vectors_and_rejects(first: Run, here: Room, tmp_path: Path) -> None:
    for path, (name, num_rows) in SHARDS.items():
        (tmp_path / "corpus" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpus" / path).write_bytes(shard(name, num_rows))
    on_disk = str(tmp_path / "vectors")
    finished = embed(here, {}, "--input", str(tmp_path / "corpus"), "--output", on_disk)
    for summary in (finished.summary, first.finished.summary):
        assert (summary["rows"], summary["embedded"]) == (NUM_ROWS, NUM_ROWS - NUM_REJECTS)
        assert summary["rejected"] == NUM_REJECTS
    from_disk = read_dataset(on_disk)
    assert first.vectors.num_rows == NUM_ROWS - NUM_REJECTS
    assert set(first.vectors["lang"].to_pylist()) == {"de", "en"}
    assert first.vectors.equals(from_disk)
    assert vector_bits(first.vectors) == vector_bits(from_disk)
    assert first.rejects.num_rows == NUM_REJECTS
    assert first.rejects.equals(read_rejects(on_disk))


@pytest.mark.slow
def test_no_copy_of_the_corpus_is_made(first: Run) -> None:
    assert not first.corpus_files
    assert not [path for path in files_below(first.room.path) if holds_corpus(path)]


@pytest.mark.slow
def test_credentials_appear_nowhere(bucket: Bucket, first: Run) -> None:
    assert any(path.name.startswith("worker-") for path in files_below(first.room.ray))
    check_silence(bucket, first.room, first.finished, "vectors")
    assert first.num_processes > 3  # the command, and Ray's
    assert not first.told


def check_silence(bucket: Bucket, where: Room, finished: Outcome, output: str) -> None:
    """No secret stands in what a command said, in its files, Ray's logs among them, or in its output."""
    written = {path: bucket.fs.cat_file(path) for path in bucket.listing(output)}
    written |= {str(path): path.read_bytes() for path in files_below(where.path)}
    written |= {"stdout": finished.stdout.encode(), "stderr": finished.stderr.encode()}
    for name, secret in bucket.secrets.items():
        assert not [path for path, content in written.items() if secret.encode() in content], name


@pytest.mark.slow
def test_a_run_that_fails_in_a_worker_tells_no_credentials_either(bucket: Bucket, here: Room) -> None:
    bucket.put_corpus("failing")
    output = f"{bucket.uri}/failed"
    doomed = f"{bucket.uri}/failing/lang=en/c.parquet"

    def remove_a_shard() -> None:
        """As soon as all ids were compared, which comes before Ray."""
        while len(bucket.fs.find(f"{output}/_ids")) < NUM_ROWS // ROW_GROUP_ROWS:
            time.sleep(0.1)
        bucket.fs.rm_file(doomed)

    remover = threading.Thread(target=remove_a_shard, daemon=True)
    remover.start()
    with Watch(here.elsewhere, bucket.secrets) as watch:
        finished = embed(
            here, bucket.environment, "--input", f"{bucket.uri}/failing", "--output", output, timeout=600
        )
    remover.join(10)
    assert finished.exit_code == 1
    assert f"{doomed} is gone since it was listed" in finished.stderr
    assert any(path.name.startswith("worker-") for path in files_below(here.ray))
    assert bucket.listing("failed")
    check_silence(bucket, here, finished, "failed")
    assert not watch.told


@pytest.mark.slow
def test_a_rerun_on_s3_does_nothing(first: Run, second: Run) -> None:
    assert second.finished.summary["embedded"] == 0
    assert second.finished.summary["existing"] == NUM_ROWS - NUM_REJECTS
    assert second.listing == first.listing
    assert not files_below(second.room.ray)  # Ray was not even started


@pytest.mark.slow
def test_a_replaced_object_is_embedded_alone(second: Run, third: Run) -> None:
    assert third.finished.summary["embedded"] == 19
    assert third.finished.summary["existing"] == NUM_ROWS - NUM_REJECTS - 19
    before, after = (
        {path: entry for path, entry in run.listing.items() if "/vectors/task=" in path}
        for run in (second, third)
    )
    gone, new = before.keys() - after.keys(), after.keys() - before.keys()
    assert (len(before), len(gone), len(new)) == (6, 1, 1)
    assert all("/lang=en/" in path for path in gone | new)
    assert all(before[path] == after[path] for path in before.keys() & after.keys())
    assert not [path for path in third.listing if "/_receipts/" in path]


@pytest.mark.slow
def test_endpoint_and_anonymous_reading_come_from_the_configuration(
    bucket: Bucket, here: Room, tmp_path: Path
) -> None:
    # A signed request would fail: there are no credentials. Objects that are not public refuse unsigned ones.
    bucket.put_corpus("public", acl="public-read")
    finished = embed(
        here,
        {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": NOWHERE},
        *["--input", f"{bucket.uri}/public/**/[ab].parquet", "--output", str(tmp_path / "vectors")],
        *["--set", f"input.endpoint_url={bucket.endpoint}", "--set", "input.anonymous=true"],
    )
    assert finished.summary["rows"] == 100
    ids = read_dataset(str(tmp_path / "vectors"))["id"].to_pylist()
    assert {name[0] for name in ids} == {"a", "b"}


@pytest.mark.slow
def test_the_endpoint_of_the_output_comes_from_the_configuration(
    bucket: Bucket, here: Room, tmp_path: Path
) -> None:
    (tmp_path / "a.parquet").write_bytes(shard("a", 20))
    finished = embed(
        here,
        {**bucket.environment, "AWS_ENDPOINT_URL": NOWHERE},
        *["--input", str(tmp_path / "a.parquet"), "--output", f"{bucket.uri}/configured"],
        *["--set", f"output.endpoint_url={bucket.endpoint}"],
    )
    assert finished.summary["embedded"] == 19
    assert read_dataset(f"{bucket.uri}/configured", bucket.fs).num_rows == 19


def test_a_glob_and_a_folder_on_s3_name_the_shards_that_they_should(bucket: Bucket, here: Room) -> None:
    globbed = [
        *["--input", f"{bucket.uri}/corpus/lang=en/*.parquet"],
        *["--output", f"{bucket.uri}/other", "--dry-run"],
    ]
    summary = embed(here, bucket.environment, *globbed).summary
    assert (summary["shards"], summary["rows"]) == (2, 60)
    assert not bucket.listing("other")


def refused(finished: Outcome, bucket: Bucket, where: Room, *words: str, exit_code: int = 1) -> None:
    """A failure says in one line what failed and on which URI; quickly, and without a secret."""
    assert finished.exit_code == exit_code, finished.stderr
    assert finished.seconds < 20
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1, finished.stderr
    for word in words:
        assert word in finished.stderr, finished.stderr
    check_silence(bucket, where, finished, "none")


def test_an_input_bucket_that_does_not_exist_is_named(bucket: Bucket, here: Room) -> None:
    uri = f"s3://no-such-{uuid4().hex}/corpus"
    finished = embed(here, bucket.environment, "--input", uri, "--output", f"{bucket.uri}/none")
    refused(finished, bucket, here, uri, "NoSuchBucket", "check the name of the bucket")


def test_an_output_bucket_that_does_not_exist_is_named(bucket: Bucket, here: Room) -> None:
    uri = f"s3://no-such-{uuid4().hex}/vectors"
    finished = embed(here, bucket.environment, "--input", f"{bucket.uri}/corpus", "--output", uri)
    refused(finished, bucket, here, uri, "NoSuchBucket", "check the name of the bucket")


def test_a_prefix_without_shards_is_named(bucket: Bucket, here: Room) -> None:
    uri = f"{bucket.uri}/corpse"
    finished = embed(here, bucket.environment, "--input", uri, "--output", f"{bucket.uri}/none")
    refused(finished, bucket, here, uri, "there are no files", exit_code=2)


def test_credentials_that_the_service_does_not_know_are_refused(bucket: Bucket, here: Room) -> None:
    uri = f"{bucket.uri}/corpus"
    with enable_iam_authentication():
        finished = embed(here, bucket.environment, "--input", uri, "--output", f"{bucket.uri}/none")
    refused(finished, bucket, here, uri, "InvalidAccessKeyId", "check the access key and its secret")


def test_denied_access_is_said_to_be_denied(bucket: Bucket, here: Room) -> None:
    test = {"aws_access_key_id": "of-the-test", "aws_secret_access_key": "of-the-test"}
    iam = boto3.client("iam", endpoint_url=bucket.endpoint, region_name="us-east-1", **test)
    iam.create_user(UserName="without-rights")
    key = iam.create_access_key(UserName="without-rights")["AccessKey"]
    known = replace(
        bucket,
        secrets={"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]},
    )
    uri = f"{bucket.uri}/corpus"
    with enable_iam_authentication():
        finished = embed(here, known.environment, "--input", uri, "--output", f"{bucket.uri}/none")
    refused(finished, known, here, uri, "AccessDenied", "check that these credentials may list")


def test_missing_credentials_are_said_to_be_missing(bucket: Bucket, here: Room) -> None:
    uri = f"{bucket.uri}/corpus"
    environment = {"AWS_ENDPOINT_URL": bucket.endpoint}
    finished = embed(here, environment, "--input", uri, "--output", f"{bucket.uri}/none")
    refused(finished, bucket, here, uri, "no credentials were found")


def test_anonymous_reading_sends_unsigned_requests(bucket: Bucket, here: Room) -> None:
    # Signed with these very credentials the objects can be read (see above); unsigned they cannot.
    finished = embed(
        here,
        bucket.environment,
        *["--input", f"{bucket.uri}/corpus", "--output", f"{bucket.uri}/none"],
        *["--set", "input.anonymous=true"],
    )
    refused(finished, bucket, here, f"{bucket.uri}/corpus", "check that these credentials may")
