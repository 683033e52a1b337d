"""What lets a batch be prepared while another is computed: nothing on its way asks the device for a value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from encoders.batching import Batch, token_budget_batches
from encoders.copies import from_device, to_device
from encoders.encoder import Encoder
from encoders.modules import POOLING_MODES, Pooling
from encoders.protocol import resolve_protocol
from encoders.stretches import Stretches
from encoders.tokenizer import Tokenizer
from tests.encoders.repositories import TEXTS, write_repository

CPU = torch.device("cpu")


def loaded(folder: Path, device: str = "cpu") -> tuple[Encoder, Batch]:
    """An encoder that pools in every way, and a batch of texts of two stretches each."""
    protocol = resolve_protocol(str(write_repository(folder)))
    texts = Tokenizer(protocol).prepare(TEXTS)
    half = texts.lengths // 2
    starts = np.stack([np.zeros_like(half), half], 1).reshape(-1)
    counts = np.stack([half, texts.lengths - half], 1).reshape(-1)
    texts = replace(texts, stretches=Stretches(np.arange(len(texts) + 1) * 2, starts, counts))
    encoder = Encoder.load(protocol, device=device)
    encoder.protocol = replace(protocol, pooling=Pooling(POOLING_MODES))
    (batch,) = token_budget_batches(texts, 10**6, padded=False)
    return encoder, batch


@contextmanager
def without_values() -> Iterator[None]:
    """Tensors have shapes here, and no values; to ask for one is an error, where on CUDA the host would wait."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def test_a_batch_is_queued_without_a_value_from_the_device(tmp_path: Path) -> None:
    encoder, batch = loaded(tmp_path)
    assert encoder._forward.packed
    with without_values():
        encoder._encode_batch(batch)


def test_what_would_wait_is_noticed() -> None:
    with without_values():
        counts = to_device(np.array([1, 2]), CPU)
        counts.repeat_interleave(counts, output_size=3)
        with pytest.raises(DynamicOutputShapeException):
            counts.repeat_interleave(counts)
        with pytest.raises(DynamicOutputShapeException):
            counts[counts > 1]


def test_on_the_cpu_nothing_is_copied() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = to_device(values, CPU)
    values[0, 0] = 7
    assert tensor[0, 0] == 7
    assert np.shares_memory(from_device(tensor)(), values)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_card_a_batch_is_queued_without_a_wait(tmp_path: Path) -> None:
    encoder, batch = loaded(tmp_path, "cuda")
    assert encoder.why_padded == ""
    expected = encoder._encode_batch(batch)()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        fetch = encoder._encode_batch(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_array_equal(fetch(), expected)
