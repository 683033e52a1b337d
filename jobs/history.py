"""The datasets that an output has held, and the way back to one of them.

    python -m jobs.history OUT                   which manifests are kept: time, digest, rows, views, spaces
    python -m jobs.history OUT --rollback ID     make an earlier one live

Going back is a commit like any other: all files of the earlier dataset are looked up first, the live manifest is kept
aside, and one write makes the earlier one live, under a new time. No part is moved, written or removed. The next run
of jobs.embed goes on from there; as it makes the output equal to what corpus and configuration say, mend those first.

How many are kept is up to the runs (output.keep_manifests).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console

from jobs.command import Answer, arguments, carry_out
from jobs.commit import go_live
from jobs.errors import OutputError
from jobs.holdings import lost_files
from jobs.lease import held_lease
from jobs.manifests import (
    earlier,
    find_kept,
    find_live,
    id_of,
    list_kept,
    next_commit_time,
    read_all_kept,
    read_kept,
    read_live,
)
from jobs.records import Manifest
from jobs.storage import Location, Store, open_store

PROGRAM = "python -m jobs.history"

command = click.Command(
    name=PROGRAM,
    help="List the datasets that the output OUT has held and keeps, or go back to one of them.",
    epilog="One JSON object goes to stdout. Exit codes: 0 done; 1 storage failed; 2 there is no such dataset.",
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[
        click.Argument(["output"], metavar="OUT"),
        click.Option(
            ["--rollback"],
            metavar="ID",
            help="Make this one live; the beginning of its id or digest will do.",
        ),
        click.Option(["--endpoint-url"], metavar="URL", help="Endpoint of an S3-compatible store."),
    ],
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return carry_out(PROGRAM, lambda: _options(argv), _answer, stopped="what was live is live")


def _options(argv: Sequence[str] | None) -> Mapping[str, Any]:
    with arguments(command, PROGRAM, argv) as context:
        return context.params


def _answer(options: Mapping[str, Any], console: Console) -> Answer:
    store = open_store(Location(options["output"], options["endpoint_url"]))
    if options["rollback"] is None:
        return Answer(show_history(store, console))
    with held_lease(store, lambda text: console.print(text, markup=False, highlight=False)) as lease:
        return Answer(roll_back(store, options["rollback"], console, confirm=lease.confirm))


def show_history(store: Store, console: Console) -> dict[str, Any]:
    """Print what is kept; returns the summary.

    Raises:
        OutputError: Nothing was ever published there, or what is kept cannot be read.
    """
    live = read_live(store)
    manifests: list[dict[str, Any]] = []
    past = read_all_kept(store, earlier(list_kept(store), live))
    for kept, manifest in ((id_of(live), live), *past):
        entry = _entry(kept, manifest, is_live=not manifests)
        manifests.append(entry)
        # Lines and no table: an id must be there in one piece, however narrow the terminal.
        state = "live, " if entry["live"] else ""
        lines = [f"{kept}: {state}committed at {manifest.committed_at}, {manifest.num_rows:,} rows"]
        for view, vectors in entry["vectors"].items():
            record = manifest.views[view]
            lines.append(f"    {view}: {vectors:,} vectors, {record.space_name} ({record.space_id[:12]})")
        console.print("\n".join(lines), markup=False, highlight=False)
    return {"output": store.location.uri, "manifests": manifests}


def _entry(kept: str, manifest: Manifest, *, is_live: bool) -> dict[str, Any]:
    return {
        "id": kept,
        "committed_at": manifest.committed_at,
        "digest": manifest.digest,
        "live": is_live,
        "corpus": manifest.corpus,
        "rows": manifest.num_rows,
        "vectors": manifest.num_vectors(),
        "spaces": {name: view.space_id for name, view in manifest.views.items()},
    }


def roll_back(store: Store, wanted: str, console: Console, *, confirm: Callable[[], None]) -> dict[str, Any]:
    """Make an earlier manifest live; returns the summary.

    Raises:
        OutputError: There is no such manifest, or files of its dataset are gone.
        OutputBusyError: Another run has the output by now: `confirm` says so.
    """
    live, version = find_live(store)
    kept = find_kept(store, wanted, live)
    manifest = read_kept(store, kept)
    if lost := lost_files(store, manifest):
        file, found = lost[0]
        raise OutputError(
            f"{len(lost)} files of {kept} are gone or changed, the first one is {store.location.uri}/{file.path}: it "
            f"should have {file.num_bytes} bytes, not {found}; what was live is live. Put them back, or go to another"
        )
    restored = manifest.model_copy(update={"committed_at": next_commit_time(live)})
    go_live(store, restored, replacing=version, confirm=confirm)
    console.print(f"{kept} is live again, as {id_of(restored)}; {id_of(live)} is kept aside")
    return {
        "output": store.location.uri,
        "was_live": id_of(live),
        **_entry(id_of(restored), restored, is_live=True),
    }


if __name__ == "__main__":
    sys.exit(main())
