"""The job without Ray: one process, one fragment after another, nothing that could be killed or come late.

What the pipeline makes is compared with this, bit for bit. It is also what a late twin is made of.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pyarrow as pa

from jobs.embed import main
from jobs.encode import EncodeFragment
from jobs.read import Reader
from jobs.run_spec import RunSpec, Work
from jobs.write import Writer
from tests.chaos.sites import Site

Between = Callable[[], None]


@contextmanager
def without_ray(before_writing: Between = lambda: None) -> Iterator[None]:
    """In this block the job runs its stages itself.

    Args:
        before_writing: Called once, when everything is encoded and nothing written.
    """

    def embed_fragments(run: RunSpec, work: Sequence[Work], _: object) -> Iterator[dict[str, Any]]:
        read, encode, write = Reader(run), EncodeFragment(run), Writer(run)
        rows = [pa.table({"work": pa.array([piece.to_json()], pa.binary())}) for piece in work]
        encoded = [encode(read(row)) for row in rows]
        before_writing()
        for row in encoded:
            yield write(row).to_pylist()[0]

    cluster = {"connect": lambda *_: None, "choose_device": lambda _: "cpu", "choose_cores": lambda _: 1}
    with patch.multiple("jobs.cluster", **cluster), patch("jobs.pipeline.embed_fragments", embed_fragments):
        yield


def rebuild(site: Site) -> dict[str, Any]:
    """Make a site's output in this process; returns the summary."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with without_ray(), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        exit_code = main(site.arguments())
    assert exit_code == 0, stderr.getvalue()
    summary: dict[str, Any] = json.loads(stdout.getvalue())
    return summary
