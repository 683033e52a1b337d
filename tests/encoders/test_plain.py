"""The plain path is the repository's model in float32, however its weights are stored; one block of it at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, T5EncoderModel

from encoders.batching import Batch, token_budget_batches
from encoders.plain import PlainPath
from encoders.protocol import Protocol, resolve_protocol
from encoders.tokenizer import Tokenizer
from tests.encoders.adapter_repositories import native_backbone, unmerged, write_jina_v3, write_jina_v5
from tests.encoders.repositories import ARCHITECTURES, TEXTS, write_repository

CPU = torch.device("cpu")


def store_in(folder: Path, dtype: torch.dtype) -> None:
    """Round a repository's weights to a number format."""
    weights = load_file(folder / "model.safetensors")
    save_file({name: one.to(dtype) for name, one in weights.items()}, folder / "model.safetensors")


def batch_of(protocol: Protocol) -> Batch:
    [batch] = token_budget_batches(Tokenizer(protocol).prepare(TEXTS), 10**6, padded=False)
    return batch


@torch.no_grad()
def alone(model: nn.Module, batch: Batch) -> Tensor:
    """What transformers gives a text at a time."""
    texts = np.split(batch.token_ids, np.cumsum(batch.lengths)[:-1])
    return torch.cat([model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0] for ids in texts])


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [*((one, torch.bfloat16) for one in ARCHITECTURES), ("bert", torch.float16), ("t5", torch.float32)],
)
def test_states_are_those_of_the_model_in_float32(
    architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = write_repository(tmp_path, architecture)
    store_in(folder, dtype)
    protocol = resolve_protocol(str(folder))
    kind = T5EncoderModel if architecture == "t5" else AutoModel
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    batch = batch_of(protocol)
    plain = PlainPath(protocol, CPU)
    before = [(one.dtype, one.data_ptr()) for one in plain._backbone.parameters()]
    for _ in range(2):  # it is what it was
        states = plain(batch)
        assert states.dtype == torch.float32
        torch.testing.assert_close(states, alone(model, batch), rtol=1e-5, atol=1e-5)
    assert [(one.dtype, one.data_ptr()) for one in plain._backbone.parameters()] == before
    assert before[0][0] == dtype


@pytest.mark.parametrize("architecture", ["bert", "qwen3", "t5"])
def test_one_block_at_a_time_is_in_float32(architecture: str, tmp_path: Path) -> None:
    folder = write_repository(tmp_path, architecture)
    store_in(folder, torch.bfloat16)
    protocol = resolve_protocol(str(folder))
    plain = PlainPath(protocol, CPU)
    most = 0

    def look(*_: Any) -> None:
        nonlocal most
        wide = sum(one.numel() for one in plain._backbone.parameters() if one.dtype == torch.float32)
        most = max(most, wide)

    for module in plain._backbone.modules():
        module.register_forward_hook(look)
    plain(batch_of(protocol))
    blocks = next(one for one in plain._backbone.modules() if isinstance(one, nn.ModuleList))
    assert most == max(sum(one.numel() for one in block.parameters()) for block in blocks)


def test_no_weight_is_read_into_memory(tmp_path: Path) -> None:
    folder = write_repository(tmp_path)
    plain = PlainPath(resolve_protocol(str(folder)), CPU)
    mapped = [
        line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line
    ]
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in mapped]
    for parameter in plain._backbone.parameters():
        assert any(start <= parameter.data_ptr() < stop for start, stop in spans)


def test_an_adapter_is_merged_on_the_way_and_the_files_are_as_they_were(tmp_path: Path) -> None:
    folder = write_jina_v5(tmp_path / "v5", "small")  # stored in bfloat16
    before = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    protocol = resolve_protocol(str(folder))
    backbone = native_backbone(json.loads((folder / "config.json").read_text())).float()
    backbone.load_state_dict(load_file(folder / "model.safetensors"))
    plain, batch = PlainPath(protocol, CPU), batch_of(protocol)
    seen = []
    for task in ("clustering", None, "clustering", "retrieval"):
        plain.use_adapter(task)
        model = unmerged(backbone, folder / "adapters" / task) if task else backbone
        seen.append(plain(batch))
        torch.testing.assert_close(seen[-1], alone(model, batch), rtol=1e-4, atol=1e-4)
    assert torch.equal(seen[0], seen[2])
    assert (seen[0] - seen[3]).abs().max() > 0.01
    assert {path: path.read_bytes() for path in folder.rglob("*.safetensors")} == before


def test_an_adapter_of_a_table_of_embeddings_is_merged_too(tmp_path: Path) -> None:
    folder = write_jina_v3(tmp_path / "v3")
    protocol = resolve_protocol(str(folder))
    plain, batch = PlainPath(protocol, CPU), batch_of(protocol)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    torch.testing.assert_close(plain(batch), alone(model, batch), rtol=1e-5, atol=1e-5)
    plain.use_adapter("classification")
    expected = alone(unmerged(model, folder / "classification"), batch)
    torch.testing.assert_close(plain(batch), expected, rtol=1e-4, atol=1e-4)
    plain.use_adapter(None)
    torch.testing.assert_close(plain(batch), alone(model, batch), rtol=1e-5, atol=1e-5)
