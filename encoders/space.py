"""Where vectors may be compared, as one id.

Two vectors may be compared if, and only if, their space ids are equal. The id is a digest of everything that
decides where a text lands, but for the role: a query and the documents it is to find share a space. Prompts of
both sides count, so a run that overrides a prompt for its queries belongs to another space than an index whose
run did not know of it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Space:
    """A space of comparable vectors.

    Attributes:
        id: 32 hexadecimal digits; equal ids, comparable vectors.
        name: The same for people: model, revision, task, dimension, precision.
    """

    id: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.id[:12]})"

    def quantized(self, ranges: str) -> Space:
        """The space of this one's vectors once they are quantised with some ranges, by the digest of those."""
        return Space(digest([self.id, ranges]), f"{self.name}-{ranges[:8]}")


def digest(content: Any) -> str:
    """128-bit digest of anything that JSON can say, as 32 hexadecimal digits; key order does not matter."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
