"""Whether a dataset is what its manifest says, to the last value; changes nothing.

    python -m jobs.verify OUT                    the live dataset
    python -m jobs.verify OUT --manifest ID      an earlier one that is kept (see jobs.history)

    the manifest's own checksum      it is the file that was committed                                 (jobs.records)
    the manifest against itself      every row of every shard is in each view, or a reject, once       (jobs.accounts)
    the listing                      every file is there, in its size
    each file                        its checksum; columns, labels, values, counts                     (jobs.checks)
    all parts of a view              no id (with chunks: no chunk of an id) stands twice               (jobs.unique)

Ids that the corpus holds twice are findings too. Files are read once and whole, some at a time by as many threads, so
memory goes with the threads and the largest part, as it did when the parts were written; ids wait on disk. pyarrow and
the checksums leave the other threads running, so a disk is read at its own pace on a few cores.

A run may commit and clear up meanwhile: where there are findings and the manifest is another one by then, they say
nothing, and everything is looked at again.

What nobody can find here: another vector in place of the right one, of length 1 and under the right checksum.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click
import pyarrow as pa
from rich.console import Console

from jobs.accounts import check_manifest
from jobs.checks import check_bytes, check_part, check_rejects
from jobs.command import Answer, arguments, carry_out
from jobs.errors import FileChangedError, OutputBusyError
from jobs.findings import Finding, compare, finding, print_findings
from jobs.manifests import checksums_of, find_kept, id_of, path_of, read_kept, read_live
from jobs.parquet import open_plain
from jobs.record_files import parse_manifest
from jobs.records import MANIFEST, FileRecord, Manifest, PartRecord, Receipt
from jobs.rows import Reading
from jobs.sections import CHUNK_INDEX
from jobs.storage import Location, Store, open_store
from jobs.threads import in_threads
from jobs.unique import Register, bits_of

PROGRAM = "python -m jobs.verify"

_MOST_LOOKS = 3
_SHOWN = 20
_REPORTED = 100
_REPEATED_IDS = 20  # that are looked up again, to be named

command = click.Command(
    name=PROGRAM,
    help="Read everything that the manifest of the output OUT names, and say what is not as it should be.",
    epilog="One JSON object goes to stdout. Exit codes: 0 clean; 1 there are findings; 2 it cannot be run.",
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[
        click.Argument(["output"], metavar="OUT"),
        click.Option(["--manifest"], metavar="ID", help="An earlier dataset, as jobs.history names it."),
        click.Option(["--endpoint-url"], metavar="URL", help="Endpoint of an S3-compatible store."),
        click.Option(
            ["--threads"],
            type=click.IntRange(1),
            default=8,
            show_default=True,
            metavar="N",
            help="Files at a time, each in memory.",
        ),
    ],
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    stopped = "what was not read yet may be right or wrong"
    return carry_out(PROGRAM, lambda: _options(argv), _answer, stopped=stopped, failed=2)


def _options(argv: Sequence[str] | None) -> Mapping[str, Any]:
    with arguments(command, PROGRAM, argv) as context:
        return context.params


def _answer(options: Mapping[str, Any], console: Console) -> Answer:
    store = open_store(Location(options["output"], options["endpoint_url"]))
    for _ in range(_MOST_LOOKS):
        started = time.monotonic()
        subject = _find(store, options["manifest"])
        findings = verify(store, subject, options["threads"])
        if not findings or subject.is_there(store):
            summary = _show(store, subject, findings, console, time.monotonic() - started)
            return Answer(summary, 1 if findings else 0)
        console.print("A run has committed meanwhile, so what was read is not one dataset; looking again")
    raise OutputBusyError(
        f"{store.location.uri} was committed to each of the {_MOST_LOOKS} times that it was read; try again when no "
        "run is at work on it"
    )


@dataclass(frozen=True)
class Subject:
    """A manifest as it is looked at.

    Attributes:
        manifest: What it says.
        path: Its file.
        version: Of that file.
        findings: About that file.
    """

    manifest: Manifest
    path: str
    version: str
    findings: list[Finding]

    def is_there(self, store: Store) -> bool:
        """Whether it still is: a commit replaces the live one, and an earlier one goes before its files."""
        try:
            return store.read_version(self.path)[1] == self.version
        except FileNotFoundError:
            return False


def _find(store: Store, wanted: str | None) -> Subject:
    """The live manifest, or the one that is meant by the beginning of its id or digest.

    Raises:
        OutputError: There is none.
        OutputBusyError: It went while it was looked for.
    """
    live = read_live(store)
    is_live = wanted is None or id_of(live).startswith(wanted) or live.digest.startswith(wanted)
    kept = None if wanted is None or is_live else find_kept(store, wanted, live)
    path = MANIFEST if kept is None else path_of(kept)
    try:
        content, version = store.read_version(path)
        manifest = (
            parse_manifest(content, f"{store.location.uri}/{path}")
            if kept is None
            else read_kept(store, kept)  # which knows from its name what it should hold
        )
    except FileNotFoundError:
        raise OutputBusyError(
            f"a run has committed to {store.location.uri} just now, and {path} is no more; try again"
        ) from None
    found, expected = checksums_of(content)
    findings = (
        [finding(path, "checksum of the manifest", "none", "one at its end")]
        if found is None
        else compare(path, "checksum of the manifest", found, expected)
    )
    return Subject(manifest, path, version, findings)


@dataclass(frozen=True)
class _File:
    """A file that the manifest names, and what is to be known of it."""

    number: int
    record: FileRecord
    receipt: Receipt
    view: str | None = None


def verify(store: Store, subject: Subject, num_threads: int) -> list[Finding]:
    """Check a dataset; returns what is wrong."""
    manifest = subject.manifest
    findings = [*subject.findings, *check_manifest(manifest)]
    files = list(_files(manifest))
    sizes = {entry.path: entry.size_bytes for entry in store.list()}
    with Register() as register:
        dataset = _Dataset(store, manifest, sizes, register)
        for found in in_threads(dataset.check, files, num_threads):
            findings.extend(found)
        findings.extend(dataset.repeated_ids(files))
    return findings


def _show(
    store: Store, subject: Subject, findings: Sequence[Finding], console: Console, seconds: float
) -> dict[str, Any]:
    """Print what is wrong; returns the summary."""
    manifest = subject.manifest
    files = [file.record for file in _files(manifest)]
    if findings:
        print_findings(console, findings, _SHOWN)
    num_vectors = sum(manifest.num_vectors().values())
    console.print(
        f"{id_of(manifest)}: {len(files):,} files, {num_vectors:,} vectors, "
        + (f"{len(findings):,} findings" if findings else "clean")
    )
    return {
        "ok": not findings,
        "output": store.location.uri,
        "manifest": id_of(manifest),
        "files": len(files),
        "bytes": sum(record.num_bytes for record in files),
        "rows": manifest.num_rows,
        "vectors": num_vectors,
        "rejected": sum(manifest.rejected().values()),
        "seconds": round(seconds, 3),
        "num_findings": len(findings),
        "findings": [asdict(one) for one in findings[:_REPORTED]],
    }


def _files(manifest: Manifest) -> Iterator[_File]:
    number = 0
    for receipt in manifest.receipts:
        for view, part in receipt.parts.items():
            yield _File(number, part, receipt, view)
            number += 1
        if receipt.rejects is not None:
            yield _File(number, receipt.rejects, receipt)
            number += 1


class _Dataset:
    """The files of one manifest; for any number of threads."""

    def __init__(
        self, store: Store, manifest: Manifest, sizes: Mapping[str, int], register: Register
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._sizes = sizes
        self._register = register
        self._reading = Reading.of(manifest.reading)
        self._views = {name: number for number, name in enumerate(manifest.views)}
        chunks = self._reading.long_text is not None and self._reading.long_text.chunks
        self._key = [manifest.reading.id_column, *([CHUNK_INDEX] if chunks else [])]

    def check(self, file: _File) -> list[Finding]:
        """Everything about one file."""
        record = file.record
        if record.path not in self._sizes:
            return [finding(record.path, "file", "none", f"{record.num_bytes} bytes")]
        if wrong := compare(record.path, "bytes", self._sizes[record.path], record.num_bytes):
            return wrong
        try:
            content = self._store.read(record.path)
        except FileNotFoundError:
            return [finding(record.path, "file", "none", f"{record.num_bytes} bytes")]
        if wrong := check_bytes(record, content):
            return wrong
        if file.view is None:
            return check_rejects(record, file.receipt, self._reading, content)
        if file.view not in self._views:
            return []  # the manifest's own contradiction, which is a finding
        assert isinstance(record, PartRecord)
        return check_part(
            record,
            self._manifest.views[file.view],
            self._reading,
            content,
            lambda batch: self._register.add(file.number, self._bits(file, batch)),
        )

    def _bits(self, file: _File, rows: pa.RecordBatch) -> Any:
        assert file.view is not None
        ids, *index = (rows.column(name) for name in self._key)
        return bits_of(ids, self._views[file.view], *(one.fill_null(0) for one in index))

    def repeated_ids(self, files: Sequence[_File]) -> Iterator[Finding]:
        """Ids that stand twice; the bits say where to look, and the ids themselves whether it is true."""
        count, where = self._register.repeated(_REPEATED_IDS)
        wanted: dict[int, set[int]] = {}
        for bits, numbers in where.items():
            for number in numbers:
                wanted.setdefault(number, set()).add(bits)
        seen: dict[str, list[str]] = {}
        for number, bits_there in wanted.items():
            file = files[number]
            try:
                with self._store.open(file.record.path) as source, open_plain(source) as parquet:
                    for batch in parquet.iter_batches(columns=self._key):
                        for bits, row in zip(
                            self._bits(file, batch).tolist(), batch.to_pylist(), strict=True
                        ):
                            if bits in bits_there:
                                seen.setdefault(f"{file.view}: {row}", []).append(file.record.path)
            except (FileNotFoundError, FileChangedError):
                yield finding(file.record.path, "file", "removed meanwhile", f"{file.record.num_bytes} bytes")
        for name, paths in seen.items():
            if len(paths) > 1:
                yield finding(paths[0], f"id of {name}", f"{len(paths)} times: {', '.join(paths)}", "once")
        if count > len(where):
            yield finding(MANIFEST, "ids", f"{count} stand more than once", "each once")


if __name__ == "__main__":
    sys.exit(main())
