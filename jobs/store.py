"""What every store promises: a location, its listing, and files that appear once or change in one step.

A `Location` says where and travels between processes; each process opens a `Store` from it for itself
(`jobs.storage.open_store`), with the credentials, region and endpoint that it finds in its own environment.

`create` is what makes retries and late twins harmless: a file appears once, whole, or not at all. False means
"there is one already", not "somebody else made it": a try whose answer was lost finds its own file when it is
repeated. Who needs to know compares the content.

`swap` is what makes one of several writers win: a file is replaced only if it is still the version that the writer
has seen.
"""

from __future__ import annotations

import os
import platform
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import uuid4

from jobs.errors import ConfigurationError, FileChangedError, StorageError
from jobs.storage_failures import REST, ReportedFile, redacted, reported, reported_read

_TEMPORARY = re.compile(r"(^|/)\.[0-9a-f]{32}\.tmp$")


@dataclass(frozen=True)
class Location:
    """A folder or file by its URI; picklable, holds no secret.

    Attributes:
        uri: A plain path or `file://` (both become an absolute plain path, so that a worker with another
            current directory means the same place), or `s3://bucket/prefix`. Nothing is percent-decoded.
        endpoint_url: An S3-compatible service; else botocore's AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL hold.
        anonymous: Send unsigned requests, for public buckets.

    Raises:
        ConfigurationError: Another scheme, no bucket, or credentials in a URI.
    """

    uri: str
    endpoint_url: str | None = None
    anonymous: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", _normalised(self.uri))
        if self.endpoint_url is not None and redacted(self.endpoint_url) != self.endpoint_url:
            raise ConfigurationError(
                "endpoint_url holds a user name or password; give https://host:port, and the credentials as"
                " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or an instance role"
            )

    def join(self, path: str) -> Location:
        """The location of a relative path below this one."""
        return replace(self, uri=f"{self.uri.rstrip('/')}/{checked(path)}") if path else self


def _normalised(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        path = rest if separator else uri
        if not path or (separator and not path.startswith("/")):
            raise ConfigurationError(
                f"{uri!r} names no place; give a path, file:///path or s3://bucket/prefix"
            )
        if path == "~" or path.startswith("~/"):
            path = f"{Path.home()}{path[1:]}"
        absolute = os.path.abspath(path)  # noqa: PTH100 (unlike resolve it keeps links as they are)
        return absolute + "/" if path.endswith("/") and absolute != "/" else absolute
    if scheme != "s3":
        raise ConfigurationError(
            f"cannot use {redacted(uri)!r}: its scheme is {scheme!r}; allowed are a plain path, file:// and"
            " s3://"
        )
    bucket, _, key = rest.partition("/")
    if not bucket or redacted(uri) != uri:
        raise ConfigurationError(
            "an s3:// URI is s3://bucket/prefix: the bucket's name first, and no credentials"
        )
    if {"", ".", ".."} & set(key.rstrip("/").split("/")) and key:
        raise ConfigurationError(
            f"{uri!r} has a folder '', '.' or '..', which S3 takes literally; write it out"
        )
    return uri


def checked(path: str) -> str:
    """The path itself, if it stays below its root.

    Raises:
        ValueError: It does not.
    """
    if not path or path.startswith("/") or path.endswith("/") or {".", ".."} & set(path.split("/")):
        raise ValueError(
            f"{path!r} is no path below a root: it must not be empty, start or end with '/', or hold '..'"
        )
    return path


def temporary_name() -> str:
    """A fresh name for a file that is being written; listings leave it out."""
    return f".{uuid4().hex}.tmp"


def is_temporary(path: str) -> bool:
    """Whether a path ends in such a name."""
    return _TEMPORARY.search(path) is not None


@dataclass(frozen=True)
class Entry:
    """One file of a listing.

    Attributes:
        path: Relative to the store's root, "/"-separated.
        size_bytes: As listed.
        version: Another one whenever the content changes: the etag on S3, size and mtime in ns on disk.
        modified: POSIX seconds.
    """

    path: str
    size_bytes: int
    version: str
    modified: float


class Store(ABC):
    """The files below one location, for any number of threads of one process.

    Paths are relative to the location; one that would leave it is a ValueError. Failures of the disk, the
    network or the service are StorageErrors that name the URI, except FileNotFoundError from `read` and
    `open`.
    """

    def __init__(self, location: Location) -> None:
        self.location = location

    def __reduce__(self) -> tuple[type[Store], tuple[Location]]:
        return type(self), (self.location,)  # a store that is pickled is opened anew where it arrives

    def list(self, prefix: str = "", *, temporary: bool = False) -> Iterator[Entry]:
        """Every file below the folder `prefix`, sorted by path; or the one file that `prefix` names.

        Nothing there is an empty listing; a link to nothing is an empty file. Left out: names that start with
        "." (but for our temporary files, with `temporary`), and the placeholders that S3 consoles make for
        folders.
        """
        folder = checked(prefix.rstrip("/")) if prefix else ""
        with reported("list", self._uri(folder)):
            entries = [
                entry
                for entry in self._list(folder)
                if not entry.path.rpartition("/")[2].startswith(".")
                or (temporary and is_temporary(entry.path))
            ]
        return iter(sorted(entries, key=lambda entry: entry.path))

    def open(self, path: str, version: str | None = None, size_bytes: int | None = None) -> BinaryIO:
        """A seekable file for pyarrow; its reads fail with StorageError too.

        Args:
            path: The file.
            version: What a listing gave; the file must still be that one. (On S3 it cannot change unnoticed
                while it is open either.)
            size_bytes: What the same listing gave; saves S3 a request.

        Raises:
            FileNotFoundError: No such file, and no version was given.
            FileChangedError: Another version by now, or none.
            StorageError: The folder that was listed is not there at all on this machine.
        """
        uri = self._uri(checked(path))
        try:
            with reported("open", uri, missing=True):
                file, found = self._open(path, version if size_bytes else None, size_bytes or 0)
        except FileNotFoundError as error:
            if version is None:
                raise
            if not self._has_root():
                raise StorageError(
                    f"could not open {uri}: there is no {self._uri('')} on {platform.node()}; a local path must be the "
                    "same folder on every machine that works on the job: mount it there, or use s3://"
                ) from error
            raise FileChangedError(f"{uri} is gone since it was listed; {REST}") from error
        if version is not None and found != version:
            file.close()
            raise FileChangedError(
                f"{uri} has changed since it was listed (version {version} then, {found} now); {REST}"
            )
        return cast("BinaryIO", ReportedFile(file, partial(reported_read, uri)))

    def read(self, path: str) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: No such file.
        """
        with reported("read", self._uri(checked(path)), missing=True):
            return self._read(path)

    def read_version(self, path: str) -> tuple[bytes, str]:
        """The whole file, and its version as a listing gives it.

        Raises:
            FileNotFoundError: No such file.
        """
        with reported("read", self._uri(checked(path)), missing=True):
            return self._read_version(path)

    def create(self, path: str, data: bytes) -> bool:
        """Make a file once, whole or not at all; False: there is one already, and it was not touched."""
        with reported("create", self._uri(checked(path))):
            return self._create(path, data)

    def swap(self, path: str, data: bytes, expected: str | None) -> str | None:
        """Replace a file in one step if it is still the `expected` version, or None if there is still no such file.

        Who reads sees the old content or the new one.

        Returns:
            Its new version; None if it is another file by now, which was not touched. A try whose answer was lost
            finds its own content when it is repeated, and counts as made; so contents should say who wrote them.
        """
        with reported("write", self._uri(checked(path))):
            return self._swap(path, data, expected)

    def delete(self, paths: Iterable[str]) -> None:
        """Remove files; those that are missing are no error."""
        wanted = [checked(path) for path in paths]
        with reported("delete files below", self._uri("")):
            self._delete(wanted)

    def exists(self, path: str) -> bool:
        """Whether there is a file of this name (a folder is none)."""
        with reported("look up", self._uri(checked(path))):
            return self._exists(path)

    def _has_root(self) -> bool:
        """Whether the location itself is there, as far as that can be said."""
        return True

    def _uri(self, path: str) -> str:
        return self.location.join(path).uri

    @abstractmethod
    def _list(self, folder: str) -> Iterable[Entry]: ...
    @abstractmethod
    def _open(self, path: str, version: str | None = None, size_bytes: int = 0) -> tuple[Any, str]: ...
    @abstractmethod
    def _read(self, path: str) -> bytes: ...
    @abstractmethod
    def _read_version(self, path: str) -> tuple[bytes, str]: ...
    @abstractmethod
    def _swap(self, path: str, data: bytes, expected: str | None) -> str | None: ...
    @abstractmethod
    def _create(self, path: str, data: bytes) -> bool: ...
    @abstractmethod
    def _delete(self, paths: Iterable[str]) -> None: ...
    @abstractmethod
    def _exists(self, path: str) -> bool: ...
