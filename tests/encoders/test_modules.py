"""What modules.json and the modules' own files say, and what of it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from encoders.errors import UnsupportedModelError
from encoders.modules import (
    ACTIVATIONS,
    POOLING_MODES,
    Dense,
    LayerNorm,
    Modules,
    Normalize,
    Pooling,
    read_modules,
)
from encoders.repository import open_repository
from tests.encoders.repositories import MEAN, WIDTH, dense, edit_json, write_json, write_modules
from tests.encoders.test_pooling import new_form, old_form


def read(folder: Path, *modules: tuple[str, dict[str, Any]]) -> Modules:
    if modules:
        write_modules(folder, modules)
    return read_modules(open_repository(str(folder)))


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("modes", [*((mode,) for mode in POOLING_MODES), ("cls", "mean"), POOLING_MODES])
def test_both_forms_of_a_pooling_say_the_same(
    modes: tuple[str, ...], include_prompt: bool, tmp_path: Path
) -> None:
    for form in (old_form, new_form):
        pooling = read(tmp_path, ("Pooling", form(*modes, include_prompt=include_prompt))).pooling
        assert pooling == Pooling(modes, include_prompt, WIDTH)
    both = old_form("max", include_prompt=include_prompt) | new_form(*modes)
    assert read(tmp_path, ("Pooling", both)).pooling.modes == modes


def test_a_pooling_that_names_no_mode_is_the_mean(tmp_path: Path) -> None:
    assert read(tmp_path, ("Pooling", old_form())).pooling == Pooling(("mean",), True, WIDTH)


def test_steps_are_read_in_the_order_of_the_list(tmp_path: Path) -> None:
    steps = [
        dense(WIDTH, 16, "linear.Identity", bias=False),
        ("LayerNorm", {"dimension": 16}),
        ("Dropout", {"dropout": 0.1}),
        ("Normalize", {"module_input_name": "sentence_embedding"}),
    ]
    expected = (
        Dense("2_Dense", WIDTH, 16, bias=False, activation="Identity"),
        LayerNorm("3_LayerNorm", 16),
        Normalize(),
    )
    assert read(tmp_path, ("Pooling", MEAN), *steps).steps == expected
    # sentence-transformers goes by the list's order too, whatever idx says.
    entries = read_entries(tmp_path)
    write_json(tmp_path / "modules.json", [entry | {"idx": -entry["idx"]} for entry in entries])
    assert read(tmp_path).steps == expected


def read_entries(folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((folder / "modules.json").read_text())
    return entries


def test_newer_paths_of_the_classes_are_the_same_modules(tmp_path: Path) -> None:
    old = read(tmp_path, ("Pooling", MEAN), dense(WIDTH, 8), ("Normalize", {}))
    newer = {
        "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
        "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "Dense": "sentence_transformers.base.modules.dense.Dense",
        "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    }
    entries = read_entries(tmp_path)
    for entry in entries:
        entry["type"] = newer[entry["type"].rpartition(".")[2]]
    write_json(tmp_path / "modules.json", entries)
    assert read(tmp_path) == old


def test_a_dense_without_an_activation_has_tanh(tmp_path: Path) -> None:
    (step,) = read(tmp_path, ("Pooling", MEAN), ("Dense", {"in_features": WIDTH, "out_features": 4})).steps
    assert step == Dense("2_Dense", WIDTH, 4, bias=True, activation="Tanh")


DENSE = dense(WIDTH, 8)[1]
REFUSED: dict[str, tuple[list[tuple[str, dict[str, Any]]], str]] = {
    "unknown mode": ([("Pooling", new_form("median"))], r"the pooling asks for 'median'; known modes: cls, "),
    "unknown switch": ([("Pooling", MEAN | {"pooling_mode_median": True})], "'pooling_mode_median'"),
    "pooling without file": ([("Pooling", {})], r"1_Pooling/config\.json is missing"),
    "no pooling": ([("Normalize", {})], "Normalize"),
    "two poolings": ([("Pooling", MEAN), ("Pooling", MEAN)], r"models\.Pooling' \(Pooling\) at place 2"),
    "unknown module": ([("Pooling", MEAN), ("WordWeights", {"a": 1})], "WordWeights"),
    "activation": (
        [("Pooling", MEAN), dense(WIDTH, 8, "activation.Softmax")],
        "Softmax'; known: torch.nn's Identity",
    ),
    "foreign activation": (
        [("Pooling", MEAN), ("Dense", DENSE | {"activation_function": "own.Tanh"})],
        r"activation 'own\.Tanh'",
    ),
    "residual": ([("Pooling", MEAN), ("Dense", DENSE | {"use_residual": True})], "use_residual"),
    "token inputs": (
        [("Pooling", MEAN), ("Dense", DENSE | {"module_input_name": "token_embeddings"})],
        r"works on 'token_embeddings' \(module_input_name\)",
    ),
    "unknown dense setting": ([("Pooling", MEAN), ("Dense", DENSE | {"rank": 4})], "rank is not known"),
    "dense without sizes": ([("Pooling", MEAN), ("Dense", {"out_features": 3})], "in_features is missing"),
    "norm without size": ([("Pooling", MEAN), ("LayerNorm", {})], "dimension is missing"),
    "normalize elsewhere": (
        [("Pooling", MEAN), ("Normalize", {"module_output_name": "token_embeddings"})],
        "token_embeddings",
    ),
    "normalize setting": ([("Pooling", MEAN), ("Normalize", {"p": 1})], "p is not known"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused(name: str, tmp_path: Path) -> None:
    modules, message = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=message):
        read(tmp_path, *modules)


def test_every_activation_of_the_list_is_one_of_torch(tmp_path: Path) -> None:
    from torch import nn

    for activation in ACTIVATIONS:
        assert issubclass(getattr(nn, activation), nn.Module)
        (step,) = read(tmp_path, ("Pooling", MEAN), dense(WIDTH, 8, f"activation.{activation}")).steps
        assert isinstance(step, Dense)
        assert step.activation == activation


@pytest.mark.parametrize("content", [{}, {"0": "Transformer"}, ["Transformer"], "Transformer", []])
def test_a_list_of_modules_that_is_none_is_an_error(content: Any, tmp_path: Path) -> None:
    write_json(tmp_path / "modules.json", content)
    with pytest.raises(UnsupportedModelError, match=r"modules\.json"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"architectures": ["BertModel"]}, "mean"),
        ({}, "mean"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "lasttoken"),
        ({"architectures": ["Qwen3Model"]}, "mean"),
        ({"architectures": ["Qwen3ForCausalLM"], "is_causal": False}, "mean"),
    ],
)
def test_without_a_list_a_causal_model_pools_the_last_token(
    config: dict[str, Any], mode: str, tmp_path: Path
) -> None:
    write_json(tmp_path / "config.json", {"model_type": "any"} | config)
    assert read(tmp_path) == Modules("", Pooling((mode,)), ())


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_without_a_list_a_chat_template_is_refused(file: str, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"architectures": ["Qwen3ForCausalLM"]})
    write_json(tmp_path / file, {"chat_template": "{{ messages }}"})
    with pytest.raises(UnsupportedModelError, match="chat template"):
        read(tmp_path)
    write_modules(tmp_path, [("Pooling", MEAN)])
    assert read(tmp_path).pooling.modes == ("mean",)


def test_json_that_is_broken_is_named(tmp_path: Path) -> None:
    write_modules(tmp_path, [("Pooling", MEAN)])
    edit_json(tmp_path / "1_Pooling" / "config.json", include_prompt=False)
    path = tmp_path / "1_Pooling" / "config.json"
    path.write_text(path.read_text()[:-3])
    with pytest.raises(UnsupportedModelError, match=r"1_Pooling/config\.json is not valid JSON"):
        read(tmp_path)
