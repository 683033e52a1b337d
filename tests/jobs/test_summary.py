"""What the table at a run's end says: of padding how much, and why any; of prompts and paths every byte."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from jobs.progress import Tally
from jobs.summary import _padding, _print_table
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


@pytest.mark.parametrize(
    "value", ["'[INST] x [/INST] '", "'[query] '", "part [/a].parquet, [red]b[/red].parquet", ":smile:"]
)
def test_what_looks_like_markup_is_shown_as_it_is(value: str) -> None:
    shown = io.StringIO()
    _print_table(Console(file=shown, width=100), "title", {"view [a/b]": value})
    assert value in shown.getvalue()
    assert "view [a/b]" in shown.getvalue()
