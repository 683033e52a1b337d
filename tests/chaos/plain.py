"""The job without Ray: one process, one fragment after another, nothing that could be killed or come late.

What the pipeline makes is compared with this, bit for bit. It is also what a late twin is made of.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pyarrow as pa

from jobs.embed import main
from jobs.encode import EncodeFragment
from jobs.ranges import Calibrator
from jobs.read import Reader
from jobs.run_spec import RunSpec, Work
from jobs.write import Writer
from tests.chaos.sites import Site
from tests.integration.commands import Outcome

Between = Callable[[], None]


@contextmanager
def without_ray(before_writing: Between = lambda: None) -> Iterator[None]:
    """In this block the job runs its stages itself.

    Args:
        before_writing: Called once, when everything is encoded and nothing written.
    """

    def encoded(run: RunSpec, work: Sequence[Work]) -> list[pa.Table]:
        read, encode = Reader(run), EncodeFragment(run)
        rows = [pa.table({"work": pa.array([piece.to_json()], pa.binary())}) for piece in work]
        return [encode(read(row)) for row in rows]

    def embed_fragments(run: RunSpec, work: Sequence[Work], _: object) -> Iterator[dict[str, Any]]:
        rows, write = encoded(run, work), Writer(run)
        before_writing()
        for row in rows:
            yield write(row).to_pylist()[0]

    def calibrate_fragments(run: RunSpec, work: Sequence[Work], _: object) -> Iterator[dict[str, Any]]:
        calibrate = Calibrator(run)
        for row in encoded(run, work):
            yield from calibrate(row).to_pylist()

    cluster = {"connect": lambda *_: None, "choose_device": lambda _: "cpu", "choose_cores": lambda _: 1}
    stages = {"embed_fragments": embed_fragments, "calibrate_fragments": calibrate_fragments}
    with patch.multiple("jobs.cluster", **cluster), patch.multiple("jobs.pipeline", **stages):
        yield


def rebuild(site: Site) -> dict[str, Any]:
    """Make a site's output in this process; returns the summary."""
    return embed(*site.arguments())


def embed(*arguments: str) -> dict[str, Any]:
    """The command in this process; returns the summary."""
    return attempt(*arguments).summary


def attempt(*arguments: str) -> Outcome:
    """The command in this process, come of it what may."""
    stdout, stderr, started = io.StringIO(), io.StringIO(), time.monotonic()
    with without_ray(), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        exit_code = main(list(arguments))
    return Outcome(exit_code, stdout.getvalue(), stderr.getvalue(), time.monotonic() - started)
