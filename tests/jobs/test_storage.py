"""What every store promises, on disk and on a real S3 server, and what a failing service is told as."""

from __future__ import annotations

import io
import os
import pickle
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import ConfigurationError, FileChangedError, StorageError
from jobs.storage import Location, Store, open_store
from tests.jobs.conftest import BODY, Fault, times
from tests.stores import put

NAMES = ["lang=en/a b.parquet", "lang=a%2Fb/x.parquet", "日本語/ü?&+#.parquet", "a[1]*.parquet"]


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return open_store(Location(str(tmp_path / "root")))
    return open_store(Location(request.getfixturevalue("s3") + "/some/root"))


def paths(store: Store, prefix: str = "") -> list[str]:
    return [entry.path for entry in store.list(prefix)]


# What both kinds of store promise


def test_create_makes_a_file_once_and_a_second_one_leaves_it_alone(store: Store) -> None:
    assert store.create("parts/a.parquet", b"first") is True
    assert store.create("parts/a.parquet", b"second") is False
    assert store.read("parts/a.parquet") == b"first"


def test_of_racing_creates_exactly_one_wins_and_its_content_stays(store: Store) -> None:
    barrier = threading.Barrier(8)

    def race(index: int) -> bool:
        barrier.wait()
        return store.create("receipt.json", b"%d" % index * 1000)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    assert won.count(True) == 1
    assert store.read("receipt.json") == b"%d" % won.index(True) * 1000
    assert paths(store) == ["receipt.json"]


def test_a_swap_shows_the_old_content_or_the_new_one_and_nothing_between(store: Store) -> None:
    contents = {b"a" * 200_000, b"b" * 300_000}
    version = store.swap("manifest.json", b"a" * 200_000, None)
    seen: set[bytes] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add(store.read("manifest.json"))

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(10):
        for content in sorted(contents):
            version = store.swap("manifest.json", content, version)
            assert version is not None
    done.set()
    reader.join()
    assert seen <= contents
    assert store.read("manifest.json") == b"b" * 300_000


def test_a_swap_makes_what_is_not_there_and_replaces_only_what_was_seen(store: Store) -> None:
    first = store.swap("a/manifest.json", b"1", None)
    assert first is not None
    assert store.swap("a/manifest.json", b"2", None) is None
    assert store.read_version("a/manifest.json") == (b"1", first)
    second = store.swap("a/manifest.json", b"2", first)
    assert second is not None
    assert store.swap("a/manifest.json", b"3", first) is None
    assert store.read_version("a/manifest.json") == (b"2", second)
    assert [entry.version for entry in store.list()] == [second]


def test_a_swap_of_a_file_that_is_gone_makes_none(store: Store) -> None:
    version = store.swap("a", b"1", None)
    store.delete(["a"])
    assert store.swap("a", b"2", version) is None
    assert not store.exists("a")


def test_of_racing_swaps_exactly_one_wins_and_its_content_stays(store: Store) -> None:
    seen = store.swap("manifest.json", b"old", None)
    barrier = threading.Barrier(8)

    def race(index: int) -> bool:
        barrier.wait()
        return store.swap("manifest.json", b"%d" % index * 1000, seen) is not None

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    assert won.count(True) == 1
    assert store.read("manifest.json") == b"%d" % won.index(True) * 1000
    assert paths(store) == ["manifest.json"]


def test_swaps_that_count_up_lose_no_step(store: Store) -> None:
    put(store, "count", b"0 by nobody")

    def count(writer: int) -> None:
        while True:
            content, version = store.read_version("count")
            counted = int(content.split()[0]) + 1
            if store.swap("count", b"%d by %d" % (counted, writer), version) is not None:
                return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(20)))
    assert store.read("count").startswith(b"20 by ")


def test_a_listing_is_recursive_sorted_and_says_size_version_and_time(store: Store) -> None:
    for path in ("b/2", "a", "b/1/x", "b-c"):
        store.create(path, path.encode())
    entries = list(store.list())
    assert [entry.path for entry in entries] == ["a", "b-c", "b/1/x", "b/2"]
    assert [entry.size_bytes for entry in entries] == [1, 3, 5, 3]
    assert all(entry.version and '"' not in entry.version and entry.modified > 1e9 for entry in entries)


def test_a_prefix_lists_a_folder_or_one_file_and_no_names_that_only_begin_alike(store: Store) -> None:
    for path in ("receipts/1", "receipts/2", "receipts-old/1", "receipts.json"):
        store.create(path, b"x")
    assert paths(store, "receipts") == paths(store, "receipts/") == ["receipts/1", "receipts/2"]
    assert paths(store, "receipts.json") == ["receipts.json"]


def test_nothing_there_is_an_empty_listing(store: Store) -> None:
    assert paths(store) == paths(store, "nothing/here") == []


def test_a_listing_leaves_out_names_that_start_with_a_dot(store: Store) -> None:
    store.create("a/.0f.tmp", b"left behind")
    store.create("a/part", b"x")
    assert paths(store) == ["a/part"]


def test_a_version_changes_with_the_content(store: Store) -> None:
    put(store, "a", b"1")
    before = next(store.list()).version
    assert next(store.list()).version == before
    put(store, "a", b"2")
    assert next(store.list()).version != before


@pytest.mark.parametrize("size_bytes", [None, 1])
def test_a_file_that_changed_since_it_was_listed_is_not_opened(store: Store, size_bytes: int | None) -> None:
    put(store, "a", b"1")
    version = next(store.list()).version
    with store.open("a", version, size_bytes) as file:
        assert file.read() == b"1"
    put(store, "a", b"2")
    with pytest.raises(FileChangedError, match="changed since it was listed"):
        store.open("a", version, size_bytes)
    store.delete(["a"])
    with pytest.raises(FileChangedError, match="gone since it was listed"):
        store.open("a", version, size_bytes)


def test_a_local_folder_that_a_machine_does_not_have_is_told_from_a_file_that_has_gone(
    tmp_path: Path,
) -> None:
    store = open_store(Location(str(tmp_path / "corpus")))
    store.create("a", b"1")
    version = next(store.list()).version
    (tmp_path / "corpus").rename(tmp_path / "elsewhere")  # as on another machine
    with pytest.raises(
        StorageError, match=r"there is no .*/corpus on .*the same folder on every machine"
    ) as caught:
        store.open("a", version)
    assert not isinstance(caught.value, FileChangedError)


def test_delete_removes_files_and_does_not_mind_missing_ones(store: Store) -> None:
    store.create("a/1", b"x")
    store.create("a/2", b"x")
    store.delete(["a/1", "a/3", "b/1"])
    store.delete([])
    assert paths(store) == ["a/2"]


def test_exists_knows_files_and_not_folders(store: Store) -> None:
    store.create("a/1", b"")
    assert store.exists("a/1")
    assert not store.exists("a")
    assert not store.exists("b")


@pytest.mark.parametrize("path", ["missing", "folder"])
def test_what_is_no_file_cannot_be_read_and_the_error_names_it(store: Store, path: str) -> None:
    store.create("folder/file", b"x")
    with pytest.raises(FileNotFoundError, match=f"root/{path}"):
        store.read(path)
    with pytest.raises(FileNotFoundError, match=f"root/{path}"):
        store.open(path)


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a/..", "./a", "a/"])
def test_no_path_leaves_the_root(store: Store, path: str) -> None:
    attempts: list[Callable[[], Any]] = [
        lambda: store.read(path),
        lambda: store.open(path),
        lambda: store.create(path, b""),
        lambda: store.swap(path, b"", None),
        lambda: store.delete([path]),
        lambda: store.exists(path),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match="no path below a root"):
            attempt()


def test_names_are_taken_as_they_are(store: Store) -> None:
    for name in NAMES:
        assert store.create(name, name.encode())
    assert paths(store) == sorted(NAMES)
    for name in NAMES:
        assert store.exists(name)
        assert store.read(name) == name.encode()
        assert paths(store, name) == [name]
        with store.open(name) as file:
            assert file.read() == name.encode()
    store.delete(NAMES)
    assert paths(store) == []


def test_an_open_file_can_seek(store: Store) -> None:
    content = os.urandom(3_000_000)
    store.create("a", content)
    with store.open("a") as file:
        assert file.seek(-8, io.SEEK_END) == len(content) - 8
        assert file.read() == content[-8:]
        file.seek(1_500_000)
        assert file.read(10) == content[1_500_000:1_500_010]
        assert file.tell() == 1_500_010
    assert file.closed


def test_a_file_whose_version_and_size_are_known_takes_one_request_to_its_end(
    faulty: tuple[Location, list[Fault]],
) -> None:
    location, faults = faulty
    content = os.urandom(3_000_000)
    open_store(location).create("a", content)
    (entry,) = (store := open_store(location)).list()
    requests: list[str] = []
    faults.append(lambda environ: requests.append(environ["REQUEST_METHOD"]))  # type: ignore[func-returns-value]
    with store.open("a", entry.version, entry.size_bytes) as file:
        file.seek(-60_000, io.SEEK_END)
        assert file.read() == content[-60_000:]
        assert requests == ["GET"]
        file.seek(1_000_000)
        assert file.read(10) == content[1_000_000:1_000_010]
        put(store, "a", content[::-1])
        file.seek(0)
        with pytest.raises(FileChangedError):
            file.read(10)


def test_a_store_travels_as_its_location(store: Store) -> None:
    store.create("a", b"1")
    there: Store = pickle.loads(pickle.dumps(store))
    assert there.location == store.location
    assert there.read("a") == b"1"


# Locations


def test_a_relative_path_means_the_same_place_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    location = pickle.loads(pickle.dumps(Location("data/../corpus")))
    monkeypatch.chdir("/")
    assert location == Location(f"file://{tmp_path}/corpus") == Location(str(tmp_path)).join("corpus")


@pytest.mark.parametrize("uri", ["gs://bucket/x", "https://host/x", "s3a://bucket/x"])
def test_another_scheme_is_refused_with_those_that_are_allowed(uri: str) -> None:
    with pytest.raises(ConfigurationError, match=r"allowed are a plain path, file:// and s3://"):
        open_store(Location(uri))


@pytest.mark.parametrize("uri", ["", "s3://", "s3:///key", "file://host/x", "s3://b/../c", "s3://b//c"])
def test_a_uri_that_names_no_place_is_refused(uri: str) -> None:
    with pytest.raises(ConfigurationError):
        Location(uri)


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    for make in (
        lambda: Location("s3://key:secret@bucket/x"),
        lambda: Location("s3://bucket", endpoint_url="https://key:secret@host"),
        lambda: Location("gs://key:secret@bucket/x"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            make()
        assert "secret" not in str(caught.value)


# Disk


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    store = open_store(Location(str(tmp_path)))
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="could not write"):
        store.swap("folder/" + "n" * 300, b"x", None)
    with pytest.raises(StorageError, match="could not create"):
        store.create("folder/" + "n" * 300, b"x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="could not create"):
        store.create("file/below", b"x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_links_are_followed_but_not_in_circles_and_one_to_nothing_is_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0").write_bytes(b"data")
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.parquet").symlink_to(tmp_path / "blobs" / "0")
    (root / "linked").symlink_to(tmp_path / "blobs")
    (root / "circle").symlink_to(root)
    store = open_store(Location(str(root)))
    assert [(entry.path, entry.size_bytes) for entry in store.list()] == [("a.parquet", 4), ("linked/0", 4)]
    (root / "b.parquet").symlink_to(tmp_path / "gone")
    assert [(entry.path, entry.size_bytes) for entry in store.list("b.parquet")] == []
    assert [(entry.path, entry.size_bytes) for entry in store.list()][1] == ("b.parquet", 0)


# S3


def test_a_large_file_is_created_once_too(s3: str) -> None:
    store = open_store(Location(s3))
    content = os.urandom(1_000_000) * 106  # s3fs uploads in parts from 100 MiB on
    assert store.create("big", content) is True
    assert store.create("big", content[:-1]) is False
    assert next(store.list()).size_bytes == len(content)
    assert next(store.list()).version.endswith("-3")  # the etag of three parts
    with store.open("big") as file:
        file.seek(-5, io.SEEK_END)
        assert file.read() == content[-5:]


def test_placeholders_of_folders_are_not_listed(s3: str) -> None:
    store = open_store(Location(s3))
    store.create("a/b", b"x")
    store._fs.call_s3("put_object", Bucket=s3[5:], Key="a/")  # type: ignore[attr-defined]
    store._fs.call_s3("put_object", Bucket=s3[5:], Key="c/")  # type: ignore[attr-defined]
    assert paths(store) == ["a/b"]
    assert paths(store, "c") == []


def test_listings_and_deletes_go_beyond_one_page(s3: str) -> None:
    store = open_store(Location(s3))
    names = [f"{index:04}" for index in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.create(name, b""), names))
    assert paths(store) == names
    store.delete(names)
    assert paths(store) == []


def test_a_missing_bucket_is_reported_with_its_uri(s3: str) -> None:
    store = open_store(Location(s3 + "-missing"))
    for attempt in (
        store.list,
        lambda: store.read("a"),
        lambda: store.open("a"),
        lambda: store.create("a", b""),
    ):
        with pytest.raises(StorageError, match=r"could not \w+ s3://bucket-\w+-missing.*name of the bucket"):
            attempt()


def test_without_credentials_the_error_says_what_to_set(
    s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match=r"no credentials were found: set AWS_ACCESS_KEY_ID"):
        open_store(Location(s3)).list()
    anonymous = open_store(Location(s3, anonymous=True))
    assert anonymous.create("a", b"1")
    assert paths(anonymous) == ["a"]


def test_the_endpoint_of_a_location_wins_over_the_environment(
    s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(Location(s3)).create("a", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert paths(open_store(Location(s3, endpoint_url=s3_server))) == ["a"]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server)
    assert paths(open_store(Location(s3))) == ["a"]


@pytest.mark.parametrize("endpoint", ["key:s3cr3t@minio:9000", "localhost:9000", "http://"])
def test_an_endpoint_that_is_no_url_is_refused_and_not_repeated(
    s3: str, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for location in (Location(s3), Location(s3, endpoint_url=endpoint)):
        with pytest.raises(
            ConfigurationError, match=r"the endpoint is no URL; give http://host:port"
        ) as caught:
            list(open_store(location).list())
        assert endpoint not in str(caught.value).replace("http://host", "")
        assert caught.value.__suppress_context__


# S3 when it fails


def test_a_service_that_asks_to_slow_down_is_asked_again(faulty: tuple[Location, list[Fault]]) -> None:
    location, faults = faulty
    store = open_store(location)
    faults += [times(2, method, ("503 Slow Down", "SlowDown")) for method in ("PUT", "GET", "POST")]
    assert store.create("a", b"1")
    assert store.read("a") == b"1"
    store.delete(["a"])
    assert paths(store) == []


def undeleted(code: str, count: int) -> Fault:
    """So many answers that are well as a whole, and say of each file that it could not be deleted."""
    found = times(count, "POST", ("200 OK", ""))

    def fault(environ: dict[str, Any]) -> tuple[str, str] | None:
        if (answer := found(environ)) is None:
            return None
        keys = re.findall("<Key>(.*?)</Key>", environ[BODY].decode())
        said = f"<Code>{code}</Code><Message>told so</Message>"
        errors = "".join(f"<Error><Key>{key}</Key>{said}</Error>" for key in keys)
        return answer[0], f"<DeleteResult>{errors}</DeleteResult>"

    return fault


@pytest.mark.parametrize("code", ["SlowDown", "InternalError"])
def test_single_files_that_could_not_be_deleted_for_now_are_deleted_later(
    faulty: tuple[Location, list[Fault]], code: str
) -> None:
    location, faults = faulty
    store = open_store(location)
    for name in ("a", "b"):
        store.create(name, b"1")
    faults.append(undeleted(code, 2))
    store.delete(["a", "b"])
    assert paths(store) == []


@pytest.mark.parametrize(
    ("code", "advice"), [("AccessDenied", "check that these credentials may"), ("Odd", "check the network")]
)
def test_a_file_that_must_not_be_deleted_is_an_error_at_once(
    faulty: tuple[Location, list[Fault]], code: str, advice: str
) -> None:
    location, faults = faulty
    store = open_store(location)
    store.create("a", b"1")
    faults.append(undeleted(code, 1))
    with pytest.raises(StorageError, match=f"{code}: a: told so.*{advice}"):
        store.delete(["a"])
    assert paths(store) == ["a"]


def test_a_create_that_collides_is_tried_again_until_it_is_clear_who_won(
    faulty: tuple[Location, list[Fault]],
) -> None:
    location, faults = faulty
    store = open_store(location)
    faults.append(times(2, "PUT", ("409 Conflict", "ConditionalRequestConflict")))
    assert store.create("a", b"1") is True
    faults.append(times(2, "PUT", ("409 Conflict", "ConditionalRequestConflict")))
    assert store.create("a", b"2") is False
    assert store.read("a") == b"1"


def test_a_swap_whose_answer_was_lost_counts_as_made(faulty: tuple[Location, list[Fault]]) -> None:
    location, faults = faulty
    store = open_store(location)
    seen = store.swap("a", b"1", None)
    faults.append(times(1, "PUT", ("409 Conflict", "ConditionalRequestConflict")))
    made = store.swap("a", b"2", seen)
    assert made is not None
    assert store.swap("a", b"2", seen) == made  # as if the first try had been cut off
    assert store.swap("a", b"3", seen) is None


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        ("403 Forbidden", "AccessDenied", "check that these credentials may"),
        ("400 Bad Request", "ExpiredToken", "the credentials have expired"),
        ("403 Forbidden", "InvalidAccessKeyId", "check the access key"),
    ],
)
def test_a_denied_request_says_what_was_tried_and_what_to_check(
    faulty: tuple[Location, list[Fault]], status: str, code: str, advice: str
) -> None:
    location, faults = faulty
    store = open_store(location)
    store.create("a", b"1")
    faults.append(lambda environ: (status, code))  # noqa: ARG005
    attempts: list[tuple[str, Callable[[], Any]]] = [
        ("list", store.list),
        ("create", lambda: store.create("b", b"1")),
        ("write", lambda: store.swap("b", b"1", None)),
        ("read", lambda: store.read("a")),
        ("delete files below", lambda: store.delete(["a"])),
    ]
    for action, attempt in attempts:
        with pytest.raises(StorageError) as caught:
            attempt()
        message = str(caught.value)
        assert message.startswith(f"could not {action} {location.uri}")
        assert code in message
        assert advice in message
        assert "test-key" not in message
        assert "test-secret" not in message


def test_a_read_that_fails_in_an_open_file_is_a_storage_error(faulty: tuple[Location, list[Fault]]) -> None:
    location, faults = faulty
    store = open_store(location)
    store.create("a", b"1")
    with store.open("a") as file:
        faults.append(lambda environ: ("403 Forbidden", "AccessDenied"))  # noqa: ARG005
        with pytest.raises(StorageError, match=r"could not read s3://.*/a"):
            file.read()


def test_a_file_that_changes_while_it_is_open_fails_to_read(s3: str) -> None:
    store = open_store(Location(s3))
    put(store, "a", b"1")
    with store.open("a") as file:
        put(store, "a", b"2")
        with pytest.raises(FileChangedError, match=r"could not read s3://.*/a"):
            file.read()


def test_a_file_that_is_removed_while_it_is_open_fails_to_read(s3: str) -> None:
    store = open_store(Location(s3))
    put(store, "a", b"1")
    with store.open("a") as file:
        store.delete(["a"])
        with pytest.raises(FileChangedError, match=r"could not read s3://.*/a: it was removed"):
            file.read()
