"""What is chosen where the configuration leaves it open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoders import devices
from encoders.batching import Batch
from encoders.devices import choose_dtype, tokens_that_fit, trial_tokens
from encoders.encoder import Encoder
from encoders.protocol import resolve_protocol
from encoders.tokenizer import Tokenizer
from tests.encoders.reference import cosines, ours
from tests.encoders.repositories import TEXTS, write_repository

CPU = torch.device("cpu")
GIB = 2**30
# Weights in bfloat16, bytes that a token of a packed batch takes in its forward pass at the peak (both counted with
# tensors that have no values), and the longest text.
BYTES = {
    "MiniLM": (45_000_000, 8449, 256),
    "BERT base": (219_000_000, 16_897, 512),
    "Qwen3 0.6B": (1_190_000_000, 27_272, 32_768),
    "Qwen3 4B": (8_040_000_000, 79_368, 32_768),
}
CONTEXT_BYTES = GIB // 2  # of CUDA itself, about
INTEL = {"cpu_name": "Intel Xeon", "avx512_f": True, "avx512_bf16": True, "avx512_fp16": True}
CPU_HAS_BFLOAT16 = devices.cpu_has_bfloat16  # which the suite replaces for all other tests


@pytest.mark.parametrize(
    ("capabilities", "built", "chosen"),
    [
        ({"avx512_f": True, "avx512_bf16": True}, True, torch.bfloat16),  # Zen 4
        (INTEL | {"amx_bf16": True}, True, torch.bfloat16),  # Sapphire Rapids
        (INTEL | {"amx_bf16": False}, True, torch.float32),  # its tiles hidden: slower
        (INTEL | {"avx512_fp16": False}, True, torch.bfloat16),  # Cooper Lake
        (INTEL | {"cpu_name": "AMD EPYC"}, True, torch.bfloat16),
        ({"bf16": True}, True, torch.bfloat16),  # Neoverse V1
        ({"avx512_f": True, "avx512_bf16": False}, True, torch.float32),  # Ice Lake: emulated
        ({"avx512_bf16": True}, False, torch.float32),  # torch without oneDNN
        ({}, True, torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_that_are_faster(
    capabilities: dict[str, Any], built: bool, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_has_bfloat16", CPU_HAS_BFLOAT16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: built)
    assert choose_dtype("auto", CPU) == chosen
    assert choose_dtype("float16", CPU) == torch.float16


@pytest.mark.parametrize(
    ("capability", "chosen"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_a_card_computes_in_bfloat16_from_ampere_on(
    capability: tuple[int, int], chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_dtype("auto", torch.device("cuda")) == chosen


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
    ("free", "trial", "trial_tokens", "tokens"),
    [
        (8 * GIB, GIB, 4096, 16_384),  # four such batches in half of it
        (8 * GIB, 2 * GIB, 8192, 16_384),
        (GIB, GIB, 4096, 4096),
        (0, GIB, 4096, 4096),
        (140 * GIB, GIB // 10, 4096, 131_072),
        (140 * GIB, 0, 4096, 131_072),
    ],
)
def test_half_of_the_free_memory_is_used_within_limits(
    free: int, trial: int, trial_tokens: int, tokens: int
) -> None:
    assert tokens_that_fit(free, trial, trial_tokens) == tokens


@pytest.mark.parametrize("card", [8, 24, 80, 140])
@pytest.mark.parametrize("model", BYTES)
def test_small_and_large_models_fit_small_and_large_cards(model: str, card: int) -> None:
    weights, per_token, longest = BYTES[model]
    free = card * GIB - CONTEXT_BYTES - weights
    trial = trial_tokens(longest)
    tokens = tokens_that_fit(free, per_token * trial, trial)
    if (model, card) == ("Qwen3 4B", 8):  # the weights fill the card: the first batch that fails is halved
        assert tokens == 4096
        return
    assert 4096 <= tokens <= 131_072
    assert tokens * per_token <= free  # also where the least is more than half
    assert tokens in (4096, 131_072) or 0.49 * free < tokens * per_token <= 0.5 * free
    assert longest * per_token <= free  # such a text goes alone, if it is longer than a batch
    assert tokens == 131_072 or model.startswith("Qwen3") or card < 24


@pytest.mark.parametrize(
    ("longest", "tokens"),
    [(48, 4080), (128, 4096), (512, 4096), (3000, 3000), (8192, 8192), (32_768, 32_768)],
)
def test_a_trial_has_whole_texts_of_the_longest_kind(longest: int, tokens: int) -> None:
    assert trial_tokens(longest) == tokens


def test_on_cpu_nothing_is_tried() -> None:
    def forward(_: Any) -> torch.Tensor:
        raise AssertionError

    assert devices.batch_tokens(forward, CPU, 512) == 2048


@pytest.mark.parametrize(
    ("error", "longest", "lengths", "tokens"),
    [
        (None, 512, [512], 5 * 4096),
        (None, 48, [48], 5 * 4080),  # no more than the model has positions
        (None, 32_768, [32_768], 131_072),
        (torch.OutOfMemoryError(), 512, [512, 128], 4096),
        (torch.OutOfMemoryError(), 32_768, [32_768, 8192, 2048, 512, 128], 4096),
        (RuntimeError("another"), 512, [512], None),
    ],
)
def test_on_cuda_the_trial_batch_and_the_free_memory_decide(
    error: Exception | None,
    longest: int,
    lengths: list[int],
    tokens: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With made-up answers of the card: 10 GiB free, 1 GiB before the trial, 2 GiB at its peak."""
    tried: list[int] = []

    def forward(batch: Batch) -> torch.Tensor:
        assert len(batch.token_ids) == batch.lengths.sum() == trial_tokens(int(batch.lengths[0]))
        tried.append(int(batch.lengths[0]))
        if error is not None:
            raise error
        return torch.empty(0)

    answers = {"mem_get_info": (10 * GIB, 0), "memory_allocated": GIB, "max_memory_allocated": 2 * GIB}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    if tokens is None:
        with pytest.raises(RuntimeError, match="another"):
            devices.batch_tokens(forward, torch.device("cuda"), longest)
    else:
        assert devices.batch_tokens(forward, torch.device("cuda"), longest) == tokens
    assert tried == lengths


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_card_a_trial_decides(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model")
    protocol = resolve_protocol(str(folder))
    encoder = Encoder.load(protocol, device="cuda")
    assert 4096 <= encoder.max_batch_tokens <= 131_072
    texts = Tokenizer(protocol).prepare(TEXTS * 100)
    assert np.isfinite(encoder.encode(texts).vectors).all()
