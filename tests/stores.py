"""What tests do to a store that no job does."""

from __future__ import annotations

from jobs.storage import Store


def put(store: Store, path: str, content: bytes) -> None:
    """Write a file, whatever was there."""
    store.delete([path])
    assert store.create(path, content)
