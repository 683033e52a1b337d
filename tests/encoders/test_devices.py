"""What is chosen where the configuration leaves it open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoders import devices
from encoders.batching import Batch
from encoders.devices import choose_dtype, tokens_that_fit
from encoders.encoder import Encoder
from encoders.protocol import resolve_protocol
from encoders.tokenizer import Tokenizer
from tests.encoders.reference import cosines, ours
from tests.encoders.repositories import TEXTS, write_repository

CPU = torch.device("cpu")
GIB = 2**30
CPU_HAS_BFLOAT16 = devices.cpu_has_bfloat16  # which the suite replaces for all other tests


@pytest.mark.parametrize(
    ("capabilities", "built", "chosen"),
    [
        ({"avx512_f": True, "avx512_bf16": True}, True, torch.bfloat16),  # Zen 4
        ({"avx512_f": True, "amx_bf16": True}, True, torch.bfloat16),  # Sapphire Rapids
        ({"avx512_f": True, "avx512_bf16": False}, True, torch.float32),  # Ice Lake: emulated
        ({"avx512_bf16": True}, False, torch.float32),  # torch without oneDNN
        ({}, True, torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_that(
    capabilities: dict[str, Any], built: bool, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_has_bfloat16", CPU_HAS_BFLOAT16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: built)
    assert choose_dtype("auto", CPU) == chosen
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert choose_dtype("float16", CPU) == torch.float16


def test_a_torch_that_cannot_tell_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_has_bfloat16", CPU_HAS_BFLOAT16)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_dtype("auto", CPU) == torch.float32


def test_an_encoder_takes_what_its_cpu_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_repository(tmp_path / "model")
    protocol = resolve_protocol(str(folder))
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: True)
    encoder = Encoder.load(protocol, device="cpu")
    assert encoder.number_format == "bfloat16"
    vectors = encoder.encode(Tokenizer(protocol).prepare(TEXTS)).vectors
    assert cosines(vectors, ours(folder, TEXTS, dtype="float32")).min() >= 0.999


@pytest.mark.parametrize(
    ("free", "trial", "tokens"),
    [
        (8 * GIB, GIB, 16_384),  # four such batches in half of it
        (GIB, GIB, 4096),
        (0, GIB, 4096),
        (140 * GIB, GIB // 10, 131_072),
        (140 * GIB, 0, 131_072),
    ],
)
def test_half_of_the_free_memory_is_used_within_limits(free: int, trial: int, tokens: int) -> None:
    assert tokens_that_fit(free, trial) == tokens


def test_on_cpu_nothing_is_tried() -> None:
    def forward(_: Any) -> torch.Tensor:
        raise AssertionError

    assert devices.batch_tokens(forward, CPU) == 2048


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError(), RuntimeError("another")])
def test_on_cuda_the_trial_batch_and_the_free_memory_decide(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With made-up answers of the card: 10 GiB free, 1 GiB before the trial, 2 GiB at its peak."""
    tried: list[int] = []

    def forward(batch: Batch) -> torch.Tensor:
        tried.append(len(batch.token_ids))
        if error is not None:
            raise error
        return torch.empty(0)

    answers = {"mem_get_info": (10 * GIB, 0), "memory_allocated": GIB, "max_memory_allocated": 2 * GIB}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(RuntimeError, match="another"):
            devices.batch_tokens(forward, torch.device("cuda"))
    else:
        found = devices.batch_tokens(forward, torch.device("cuda"))
        assert found == (4096 if error else 5 * 4096)
    assert tried == [4096]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_card_a_trial_decides(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model")
    protocol = resolve_protocol(str(folder))
    encoder = Encoder.load(protocol, device="cuda")
    assert 4096 <= encoder.max_batch_tokens <= 131_072
    texts = Tokenizer(protocol).prepare(TEXTS * 100)
    assert np.isfinite(encoder.encode(texts).vectors).all()
