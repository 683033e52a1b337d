"""The script that docs/scheduling.md gives to cron, as it stands there, over three nights."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import parse
from jobs.config import JobConfig, dump_config
from tests.chaos.plain import without_ray
from tests.integration.commands import REPOSITORY
from tests.integration.conftest import arguments_for, embed_here, write_corpus

PLACE = "/srv/taskvec"
PAGE = (REPOSITORY / "docs" / "scheduling.md").read_text(encoding="utf-8")
NEEDS = ("sh", "jq", "timeout", "tail")

pytestmark = pytest.mark.skipif(not all(map(shutil.which, NEEDS)), reason=f"needs {', '.join(NEEDS)}")


class Site:
    """A folder in the place of /srv/taskvec, with a `mail` that keeps what it is given."""

    def __init__(self, folder: Path, arguments: tuple[str, ...]) -> None:
        self.folder = folder
        config = parse(list(arguments)).config
        assert isinstance(config, JobConfig)
        (folder / "job.yaml").write_text(json.dumps(dump_config(config)))  # JSON is YAML
        (folder / ".venv/bin").mkdir(parents=True)
        self._write(".venv/bin/python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        self._write("bin/mail", f'#!/bin/sh\n{{ echo "$@"; cat; }} >>{folder}/mails\n')
        written = re.search(r"```sh\n(#!/bin/sh\n# nightly\.sh.*?)```", PAGE, re.DOTALL)
        assert written is not None
        assert PLACE in written[1]
        self._script = self._write("nightly.sh", written[1].replace(PLACE, str(folder)))

    def _write(self, name: str, content: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)
        return path

    def night(self) -> tuple[int, list[dict[str, object]], str]:
        """Exit code, summaries of all nights so far, and the mails of this one."""
        mails = self.folder / "mails"
        mails.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
        }
        done = subprocess.run([self._script], env=environment, check=False)
        lines = (self.folder / "runs.jsonl").read_text().splitlines()
        return (
            done.returncode,
            [json.loads(line) for line in lines],
            mails.read_text() if mails.exists() else "",
        )


def test_the_nightly_script_is_silent_when_all_is_well_and_mails_what_is_not(
    model: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus", ("a.parquet", "b.parquet"))
    arguments = arguments_for(model, corpus, tmp_path / "out")
    with without_ray():
        assert embed_here(*arguments).exit_code == 0
    site = Site(tmp_path, arguments)

    code, summaries, mails = site.night()
    assert (code, mails) == (0, "")
    assert [summary["embedded"] for summary in summaries] == [0]

    (corpus / "b.parquet").unlink()
    code, summaries, mails = site.night()
    assert code == 0
    assert mails.startswith("-s taskvec: an odd run data@example.org\n")
    assert json.loads(mails.splitlines()[1]) == summaries[-1]
    assert len(summaries) == 2

    (corpus / "a.parquet").unlink()
    code, summaries, mails = site.night()
    assert code == 2
    assert mails.startswith("-s taskvec: exit code 2 data@example.org\n")
    assert "there are no files at" in mails
    assert len(summaries) == 2
