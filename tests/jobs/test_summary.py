"""What the table at a run's end says of padding: how much, and why any."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.progress import Tally
from jobs.summary import _padding
from tests.jobs.test_progress import spent


@pytest.mark.parametrize(
    ("fragments", "said"),
    [
        ([("", 0), ("", 0)], "none, texts went through end to end"),
        ([("MPNetModel is not known", 1), ("MPNetModel is not known", 0)], "33.3 %: MPNetModel is not known"),
        (
            [("", 0), ("the kernel failed", 0), ("", 0)],
            "0.0 %: the kernel failed (2 fragments had none)",
        ),
    ],
)
def test_padding_is_told_with_its_cause(fragments: list[tuple[str, int]], said: str) -> None:
    tally = Tally()
    for why, num_padding in fragments:
        more: dict[str, Any] = {"why_padded": why, "num_padding": num_padding}
        tally.add(spent("a", 1.0, 0.0) | more)
    assert _padding(tally) == said
