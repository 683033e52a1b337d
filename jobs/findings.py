"""What is wrong with a dataset, as values: which file, what of it, what was found, what should be there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

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
    return Finding(file, what[:_LONGEST], str(found)[:_LONGEST], str(expected)[:_LONGEST])


def compare(file: str, what: str, found: object, expected: object) -> list[Finding]:
    """A finding, if there is one."""
    return [] if found == expected else [finding(file, what, found, expected)]


def print_findings(console: Console, findings: Sequence[Finding], num_shown: int) -> None:
    """The first of them, a line each: paths are long, and a table would break them."""
    lines = [
        f"{one.file}: {one.what}: found {one.found}, expected {one.expected}" for one in findings[:num_shown]
    ]
    if len(findings) > num_shown:
        lines.append(f"... and {len(findings) - num_shown:,} more")
    console.print("\n".join(lines), markup=False, highlight=False)
