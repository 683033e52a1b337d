"""Code that a model asks for runs if its very commit is on the list, whichever repository it is in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from encoders.errors import UnsupportedModelError
from encoders.loading import load_model
from encoders.options import EncoderOptions
from encoders.protocol import resolve_protocol
from encoders.remote_code import check_code
from encoders.repository import Repository
from tests.encoders.repositories import write_json, write_repository

COMMIT, OLDER = "a" * 40, "b" * 40
OWN = f"org/model@{COMMIT}"
FOREIGN = {"auto_map": {"AutoModel": "org/code--modeling.Model"}}


def asking(folder: Path, config: dict[str, Any], tokenizer: dict[str, Any] | None = None) -> Repository:
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer_config.json", tokenizer or {})
    return Repository("org/model", COMMIT, folder)


@pytest.mark.parametrize(
    ("config", "tokenizer"),
    [
        ({"auto_map": {"AutoModel": "modeling.Model"}}, {}),
        ({"auto_map": {"AutoConfig": "modeling.Config"}}, {}),
        ({}, {"auto_map": {"AutoTokenizer": [None, "tokens.Tokenizer"]}}),
        ({}, {"auto_map": ["tokens.Tokenizer", None]}),
    ],
)
@pytest.mark.parametrize("allowed", [[], [f"org/model@{OLDER}"], [f"other/model@{COMMIT}"]])
def test_a_repositorys_own_code_needs_its_own_commit_on_the_list(
    tmp_path: Path, config: dict[str, Any], tokenizer: dict[str, Any], allowed: list[str]
) -> None:
    repository = asking(tmp_path, config, tokenizer)
    with pytest.raises(
        UnsupportedModelError, match=rf"auto_map.*its own, at {COMMIT}.*encoder\.trust_remote_code"
    ):
        check_code(repository, "", allowed)
    assert check_code(repository, "", [*allowed, OWN]) is None


def test_code_of_another_repository_needs_that_ones_commit_and_is_taken_from_it(tmp_path: Path) -> None:
    repository = asking(tmp_path, FOREIGN)
    with pytest.raises(UnsupportedModelError, match=r"'org/code', another repository"):
        check_code(repository, "", [OWN])
    assert check_code(repository, "", [OWN, f"org/code@{OLDER}"]) == OLDER


def test_what_cannot_be_pinned_is_refused(tmp_path: Path) -> None:
    repository = asking(tmp_path, FOREIGN)
    with pytest.raises(UnsupportedModelError, match="another repository"):
        check_code(repository, "", [f"org/code@{COMMIT}", f"org/code@{OLDER}"])
    two = {"auto_map": {"AutoConfig": "x/one--m.Config", "AutoModel": "y/two--m.Model"}}
    with pytest.raises(UnsupportedModelError, match="2 other repositories"):
        check_code(asking(tmp_path, two), "", [f"x/one@{COMMIT}", f"y/two@{COMMIT}"])


def test_code_of_another_repository_comes_from_the_commit_that_was_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through transformers itself, which would take the default branch's."""
    hub, marker = tmp_path / "hub", tmp_path / "ran"
    code = hub / "models--org--code"
    for commit in (COMMIT, OLDER):
        module = code / "snapshots" / commit / "configuration.py"
        module.parent.mkdir(parents=True)
        module.write_text(
            "from pathlib import Path\n"
            "from transformers import BertConfig\n"
            "class Config(BertConfig):\n"
            "    model_type = 'of-the-test'\n"
            f"Path({str(marker)!r}).write_text({commit!r})\n"
        )
    (code / "refs").mkdir()
    (code / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [str(tmp_path / "modules"), *__import__("sys").path])
    folder = write_repository(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "org/code--configuration.Config"}, "model_type": "of-the-test"}
    write_json(folder / "config.json", config)
    for allowed in ((), (f"org/other@{OLDER}",)):
        with pytest.raises(UnsupportedModelError, match="another repository"):
            resolve_protocol(str(folder), options=EncoderOptions(trust_remote_code=allowed))
    assert not marker.exists()
    with pytest.raises(UnsupportedModelError):  # the configuration is of no class that AutoModel knows
        load_model("m", folder, None, trust_remote_code=True, code_revision=OLDER)
    assert marker.read_text() == OLDER
