"""What is wrong with a dataset, as values: which file, what of it, what was found, what should be there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

_LONGEST = 200  # of what a message repeats from a file


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        file: Path below the output.
        what: Of the file, in a word or two.
        found: As text.
        expected: As text.
    """

    file: str
    what: str
    found: str
    expected: str


def finding(file: str, what: str, found: object, expected: object) -> Finding:
    """A finding from values of any kind; long ones are cut."""
    return Finding(file, what, str(found)[:_LONGEST], str(expected)[:_LONGEST])


def compare(file: str, what: str, found: object, expected: object) -> list[Finding]:
    """A finding, if there is one."""
    return [] if found == expected else [finding(file, what, found, expected)]


def print_findings(console: Console, findings: Sequence[Finding], num_shown: int) -> None:
    """A table of the first of them."""
    table = Table(title=f"{len(findings):,} findings", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for title in ("file", "what", "found", "expected"):
        table.add_column(title, overflow="fold")
    for one in findings[:num_shown]:
        table.add_row(*(str(value) for value in asdict(one).values()))
    if len(findings) > num_shown:
        table.add_row(f"... and {len(findings) - num_shown:,} more", "", "", "")
    console.print(table, markup=False)
