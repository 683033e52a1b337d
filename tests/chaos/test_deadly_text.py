"""Texts that end the process that has them, for good: they become rejects, and all others get their vectors."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.corpora import write_corpus
from tests.chaos.plain import rebuild
from tests.chaos.sites import FRAGMENT_ROWS, Site
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


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("readers", "deadly"),
    [("1", {"s1-60": READER}), ("null", {"s0-49": ENCODER})],
    ids=["a reader, stages apart", "an encoder, stages together"],
)
def test_a_text_that_kills_its_worker_becomes_a_reject(
    model: Path, tmp_path: Path, readers: str, deadly: dict[str, str]
) -> None:
    corpus = write_corpus(tmp_path / "corpus", 2, 100)
    poison(corpus, deadly)
    out, whole = tmp_path / "out", tmp_path / "whole"
    with room() as where:
        armed = f"{Path(__file__).parent / 'deadly'}:{REPOSITORY}"
        environment = where.environment({"PYTHONPATH": armed})
        local = ("--ray-address", "local", "--num-cpus", "2", "--max-actors", "1")
        site = Site(model, str(corpus), str(out), environment, where.elsewhere[2], local, readers)
        ended = site.run(timeout=500)
    assert ended.exit_code == 0, ended.stderr
    assert (ended.summary["rows"], ended.summary["rejected"]) == (200, 4 + len(deadly))
    rebuild(replace(site, out=str(whole)))  # in this process, in which they are texts as any other
    expected, found = read_dataset(str(whole)), read_dataset(str(out))
    kept = expected.filter(pa.array([one not in deadly for one in expected["id"].to_pylist()]))
    assert found.drop_columns(["embedding"]).equals(kept.drop_columns(["embedding"]))
    vectors, wanted = (np.stack(one["embedding"].to_numpy()) for one in (found, kept))
    np.testing.assert_allclose(vectors, wanted, atol=1e-6)
    rejects = {row["id"]: row["reason"] for row in read_rejects(str(out)).to_pylist()}
    assert {one for one, reason in rejects.items() if reason == "killed_worker"} == set(deadly)
    print(readers, ended.seconds)  # noqa: T201
