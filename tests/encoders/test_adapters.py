"""Whatever an adapter's files ask for that cannot be honoured is refused by name, before any weights are loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from encoders.adapters import Adapters
from encoders.errors import EncoderError, ModelNotFoundError, TaskError, UnsupportedModelError
from encoders.protocol import EncoderOptions, Protocol, resolve_protocol
from encoders.tasks import Role, View, view_of
from tests.encoders.adapter_repositories import backbone_of, write_adapter, write_jina_v5
from tests.encoders.repositories import edit_json, write_json, write_repository

CLUSTERING, CLASSIFICATION = view_of("clustering"), view_of("classification")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("models") / "model", "qwen3")


@pytest.fixture(scope="module")
def written(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "mine"
    return write_adapter(folder, backbone_of(model), r=4, target_modules=["q_proj"])


@pytest.fixture
def adapter(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "mine")


def resolved(model: Path, **adapters: str | Path | None) -> Protocol:
    given = {task: None if folder is None else str(folder) for task, folder in adapters.items()}
    return resolve_protocol(str(model), options=EncoderOptions(adapters=given))


def refused(
    model: Path, adapter: Path, match: str, error: type[EncoderError] = UnsupportedModelError
) -> None:
    with pytest.raises(error, match=match):
        resolved(model, clustering=adapter)


def test_an_adapter_is_for_the_tasks_that_name_it(model: Path, adapter: Path) -> None:
    protocol = resolved(model, clustering=adapter, classification=None)
    assert protocol.adapter(CLUSTERING) == "clustering"
    assert protocol.adapter(CLASSIFICATION) is None
    assert set(protocol.adapters.names) == {"clustering", None}


def test_a_task_of_which_nothing_is_said_is_an_error(model: Path, adapter: Path) -> None:
    protocol = resolved(model, clustering=adapter)
    match = r"has adapters for clustering, and none for text-matching/document.*encoder\.adapters=.*or none"
    with pytest.raises(TaskError, match=match):
        protocol.adapter(view_of("text-matching"))
    with pytest.raises(TaskError, match="none for text-matching"):
        protocol.space("text-matching", "float32")


def test_a_model_without_adapters_has_none_for_any_task(model: Path) -> None:
    for protocol in (resolved(model), resolved(model, clustering=None)):
        assert protocol.adapter(CLUSTERING) is None
        assert protocol.adapters.names == (None,)


def test_the_space_is_that_of_the_adapters_bytes(model: Path, adapter: Path, tmp_path: Path) -> None:
    bare = resolved(model).space("clustering", "float32")
    copied = shutil.copytree(adapter, tmp_path / "elsewhere" / "other-name")
    (copied / "README.md").write_text("says nothing")
    mine = resolved(model, clustering=adapter).space("clustering", "float32")
    assert mine.id != bare.id
    assert resolved(model, clustering=copied).space("clustering", "float32") == mine
    edit_json(copied / "adapter_config.json", lora_alpha=9)
    scaled = resolved(model, clustering=copied).space("clustering", "float32")
    content = bytearray((adapter / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (adapter / "adapter_model.safetensors").write_bytes(content)
    flipped = resolved(model, clustering=adapter).space("clustering", "float32")
    assert len({bare.id, mine.id, scaled.id, flipped.id}) == 4


def test_an_adapter_of_another_task_changes_no_space(model: Path, adapter: Path) -> None:
    with_one = resolved(model, clustering=adapter, classification=None)
    with_two = resolved(model, clustering=adapter, classification=adapter)
    assert with_one.space("clustering", "float32") == with_two.space("clustering", "float32")
    assert with_one.space("classification", "float32") != with_two.space("classification", "float32")


def test_the_two_sides_of_a_task_may_have_adapters_of_their_own(tmp_path: Path) -> None:
    protocol = resolve_protocol(str(write_jina_v5(tmp_path / "model", "small", ("retrieval",))))
    (folder,) = protocol.adapters.folders.values()
    sides = Adapters({"retrieval/query": folder, "retrieval/document": None})
    assert sides.name("model", View("retrieval", Role.QUERY)) == "retrieval/query"
    assert sides.name("model", View("retrieval", Role.DOCUMENT)) is None
    assert sides.ids("model", "retrieval") == {"query": folder.id, "document": None}


def test_a_folder_that_is_not_there_is_an_error(model: Path, tmp_path: Path) -> None:
    for given in (tmp_path / "nothing", "./nothing", "nothing", tmp_path.name + "@main"):
        with pytest.raises(ModelNotFoundError, match=r"no adapter .*nothing|no adapter .*@main"):
            resolved(model, clustering=given)
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE forbids to ask the Hub"):
        resolved(model, clustering="org/adapter/below@main")


def test_a_folder_without_configuration_is_an_error(model: Path, adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()
    refused(model, adapter, "adapter mine has no adapter_config.json", ModelNotFoundError)


def test_a_configuration_that_is_no_json_is_an_error(model: Path, adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA",')
    refused(model, adapter, "adapter_config.json is not valid JSON")
    write_json(adapter / "adapter_config.json", ["LORA"])
    refused(model, adapter, "holds list, not an object")


def test_a_folder_without_weights_is_an_error(model: Path, adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    refused(
        model, adapter, r"adapter mine has no adapter_model.safetensors in \S*mine; save", ModelNotFoundError
    )
    torch.save(weights, adapter / "adapter_model.bin")
    refused(model, adapter, "only adapter_model.bin, and weights in pickle files", ModelNotFoundError)


@pytest.mark.parametrize("kind", ["IA3", "LOHA", "PREFIX_TUNING", None])
def test_another_type_than_lora_is_an_error(kind: str | None, model: Path, adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", peft_type=kind)
    refused(model, adapter, f"adapter mine is of the type {kind!r} .*; only 'LORA' is done")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bias", "all"),
        ("bias", "lora_only"),
        ("modules_to_save", ["norm"]),
        ("lora_bias", True),
        ("trainable_token_indices", [1, 2]),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["experts.weight"]),
        ("alora_invocation_tokens", [5]),
        ("use_qalora", True),
        ("a_field_of_tomorrow", {"on": True}),
    ],
)
def test_what_is_more_than_matrices_on_modules_is_an_error(
    key: str, value: Any, model: Path, adapter: Path
) -> None:
    edit_json(adapter / "adapter_config.json", **{key: value})
    refused(model, adapter, rf"adapter mine: adapter_config.json asks for {key}=.*not done.*merge_and_unload")


def test_fields_of_tomorrow_that_say_nothing_are_no_error(model: Path, adapter: Path) -> None:
    config = {"off": False, "empty": {}, "nothing": []}
    edit_json(adapter / "adapter_config.json", **config)
    assert resolved(model, clustering=adapter).adapter(CLUSTERING) == "clustering"


@pytest.mark.parametrize("way", ["pissa", "pissa_niter_16", "olora", "corda", "loftq"])
def test_a_way_to_begin_that_changes_the_backbone_is_an_error(way: str, model: Path, adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", init_lora_weights=way)
    refused(model, adapter, f"init_lora_weights='{way}'.*plain LoRA")


@pytest.mark.parametrize(
    "said", [{"r": 0}, {"r": "4"}, {"r": None}, {"lora_alpha": None}, {"lora_alpha": "8"}]
)
def test_a_rank_or_a_scale_that_is_none_is_an_error(said: dict[str, Any], model: Path, adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", **said)
    refused(model, adapter, "a rank from 1 up and a number are needed")


def test_an_adapter_without_targets_is_an_error(model: Path, adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", target_modules=None)
    refused(model, adapter, "names no target_modules")


def test_a_model_that_is_itself_an_adapter_says_where_it_belongs(
    adapter: Path, model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    shutil.copy(adapter / "adapter_config.json", folder)
    with pytest.raises(UnsupportedModelError, match=r"is an adapter.*encoder\.adapters"):
        resolved(folder)


@pytest.fixture
def hub(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's own cache, with one commit of org/adapters on this machine; its folder `below` holds the adapter."""
    repository = tmp_path / "hub" / "models--org--adapters"
    commit = "c0ffee" * 6 + "c0de"
    shutil.copytree(adapter, repository / "snapshots" / commit / "below")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository / "snapshots" / commit / "below"


def test_an_adapter_on_the_hub_is_what_its_commit_says(hub: Path, model: Path) -> None:
    for given in ("org/adapters/below", "org/adapters/below@main", f"org/adapters/below@{hub.parent.name}"):
        folder = resolved(model, clustering=given).adapters.folder("clustering")
        assert folder.id == f"org/adapters/below@{hub.parent.name}"
        assert folder.on_this_machine() == folder
        assert str(folder) == "org/adapters/below@c0ffeec0ffee"
    with pytest.raises(ModelNotFoundError, match="org/adapters has no folder 'above'"):
        resolved(model, clustering="org/adapters/above")


def test_weights_that_the_hub_does_not_have_are_an_error_where_they_are_fetched(
    hub: Path, model: Path
) -> None:
    folder = resolved(model, clustering="org/adapters/below").adapters.folder("clustering")
    (hub / "adapter_model.safetensors").rename(hub / "adapter_model.bin")
    with pytest.raises(ModelNotFoundError, match=r"org/adapters/below has no .*, only adapter_model\.bin"):
        folder.on_this_machine()
