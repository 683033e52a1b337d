"""Rows that were too much for one machine get their vectors on a larger one, and nothing else is embedded again."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from encoders.encoder import Encoder
from jobs.history import main as history
from jobs.verify import main as verify
from tests.chaos.plain import embed
from tests.integration.conftest import VIEWS, arguments_for, manifest_of, read_view, rejects_of, table_of

pytestmark = pytest.mark.slow

NUM_ROWS = 40
LONG = (5, 25)
RETRY = ("--set", "output.retry_rejects=true")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two fragments; each has a text that is longer than all others, the first one also a row without a text."""
    rows = table_of(0, NUM_ROWS).to_pydict()
    rows["text"] = [f"text {number}" for number in range(NUM_ROWS)]
    for place in LONG:
        rows["text"][place] += " deal" * 40
    rows["text"][7] = rows["title"][7] = None
    (tmp_path / "corpus").mkdir()
    table = pa.table(rows, schema=table_of(0, NUM_ROWS).schema)
    pq.write_table(table, tmp_path / "corpus" / "a.parquet", row_group_size=20)
    return tmp_path / "corpus"


def with_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders that cannot do more than 40 tokens at a time."""
    load = Encoder.load

    def loaded(*arguments: Any, **more: Any) -> Encoder:
        encoder = load(*arguments, **more)

        def hook(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
            if kwargs["input_ids"].numel() > 40:
                raise torch.OutOfMemoryError

        encoder._adapted.module.register_forward_pre_hook(hook, with_kwargs=True)
        return encoder

    monkeypatch.setattr(Encoder, "load", loaded)


def said_by(command: Any, *arguments: str) -> dict[str, Any]:
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(io.StringIO()):
        assert command(list(arguments)) == 0
    summary: dict[str, Any] = json.loads(stdout.getvalue())
    return summary


def test_a_larger_machine_takes_in_what_was_too_much_and_embeds_nothing_else(
    corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    limits = ("--set", "output.max_rejected_fraction=0.1", "--set", "compute.preflight=false")
    command = (*arguments_for(model, corpus, out), *limits)
    with monkeypatch.context() as patch:
        with_little_memory(patch)
        assert embed(*command)["rejected"] == 3
    reasons = {row["id"]: row["reason"] for row in rejects_of(out)}
    assert reasons == {5: "out_of_memory", 25: "out_of_memory", 7: "null_text"}
    before = manifest_of(out)
    assert embed(*command)["embedded"] == 0

    summary = embed(*command, *RETRY)
    assert (summary["embedded"], summary["carried"]) == (len(LONG) * len(VIEWS), 37 * len(VIEWS))
    assert (summary["rejected"], summary["added"], summary["updated"]) == (1, len(LONG) * len(VIEWS), 0)
    ids = read_view(out)["id"].to_pylist()
    assert ids == [number for number in range(NUM_ROWS) if number != 7]
    assert said_by(verify, str(out))["rejected"] == 1

    live = manifest_of(out)
    for again in ((), RETRY):
        assert embed(*command, *again)["embedded"] == 0
        assert manifest_of(out) == live
    kept = said_by(history, str(out))["manifests"]
    assert [one["vectors"] for one in kept] == [dict.fromkeys(VIEWS, 39), dict.fromkeys(VIEWS, 37)]
    paths = [part["path"] for receipt in before["receipts"] for part in receipt["parts"].values()]
    assert all((out / path).exists() for path in paths)
