"""Sums over fragments: what each encoder did with its time; and what a log says meanwhile."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from rich.console import Console

from jobs.progress import ProgressLine, Tally
from jobs.records import EncoderRecord, PartRecord, Receipt
from jobs.summary import preflight_line


def spent(actor: str, encode: float, starved: float, **changes: Any) -> dict[str, Any]:
    part = PartRecord(path="p", num_bytes=1, sha256="0", num_rows=1, num_tokens=1, num_truncated=0)
    receipt = Receipt(fragment="f", shard="s", num_rows=1, rejected={}, rejects=None, parts={"v": part})
    return {
        "receipt": receipt.model_dump_json().encode(),
        "actor": actor,
        "num_encoded_tokens": 1,
        "num_prompts": 1,
        "num_encodings": 1,
        "num_padding": 0,
        "why_padded": "",
        "device": "cpu",
        "dtype": "float32",
        "max_batch_tokens": 2048,
        "num_carried": 0,
        "budget_halved": False,
        "preflight_cosine": 1.0,
        "preflight_compared": "",
        "encode_seconds": encode,
        "starved_seconds": starved,
        **{f"{stage}_seconds": 0.1 for stage in ("read", "tokenize", "write")},
        **changes,
    }


def test_each_encoder_is_starved_for_a_share_of_its_own_time() -> None:
    tally = Tally()
    for actor, encode, starved in (("a", 3.0, 0.0), ("b", 1.0, 0.0), ("a", 4.0, 1.0), ("b", 1.0, 6.0)):
        tally.add(spent(actor, encode, starved))
    assert tally.starved_percent() == {"a": pytest.approx(12.5), "b": pytest.approx(75.0)}


def test_each_way_in_which_encoders_computed_is_kept_once() -> None:
    tally = Tally()
    tally.add(spent("a", 0.0, 0.0, num_encoded_tokens=0))  # all of it was carried over, or rejected
    assert tally.ways == set()
    for actor, budget in (("a", 2048), ("b", 2048), ("b", 1024)):
        tally.add(spent(actor, 0.0, 0.0, max_batch_tokens=budget))
    assert tally.ways == {
        EncoderRecord(device="cpu", dtype="float32", max_batch_tokens=budget) for budget in (1024, 2048)
    }


def test_an_encoder_that_had_one_fragment_was_never_starved() -> None:
    tally = Tally()
    assert tally.starved_percent() == {}
    tally.add(spent("a", 0.0, 0.0))
    assert tally.starved_percent() == {"a": 0.0}


def test_the_worst_cosine_is_kept_for_each_thing_that_vectors_were_compared_with() -> None:
    tally = Tally()
    assert preflight_line(tally) == "nothing was compared"
    seen = (("", 1.0), ("the plain path", 0.9999), ("its own weights", 0.9), ("the plain path", 0.9995))
    for compared, cosine in seen:
        tally.add(spent("a", 0.0, 0.0, preflight_compared=compared, preflight_cosine=cosine))
    assert (
        preflight_line(tally)
        == "lowest cosine 0.999500 to the plain path; lowest cosine 0.900000 to its own weights"
    )


def test_a_log_gets_signs_of_life_before_the_first_fragment_and_a_line_after_the_last() -> None:
    log = io.StringIO()
    console, tally = Console(file=log, width=200), Tally()
    with ProgressLine(console, num_fragments=2, num_rows=2, sign_seconds=0.05) as line:
        deadline = time.monotonic() + 30
        while log.getvalue().count("\n") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        signs = log.getvalue().splitlines()
        for _ in range(2):
            tally.add(spent("a", 1.0, 0.0))
            line.update(tally)
    assert signs[0].startswith("0/2 fragments, 0/2 rows, loading the model, then the first fragments, 0:00:0")
    assert signs[0].endswith("elapsed, time left unknown")
    last = log.getvalue().splitlines()[-1]
    assert last.startswith("2/2 fragments, 2/2 rows, ")
    assert "rows/s" in last
    assert last.endswith("elapsed, 0:00:00 left")
    told = log.getvalue()
    time.sleep(0.2)
    assert log.getvalue() == told  # nothing is said any more


def test_a_log_is_not_filled_where_fragments_are_finished_fast() -> None:
    log = io.StringIO()
    console, tally = Console(file=log, width=200), Tally()
    with ProgressLine(console, num_fragments=1000, num_rows=1000) as line:
        for _ in range(999):
            tally.add(spent("a", 1.0, 0.0))
            line.update(tally)
    assert log.getvalue() == ""
