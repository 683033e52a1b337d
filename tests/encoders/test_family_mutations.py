"""One thing of a row's protocol is broken, and the comparison of test_families sees it: thing by thing, row by row.

A comparison that passes proves nothing unless it fails where it should: many of these vectors are at a cosine of 0.9 to
the right ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from encoders.batching import Batch
from encoders.encoder import Encoder
from encoders.ends import Ends
from encoders.finishing import Finisher
from encoders.forward import Forward
from encoders.modules import Dense, Standardize
from encoders.protocol import Protocol
from encoders.tasks import View
from encoders.tokenizer import Tokenizer
from tests.encoders.family_repositories import LAYOUTS
from tests.encoders.family_rows import (
    ADAPTERS,
    SUFFIXES,
    TEXTS_OF,
    Loaded,
    Rows,
    adapter_of,
    ends_of,
    padded,
    resolve,
    views_of,
)
from tests.encoders.reference import Vectors, assert_same
from tests.encoders.repositories import edit_json

# The single-task models of Jina's are one family for each size.
FAMILIES = [row for row in LAYOUTS if "-v5-text-" not in row or row.endswith(("small", "nano", "-retrieval"))]


def prompted(row: str) -> View:
    """A view of the row with a prompt, if it has any."""
    views = views_of(row)
    return next((of for of, prefix in views.items() if prefix), next(iter(views)))


def encode(loaded: Loaded, of: View, tokenizer: Tokenizer | None = None, **prompt: str) -> Vectors:
    """What our code gives, by another tokenizer or with other bytes around the texts."""
    changed = replace(loaded.protocol.prompt(of), **prompt)
    return loaded.encode((tokenizer or loaded.tokenizer).prepare(TEXTS_OF, changed), of).vectors


@contextmanager
def speaking(encoder: Encoder, protocol: Protocol) -> Iterator[None]:
    """The same backbone under another protocol."""
    before = encoder.protocol, encoder._finish
    encoder.protocol, encoder._finish = protocol, Finisher(protocol, encoder.device)
    try:
        yield
    finally:
        encoder.protocol, encoder._finish = before


def by(loaded: Loaded, of: View, **changed: Any) -> Vectors:
    """What our code gives by a protocol of which something is changed."""
    protocol = replace(loaded.protocol, **changed)
    with speaking(loaded.encoder, protocol):
        return encode(loaded, of, Tokenizer(protocol))


def around(loaded: Loaded, first: str | None, last: str | None) -> Tokenizer:
    """The row's tokenizer, with these tokens around a text and no check of them."""
    tokenizer = Tokenizer(loaded.protocol)
    tokenizer._ends = Ends()
    backend = tokenizer._backend
    known = [(token, backend.token_to_id(token)) for token in (first, last) if token]
    pattern = " ".join(filter(None, (first, "$A", last)))
    backend.post_processor = TemplateProcessing(single=pattern, pair=None, special_tokens=known)
    return tokenizer


def without_first(loaded: Loaded, of: View) -> Vectors:
    return encode(loaded, of, around(loaded, None, ends_of(loaded.row)[1]))


def without_last(loaded: Loaded, of: View) -> Vectors:
    return encode(loaded, of, around(loaded, ends_of(loaded.row)[0], None))


def with_another_byte(loaded: Loaded, of: View) -> Vectors:
    return encode(loaded, of, prefix="x" + loaded.protocol.prompt(of).prefix[1:])


def without_the_suffix(loaded: Loaded, of: View) -> Vectors:
    return encode(loaded, of, suffix="")


def without_the_suffixs_newline(loaded: Loaded, of: View) -> Vectors:
    return encode(loaded, of, suffix=loaded.protocol.prompt(of).suffix[:-1])


def pooled_otherwise(loaded: Loaded, of: View) -> Vectors:
    pooling = loaded.protocol.pooling
    mode = "mean" if pooling.modes != ("mean",) else "cls"
    return by(loaded, of, pooling=replace(pooling, modes=(mode,)))


def pooled_with_or_without_the_prompt(loaded: Loaded, of: View) -> Vectors:
    pooling = loaded.protocol.pooling
    return by(loaded, of, pooling=replace(pooling, include_prompt=not pooling.include_prompt))


def not_normalized(loaded: Loaded, of: View) -> Vectors:
    return by(loaded, of, normalize=False)


def lower_cased(loaded: Loaded, of: View) -> Vectors:
    return by(loaded, of, do_lower_case=True)


def truncated_early(loaded: Loaded, of: View) -> Vectors:
    return by(loaded, of, max_seq_length=int(loaded.tokenizer.prepare(TEXTS_OF).lengths.max()) - 1)


def without_projections(loaded: Loaded, of: View) -> Vectors:
    return by(loaded, of, steps=tuple(step for step in loaded.protocol.steps if not isinstance(step, Dense)))


def without_the_layer_norm(loaded: Loaded, of: View) -> Vectors:
    steps = loaded.protocol.steps
    return by(loaded, of, steps=tuple(step for step in steps if not isinstance(step, Standardize)))


def read_on_the_wrong_side(loaded: Loaded, of: View) -> Vectors:
    """Padded on the left, and read as if it were on the right."""

    def run(forward: Forward, batch: Batch) -> Tensor:
        right, mask = batch.padded(batch.token_ids, forward._pad_token_id), batch.is_token
        room = mask.shape[1] - batch.lengths
        ids = np.stack([np.roll(row, shift) for row, shift in zip(right, room, strict=True)])
        left = np.stack([np.roll(row, shift) for row, shift in zip(mask, room, strict=True)])
        with torch.inference_mode():
            states: Tensor = forward._backbone(
                input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(left).long()
            ).last_hidden_state
        return states[torch.from_numpy(mask)]

    forward = loaded.encoder._forward
    with padded(loaded.encoder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "_run_padded", lambda batch: run(forward, batch))
        return encode(loaded, of)


def causal_or_not(loaded: Loaded, of: View) -> Vectors:
    """Tokens see those behind them where they should not, or the other way round."""
    forward = loaded.encoder._forward
    attention = loaded.protocol.family.attention if loaded.protocol.family else None

    def run(forward: Forward, batch: Batch) -> Tensor:
        states = []
        for row in np.split(batch.token_ids, np.cumsum(batch.lengths)[:-1]):
            seen = torch.ones(1, 1, len(row), len(row), dtype=torch.bool)
            mask = seen.tril() if attention == "both" else seen
            with torch.inference_mode():
                out = forward._backbone(input_ids=torch.from_numpy(row)[None], attention_mask=mask)
            states.append(out.last_hidden_state[0])
        return torch.cat(states)

    with padded(loaded.encoder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "_run_padded", lambda batch: run(forward, batch))
        return encode(loaded, of)


def adapted_by(loaded: Loaded, of: View, folder: Path | None) -> Vectors:
    """By another adapter than the view's, or by none; and the view's prompt."""
    given = {of.task: None if folder is None else str(folder)}
    protocol = resolve(loaded.folder, loaded.row, adapters=given)
    encoder = Encoder.load(protocol, device="cpu", dtype="float32", adapters=[protocol.adapter(of)])
    return encoder.encode(loaded.tokenizer.prepare(TEXTS_OF, loaded.protocol.prompt(of))).vectors


def without_its_adapter(loaded: Loaded, of: View) -> Vectors:
    return adapted_by(loaded, of, None)


def with_another_tasks_adapter(loaded: Loaded, of: View) -> Vectors:
    own = adapter_of(loaded.row, of)
    return adapted_by(
        loaded, of, next(loaded.folder / other for other in ADAPTERS[loaded.row].values() if other != own)
    )


def with_twice_the_scale(loaded: Loaded, of: View) -> Vectors:
    own = adapter_of(loaded.row, of)
    assert own is not None
    copied = loaded.folder.parent / "scaled" / loaded.folder.name
    shutil.copytree(loaded.folder / own, copied, dirs_exist_ok=True)
    config = copied / "adapter_config.json"
    edit_json(config, lora_alpha=2 * json.loads(config.read_text())["lora_alpha"])
    return adapted_by(loaded, of, copied)


def cased(row: str) -> bool:
    return LAYOUTS[row].tokenizer != "wordpiece"


def own_attention(row: str) -> bool:
    """Whether the backbone takes a mask for each pair of tokens."""
    return LAYOUTS[row].code is None and LAYOUTS[row].tokenizer != "unigram-t5"


# What is broken, and in which rows there is such a thing.
MUTATIONS: dict[Callable[[Loaded, View], Vectors], Callable[[str], Any]] = {
    with_another_byte: lambda row: any(views_of(row).values()),
    without_the_suffix: lambda row: row in SUFFIXES,
    without_the_suffixs_newline: lambda row: row in SUFFIXES,
    without_first: lambda row: row not in SUFFIXES and ends_of(row)[0],
    without_last: lambda row: row not in SUFFIXES and ends_of(row)[1],
    pooled_otherwise: lambda _: True,
    # Of the last or the first token the prompt is no matter.
    pooled_with_or_without_the_prompt: lambda row: (
        LAYOUTS[row].pooling == "mean" and any(views_of(row).values())
    ),
    not_normalized: lambda _: True,
    lower_cased: cased,
    truncated_early: lambda _: True,
    without_projections: lambda row: row.startswith(("google/", "hkunlp/")),
    without_the_layer_norm: lambda row: row.startswith("nomic-ai/"),
    read_on_the_wrong_side: lambda _: True,
    causal_or_not: own_attention,
    without_its_adapter: lambda row: row in ADAPTERS,
    with_another_tasks_adapter: lambda row: row in ADAPTERS,
    with_twice_the_scale: lambda row: row in ADAPTERS,
}


@pytest.mark.parametrize(
    ("row", "broken"),
    [
        pytest.param(row, broken, id=f"{row}-{broken.__name__}")
        for row in FAMILIES
        for broken, applies in MUTATIONS.items()
        if applies(row)
    ],
)
def test_the_comparison_sees_what_is_broken(
    row: str, broken: Callable[[Loaded, View], Vectors], rows: Rows
) -> None:
    loaded, of = rows[row], prompted(row)
    expected = loaded.reference(of)[0]
    vectors = broken(loaded, of)
    assert vectors.shape == expected.shape
    assert np.isfinite(vectors).all()
    with pytest.raises(AssertionError):
        assert_same(vectors, expected)
