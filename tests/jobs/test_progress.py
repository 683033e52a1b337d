"""Sums over fragments: what each encoder did with its time."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.progress import Tally
from jobs.records import PartRecord, Receipt


def spent(actor: str, encode: float, starved: float) -> dict[str, Any]:
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
        "num_carried": 0,
        "halved_budget": 0,
        "preflight_cosine": 1.0,
        "encode_seconds": encode,
        "starved_seconds": starved,
        **{f"{stage}_seconds": 0.1 for stage in ("read", "tokenize", "write")},
    }


def test_each_encoder_is_starved_for_a_share_of_its_own_time() -> None:
    tally = Tally()
    for actor, encode, starved in (("a", 3.0, 0.0), ("b", 1.0, 0.0), ("a", 4.0, 1.0), ("b", 1.0, 6.0)):
        tally.add(spent(actor, encode, starved))
    assert tally.starved_percent() == {"a": pytest.approx(12.5), "b": pytest.approx(75.0)}


def test_an_encoder_that_had_one_fragment_was_never_starved() -> None:
    tally = Tally()
    assert tally.starved_percent() == {}
    tally.add(spent("a", 0.0, 0.0))
    assert tally.starved_percent() == {"a": 0.0}
