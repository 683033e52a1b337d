"""A merged backbone gives what peft gives unmerged; every adapter that does not fit is an error."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import EuroBertConfig, EuroBertModel, PreTrainedModel

from encoders.encoder import Dtype, Encoder
from encoders.errors import EncoderError, ModelNotFoundError, UnsupportedModelError
from encoders.loading import load_backbone
from encoders.merging import AdaptedBackbone
from encoders.protocol import EncoderOptions, Protocol, resolve_protocol
from encoders.tokenizer import Tokenizer
from tests.encoders.adapter_repositories import backbone_of, unmerged, write_adapter, write_jina_v5
from tests.encoders.repositories import MAX_TOKENS, TEXTS, WIDTH, edit_json, write_repository

# Architecture -> its linear layers.
TARGETS = {
    "qwen3": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "eurobert": ["q_proj", "v_proj", "down_proj"],
    "bert": ["query", "key", "value", "dense"],
    "xlm-roberta": ["query", "value", "word_embeddings"],
}
FIRST = "base_model.model.layers.0.self_attn.q_proj"
SETTINGS: dict[str, dict[str, Any]] = {
    "rank 4": {"r": 4, "lora_alpha": 4},
    "rank 32, another scale": {"r": 32, "lora_alpha": 7},
    "rsLoRA": {"r": 4, "lora_alpha": 5, "use_rslora": True},
    "ranks by module": {"r": 4, "lora_alpha": 4, "rank_pattern": {"1": 2}, "alpha_pattern": {"1": 9}},
}


def write_model(folder: Path, architecture: str) -> Path:
    if architecture != "eurobert":
        return write_repository(folder, architecture)
    write_repository(folder, "qwen3")
    config = json.loads((folder / "config.json").read_text())
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    model = EuroBertModel(
        EuroBertConfig(**{key: config[key] for key in same}, **special, max_position_embeddings=MAX_TOKENS)
    )
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write_model(folder / name, name) for name in TARGETS}


@pytest.fixture(scope="module")
def qwen3(models: Mapping[str, Path]) -> PreTrainedModel:
    return backbone_of(models["qwen3"])


def protocol_of(model: Path, **adapters: Path) -> Protocol:
    given = {task.replace("_", "-"): str(folder) for task, folder in adapters.items()}
    return resolve_protocol(str(model), options=EncoderOptions(adapters=given))


def adapted_of(
    protocol: Protocol, names: tuple[str | None, ...] | None = None, dtype: torch.dtype = torch.float32
) -> AdaptedBackbone:
    return AdaptedBackbone(protocol, load_backbone(protocol, dtype), names or protocol.adapters.names)


def weights_of(backbone: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in backbone.state_dict().items()}


def assert_identical(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


@torch.no_grad()
def states_of(backbone: torch.nn.Module, protocol: Protocol) -> torch.Tensor:
    """Token states of the texts, one text at a time, end to end."""
    tokenizer = Tokenizer(protocol)
    texts = [torch.from_numpy(tokenizer.prepare([text]).token_ids).long()[None] for text in TEXTS]
    return torch.cat([backbone(input_ids=ids).last_hidden_state[0] for ids in texts])


def assert_same_states(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert torch.cosine_similarity(ours.double(), theirs.double()).min() >= 0.99999
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", TARGETS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_merged_states_are_those_of_peft_unmerged(
    architecture: str, settings: dict[str, Any], models: Mapping[str, Path], tmp_path: Path
) -> None:
    backbone = backbone_of(models[architecture])
    settings = settings | {"target_modules": TARGETS[architecture]}
    if "rank_pattern" in settings:
        first = TARGETS[architecture][0]
        settings |= {"rank_pattern": {first: 2}, "alpha_pattern": {first: 9}}
    folder = write_adapter(tmp_path / "adapter", backbone, **settings)
    protocol = protocol_of(models[architecture], clustering=folder)
    theirs = states_of(unmerged(backbone, folder), protocol)
    assert torch.cosine_similarity(theirs, states_of(backbone, protocol)).min() < 0.99  # it does something
    assert_same_states(states_of(adapted_of(protocol).module, protocol), theirs)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
def test_merged_weights_are_those_of_merge_and_unload(
    settings: dict[str, Any], qwen3: PreTrainedModel, models: Mapping[str, Path], tmp_path: Path
) -> None:
    folder = write_adapter(
        tmp_path / "adapter", qwen3, r=4, lora_alpha=7, target_modules=TARGETS["qwen3"], **settings
    )
    theirs = PeftModel.from_pretrained(backbone_of(models["qwen3"]), str(folder)).merge_and_unload()
    ours = adapted_of(protocol_of(models["qwen3"], clustering=folder)).module
    assert type(ours) is type(qwen3)
    assert_identical(weights_of(ours), weights_of(theirs))


def test_an_adapter_trained_below_a_head_is_the_same_adapter(
    qwen3: PreTrainedModel, models: Mapping[str, Path], tmp_path: Path
) -> None:
    """Peft names modules from the model that was trained; a head puts the backbone's own name in front."""
    folder = write_adapter(tmp_path / "adapter", qwen3, r=4, target_modules=["q_proj"])
    expected = weights_of(adapted_of(protocol_of(models["qwen3"], clustering=folder)).module)
    weights = load_file(folder / "adapter_model.safetensors")
    renamed = {
        key.replace("base_model.model.layers", "base_model.model.model.layers"): weights[key]
        for key in weights
    }
    save_file(renamed, folder / "adapter_model.safetensors")
    assert_identical(weights_of(adapted_of(protocol_of(models["qwen3"], clustering=folder)).module), expected)


@pytest.fixture
def several(qwen3: PreTrainedModel, models: Mapping[str, Path], tmp_path: Path) -> Protocol:
    """Three tasks, whose adapters are for different modules."""
    adapters = {
        "clustering": write_adapter(tmp_path / "a", qwen3, 1, r=4, target_modules=["q_proj", "down_proj"]),
        "classification": write_adapter(tmp_path / "b", qwen3, 2, r=2, target_modules=["v_proj", "q_proj"]),
        "text_matching": write_adapter(tmp_path / "c", qwen3, 3, r=32, target_modules=["gate_proj"]),
    }
    return protocol_of(models["qwen3"], **adapters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_adapter_that_comes_back_has_the_very_same_weights(several: Protocol, dtype: torch.dtype) -> None:
    adapted = adapted_of(several, (*several.adapters.names, None), dtype)
    pristine = weights_of(load_backbone(several, dtype))
    seen: dict[str | None, dict[str, torch.Tensor]] = {}
    for name in ("clustering", "classification", "clustering", None, "text-matching", "clustering", None):
        adapted.activate(name)
        assert adapted.active == name
        now = weights_of(adapted.module)
        assert_identical(now, seen.setdefault(name, now))
    assert_identical(seen[None], pristine)
    alone = {name: weights_of(adapted_of(several, (name,), dtype).module) for name in seen}
    for name, weights in seen.items():
        assert_identical(weights, alone[name])
    assert not torch.equal(
        seen["clustering"]["layers.0.self_attn.q_proj.weight"],
        seen["classification"]["layers.0.self_attn.q_proj.weight"],
    )


def test_weights_stored_in_float32_are_merged_before_the_only_cast(several: Protocol) -> None:
    exact = weights_of(adapted_of(several, ("clustering",)).module)
    for names in (("clustering",), ("clustering", "classification")):
        adapted = adapted_of(several, names, torch.bfloat16)
        adapted.activate("clustering")
        assert_identical(
            weights_of(adapted.module), {name: tensor.bfloat16() for name, tensor in exact.items()}
        )


def test_matrices_wider_than_the_backbone_are_not_narrowed_before_the_sum(tmp_path: Path) -> None:
    """Peft gives an adapter the number format of the backbone that it is put into."""
    protocol = resolve_protocol(str(write_jina_v5(tmp_path / "v5", "small")))
    folder = protocol.adapters.folder("clustering").path
    assert load_file(folder / "adapter_model.safetensors")[f"{FIRST}.lora_A.weight"].dtype == torch.float32
    assert load_file(protocol.repository.path / "model.safetensors")["norm.weight"].dtype == torch.bfloat16
    exact = weights_of(adapted_of(protocol, ("clustering",)).module)
    narrow = weights_of(adapted_of(protocol, ("clustering",), torch.bfloat16).module)
    assert_identical(narrow, {name: tensor.bfloat16() for name, tensor in exact.items()})


def test_the_backbone_keeps_its_storage(several: Protocol) -> None:
    """What was captured of a forward pass, as compiled code or a graph, goes on with the new weights."""
    adapted = adapted_of(several)
    before = {
        name: (parameter, parameter.data_ptr()) for name, parameter in adapted.module.named_parameters()
    }
    adapted.activate("classification")
    after = dict(adapted.module.named_parameters())
    assert {name: (after[name], after[name].data_ptr()) for name in after}.keys() == before.keys()
    assert all(
        after[name] is kept and after[name].data_ptr() == place for name, (kept, place) in before.items()
    )
    assert not any(parameter.requires_grad for parameter in after.values())


def bytes_held(adapted: AdaptedBackbone) -> tuple[int, int]:
    """Bytes of the weights, working and pristine, and of the narrow matrices beside them."""
    seen: dict[int, int] = {}
    narrow: dict[int, int] = {}
    tensors = [*adapted.module.parameters(), *adapted._pristine.values()]
    for tensor in tensors:
        seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    for layers in adapted._layers.values():
        for layer in layers.values():
            for tensor in layer.parameters():
                if tensor.data_ptr() not in seen:
                    narrow[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(seen.values()), sum(narrow.values())


def test_memory_holds_one_backbone_for_one_task_and_at_most_two_for_many(
    several: Protocol, models: Mapping[str, Path], qwen3: PreTrainedModel, tmp_path: Path
) -> None:
    one_backbone = sum(4 * parameter.numel() for parameter in qwen3.parameters())
    assert bytes_held(adapted_of(several, ("clustering",))) == (one_backbone, 0)
    assert bytes_held(adapted_of(several, (None,))) == (one_backbone, 0)
    targets = TARGETS["qwen3"]
    many = {
        f"task{seed}": write_adapter(tmp_path / str(seed), qwen3, seed, r=1, target_modules=targets)
        for seed in range(6)
    }
    adapted = adapted_of(protocol_of(models["qwen3"], **many))
    for name in many:
        adapted.activate(name)
        held, narrow = bytes_held(adapted)
        assert one_backbone < held < 2 * one_backbone
        assert narrow == 6 * 4 * sum(sum(tensor.shape) for tensor in adapted._pristine.values())


def matrices_alive() -> dict[int, torch.Tensor]:
    gc.collect()
    tensors = (thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))
    return {id(tensor): tensor for tensor in tensors if tensor.ndim == 2}


# Of one in float32, which is how this one is stored: pristine and packed linear layers, and what is neither.
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1.7), ("bfloat16", 1.2), ("int8", 1.2)])
def test_packed_weights_are_in_memory_once_beside_the_pristine_ones(
    dtype: Dtype | Literal["int8"], most: float, models: Mapping[str, Path], tmp_path: Path
) -> None:
    backbone = backbone_of(models["qwen3"])
    one_backbone = sum(4 * parameter.numel() for parameter in backbone.parameters())
    adapters = {
        f"task{seed}": write_adapter(
            tmp_path / str(seed), backbone, seed, r=1, target_modules=TARGETS["qwen3"]
        )
        for seed in range(3)
    }
    protocol = protocol_of(models["qwen3"], **adapters)
    texts = Tokenizer(protocol).prepare(TEXTS)
    alone = {
        name: Encoder.load(protocol, adapters=[name], device="cpu", dtype=dtype).encode(texts).vectors
        for name in adapters
    }
    before = matrices_alive()
    encoder = Encoder.load(protocol, device="cpu", dtype=dtype)
    for name in (*adapters, *adapters):
        encoder.use_adapter(name)
        np.testing.assert_array_equal(encoder.encode(texts).vectors, alone[name])
        held = sum(
            tensor.numel() * tensor.element_size()
            for key, tensor in matrices_alive().items()
            if key not in before
        )
        narrow = bytes_held(encoder._adapted)[1]
        assert 0.8 * one_backbone < held - narrow < most * one_backbone


def test_nothing_is_merged_where_the_adapter_is_in_use(
    several: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = adapted_of(several)
    adapted.activate("classification")
    monkeypatch.setattr(adapted, "_merge", lambda *_: pytest.fail("merged again"))
    adapted.activate("classification")


def test_tasks_that_share_an_adapter_share_its_merge(several: Protocol, models: Mapping[str, Path]) -> None:
    folder = several.adapters.folder("clustering").path
    protocol = protocol_of(models["qwen3"], clustering=folder, classification=folder)
    assert protocol.adapters.names == ("clustering",)


def test_an_encoder_with_several_adapters_waits_to_be_told_which(several: Protocol) -> None:
    texts = Tokenizer(several).prepare(TEXTS)
    encoder = Encoder.load(several, device="cpu")
    with pytest.raises(EncoderError, match="has several adapters, and none is chosen"):
        encoder.encode(texts)
    encoder.use_adapter("clustering")
    assert encoder.adapter == "clustering"
    alone = Encoder.load(several, adapters=["clustering"], device="cpu")
    assert (encoder.encode(texts).vectors == alone.encode(texts).vectors).all()
    with pytest.raises(
        EncoderError, match="loaded for the adapters clustering, and classification is asked for"
    ):
        alone.use_adapter("classification")


# What does not fit.


@pytest.fixture
def adapter(qwen3: PreTrainedModel, tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "mine", qwen3, r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"])


def change(folder: Path, **weights: torch.Tensor | None) -> None:
    path = folder / "adapter_model.safetensors"
    content = load_file(path) | weights
    save_file({key: tensor for key, tensor in content.items() if tensor is not None}, path)


def refused(models: Mapping[str, Path], adapter: Path, match: str, architecture: str = "qwen3") -> None:
    """By name of the adapter, alone and beside another state."""
    protocol = protocol_of(models[architecture], clustering=adapter)
    for names in (("clustering",), ("clustering", None)):
        with pytest.raises(UnsupportedModelError, match=rf"adapter mine.*{match}"):
            adapted_of(protocol, names)


def test_weights_that_cannot_be_read_are_an_error(models: Mapping[str, Path], adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused(models, adapter, "cannot be read .* fetch the file again")


def test_another_rank_than_the_configuration_says_is_an_error(
    models: Mapping[str, Path], adapter: Path
) -> None:
    edit_json(adapter / "adapter_config.json", r=8)
    refused(models, adapter, r"does not fit Qwen3Model: size mismatch .*\[4, 32\].*\[8, 32\]")


def test_another_shape_than_the_backbone_is_an_error(models: Mapping[str, Path], adapter: Path) -> None:
    change(adapter, **{f"{FIRST}.lora_A.weight": torch.ones(4, WIDTH + 1)})
    refused(models, adapter, r"does not fit Qwen3Model: size mismatch for layers\.0\.self_attn\.q_proj")


def test_modules_that_the_backbone_does_not_have_are_an_error(
    models: Mapping[str, Path], adapter: Path
) -> None:
    refused(
        models, adapter, "BertModel does not have: q_proj, v_proj; its linear layers are query, key", "bert"
    )


def test_one_target_that_the_backbone_does_not_have_is_an_error(
    models: Mapping[str, Path], adapter: Path
) -> None:
    edit_json(adapter / "adapter_config.json", target_modules=["q_proj", "v_proj", "w_proj"])
    refused(models, adapter, "Qwen3Model does not have: w_proj; its linear layers are q_proj, k_proj")


def test_a_pattern_that_matches_no_module_is_an_error(models: Mapping[str, Path], adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", target_modules="no_such_.*")
    refused(models, adapter, "does not fit Qwen3Model: .*no_such_")


def test_weights_of_modules_that_are_not_targets_are_an_error(
    models: Mapping[str, Path], adapter: Path
) -> None:
    edit_json(adapter / "adapter_config.json", target_modules=["q_proj"])
    refused(models, adapter, r"4 match no module \(\S*v_proj\.lora_A")


def test_weights_below_another_name_are_an_error(models: Mapping[str, Path], adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    renamed = {key.replace("model.layers", "model.blocks"): tensor for key, tensor in weights.items()}
    save_file(renamed, adapter / "adapter_model.safetensors")
    refused(models, adapter, r"8 match no module \(.*blocks.* and 8 are missing \(layers\.0")


def test_a_missing_matrix_is_an_error_and_never_a_random_one(
    models: Mapping[str, Path], adapter: Path
) -> None:
    change(adapter, **{f"{FIRST}.lora_A.weight": None})
    refused(models, adapter, r"1 are missing \(layers\.0\.self_attn\.q_proj\.lora_A\.weight")


def test_a_module_that_is_no_linear_layer_is_an_error(models: Mapping[str, Path], adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", target_modules=["q_norm"])
    refused(models, adapter, "does not fit Qwen3Model: .*not supported")


def test_an_adapter_of_zeros_is_an_error(models: Mapping[str, Path], adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    change(adapter, **{key: torch.zeros_like(weights[key]) for key in weights if "lora_B" in key})
    refused(models, adapter, "changes nothing: qwen3 gives the same states with and without it")


def test_an_adapter_of_a_module_that_is_not_used_is_an_error(
    models: Mapping[str, Path], tmp_path: Path
) -> None:
    bert = backbone_of(models["bert"])
    folder = write_adapter(tmp_path / "mine", bert, r=4, target_modules=r"pooler\.dense")
    refused(models, folder, "changes nothing: bert gives the same states", "bert")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_an_error(
    value: float, models: Mapping[str, Path], adapter: Path
) -> None:
    change(adapter, **{f"{FIRST}.lora_B.weight": torch.full((WIDTH, 4), value)})
    refused(models, adapter, r"makes layers\.0\.self_attn\.q_proj infinite or not a number")


def test_an_adapter_that_changed_since_it_was_opened_is_an_error(
    models: Mapping[str, Path], adapter: Path
) -> None:
    protocol = protocol_of(models["qwen3"], clustering=adapter)
    change(adapter, **{f"{FIRST}.lora_A.weight": torch.ones(4, WIDTH)})
    with pytest.raises(ModelNotFoundError, match="mine differs on this machine"):
        adapted_of(protocol)


def test_an_adapter_whose_folder_is_gone_is_an_error(models: Mapping[str, Path], adapter: Path) -> None:
    protocol = protocol_of(models["qwen3"], clustering=adapter)
    adapter.rename(adapter.with_name("elsewhere"))
    with pytest.raises(ModelNotFoundError, match="mine is not on this machine"):
        adapted_of(protocol)
