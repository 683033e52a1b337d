"""Records out of the files that hold them, and an error for what is none of ours."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from jobs.errors import OutputError
from jobs.records import MANIFEST, Manifest, RangesRecord, Receipt
from jobs.storage import Store

R = TypeVar("R", bound=BaseModel)


def read_manifest(store: Store) -> Manifest | None:
    """The manifest of an output, None where nothing was committed yet.

    Raises:
        OutputError: There is a file of that name, and it is no manifest of ours.
    """
    return find_manifest(store)[0]


def find_manifest(store: Store) -> tuple[Manifest | None, str | None]:
    """The same, and the version of its file, which a commit must still find.

    Raises:
        OutputError: There is a file of that name, and it is no manifest of ours.
    """
    try:
        content, version = store.read_version(MANIFEST)
    except FileNotFoundError:
        return None, None
    return parse_manifest(content, f"{store.location.uri}/{MANIFEST}"), version


def parse_manifest(content: bytes, name: str) -> Manifest:
    """A manifest from its file's content.

    Raises:
        OutputError: It is no manifest of ours.
    """
    return _parse(Manifest, content, name)


def parse_receipt(content: bytes, name: str) -> Receipt:
    """A receipt from its file's content.

    Raises:
        OutputError: It is no receipt of ours.
    """
    return _parse(Receipt, content, name)


def parse_ranges(content: bytes, name: str) -> RangesRecord:
    """Ranges from their file's content.

    Raises:
        OutputError: They are no ranges of ours.
    """
    return _parse(RangesRecord, content, name)


def _parse(kind: type[R], content: bytes, name: str) -> R:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise OutputError(
            f"{name} is no {kind.__name__.lower()} that this version can read "
            f"({'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}); "
            "use the version that wrote it, or another output"
        ) from error
