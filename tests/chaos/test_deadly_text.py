"""A text that ends the process that has it, for good: the run ends too, and says where the text stands."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.corpora import write_corpus
from tests.chaos.sites import FRAGMENT_ROWS, Site
from tests.integration.commands import REPOSITORY, room

TEXTS = {"encoded": "🙂", "read and tokenized": "\N{SKULL AND CROSSBONES}"}


def poison(shard: Path, row: int, text: str) -> None:
    """Another text for one row."""
    table = pq.read_table(shard, partitioning=None)
    texts = table["text"].to_pylist()
    texts[row] = text
    sink = io.BytesIO()
    pq.write_table(table.set_column(1, "text", pa.array(texts)), sink, row_group_size=FRAGMENT_ROWS)
    shard.write_bytes(sink.getvalue())


@pytest.mark.chaos
@pytest.mark.parametrize("doing", TEXTS)
def test_a_text_that_kills_its_worker_ends_the_run_with_its_place(
    model: Path, tmp_path: Path, doing: str
) -> None:
    corpus = write_corpus(tmp_path / "corpus", 2, 250)
    poisoned = corpus / "half=1" / "s1.parquet"
    poison(poisoned, 120, TEXTS[doing])
    with room() as where:
        armed = f"{Path(__file__).parent / 'deadly'}:{REPOSITORY}"
        environment = where.environment({"PYTHONPATH": armed})
        local = ("--ray-address", "local", "--num-cpus", "2")
        site = Site(model, str(corpus), str(tmp_path / "out"), environment, where.elsewhere[2], local)
        died = site.run()
        assert died.exit_code == 1
        assert "rows 100 to 149 of shard 'half=1/s1.parquet'" in died.stderr
        assert f"were {doing}; nothing is published" in died.stderr
        assert "5 worker processes in a row died" in died.stderr
        assert "Traceback" not in died.stderr
        assert not (tmp_path / "out" / "_manifest.json").exists()
        poison(poisoned, 120, "harmless")
        assert site.run().summary["rows"] == 500
    print(doing, died.seconds)  # noqa: T201
