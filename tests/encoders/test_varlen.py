"""What the CUDA kernel is told of a batch; on a card, packed equals alone for every class that is packed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen

from encoders import forward, varlen
from encoders.forward import Forward
from tests.encoders.test_forward import LENGTHS, PACKED, alone, backbone_of, batch_of, relative_error

# Kernels want heads of a multiple of 8, and cards like them larger.
WIDER = {"hidden_size": 128, "dim": 128, "head_dim": 32}


def attend_by_hand(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    other_starts: torch.Tensor,
    longest: int,
    other_longest: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | tuple[int, int] = (-1, -1),
    *_: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the documentation of `varlen_attn` says, text by text, in float32."""
    assert torch.equal(starts, other_starts)
    assert starts.dtype == torch.int32
    assert longest == other_longest == int(starts.diff().max())
    assert is_causal == (tuple(window_size) == (-1, 0))
    left, right = (reach if reach >= 0 else longest for reach in window_size)
    shared = query.shape[1] // key.shape[1]
    result = torch.empty_like(query)
    for start, stop in zip(starts.tolist(), starts.tolist()[1:], strict=False):
        some = slice(start, stop)
        places = torch.arange(stop - start)
        distance = places[:, None] - places
        seen = (distance <= left) & (-distance <= right)
        keys, values = (states[some].repeat_interleave(shared, dim=1) for states in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[some], keys) * (scale or query.shape[-1] ** -0.5)
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        result[some] = torch.einsum("hqk,khd->qhd", weights, values)
    return result, query.new_empty(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)


@pytest.fixture
def as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA way on the CPU, in float32: torch's own function, on a kernel written by hand."""
    torch.nn.attention.varlen._varlen_attn.register_kernel("cpu")(attend_by_hand)
    monkeypatch.setattr(varlen, "DTYPES", (torch.float32,))
    monkeypatch.setattr(forward, "_way_of", lambda _: varlen)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.usefixtures("as_on_a_card")
def test_the_kernels_arguments_mean_each_text_alone(name: str) -> None:
    backbone, batch = backbone_of(name, PACKED[name]), batch_of(LENGTHS)
    expected = alone(backbone, batch)
    run = Forward(backbone)
    assert run.why_padded == ""
    assert backbone.config._attn_implementation == varlen.NAME
    assert relative_error(run(batch), expected) < 1e-4


@pytest.mark.usefixtures("as_on_a_card")
def test_a_torch_without_its_switch_for_grouped_heads_packs_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As 2.11 has it: its kernel takes fewer heads of keys without being told."""
    real = torch.nn.attention.varlen.varlen_attn

    def of_2_11(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        *,
        return_aux: Any = None,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> torch.Tensor:
        assert return_aux is None
        settings: dict[str, Any] = {"scale": scale, "window_size": window_size, "enable_gqa": True}
        return real(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **settings)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", of_2_11)
    backbone, batch = backbone_of("Qwen3Model", PACKED["Qwen3Model"]), batch_of(LENGTHS)
    expected = alone(backbone, batch)
    run = Forward(backbone)
    assert run.why_padded == ""
    assert relative_error(run(batch), expected) < 1e-4


def test_texts_begin_where_the_ones_before_end() -> None:
    told = varlen.arguments(batch_of(LENGTHS), torch.device("cpu"))
    assert told["text_starts"].tolist() == [0, *np.cumsum(LENGTHS)]
    assert told["text_starts"].dtype == torch.int32
    assert told["longest_text"] == 40


@pytest.mark.parametrize(
    ("sliding_window", "causal", "window"),
    [(None, False, (-1, -1)), (None, True, (-1, 0)), (65, False, (64, 64)), (65, True, (64, 0))],
)
def test_a_window_counts_the_tokens_beside(
    sliding_window: int | None, causal: bool, window: tuple[int, int]
) -> None:
    assert varlen.window_of(sliding_window, causal=causal) == window


@pytest.mark.usefixtures("as_on_a_card")
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("fails", "the kernel failed: no kernel for this head size"),
        ("is wrong", r"texts end to end and alone differed by [\d.]+"),
        ("is no number", "texts end to end and alone differed by nan"),
    ],
)
def test_a_card_whose_kernel_fails_or_is_wrong_pads_and_says_why(
    kind: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if kind == "fails":
            raise RuntimeError("no kernel for this head size\nException raised from mha_varlen_fwd")
        return torch.full_like(query, 0.0 if kind == "is wrong" else torch.nan)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    backbone, batch = backbone_of("BertModel", {}), batch_of(LENGTHS)
    expected = alone(backbone, batch)
    run = Forward(backbone)
    assert re.fullmatch(why, run.why_padded)
    assert backbone.config._attn_implementation == "sdpa"
    assert relative_error(run(batch), expected) < 1e-4


def test_in_float32_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_way_of", lambda _: varlen)
    assert Forward(backbone_of("BertModel", {})).why_padded.endswith("on cpu in torch.float32")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", PACKED)
def test_packed_texts_on_a_card_get_the_states_that_they_get_alone(name: str) -> None:
    backbone = backbone_of(name, {**PACKED[name], **WIDER}, initializer_range=0.1).to("cuda", torch.bfloat16)
    batch = batch_of(LENGTHS)
    texts = np.split(batch.token_ids, np.cumsum(batch.lengths)[:-1])
    with torch.inference_mode():
        expected = torch.cat(
            [backbone(input_ids=torch.from_numpy(ids)[None].cuda()).last_hidden_state[0] for ids in texts]
        )
    run = Forward(backbone)
    assert run.why_padded == ""
    assert relative_error(run(batch).float(), expected.float()) < 0.1
