"""A folder on disk as a store.

To create once is a hard link from a finished temporary file, to swap is a rename under a file lock. A process that is
killed while it writes leaves a temporary file behind, `.<hex>.tmp`; listings leave out names that start with a dot,
and the sweep of an output removes old ones.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.store import Entry, Location, Store, temporary_name


class DiskStore(Store):
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
