"""Whose a file below an output is, by its name: what has none of the names that we give is somebody else's.

task=.../part-<digest>.parquet            embeddings
_rejects/.../rejects-<digest>.parquet     rows without a vector
_receipts/<digest>.json                   a fragment is complete
_ranges/<digest>.json                     of int8 vectors
_carried/<digest>.parquet, .json, .plan   vectors of the dataset before, and for which fragments all were found
_changes/<digest>/...                     the ids that a commit changed
_ids/<digest>.bits                        what the ids of a fragment are recognised by
_manifests/<time>-<digest>.json           a manifest that is kept aside
.<digits>.tmp                             in any of these folders: what a killed writer leaves on a disk

No sweep touches what is not in this list.
"""

from __future__ import annotations

import re
from typing import Literal

from jobs.records import CARRIED, CHANGES, IDS, MANIFESTS, RANGES, RECEIPTS, REJECTS
from jobs.store import is_temporary

Kind = Literal["part", "rejects", "receipt", "ranges", "carried", "changes", "ids", "manifest", "temporary"]

_DIGEST = r"[0-9a-f]{32}"
_KEPT_ID = rf"[0-9]{{8}}T[0-9]{{9}}Z-{_DIGEST}"
_NAMES: dict[str, Kind] = {
    rf"task=[^/]+/(.+/)?part-{_DIGEST}\.parquet": "part",
    rf"{REJECTS}/(.+/)?rejects-{_DIGEST}\.parquet": "rejects",
    rf"{RECEIPTS}/{_DIGEST}\.json": "receipt",
    rf"{RANGES}/{_DIGEST}\.json": "ranges",
    rf"{CARRIED}/{_DIGEST}\.(parquet|json|plan)": "carried",
    rf"{CHANGES}/{_DIGEST}/since=[^/]+/(change=.+/(part-[0-9]+\.parquet|_parts\.json)|_report\.json)": "changes",
    rf"{IDS}/{_DIGEST}\.bits": "ids",
    rf"{MANIFESTS}/{_KEPT_ID}\.json": "manifest",
}
_FOLDERS = (
    "task=",
    *(f"{folder}/" for folder in (REJECTS, RECEIPTS, RANGES, CARRIED, CHANGES, IDS, MANIFESTS)),
)
_PATTERNS = tuple((re.compile(name, re.DOTALL), kind) for name, kind in _NAMES.items())


def kind_of(path: str) -> Kind | None:
    """What a file is, by its path below the output; None where it is none of ours, or one that every output has."""
    for pattern, kind in _PATTERNS:
        if pattern.fullmatch(path):
            return kind
    if is_temporary(path) and ("/" not in path or path.startswith(_FOLDERS)):
        return "temporary"
    return None
