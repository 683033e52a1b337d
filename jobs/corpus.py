"""Which shards a URI means: a file, a folder or a glob, from one listing and without reading data.

What counts is what pyarrow, Spark and Ray count: names that end in .parquet, .parq or .pq, and no folder or
file below the root that starts with "_" or ".". Files of 0 bytes do count: they are bad shards, and whoever
skips them does so aloud. Hive folders (`lang=en/year=2024`) are kept as they stand; every shard must have the
same keys.

A glob names files, as fsspec's does: `*`, `?` and `[` stay within a folder, `**` goes through any number of
them. Its root is the longest run of folders before the first of these.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import unquote

from fsspec.utils import glob_translate

from jobs.errors import ConfigurationError, CorpusError
from jobs.storage import Entry, Location, open_store

SUFFIXES = (".parquet", ".parq", ".pq")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_ALLOWED = (
    f"A corpus is a file, a folder or a glob of files whose names end in {', '.join(SUFFIXES)};"
    " below its root names that start with '_' or '.' do not count"
)


@dataclass(frozen=True)
class Shard:
    """One input Parquet file, as it was listed.

    Attributes:
        path: Relative to the corpus root.
        version: See `Entry.version`.
        size_bytes: As listed; 0 is a bad shard.
    """

    path: str
    version: str
    size_bytes: int

    @property
    def partitions(self) -> str:
        """The key=value folders of the path as they stand, percent-encoded: "lang=en/year=2024", or ""."""
        return partitions_of(self.path)


def partitions_of(path: str) -> str:
    """Those of a shard's path."""
    return "/".join(folder for folder in path.split("/")[:-1] if folder.find("=") > 0)


@dataclass(frozen=True)
class Corpus:
    """All shards of one input.

    Attributes:
        location: The root folder: `open_store(location).open(shard.path)` opens a shard.
        shards: Sorted by path.
        partition_keys: Names of the Hive keys, decoded, outermost first; the same in every shard.
    """

    location: Location
    shards: tuple[Shard, ...]
    partition_keys: tuple[str, ...]


def list_corpus(location: Location) -> Corpus:
    """List the shards that a location means.

    Raises:
        ConfigurationError: There are none, or the pattern cannot be understood.
        CorpusError: Shards disagree about their partition keys, or have names that are no text.
        StorageError: The listing failed.
    """
    root, pattern = _split_glob(location)
    if pattern is not None:
        matches, seen = _matcher(location, pattern), list(open_store(root).list())
        chosen = [entry for entry in seen if _counts(entry.path) and matches.match(entry.path)]
    else:
        root, seen, is_file = _list_plain(location)
        # who names a file means it, whatever its name starts with
        chosen = [entry for entry in seen if (_is_parquet(entry.path) if is_file else _counts(entry.path))]
    if not chosen:
        raise ConfigurationError(_nothing_found(location, root, pattern, seen))
    for entry in chosen:
        if not _is_unicode(entry.path):
            raise CorpusError(
                f"the name of shard {entry.path!r} is not UTF-8, and no record could hold it; rename it"
            )
    shards = tuple(Shard(entry.path, entry.version, entry.size_bytes) for entry in chosen)
    return Corpus(root, shards, _partition_keys(shards))


def partition_values(shard: Shard) -> dict[str, str | None]:
    """Decode the partition folders of a shard, outermost first; Hive's name for null becomes None.

    Raises:
        CorpusError: A folder is not percent-encoded UTF-8, or a key stands twice in the path.
    """
    values: dict[str, str | None] = {}
    for folder in shard.partitions.split("/") if shard.partitions else []:
        key, _, value = folder.partition("=")
        try:
            key, value = unquote(key, errors="strict"), unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise CorpusError(
                f"shard {shard.path!r}: the folder {folder!r} is not percent-encoded UTF-8"
            ) from None
        if key in values:
            raise CorpusError(
                f"shard {shard.path!r}: the partition key {key!r} stands twice in its path; keep one"
            )
        values[key] = None if value == _HIVE_NULL else value
    return values


def _split_glob(location: Location) -> tuple[Location, str | None]:
    """The folder before the first wildcard, and the pattern below it (None: there is no wildcard)."""
    scheme = "s3://" if location.uri.startswith("s3://") else ""
    folders = location.uri.removeprefix(scheme).split("/")
    first = next((i for i, folder in enumerate(folders) if re.search(r"[*?[]", folder)), None)
    if first is None:
        return location, None
    if first == 0:
        raise ConfigurationError(f"{location.uri!r} has a wildcard in the bucket's name. {_ALLOWED}")
    return replace(location, uri=scheme + "/".join(folders[:first]) or "/"), "/".join(folders[first:])


def _matcher(location: Location, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(glob_translate(pattern))
    except (ValueError, re.error) as error:
        raise ConfigurationError(f"cannot understand the pattern {location.uri!r}: {error}") from error


def _list_plain(location: Location) -> tuple[Location, list[Entry], bool]:
    """The root, the files below it, and whether the location is one file; with one listing for both cases."""
    parent, _, name = location.uri.rpartition("/")
    if not name or parent == "s3:/":
        return location, list(open_store(location).list()), False
    folder = replace(location, uri=parent or "/")
    entries = list(open_store(folder).list(name))
    if [entry.path for entry in entries] == [name]:
        return folder, entries, True
    return location, [replace(entry, path=entry.path.removeprefix(name + "/")) for entry in entries], False


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(SUFFIXES)


def _is_unicode(path: str) -> bool:
    """Whether a name is text; Python gives odd bytes in names on disk as lone surrogates."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _counts(path: str) -> bool:
    return _is_parquet(path) and not any(name.startswith(("_", ".")) for name in path.split("/"))


def _partition_keys(shards: tuple[Shard, ...]) -> tuple[str, ...]:
    first, *others = shards
    keys = tuple(partition_values(first))
    for shard in others:
        if tuple(partition_values(shard)) != keys:
            raise CorpusError(
                f"shards disagree about their partition folders: {first.path!r} has {_listed(keys)},"
                f" {shard.path!r} has {_listed(partition_values(shard))}; every shard needs the same keys in"
                " the same order: move one of them, or take only those that belong together, with a glob"
            )
    return keys


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(keys) or "none"


def _nothing_found(location: Location, root: Location, pattern: str | None, seen: list[Entry]) -> str:
    where = f"below {root.uri!r} that match {pattern!r}" if pattern is not None else f"at {location.uri!r}"
    if not seen:
        return f"there are no files {where}: nothing exists there; check the path. {_ALLOWED}"
    examples = ", ".join(repr(entry.path) for entry in seen[:3])
    hint = " A glob names files, not folders: 'folder/**/*.parquet' takes all below one." if pattern else ""
    return f"there are no shards {where}, but {len(seen)} other files, such as {examples}.{hint} {_ALLOWED}"


def refuse_overlap(corpus: Corpus, source: Location, target: Location) -> None:
    """Refuse an output whose parts the next run would take for shards, or that holds shards now.

    Raises:
        ConfigurationError: Input and output overlap.
    """
    root, out = _resolved(corpus.location), _resolved(target)
    takes_folders = "**" in source.uri or _resolved(source) == root
    if (takes_folders and out.startswith(root)) or any(
        (root + shard.path).startswith(out) for shard in corpus.shards
    ):
        raise ConfigurationError(
            f"the output {target.uri} overlaps the input {source.uri}: the next run would take its parts for"
            " shards; give an output beside the input, not in it or around it"
        )


def _resolved(location: Location) -> str:
    """A folder's URI that ends in "/", links followed, so that one folder has one name."""
    uri = location.uri if location.uri.startswith("s3://") else os.path.realpath(location.uri)
    return uri.rstrip("/") + "/"
