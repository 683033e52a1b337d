"""64 bits for each id of a fragment, kept in the output, so that ids of shards that did not change are not read again.

    OUT/_ids/<digest of the fragment>.bits      8 bytes an id, sorted; behind them a checksum

Ids of new shards are looked for among those of all others. Equal ids have equal bits; so a fragment that shares none
with the new ones shares no id with them, and the few that do are read, and their ids compared as they are. Two ids of
equal bits are rare (a million new ones among a billion: one pair in 18,000 runs), and cost one read.

The new bits are in memory, some at a time, and the others are streamed past them, so memory does not go with the
corpus: 8 bytes a new id, 256 MiB at most. A billion ids are 8 GB, in 100,000 files. What is missing or damaged is read
from the corpus and written again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from jobs.fragments import Fragment
from jobs.records import bits_path
from jobs.storage import Store
from jobs.threads import in_threads

_THREADS = 32
_BLOCK_IDS = 2**25
_CHECKSUM_BYTES = 16

Bits = npt.NDArray[np.uint64]


def save(store: Store, fragment: Fragment, bits: Bits) -> None:
    """Keep the bits of a fragment's ids, in place of what is there: it is the same, or damaged."""
    content = np.sort(bits).astype("<u8").tobytes()
    path, data = bits_path(fragment.id), content + _checksum(content)
    if not store.create(path, data) and load(store, fragment) is None:
        store.delete([path])
        store.create(path, data)


def load(store: Store, fragment: Fragment) -> Bits | None:
    """The bits of a fragment's ids, sorted; None where they are missing or damaged."""
    try:
        content = store.read(bits_path(fragment.id))
    except FileNotFoundError:
        return None
    content, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    return np.frombuffer(content, "<u8") if checksum == _checksum(content) else None


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM_BYTES).digest()


def sharing(store: Store, new: Sequence[Fragment], others: Sequence[Fragment]) -> tuple[Fragment, ...]:
    """Those of the others that may hold an id of the new fragments, whose bits are there: all others hold none."""
    if not others:
        return ()
    found = np.zeros(len(others), bool)
    for block in _blocks(new):
        read = in_threads(lambda fragment: load(store, fragment), block, _THREADS)
        saved = [one for one in read if one is not None]
        if len(saved) < len(block):  # somebody removed what was just written: then any may share
            return tuple(others)
        bits = np.unique(np.concatenate(saved))
        found |= np.fromiter(in_threads(partial(_shares, store, bits), others, _THREADS), bool)
    return tuple(fragment for fragment, is_found in zip(others, found, strict=True) if is_found)


def _blocks(fragments: Sequence[Fragment]) -> Iterator[list[Fragment]]:
    """As many at a time as may be in memory together."""
    block: list[Fragment] = []
    num_ids = 0
    for fragment in fragments:
        if block and num_ids + fragment.num_rows > _BLOCK_IDS:
            yield block
            block, num_ids = [], 0
        block.append(fragment)
        num_ids += fragment.num_rows
    if block:
        yield block


def _shares(store: Store, bits: Bits, fragment: Fragment) -> bool:
    return _may_share(load(store, fragment), bits)


def _may_share(some: Bits | None, bits: Bits) -> bool:
    if some is None:
        return True
    few, many = sorted((some, bits), key=len)
    places = np.searchsorted(many, few)
    inside = places < len(many)
    return bool((many[places[inside]] == few[inside]).any())
