"""The only place where a filesystem is built: a folder on disk, or below a prefix of an S3 bucket.

To create once is a hard link from a finished temporary file on disk, and a PUT with `If-None-Match: *` on S3;
to swap is a rename under a file lock, or a PUT with `If-Match`. Credentials, region and endpoint are botocore's
affair (environment, profile, instance role).

A process that is killed while it writes to disk leaves a temporary file behind, `.<hex>.tmp`; listings leave
out names that start with a dot, and the sweep of an output removes old ones. An upload to S3 that is cut off
leaves parts that only a lifecycle rule of the bucket (AbortIncompleteMultipartUpload) removes.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s3fs import S3FileSystem
from s3fs.utils import FileExpired

from jobs.errors import StorageError
from jobs.storage_failures import service_code
from jobs.store import Entry, Location, Store, checked, temporary_name

__all__ = ["Entry", "Location", "Store", "open_store"]

_ATTEMPTS = 10
_READ_AHEAD_BYTES = 2**20  # s3fs' default of 50 MB would fetch the columns that nobody wants
_END_BYTES = 64 * 2**10  # what readers of Parquet want first
_DELETE_BATCH = 1000  # the most that one DeleteObjects takes
# Of single files in an answer that is well otherwise, which no client tries again by itself.
_PASSING = {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted"}


class _DiskStore(Store):
    """A folder, through the operating system: fsspec's listing rounds the modification time to a float."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self._root = Path(location.uri)

    def _list(self, folder: str) -> Iterator[Entry]:
        start = self._root / folder
        try:
            status = start.stat()
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISDIR(status.st_mode) and folder:
            yield _disk_entry(folder, status)
        else:
            yield from self._walk(folder, frozenset({(status.st_dev, status.st_ino)}))

    def _walk(self, folder: str, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
        """Follow links as readers do, but none that leads back to a folder `above`."""
        with os.scandir(self._root / folder) as found:
            for item in found:
                path = f"{folder}/{item.name}" if folder else item.name
                try:
                    status = item.stat()
                except FileNotFoundError:
                    if (
                        item.is_symlink()
                    ):  # listed, for a shard that is linked and lost must not be overlooked
                        yield Entry(path, 0, "a link to nothing", 0.0)
                    continue  # or removed since it was listed
                identity = (status.st_dev, status.st_ino)
                if stat.S_ISREG(status.st_mode):
                    yield _disk_entry(path, status)
                elif stat.S_ISDIR(status.st_mode) and identity not in above:
                    yield from self._walk(path, above | {identity})

    def _open(self, path: str, version: str | None = None, size_bytes: int = 0) -> tuple[Any, str]:  # noqa: ARG002
        file = (self._root / path).open("rb")
        return file, _disk_entry(path, os.fstat(file.fileno())).version

    def _read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def _create(self, path: str, data: bytes) -> bool:
        final = self._root / path
        if final.exists():
            return False
        with _temporary(final.parent, data) as temporary:
            try:
                final.hardlink_to(temporary)
            except FileExistsError:
                return False
        _sync_folder(final.parent)
        return True

    def _read_version(self, path: str) -> tuple[bytes, str]:
        file, version = self._open(
            path
        )  # of a file that is replaced by renaming, this stays the one that was opened
        with file:
            return file.read(), version

    def _swap(self, path: str, data: bytes, expected: str | None) -> str | None:
        final = self._root / path
        final.parent.mkdir(parents=True, exist_ok=True)
        with _locked(final.parent / f".{final.name}.lock"):
            found = _disk_entry(path, final.stat()).version if final.exists() else None
            if found != expected:
                return None
            with _temporary(final.parent, data) as temporary:
                temporary.replace(final)
            version = _disk_entry(path, final.stat()).version
        _sync_folder(final.parent)
        return version

    def _delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            try:
                (self._root / path).unlink()
            except (FileNotFoundError, NotADirectoryError):
                continue

    def _exists(self, path: str) -> bool:
        return (self._root / path).is_file()

    def _has_root(self) -> bool:
        return self._root.is_dir()


def _disk_entry(path: str, status: os.stat_result) -> Entry:
    return Entry(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}", status.st_mtime)


@contextmanager
def _temporary(folder: Path, data: bytes) -> Iterator[Path]:
    """A finished, durable file under a hidden name, in the folder where it is going to stand."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / temporary_name()
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among all processes that lock this file, which is gone afterwards; the system frees a dead one's lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                ours = os.path.samestat(os.fstat(descriptor), path.stat())
            except FileNotFoundError:
                ours = False
            if ours:  # else the one before removed it while we waited, and the next makes another
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make a new name durable: a receipt must not outlive the parts that it vouches for."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _S3Store(Store):
    """A bucket's prefix through s3fs, without its caches: they would hide what others wrote."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self._fs = S3FileSystem(
            anon=location.anonymous,
            endpoint_url=location.endpoint_url,
            # "standard" caps its waits at 20 s; "legacy" would double them without end
            config_kwargs={
                "retries": {"total_max_attempts": _ATTEMPTS, "mode": "standard"},
                "max_pool_connections": 32,
                "connect_timeout": 10,
                "read_timeout": 60,
            },
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        self._bucket, key, _ = self._fs.split_path(location.uri)
        self._prefix = key.rstrip("/") + "/" if key.rstrip("/") else ""

    def _key(self, path: str) -> str:
        if "?versionId=" in path:
            raise ValueError(
                f"{path!r} holds '?versionId=', which s3fs takes for a version; rename the object"
            )
        return self._prefix + path

    def _full(self, path: str) -> str:
        return f"{self._bucket}/{self._key(path)}"

    def _list(self, folder: str) -> Iterator[Entry]:
        # page by page and not with find(): that builds a tree of folders which costs more than the listing
        found = False
        start = self._key(folder) + "/" if folder else self._prefix
        request = {"Bucket": self._bucket, "Prefix": start}
        while True:
            page = self._fs.call_s3("list_objects_v2", **request)
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):
                    yield self._entry(item["Key"], item["Size"], item)
                found = True
            if not page.get("IsTruncated"):
                break
            request["ContinuationToken"] = page["NextContinuationToken"]
        if folder and not found and (head := self._head(folder)) is not None:
            yield self._entry(self._key(folder), head["ContentLength"], head)

    def _entry(self, key: str, size_bytes: int, item: dict[str, Any]) -> Entry:
        path = key.removeprefix(self._prefix)
        try:
            self._key(checked(path))
        except ValueError as error:
            raise StorageError(f"s3://{self._bucket}/{key} cannot be used: {error}") from None
        return Entry(path, size_bytes, item["ETag"].strip('"'), item["LastModified"].timestamp())

    def _head(self, path: str) -> dict[str, Any] | None:
        try:
            head: dict[str, Any] = self._fs.call_s3("head_object", Bucket=self._bucket, Key=self._key(path))
        except FileNotFoundError:
            return None
        return head

    def _open(self, path: str, version: str | None = None, size_bytes: int = 0) -> tuple[Any, str]:
        full, options = self._full(path), {"block_size": _READ_AHEAD_BYTES, "cache_type": "readahead"}
        if version is not None:
            file = self._fs.open(full, "rb", size=size_bytes, **options)
            file.details = {"name": full, "ETag": f'"{version}"', "size": size_bytes, "type": "file"}
            file.read_kw = {**file.read_kw, "IfMatch": f'"{version}"'}
            file.seek(max(0, size_bytes - _END_BYTES))
            try:
                file.read(1)  # and what follows, ahead
            except FileExpired:
                return file, "another"
            file.seek(0)
            return file, version
        file = self._fs.open(full, "rb", **options)
        if file.details["type"] != "file":  # s3fs opens a folder as an empty file
            raise FileNotFoundError(path)
        return file, file.details["ETag"].strip('"')

    def _read(self, path: str) -> bytes:
        # one request: several could return parts of two versions
        content: bytes = self._fs.cat_file(self._full(path), max_concurrency=1)
        return content

    def _create(self, path: str, data: bytes) -> bool:
        for attempt in range(_ATTEMPTS):
            try:
                self._fs.pipe_file(self._full(path), data, mode="create")
            except OSError as error:
                code = service_code(error)
                if isinstance(error, FileExistsError) or code == "PreconditionFailed":
                    return False
                if code == "NoSuchUpload" and self._head(path) is not None:
                    return False  # the first try to complete a multipart upload did succeed
                # S3 answers so while another request for the same key is under way
                if code != "ConditionalRequestConflict" or attempt + 1 == _ATTEMPTS:
                    raise
                time.sleep(min(0.1 * 2**attempt, 5))
            else:
                return True
        raise AssertionError("unreachable")

    def _read_version(self, path: str) -> tuple[bytes, str]:
        for _ in range(_ATTEMPTS):
            try:
                file, version = self._open(path)
                with file:
                    return file.read(), version
            except FileExpired:  # between asking for its version and for its content
                continue
        raise StorageError(f"s3://{self._full(path)} changes faster than it can be read; try again")

    def _swap(self, path: str, data: bytes, expected: str | None) -> str | None:
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": f'"{expected}"'}
        for attempt in range(_ATTEMPTS):
            try:
                answer = self._fs.call_s3(
                    "put_object", Bucket=self._bucket, Key=self._key(path), Body=data, **condition
                )
            except OSError as error:
                code = service_code(error)
                if code in ("PreconditionFailed", "NoSuchKey"):
                    return self._version_of(path, data)
                # S3 answers so while another request for the same key is under way
                if code != "ConditionalRequestConflict" or attempt + 1 == _ATTEMPTS:
                    raise
                time.sleep(min(0.1 * 2**attempt, 5))
            else:
                return str(answer["ETag"]).strip('"')
        raise AssertionError("unreachable")

    def _version_of(self, path: str, data: bytes) -> str | None:
        """The version of a file with this very content, as a request leaves it whose answer was lost."""
        try:
            content, version = self._read_version(path)
        except FileNotFoundError:
            return None
        return version if content == data else None

    def _delete(self, paths: Iterable[str]) -> None:
        keys = [self._key(path) for path in paths]
        for start in range(0, len(keys), _DELETE_BATCH):
            self._delete_batch(keys[start : start + _DELETE_BATCH])

    def _delete_batch(self, keys: list[str]) -> None:
        for attempt in range(_ATTEMPTS):
            batch = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
            answer = self._fs.call_s3("delete_objects", Bucket=self._bucket, Delete=batch)
            failures = answer.get("Errors", [])  # s3fs' own rm() drops these in silence
            for failure in failures:
                code = failure.get("Code")
                if code not in _PASSING or attempt + 1 == _ATTEMPTS:
                    kind = PermissionError if code == "AccessDenied" else OSError
                    raise kind(f"{code}: {failure.get('Key')}: {failure.get('Message')}")
            if not failures:
                return
            keys = [failure["Key"] for failure in failures]
            time.sleep(min(0.1 * 2**attempt, 5))

    def _exists(self, path: str) -> bool:
        return self._head(path) is not None


def open_store(location: Location) -> Store:
    """Open the store of a location in this process; on S3 about 0.1 s, so hold on to it."""
    return _S3Store(location) if location.uri.startswith("s3://") else _DiskStore(location)
