"""Failures of a disk, a network or a service, as StorageError: what was tried, on which URI, what to check.

s3fs translates the service's answers into OSError and keeps the answer as the cause; botocore's own errors
(no credentials, no connection) come through as they are. Nothing here shows a secret: neither URIs nor
reasons keep what stands before an "@".
"""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from jobs.errors import ConfigurationError, FileChangedError, StorageError

REST = "let the files rest while a job reads them, and run the same command again"
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_UNKNOWN_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"}


@contextmanager
def reported(action: str, uri: str, *, missing: bool = False) -> Iterator[None]:
    """Raise failures inside the block as StorageError.

    Args:
        action: What is tried, as a verb: "could not <action> <uri>".
        uri: On what.
        missing: Let a missing file through as FileNotFoundError (a missing bucket is still a StorageError).

    Raises:
        StorageError: Any failure of the disk, the network or the service.
        FileChangedError: The file was replaced while it was open.
        ConfigurationError: The service's endpoint cannot be one.
        FileNotFoundError: Only with `missing`.
    """
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        if missing and service_code(error) != "NoSuchBucket":
            raise FileNotFoundError(errno.ENOENT, "no such file", uri) from error
        raise StorageError(_message(action, uri, error)) from error
    except ValueError as error:
        if not (uri.startswith("s3://") and "endpoint" in str(error)):
            raise
        # Without its cause, which quotes what was given, a key in it too.
        raise ConfigurationError(
            f"could not {action} {redacted(uri)}: the endpoint is no URL; give http://host:port or https://host, by "
            "endpoint_url of the input or output, AWS_ENDPOINT_URL, or the profile"
        ) from None
    except _expired_at(uri) as error:
        raise FileChangedError(
            f"could not {action} {redacted(uri)}: it has changed since it was opened; {REST}"
        ) from error
    except _failures_at(uri) as error:
        raise StorageError(_message(action, uri, error)) from error


@contextmanager
def reported_read(uri: str) -> Iterator[None]:
    """The same around a read of an open file, which may be removed meanwhile.

    Raises:
        StorageError: As above; FileChangedError where the file is gone or another one.
    """
    try:
        with reported("read", uri, missing=True):
            yield
    except FileNotFoundError as error:
        raise FileChangedError(f"could not read {redacted(uri)}: it was removed meanwhile; {REST}") from error


# s3fs takes 0.2 s to import, so only a process that has to do with S3 does; its errors come from nowhere else.


def _expired_at(uri: str) -> tuple[type[OSError], ...]:
    """What says that an open file of a bucket is another one by now."""
    if not uri.startswith("s3://"):
        return ()
    from s3fs.utils import FileExpired

    return (FileExpired,)


def _failures_at(uri: str) -> tuple[type[Exception], ...]:
    """What else goes wrong at a place."""
    if not uri.startswith("s3://"):
        return (OSError,)
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]
    from s3fs.core import S3_RETRYABLE_ERRORS

    return (OSError, BotoCoreError, *S3_RETRYABLE_ERRORS)


def service_code(error: BaseException) -> str:
    """The code in the answer of the service (`NoSuchBucket`, `PreconditionFailed`), or "" without one."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def redacted(text: str) -> str:
    """The text without user names and passwords in its URIs."""
    return re.sub(r"://[^/\s]*@", "://***@", text)


def _message(action: str, uri: str, error: BaseException) -> str:
    code = service_code(error)
    text = getattr(error, "strerror", None) or str(error) or "no further words"
    reason = f"{type(error).__name__}{f' ({code})' if code else ''}: {text}".rstrip(".")
    return f"could not {action} {redacted(uri)}: {redacted(reason)}; {_advice(uri, code, error)}"


def _advice(uri: str, code: str, error: BaseException) -> str:
    if not uri.startswith("s3://"):
        if getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT}:
            return "make room on the disk and run the same command again"
        if getattr(error, "errno", None) in {errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS, errno.ENOLCK}:
            return (
                "check that this filesystem has hard links and file locks: files appear and change with them"
            )
        return "check that the path exists and that this user may read it, and write it for an output"
    from botocore.exceptions import NoCredentialsError

    if isinstance(error, NoCredentialsError):
        return (
            "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or an"
            " instance role where this process runs, or ask for anonymous access if the bucket is public"
        )
    if code in _EXPIRED:
        return "the credentials have expired: renew them and run the same command again"
    if code in _UNKNOWN_KEY:
        return "check the access key and its secret, and that they belong to this service (AWS_ENDPOINT_URL)"
    if code == "NoSuchBucket":
        return "check the name of the bucket, and AWS_ENDPOINT_URL if it is not on AWS"
    if isinstance(error, PermissionError):
        return "check that these credentials may list, get, put and delete objects there"
    return "check the network, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL, and run the same command again"


class ReportedFile(io.BufferedIOBase):
    """A file whose reads fail with StorageError.

    pyarrow raises OSError for a corrupt footer as well as for a lost connection; it passes other exceptions
    of a Python file on as they are. So with this file an OSError of pyarrow's says that the content is bad.
    """

    def __init__(self, file: Any, failures: Callable[[], AbstractContextManager[None]]) -> None:
        self._file = file
        self._failures = failures

    def read(self, size: int | None = -1, /) -> bytes:
        """Read with failures reported."""
        with self._failures():
            content: bytes = self._file.read(-1 if size is None else size)
            return content

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """As any file's."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """As any file's."""
        return int(self._file.tell())

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Close the file below too."""
        self._file.close()
        super().close()
