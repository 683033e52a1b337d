"""Packed equals alone, for every class that is packed; what cannot be packed is padded, and equals alone too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention

from encoders import attention, forward
from encoders.batching import Batch
from encoders.forward import Forward

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "initializer_range": 0.5,  # weights this large make any leak between texts plain to see
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8, "use_cache": False}
# Whatever makes an architecture's attention special is switched on.
PACKED: dict[str, dict[str, Any]] = {
    "AlbertModel": {"embedding_size": 16},
    "BertModel": {},
    "CamembertModel": {},
    "DistilBertModel": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
    "ElectraModel": {"embedding_size": 16},
    "EuroBertModel": GROUPED,
    "Gemma3TextModel": {
        **GROUPED,
        "use_bidirectional_attention": True,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
    },
    "GteModel": {},
    "JinaEmbeddingsV3Model": {},
    "LlamaModel": GROUPED,
    "MistralModel": {**GROUPED, "sliding_window": 6},
    "ModernBertModel": {"local_attention": 8, "global_attn_every_n_layers": 3},
    "NomicBertModel": {},
    "Qwen2Model": {"num_key_value_heads": 2, "use_cache": False},
    "Qwen3Model": {**GROUPED, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "RobertaModel": {},
    "XLMRobertaModel": {},
}
PADDED: dict[str, dict[str, Any]] = {
    "MPNetModel": {},
    "DebertaV2Model": {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
    "T5EncoderModel": {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 3},
}
CLASSES = {**PACKED, **PADDED}
LENGTHS = np.array([40, 17, 9, 9, 9, 4, 1, 1])


def backbone_of(name: str, settings: dict[str, Any], **more: Any) -> Any:
    """A model of this class with random weights."""
    kind = getattr(transformers, name, None)
    if kind is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    torch.manual_seed(0)
    config = kind.config_class(**{**SMALL, **settings, **more})
    if not hasattr(config, "pad_token_id"):
        config.pad_token_id = 1
    return kind(config).eval().requires_grad_(False)


def batch_of(lengths: np.ndarray[Any, Any]) -> Batch:
    """Random texts of these lengths; one holds the padding token, as a text may that spells it."""
    ids = np.random.default_rng(3).integers(5, 100, lengths.sum())
    ids[45] = SMALL["pad_token_id"]
    return Batch(np.arange(len(lengths)), ids, lengths, np.zeros_like(lengths))


def alone(backbone: Any, batch: Batch) -> torch.Tensor:
    """Each text by itself, as transformers runs it."""
    texts = np.split(batch.token_ids, np.cumsum(batch.lengths)[:-1])
    return torch.cat([backbone(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0] for ids in texts])


def fill_packs(monkeypatch: pytest.MonkeyPatch, *, has_tiles: bool) -> None:
    """Small ones too, or none, whatever this CPU has."""
    monkeypatch.setattr("encoders.devices.cpu_has_tiles", lambda: has_tiles)
    monkeypatch.setattr(forward, "_SMALL_PACK", 0)


def relative_error(states: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((states - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.mark.parametrize("has_tiles", [False, True])
@pytest.mark.parametrize("name", PACKED)
def test_packed_texts_get_the_states_that_they_get_alone(
    name: str, has_tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_packs(monkeypatch, has_tiles=has_tiles)
    backbone, batch = backbone_of(name, PACKED[name]), batch_of(LENGTHS)
    expected = alone(backbone, batch)
    run = Forward(backbone)
    assert run.packed
    assert relative_error(run(batch), expected) < 1e-4


@pytest.mark.parametrize("name", [*PACKED, *PADDED])
def test_padded_texts_get_the_states_that_they_get_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Forward, "_find_why_padded", lambda _: "a test")
    backbone, batch = backbone_of(name, PACKED.get(name) or PADDED.get(name) or {}), batch_of(LENGTHS)
    expected = alone(backbone, batch)
    assert relative_error(Forward(backbone)(batch), expected) < 1e-4


def test_a_gemma_that_looks_back_only_is_packed_too() -> None:
    settings = {**PACKED["Gemma3TextModel"], "use_bidirectional_attention": False}
    backbone, batch = backbone_of("Gemma3TextModel", settings), batch_of(LENGTHS)
    expected = alone(backbone, batch)
    run = Forward(backbone)
    assert run.packed
    assert relative_error(run(batch), expected) < 1e-4


@pytest.mark.parametrize(("num_tokens", "num_rows"), [(512, 512), (513, 544), (544, 544), (545, 576)])
def test_large_packs_fill_whole_tiles_where_the_cpu_has_them(
    num_tokens: int, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encoders.devices.cpu_has_tiles", lambda: True)
    backbone = backbone_of("BertModel", {})
    batch = batch_of(np.array([*[40] * 12, num_tokens - 505, *[5] * 5]))
    expected, run = alone(backbone, batch), Forward(backbone)
    shapes: list[tuple[int, ...]] = []
    backbone.embeddings.register_forward_hook(lambda _, __, states: shapes.append(states.shape[:2]))
    states = run(batch)
    assert shapes == [(1, num_rows)]
    assert relative_error(states, expected) < 1e-4


def test_the_self_test_fills_whole_tiles_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encoders.devices.cpu_has_tiles", lambda: True)
    backbone = backbone_of("BertModel", {})
    shapes: list[tuple[int, ...]] = []
    backbone.embeddings.register_forward_hook(lambda _, __, states: shapes.append(states.shape[:2]))
    assert Forward(backbone).packed
    assert shapes[-1] == (1, 32)


def test_what_fills_a_pack_gets_zeros_and_is_seen_by_no_text() -> None:
    texts = torch.randn(3, 1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    filled = torch.cat([texts, torch.full((3, 1, 2, 4, 8), torch.nan)], 3)
    attend, module = transformers.AttentionInterface()[attention.NAME], SimpleNamespace(is_causal=False)
    expected, _ = attend(module, *texts, None, equal_lengths=[(0, 2, 4)])
    found, _ = attend(module, *filled, None, equal_lengths=[(0, 2, 4)])
    assert torch.equal(found[:, :8], expected)
    assert (found[:, 8:] == 0).all()


def test_every_class_that_is_packed_is_tested() -> None:
    assert set(PACKED) == forward._PACKABLE


@pytest.mark.parametrize("name", PADDED)
def test_other_classes_are_padded(name: str) -> None:
    backbone, batch = backbone_of(name, PADDED[name]), batch_of(LENGTHS)
    expected = alone(backbone, batch)
    run = Forward(backbone)
    assert not run.packed
    assert run.why_padded == f"{name} is not known to be right with texts end to end"
    assert relative_error(run(batch), expected) < 1e-4


@pytest.mark.parametrize("name", ["BertModel", *PADDED])
def test_a_backbone_has_run_before_its_first_batch_in_the_way_that_batches_go(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encoders.devices.cpu_has_tiles", lambda: False)
    backbone, shapes = backbone_of(name, CLASSES[name]), []
    backbone.register_forward_hook(
        lambda _, __, arguments, ___: shapes.append(tuple(arguments["input_ids"].shape)), with_kwargs=True
    )
    run = Forward(backbone)
    assert shapes[-1] == ((1, 19) if run.packed else (4, 7))


@pytest.mark.parametrize("name", PADDED)
def test_a_class_on_the_list_by_mistake_fails_its_self_test(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the self-test is for: these ignore our attention, or hide a bias from it."""
    monkeypatch.setattr(forward, "_PACKABLE", {name})
    backbone, batch = backbone_of(name, PADDED[name]), batch_of(LENGTHS)
    expected = alone(backbone, batch)
    try:
        run = Forward(backbone)
    except (TypeError, ValueError):  # T5 knows no positions, MPNet no such attention
        return
    assert not run.packed
    assert relative_error(run(batch), expected) < 1e-4


def test_rope_that_depends_on_the_longest_text_is_not_packed() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert "angles" in Forward(backbone_of("LlamaModel", GROUPED, rope_parameters=rope)).why_padded
    kinds = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": rope,
    }
    gemma = backbone_of("Gemma3TextModel", PACKED["Gemma3TextModel"], rope_parameters=kinds)
    assert "angles" in Forward(gemma).why_padded


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("longest", [0, 512], ids=["torch's attention", "written out"])
def test_in_bfloat16_packed_texts_get_the_states_that_they_get_alone(
    name: str, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_LONGEST_WRITTEN_OUT", longest)
    fill_packs(monkeypatch, has_tiles=longest == 0)
    backbone = backbone_of(name, PACKED[name], initializer_range=0.1).to(torch.bfloat16)
    expected = alone(backbone, batch_of(LENGTHS))
    run = Forward(backbone)
    assert run.packed
    assert relative_error(run(batch_of(LENGTHS)).float(), expected.float()) < 0.1


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("heads", [4, 2], ids=["all heads", "shared keys"])
def test_attention_written_out_is_torchs(causal: bool, window: int | None, heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, count, 9, 8, generator=generator) for count in (4, heads, heads))
    mask = attention._window_mask(9, window, causal=causal)
    expected = scaled_dot_product_attention(
        query, key, value, mask, is_causal=causal and mask is None, scale=0.3, enable_gqa=True
    )
    found = attention._written_out(query, key, value, mask, 0.3, causal=causal)
    torch.testing.assert_close(found, expected)


def attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Attention of one text, `[heads, length, head_dim]` in and out, in bfloat16, written out where that will do."""
    states = [one.bfloat16()[None] for one in (query, key, value)]
    module, whole = SimpleNamespace(is_causal=causal), [(0, 1, query.shape[1])]
    found, _ = attention._attend(module, *states, None, equal_lengths=whole)
    return found[0].transpose(0, 1).float()


@pytest.mark.parametrize("sign", [1, -1], ids=["powers overflow", "powers vanish"])
@pytest.mark.parametrize("causal", [False, True])
def test_scores_beyond_the_powers_of_two_are_torchs_attention(
    sign: int, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_LONGEST_WRITTEN_OUT", 512)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.rand(4, 9, 8, generator=generator).bfloat16().float() for _ in range(3))
    query[1] *= sign * 300  # scores of some 600 of either sign, in one head alone
    query = query.bfloat16().float()
    expected = scaled_dot_product_attention(query, key, value, is_causal=causal)
    torch.testing.assert_close(attended(query, key, value, causal=causal), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize(("largest", "written_out"), [(60, True), (80, False)])
def test_scores_that_powers_of_two_can_hold_are_not_left_to_torch(largest: int, written_out: bool) -> None:
    query, key = torch.zeros(1, 1, 8, 4), torch.zeros(1, 1, 8, 4)
    query[..., 0] = 1.0
    key[..., 0, 0], key[..., 1, 0] = largest, -largest  # nothing in common
    found = attention._written_out(query, key, torch.ones(1, 1, 8, 4), None, 1.0, causal=False)
    assert (found is not None) == written_out


@pytest.mark.parametrize("shift", [0, 20, 45])
@pytest.mark.parametrize("causal", [False, True])
def test_what_all_keys_have_in_common_takes_no_bits_of_their_scores(
    shift: int, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_LONGEST_WRITTEN_OUT", 512)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(4, 64, 64, generator=generator) for _ in range(3))
    common = torch.randn(64, generator=generator)
    common *= (8 * shift) ** 0.5 / common.norm()
    query, key = (states.add(common).bfloat16().float() for states in (query, key))
    scores = query @ key.transpose(1, 2) / 8
    assert abs(scores.mean() - shift) < 2
    expected = scaled_dot_product_attention(query, key, value, is_causal=causal)
    error = (attended(query, key, value, causal=causal) - expected).norm() / expected.norm()
    assert error < 0.015  # without, 0.03 and 0.06


def test_what_is_not_a_number_stays_so_in_attention_and_in_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_LONGEST_WRITTEN_OUT", 512)
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 2, 12, 4, generator=generator).bfloat16() for _ in range(3)]
    for one in states:
        one[0, :, 5] = float(
            "nan"
        )  # a token's states, of which all three are made; in the second of three texts
    found, _ = attention._attend(SimpleNamespace(is_causal=False), *states, None, equal_lengths=[(0, 3, 4)])
    assert found[0, 4:8].isnan().all()
    assert not found[0, [*range(4), *range(8, 12)]].isnan().any()


def test_the_self_test_looks_beyond_a_small_window() -> None:
    for name, longest, lengths in (
        ("ModernBertModel", 7, [15, 5, 5, 2]),
        ("MistralModel", 7, [13, 5, 5, 2]),
        ("BertModel", 7, [7, 5, 5, 2]),
        ("BertModel", 100, [64, 5, 5, 2]),  # no longer than there are positions
        ("RobertaModel", 100, [62, 5, 5, 2]),  # which count from behind the padding token's id
    ):
        backbone = backbone_of(name, PACKED[name])
        assert forward._self_test_batch(backbone, longest).lengths.tolist() == lengths


@pytest.mark.parametrize("more", [-1, 1, 1000])
def test_a_window_that_is_off_by_a_token_fails_the_self_test_in_16_bits_too(
    more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = attention._window_mask

    def wrong(length: int, window: int | None, *, causal: bool) -> torch.Tensor | None:
        return right(length, window and window + more, causal=causal)

    monkeypatch.setattr(attention, "_window_mask", wrong)
    settings = {**PACKED["ModernBertModel"], "local_attention": 64, "initializer_range": 0.02}
    backbone = backbone_of("ModernBertModel", settings).bfloat16()
    assert "window of 64" in Forward(backbone).why_padded


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        ("ConvBertModel", {"embedding_size": 32}, "padded and alone they differed by 0."),
        (
            "LlamaModel",
            {
                **GROUPED,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                    "short_factor": [1.0] * 4,
                    "long_factor": [4.0] * 4,
                },
            },
            "its angles depend on the longest text of a batch",
        ),
    ],
)
def test_texts_that_see_their_padding_or_their_neighbours_go_through_one_by_one(
    name: str, settings: dict[str, Any], why: str
) -> None:
    backbone, batch = backbone_of(name, settings, initializer_range=0.3), batch_of(LENGTHS)
    expected = alone(backbone, batch)
    run = Forward(backbone)
    assert relative_error(run._run_padded(batch), expected) > 1e-3
    assert not run.packed
    assert f"; one by one, for {why}" in run.why_padded
    assert run.num_padding(batch) == 0
    assert relative_error(run(batch), expected) < 1e-4


def test_a_way_without_its_mask_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_window_mask", lambda *_, **__: None)
    why = Forward(backbone_of("ModernBertModel", PACKED["ModernBertModel"])).why_padded
    assert why.startswith("texts end to end and alone differed by 0.")


def test_texts_run_alone_leave_the_model_as_it_is() -> None:
    backbone, batch = backbone_of("Qwen3Model", GROUPED), batch_of(LENGTHS)
    expected = alone(backbone, batch)
    run = Forward(backbone)
    before, packed = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}, run(batch)
    assert torch.equal(run.plain(batch), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert torch.equal(run(batch), packed)
