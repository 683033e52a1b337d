"""Workers that were given up and write when all is over: `python -m tests.chaos.late GATE ARGUMENTS...`.

They read and encode what is to be done, say so (GATE.ready), wait for GATE, write everything, and end without a commit.
"""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock, patch

from jobs.embed import main
from tests.chaos.plain import without_ray


def run(gate: Path, arguments: list[str]) -> int:
    """The exit code of a job that never commits."""

    def wait() -> None:
        gate.with_suffix(".ready").touch()
        while not gate.exists():
            time.sleep(0.05)

    with (
        without_ray(wait),
        patch("jobs.embed.held_lease", lambda *_: nullcontext(Mock())),  # it has lost it long ago
        patch("jobs.job.Job.landmarks", ()),  # of which that was one
        patch("jobs.finish.build_manifest", side_effect=KeyboardInterrupt),
    ):
        return main(arguments)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
