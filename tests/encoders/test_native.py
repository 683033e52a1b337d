"""Repositories that bring code of their own are loaded natively, and give what their code gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from transformers import EuroBertModel, JinaEmbeddingsV3Model, Qwen3Model

from encoders.encoder import Encoder
from encoders.errors import ModelNotFoundError, TaskError, UnsupportedModelError
from encoders.loading import load_backbone
from encoders.native import native_architecture
from encoders.protocol import resolve_protocol
from encoders.tasks import View, view_of
from encoders.tokenizer import Tokenizer
from tests.encoders.adapter_repositories import (
    V5_TASKS,
    native_backbone,
    unmerged,
    write_jina_v3,
    write_jina_v5,
)
from tests.encoders.reference import Vectors, assert_same, cosines
from tests.encoders.repositories import TEXTS, edit_json

V5_VIEWS = tuple(
    view_of(task, role)
    for task in V5_TASKS
    for role in (("query", "document") if task == "retrieval" else (None,))
)
# View of ours -> folder of its adapter and prompt, as the model card has them.
V3_VIEWS = {
    view_of("retrieval", "query"): (
        "retrieval_query",
        "Represent the query for retrieving evidence documents: ",
    ),
    view_of("retrieval", "document"): ("retrieval_passage", "Represent the document for retrieval: "),
    view_of("clustering"): ("separation", ""),
    view_of("classification"): ("classification", ""),
    view_of("text-matching"): ("text_matching", ""),
}


@pytest.fixture(scope="module", params=["small", "nano"])
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("native")
    return {size: write_jina_v5(folder / size, size) for size in ("small", "nano")} | {
        "v3": write_jina_v3(folder / "v3")
    }


@pytest.fixture
def folder(size: str, repositories: Mapping[str, Path], tmp_path: Path) -> Path:
    """One that a test may break."""
    return shutil.copytree(repositories[size], tmp_path / size)


def ours(folder: Path, views: tuple[View, ...]) -> dict[View, Vectors]:
    """Every view in one process."""
    protocol = resolve_protocol(str(folder))
    encoder, tokenizer = Encoder.load(protocol, device="cpu"), Tokenizer(protocol)
    vectors = {}
    for view in views:
        encoder.use_adapter(protocol.adapter(view))
        vectors[view] = encoder.encode(tokenizer.prepare(TEXTS, protocol.prompt(view))).vectors
    return vectors


@torch.no_grad()
def theirs(model: torch.nn.Module, folder: Path, prompt: str, max_tokens: int, *, mean: bool) -> Vectors:
    """As the model's own code does it, one text at a time: prompt, cut, states, pooling, norm."""
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.no_padding()
    backend.enable_truncation(max_tokens)
    vectors = []
    for text in TEXTS:
        ids = torch.tensor([backend.encode(prompt + text).ids])
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        pooled = states.mean(dim=0) if mean else states[-1]
        vectors.append((pooled / pooled.norm()).numpy())
    return np.stack(vectors)


def native_reference(folder: Path) -> torch.nn.Module:
    """The class spelled out in the test, filled from the file."""
    model = native_backbone(json.loads((folder / "config.json").read_text()))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.float()


def test_jina_v5_gives_the_vectors_of_its_own_code(size: str, repositories: Mapping[str, Path]) -> None:
    folder = repositories[size]
    vectors = ours(folder, V5_VIEWS)
    for view in V5_VIEWS:
        model = unmerged(native_reference(folder), folder / "adapters" / view.task)
        prompt = "Query: " if view == view_of("retrieval", "query") else "Document: "
        assert_same(vectors[view], theirs(model, folder, prompt, 64, mean=False))
    bare = theirs(native_reference(folder), folder, "Document: ", 64, mean=False)
    documents = [vectors[view] for view in V5_VIEWS if view != view_of("retrieval", "query")]
    for place, one in enumerate(documents):  # five kinds of vectors, none of them another's
        assert all(cosines(one, other).max() < 0.999 for other in [bare, *documents[:place]])


def test_jina_v5_pools_the_token_that_its_tokenizer_ends_with(
    size: str, repositories: Mapping[str, Path]
) -> None:
    protocol = resolve_protocol(str(repositories[size]))
    tokens = Tokenizer(protocol).prepare(["Paris"], "Query: ").token_ids
    end = Backend.from_file(str(repositories[size] / "tokenizer.json")).token_to_id("<|end_of_text|>")
    assert (tokens[-1] == end) == (size == "nano")
    assert protocol.pooling.modes == ("lasttoken",)
    assert protocol.normalize


def test_jina_v5_is_causal_where_it_is_qwen3_and_sees_both_ways_where_it_is_eurobert(
    size: str, repositories: Mapping[str, Path]
) -> None:
    backbone = load_backbone(resolve_protocol(str(repositories[size])), torch.float32)
    assert type(backbone) is {"small": Qwen3Model, "nano": EuroBertModel}[size]
    assert backbone.config.rope_parameters["rope_theta"] == {"small": 3500000, "nano": 1000000}[size]
    ids = torch.tensor([[5, 6, 7, 8]])
    first = backbone(input_ids=ids).last_hidden_state[0, 0]
    ids[0, -1] = 9
    assert torch.equal(backbone(input_ids=ids).last_hidden_state[0, 0], first) == (size == "small")


def test_the_weights_of_jina_v5_may_stand_below_a_head(folder: Path) -> None:
    before = load_backbone(resolve_protocol(str(folder)), torch.float32).state_dict()
    weights = load_file(folder / "model.safetensors")
    renamed = {f"model.{key}": tensor for key, tensor in weights.items()}
    save_file(renamed | {"lm_head.weight": torch.zeros(3, 3)}, folder / "model.safetensors", {"format": "pt"})
    after = load_backbone(resolve_protocol(str(folder)), torch.float32).state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_missing_tensor_of_jina_v5_is_an_error(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"do not fill .*layers\.1\.mlp\.up_proj"):
        load_backbone(resolve_protocol(str(folder)), torch.float32)


def test_weights_of_another_backbone_than_the_configuration_says_are_an_error(
    repositories: Mapping[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(repositories["nano"], tmp_path / "nano")
    weights = load_file(folder / "model.safetensors")
    weights["layers.0.self_attn.q_norm.weight"] = torch.ones(8)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UnsupportedModelError, match=r"1 of its weights are for none of EuroBertModel's .*q_norm"
    ):
        load_backbone(resolve_protocol(str(folder)), torch.float32)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"is_decoder": True},
        {"is_decoder": None, "head_dim": 8},
        {"is_decoder": False, "use_sliding_window": False},
        {"head_dim": 8, "mask_token_id": 3},
    ],
    ids=str,
)
def test_a_jina_v5_that_does_not_say_what_it_is_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"model: config\.json .*does not say which backbone"):
        native_architecture("model", {"model_type": "jina_embeddings_v5"} | config)


def test_code_of_another_repository_is_still_refused(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="jina_embeddings_v6")
    with pytest.raises(UnsupportedModelError, match="code of the repository's own"):
        resolve_protocol(str(folder))


def test_a_task_that_jina_v5_names_must_have_its_adapter(folder: Path) -> None:
    shutil.rmtree(folder / "adapters" / "clustering")
    with pytest.raises(ModelNotFoundError, match="adapters/clustering is not there"):
        resolve_protocol(str(folder))
    edit_json(folder / "config.json", task_names=None)
    with pytest.raises(UnsupportedModelError, match="names its adapters in task_names, and that is None"):
        resolve_protocol(str(folder))


def test_a_task_that_jina_v5_does_not_name_is_an_error(size: str, repositories: Mapping[str, Path]) -> None:
    protocol = resolve_protocol(str(repositories[size]))
    with pytest.raises(
        TaskError, match="has adapters for retrieval, text-matching, clustering, classification"
    ):
        protocol.adapter(view_of("code", "query"))


def test_jina_v3_gives_the_vectors_of_transformers_and_peft(repositories: Mapping[str, Path]) -> None:
    folder = repositories["v3"]
    vectors = ours(folder, tuple(V3_VIEWS))
    plain = JinaEmbeddingsV3Model.from_pretrained(folder).eval()
    for view, (name, prompt) in V3_VIEWS.items():
        assert_same(vectors[view], theirs(unmerged(plain, folder / name), folder, prompt, 64, mean=True))
        assert cosines(vectors[view], theirs(plain, folder, prompt, 64, mean=True)).max() < 0.999


def test_the_sides_of_retrieval_have_their_own_adapters_in_jina_v3_and_one_space(
    repositories: Mapping[str, Path],
) -> None:
    protocol = resolve_protocol(str(repositories["v3"]))
    sides = [protocol.adapter(view_of("retrieval", role)) for role in ("query", "document")]
    assert sides == ["retrieval/query", "retrieval/document"]
    assert len({protocol.space(view.task, "float32").id for view in V3_VIEWS}) == 4
