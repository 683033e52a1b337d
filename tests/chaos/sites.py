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
from tests.integration.commands import Outcome, finish

FRAGMENT_ROWS = 50
# A text or two a batch: small fragments take long enough to be hit. Each stage in processes of its own.
_SLOWLY = tuple(
    part
    for setting in (
        "compute.max_batch_tokens=64",
        "compute.cpus_per_actor=1",
        "compute.tokenize_concurrency=1",
        "output.carry_over=false",  # vectors that are carried were made in other batches: equal but for rounding
    )
    for part in ("--set", setting)
)


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
    """

    model: Path
    corpus: str
    out: str
    environment: Mapping[str, str]
    cwd: Path
    more: tuple[str, ...] = field(default=())

    def arguments(self) -> list[str]:
        places = ["--input", self.corpus, "--output", self.out, "--model", str(self.model)]
        views = ["--task", "clustering", "--fragment-rows", str(FRAGMENT_ROWS)]
        return [*places, *views, *_SLOWLY, *self.more]

    def start(self, point: Point | None = None, *more: str) -> subprocess.Popen[str]:
        """The command, or the command that gets a signal at a point."""
        module = ["jobs.embed"] if point is None else ["tests.chaos.dying", point.to_json()]
        return subprocess.Popen(
            [sys.executable, "-m", *module, *self.arguments(), *more],
            cwd=self.cwd,
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

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


def location(site: Site) -> Location:
    """Of the output."""
    return Location(site.out)
