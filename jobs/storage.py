"""The only place where a store is opened: a folder on disk, or below a prefix of an S3 bucket."""

from __future__ import annotations

from jobs.disk import DiskStore
from jobs.store import Entry, Location, Store

__all__ = ["Entry", "Location", "Store", "open_store"]


def open_store(location: Location) -> Store:
    """Open the store of a location in this process; on S3 about 0.1 s, so hold on to it."""
    if not location.uri.startswith("s3://"):
        return DiskStore(location)
    from jobs.s3 import S3Store

    return S3Store(location)
