"""Scripts in a process of their own, which must not import what they do without."""

from __future__ import annotations

import subprocess
import sys

_CHECK = """
found = {unwanted!r} & set(sys.modules)
assert not found, found
"""


def printed_without(unwanted: set[str], script: str, *argv: str) -> str:
    """What a script prints that imports nothing unwanted; it fails if it does."""
    command = [sys.executable, "-c", f"import sys\n{script}\n{_CHECK.format(unwanted=unwanted)}", *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
