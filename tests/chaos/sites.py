"""One job as its operator has it: a corpus, an output, and a command that is run again until it says 0."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobs.storage import Location
from tests.chaos.dying import Point
from tests.integration.clusters import Cluster
from tests.integration.commands import Outcome, finish, start

FRAGMENT_ROWS = 50
# A text or two a batch: small fragments take long enough to be hit.
_SLOWLY = tuple(
    part
    for setting in ("max_batch_tokens=64", "cpus_per_actor=1")
    for part in ("--set", f"compute.{setting}")
)

# What no longer belongs goes with the sweep, so that there is something to be killed in; a row in fifty is a reject.
_AT_ONCE = tuple(
    part
    for setting in ("orphan_grace_hours=0", "max_rejected_fraction=0.1")
    for part in ("--set", f"output.{setting}")
)
ONE_VIEW = ("--task", "clustering")
TWO_VIEWS = ("--set", "output.views=[retrieval/query, retrieval/document]")


@dataclass(frozen=True)
class Site:
    """A job and its surroundings.

    Attributes:
        model: A repository.
        corpus: URI or path.
        out: URI or path.
        environment: Of the command.
        cwd: Where it runs.
        more: Arguments.
        readers: Processes that read; where there are none (`null`) the encoders do it, and write too.
        views: Arguments that name them.
        carry_over: Whether vectors are carried over; they were made in other batches, and are equal but for rounding.
        keep_manifests: Datasets that stay readable.
    """

    model: Path
    corpus: str
    out: str
    environment: Mapping[str, str]
    cwd: Path
    more: tuple[str, ...] = field(default=())
    readers: str = "1"
    views: tuple[str, ...] = ONE_VIEW
    carry_over: bool = False
    keep_manifests: int = 1

    def arguments(self) -> list[str]:
        places = ["--input", self.corpus, "--output", self.out, "--model", str(self.model)]
        views = [*self.views, "--dtype", "float32", "--fragment-rows", str(FRAGMENT_ROWS)]
        readers = ["--set", f"compute.tokenize_concurrency={self.readers}"]
        history = ["--set", f"output.carry_over={str(self.carry_over).lower()}"]
        history += ["--set", f"output.keep_manifests={self.keep_manifests}"]
        return [*places, *views, *_SLOWLY, *readers, *history, *_AT_ONCE, *self.more]

    def start(self, point: Point | None = None, *more: str) -> subprocess.Popen[str]:
        """The command, or the command that gets a signal at a point."""
        module = ["jobs.embed"] if point is None else ["tests.chaos.dying", point.to_json()]
        command = [sys.executable, "-m", *module, *self.arguments(), *more]
        return start(command, self.cwd, self.environment)

    def run(self, point: Point | None = None, *more: str, timeout: float = 200) -> Outcome:
        """Start it and wait for its end."""
        return finish(self.start(point, *more), timeout)

    def at(self, out: Path | str) -> Site:
        """The same job with another output."""
        return replace(self, out=str(out))


def on_cluster(cluster: Cluster, model: Path, corpus: Path, out: Path, *more: str) -> Site:
    """A job whose driver joins a cluster that is there."""
    joined = {"RAY_ADDRESS": cluster.gcs_address}
    environment = {**cluster.environment, **joined}
    return Site(model, str(corpus), str(out), environment, cluster.room.elsewhere[2], more)


def through(site: Site, endpoint: str) -> Site:
    """The same job, its requests sent to an endpoint."""
    uris = (("--set", f"{name}.endpoint_url={endpoint}") for name in ("input", "output"))
    return replace(site, more=(*site.more, *(part for uri in uris for part in uri)))


def location(site: Site) -> Location:
    """Of the output."""
    return Location(site.out)
