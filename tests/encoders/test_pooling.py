"""Pooling on real repositories against sentence-transformers, and by hand where it has no answer."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from encoders.modules import POOLING_MODES
from encoders.pooling import pool
from tests.encoders.reference import assert_same, ours, theirs
from tests.encoders.repositories import TEXTS, WIDTH, write_modules, write_repository

LEGACY = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def old_form(*modes: str, **more: Any) -> dict[str, Any]:
    """1_Pooling/config.json up to sentence-transformers 5.3: a switch for each mode."""
    switches = {switch: mode in modes for mode, switch in LEGACY.items()}
    return {"word_embedding_dimension": WIDTH, **switches, **more}


def new_form(*modes: str, **more: Any) -> dict[str, Any]:
    """1_Pooling/config.json since: the modes by name."""
    return {
        "embedding_dimension": WIDTH,
        "pooling_mode": modes[0] if len(modes) == 1 else list(modes),
        **more,
    }


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One backbone folder for each architecture and padding side, without modules."""
    folder = tmp_path_factory.mktemp("backbones")
    for side in ("right", "left"):
        for architecture in ("bert", "qwen3"):
            write_repository(
                folder / architecture / side, architecture, modules=(), tokenizer={"padding_side": side}
            )
    return folder


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_every_mode_pools_as_sentence_transformers_does(
    backbones: Path, tmp_path: Path, mode: str, padding_side: str, include_prompt: bool
) -> None:
    for architecture, form in (("bert", old_form), ("qwen3", new_form)):
        folder = copytree(backbones / architecture / padding_side, tmp_path / architecture)
        write_modules(folder, [("Pooling", form(mode, include_prompt=include_prompt))])
        # The space stands in the text: where a byte-level token straddles the prompt's end, we differ on purpose.
        texts, prompts = [f" {text}" for text in TEXTS], ("", "Represent the question:")
        assert_same(ours(folder, texts, *prompts), theirs(folder, texts, *prompts))


@pytest.mark.parametrize("form", [old_form, new_form])
@pytest.mark.parametrize(
    "modes", [("cls", "mean"), ("max", "lasttoken"), ("mean", "weightedmean"), POOLING_MODES]
)
def test_several_modes_are_concatenated(
    backbones: Path, tmp_path: Path, form: Any, modes: tuple[str, ...]
) -> None:
    folder = copytree(backbones / "bert" / "right", tmp_path / "model")
    write_modules(folder, [("Pooling", form(*modes)), ("Normalize", {})])
    vectors = ours(folder, TEXTS)
    assert vectors.shape == (len(TEXTS), WIDTH * len(modes))
    assert_same(vectors, theirs(folder, TEXTS))


def test_named_modes_are_concatenated_in_the_order_in_which_they_are_named(
    backbones: Path, tmp_path: Path
) -> None:
    folder = copytree(backbones / "bert" / "right", tmp_path / "model")
    write_modules(folder, [("Pooling", new_form("mean", "cls"))])
    assert_same(ours(folder, TEXTS), theirs(folder, TEXTS))


STATES = torch.tensor([[99.0, 98.0], [1.0, -4.0], [2.0, -5.0], [3.0, -6.0], [97.0, 99.0]])


@pytest.mark.parametrize(
    ("mode", "whole", "without_first"),
    [
        ("cls", [1.0, -4.0], [2.0, -5.0]),
        ("lasttoken", [3.0, -6.0], [3.0, -6.0]),
        ("max", [3.0, -4.0], [3.0, -5.0]),
        ("mean", [2.0, -5.0], [2.5, -5.5]),
        ("mean_sqrt_len_tokens", [6 / 3**0.5, -15 / 3**0.5], [5 / 2**0.5, -11 / 2**0.5]),
        ("weightedmean", [14 / 6, -32 / 6], [13 / 5, -28 / 5]),
    ],
)
def test_the_modes_worked_out_by_hand(mode: str, whole: list[float], without_first: list[float]) -> None:
    for prompt_length, expected in ((0, whole), (1, without_first)):
        # A text before and one after, which must not be seen.
        pooled = pool(STATES, torch.tensor([1, 3, 1]), torch.tensor([0, prompt_length, 0]), (mode,))
        torch.testing.assert_close(pooled[1], torch.tensor(expected))


def test_sums_of_half_precision_states_run_in_float32() -> None:
    states = torch.full((4096, 1), 33.0, dtype=torch.float16)
    lengths, none = torch.tensor([4096]), torch.tensor([0])
    assert pool(states, lengths, none, ("mean",)).item() == 33.0
    assert pool(states, lengths, none, ("mean_sqrt_len_tokens",)).item() == 33.0 * 64
