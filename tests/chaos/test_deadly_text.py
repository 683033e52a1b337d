"""Texts that end the process that has them, for good: they become rejects, and all others get their vectors.

A fragment that does so, whichever rows are left out, ends the run.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.deaths import MOST_DEATHS
from tests.chaos.corpora import write_corpus
from tests.chaos.datasets import Reader, assert_same, published
from tests.chaos.plain import rebuild
from tests.chaos.sites import FRAGMENT_ROWS, Site, location
from tests.integration.commands import REPOSITORY, read_dataset, read_rejects, room

READER, ENCODER = "\N{SKULL AND CROSSBONES}", "🙂"


def poison(corpus: Path, deadly: dict[str, str]) -> None:
    """Deadly texts for some rows."""
    for shard in corpus.rglob("*.parquet"):
        table = pq.read_table(shard, partitioning=None)
        rows = [deadly.get(row["id"], row["text"]) for row in table.to_pylist()]
        sink = io.BytesIO()
        pq.write_table(table.set_column(1, "text", pa.array(rows)), sink, row_group_size=FRAGMENT_ROWS)
        shard.write_bytes(sink.getvalue())


@contextmanager
def deadly_site(model: Path, corpus: Path, out: Path, readers: str) -> Iterator[Site]:
    """A job on a Ray of its own, whose processes die of what is deadly."""
    with room() as where:
        armed = f"{Path(__file__).parent / 'deadly'}:{REPOSITORY}"
        environment = where.environment({"PYTHONPATH": armed})
        local = ("--ray-address", "local", "--num-cpus", "2", "--max-actors", "1")
        yield Site(model, str(corpus), str(out), environment, where.elsewhere[2], local, readers)


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("readers", "deadly"),
    [("1", {"s1-60": READER}), ("null", {"s0-49": ENCODER}), ("null", {"s1-60": READER})],
    ids=["a reader, stages apart", "an encoder, stages together", "a reader, stages together"],
)
def test_a_text_that_kills_its_worker_becomes_a_reject(
    model: Path, tmp_path: Path, readers: str, deadly: dict[str, str]
) -> None:
    corpus = write_corpus(tmp_path / "corpus", 2, 100)
    poison(corpus, deadly)
    out, whole = tmp_path / "out", tmp_path / "whole"
    with deadly_site(model, corpus, out, readers) as site, Reader(location(site)) as reader:
        ended = site.run(timeout=500)
    assert ended.exit_code == 0, ended.stderr
    assert (ended.summary["rows"], ended.summary["rejected"]) == (200, 4 + len(deadly))
    rebuild(site.at(whole))  # in this process, in which they are texts as any other
    expected, found = read_dataset(str(whole)), read_dataset(str(out))
    kept = expected.filter(pa.array([one not in deadly for one in expected["id"].to_pylist()]))
    assert found.drop_columns(["embedding"]).equals(kept.drop_columns(["embedding"]))
    vectors, wanted = (np.stack(one["embedding"].to_numpy()) for one in (found, kept))
    np.testing.assert_allclose(vectors, wanted, atol=1e-6)
    rejects = {row["id"]: row["reason"] for row in read_rejects(str(out)).to_pylist()}
    assert {one for one, reason in rejects.items() if reason == "killed_worker"} == set(deadly)
    assert reader.faults == []
    assert len(reader.seen) == 1
    print(readers, ended.seconds)  # noqa: T201


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_fragment_that_always_kills_its_worker_ends_the_run_and_nothing_is_published(
    model: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus", 2, 100)
    (corpus / "half=1" / "s1.parquet").rename(corpus / "half=1" / "deadly.parquet")
    with deadly_site(model, corpus, tmp_path / "out", "1") as site, Reader(location(site)) as reader:
        ended = site.run(timeout=500)
    assert ended.exit_code == 1, ended.stderr
    told = (
        rf"{MOST_DEATHS} worker processes died while rows (0 to 49|50 to 99) of shard 'half=1/deadly.parquet' "
        r"\(fragment [0-9a-f]{12}\) were read and tokenized, and no few rows of them are to blame; "
        r"nothing is published"
    )
    assert re.search(told, ended.stderr)
    assert "Traceback" not in ended.stderr
    assert reader.seen == []
    assert list((tmp_path / "out").glob("_receipts/*.json"))
    # The same command where nothing is deadly; what was done is kept.
    again = rebuild(site)
    assert again["existing"] > 0
    whole = site.at(tmp_path / "whole")
    rebuild(whole)
    assert_same(published(location(site)), published(location(whole)), 200)
    assert reader.faults == []
    print(ended.seconds)  # noqa: T201
