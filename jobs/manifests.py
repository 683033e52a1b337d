"""The manifests that are kept: the live one, and those that were live before, so that a commit can be taken back.

    OUT/_manifest.json                     the live one
    OUT/_manifests/<time>-<digest>.json    one that was live, under the time of its commit

A manifest is kept aside before another takes its place, so each of these was live once. Its name says what it holds,
and it is created once: a run that dies between that and its commit leaves a copy of what is live still, which does not
count, and the next run finds it there. Times of commits go up, whatever the clock does, so names sort by age. Going
back to an earlier manifest is a commit too: it is live under a new time, and its copy under the old one is surplus.

A list of names is all that it takes to say which are kept; one manifest at a time is in memory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from encoders.space import digest
from jobs.errors import OutputError
from jobs.files import kind_of
from jobs.record_files import find_manifest, parse_manifest
from jobs.records import CIRCUMSTANCES, MANIFEST, MANIFESTS, Manifest
from jobs.storage import Store

_TICK = timedelta(milliseconds=1)
_CHECKSUM = re.compile(rb',"checksum":"([0-9a-f]{64})"\}\s*')


def content_of(manifest: Manifest) -> bytes:
    """The content of a manifest's file; at its end stands a checksum of all else."""
    content = manifest.model_dump_json(exclude={"checksum"}).encode()
    return content[:-1] + f',"checksum":"{hashlib.sha256(content).hexdigest()}"}}'.encode()


def checksums_of(content: bytes) -> tuple[str | None, str | None]:
    """The checksum that a manifest's file has at its end, and the one that it should have; None where it has none."""
    found = _CHECKSUM.search(content, max(0, len(content) - 200))
    if found is None or found.end() != len(content):
        return None, None
    return found[1].decode(), hashlib.sha256(content[: found.start()] + b"}").hexdigest()


def next_commit_time(held: Manifest | None) -> str:
    """Now, or just after the commit of the manifest that is there, if a clock says that this is later."""
    now = datetime.now(UTC)
    if held is not None:
        now = max(now, _time_of(held) + _TICK)
    return now.isoformat(timespec="milliseconds")


def id_of(manifest: Manifest) -> str:
    """What the manifest is kept as: time of its commit, and digest."""
    return f"{_stamp(manifest)}-{manifest.digest}"


def _id_of_content(content: bytes, manifest: Manifest) -> str:
    """The same from the file, for another version of this program may see more fields in it, or fewer."""
    fields = {name: value for name, value in json.loads(content).items() if name not in CIRCUMSTANCES}
    return f"{_stamp(manifest)}-{digest(fields)}"


def _stamp(manifest: Manifest) -> str:
    return f"{_time_of(manifest).strftime('%Y%m%dT%H%M%S%f')[:-3]}Z"


def _time_of(manifest: Manifest) -> datetime:
    try:
        return datetime.fromisoformat(manifest.committed_at).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise OutputError(
            f"the manifest says that it was committed at {manifest.committed_at!r}, which is no time; was it edited? "
            "Put back the file that was there, or use another output"
        ) from error


def digest_of(kept: str) -> str:
    """The digest of the manifest that is kept under an id."""
    return kept.rpartition("-")[2]


def path_of(kept: str) -> str:
    """Where the manifest is that is kept under an id."""
    return f"{MANIFESTS}/{kept}.json"


def keep_aside(store: Store) -> None:
    """Copy what is live now, if anything is, to where it stays when another manifest takes its place."""
    try:
        content = store.read(MANIFEST)
    except FileNotFoundError:
        return
    kept = _id_of_content(content, parse_manifest(content, f"{store.location.uri}/{MANIFEST}"))
    store.create(path_of(kept), content)


def list_kept(store: Store) -> list[str]:
    """The ids of all manifests that are kept aside, newest first."""
    return ids_among(entry.path for entry in store.list(MANIFESTS))


def ids_among(paths: Iterable[str]) -> list[str]:
    """The ids of the manifests that are kept aside among the files of an output, newest first."""
    names = (path.removeprefix(f"{MANIFESTS}/") for path in paths if kind_of(path) == "manifest")
    return sorted((name.removesuffix(".json") for name in names), reverse=True)


def earlier(kept: Iterable[str], live: Manifest) -> list[str]:
    """Of these ids, newest first, those of datasets other than the live one, each dataset once."""
    newest: dict[str, str] = {}
    for one in kept:
        newest.setdefault(digest_of(one), one)
    newest.pop(live.digest, None)
    return list(newest.values())


def read_kept(store: Store, kept: str) -> Manifest:
    """A manifest that is kept aside.

    Raises:
        OutputError: It is no manifest, or not the one that its name says.
        FileNotFoundError: It is gone.
    """
    name, content = f"{store.location.uri}/{path_of(kept)}", store.read(path_of(kept))
    mend = "put back what was there, or remove it: nothing but the way back to it is lost"
    try:
        manifest = parse_manifest(content, name)
    except OutputError as error:
        raise OutputError(f"{error}; or {mend}") from error
    if (found := _id_of_content(content, manifest)) != kept:
        raise OutputError(f"{name} holds the manifest {found}, so it was edited or renamed; {mend}")
    return manifest


def read_live(store: Store) -> Manifest:
    """The live manifest.

    Raises:
        OutputError: There is none.
    """
    return find_live(store)[0]


def find_live(store: Store) -> tuple[Manifest, str | None]:
    """The same, and the version of its file, which a commit must still find.

    Raises:
        OutputError: There is none.
    """
    manifest, version = find_manifest(store)
    if manifest is None:
        raise OutputError(
            f"{store.location.uri} holds no manifest, so nothing was published there; name the output of a jobs.embed "
            "that ended well"
        )
    return manifest, version


def find_kept(store: Store, wanted: str, live: Manifest) -> str:
    """The id that is meant: of an earlier manifest, or the beginning of one, or of its digest.

    Raises:
        OutputError: None is, or several are.
    """
    there = earlier(list_kept(store), live)
    meant = [kept for kept in there if kept.startswith(wanted) or digest_of(kept).startswith(wanted)]
    if len(meant) == 1 and wanted:
        return meant[0]
    problem = "is the beginning of several manifests" if meant else "is no manifest that is kept there"
    if wanted and not meant and (id_of(live).startswith(wanted) or live.digest.startswith(wanted)):
        problem = "is the live manifest"
    raise OutputError(
        f"{wanted!r} {problem}; {store.location.uri} keeps {', '.join(there) or 'none but the live one'}"
    )


def read_all_kept(store: Store, kept: Iterable[str]) -> Iterator[tuple[str, Manifest]]:
    """Those of the manifests that are still there, one after the other."""
    for one in kept:
        try:
            yield one, read_kept(store, one)
        except FileNotFoundError:
            continue
