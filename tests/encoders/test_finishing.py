"""The steps after the pooling refuse weights that do not fit, and the cast refuses what it cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from encoders.errors import EncoderError, ModelNotFoundError, UnsupportedModelError
from encoders.finishing import Finisher, cast, unstorable
from encoders.protocol import resolve_protocol
from tests.encoders.repositories import MEAN, WIDTH, dense, edit_json, write_repository

STEPS: dict[str, Any] = {"2_Dense": dense(WIDTH, 8), "2_LayerNorm": ("LayerNorm", {"dimension": WIDTH})}


def repository(folder: Path, step: str) -> Path:
    return write_repository(folder, modules=[("Pooling", MEAN), STEPS[step]])


def load(folder: Path) -> Finisher:
    return Finisher(resolve_protocol(str(folder)), torch.device("cpu"))


@pytest.mark.parametrize("step", STEPS)
def test_weights_in_a_pickle_are_never_loaded(step: str, tmp_path: Path) -> None:
    path = repository(tmp_path / "model", step) / step / "model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    with pytest.raises(ModelNotFoundError, match=rf"{step} has no model\.safetensors.*pickle"):
        load(tmp_path / "model")


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "truncated file"])
@pytest.mark.parametrize("step", STEPS)
def test_weights_that_do_not_fit_are_an_error(step: str, change: str, tmp_path: Path) -> None:
    path = repository(tmp_path / "model", step) / step / "model.safetensors"
    weights = load_file(path)
    name = next(key for key in weights if key.endswith("weight"))
    match change:
        case "missing":
            del weights[name]
        case "unexpected":
            weights["residual.weight"] = torch.zeros(2, 2)
        case _:
            weights[name] = torch.zeros(3, 3)
    save_file(weights, path)
    if change == "truncated file":
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UnsupportedModelError, match=rf"{step} does not fit"):
        load(tmp_path / "model")


def test_a_bias_that_the_configuration_denies_is_an_error(tmp_path: Path) -> None:
    folder = repository(tmp_path / "model", "2_Dense")
    edit_json(folder / "2_Dense" / "config.json", bias=False)
    with pytest.raises(UnsupportedModelError, match=r"linear\.bias"):
        load(folder)


def test_the_cast_keeps_what_the_precision_can_hold() -> None:
    vectors = np.array([[0.5, -1.25], [65504.0, 1e-3]], np.float32)
    np.testing.assert_array_equal(cast(vectors, "float16"), vectors.astype(np.float16))
    assert cast(vectors, "float16").dtype == np.float16
    assert cast(vectors, "float32") is vectors


@pytest.mark.parametrize(
    ("value", "precision", "cause"),
    [
        (float("nan"), "float32", "is not finite"),
        (float("inf"), "float16", "is not finite"),
        (-float("inf"), "float32", "is not finite"),
        (65520.0, "float16", "does not fit float16"),
        (-1e6, "float16", "does not fit float16"),
    ],
)
def test_the_cast_names_the_first_vector_that_cannot_be_stored(
    value: float, precision: str, cause: str
) -> None:
    vectors = np.zeros((4, 3), np.float32)
    vectors[2:, 1] = value
    assert unstorable(vectors, precision).tolist() == [2, 3]
    with pytest.raises(EncoderError, match=rf"2 of 4 vectors.*row 2\) {cause}.*encoder\.precision"):
        cast(vectors, precision)
