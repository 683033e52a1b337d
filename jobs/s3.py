"""A prefix of an S3 bucket as a store.

To create once is a PUT with `If-None-Match: *`, to swap is a PUT with `If-Match`. Credentials, region and endpoint are
botocore's affair (environment, profile, instance role). An upload that is cut off leaves parts that only a lifecycle
rule of the bucket (AbortIncompleteMultipartUpload) removes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from s3fs import S3FileSystem
from s3fs.utils import FileExpired

from jobs.errors import StorageError
from jobs.storage_failures import service_code
from jobs.store import Entry, Location, Store, checked

_ATTEMPTS = 10
_READ_AHEAD_BYTES = 2**20  # s3fs' default of 50 MB would fetch the columns that nobody wants
_END_BYTES = 64 * 2**10  # what readers of Parquet want first
_DELETE_BATCH = 1000  # the most that one DeleteObjects takes
# Of single files in an answer that is well otherwise, which no client tries again by itself.
_PASSING = {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted"}


class S3Store(Store):
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
