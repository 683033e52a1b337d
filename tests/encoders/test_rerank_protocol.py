"""What a reranker's files and the table of families say, and what is refused."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from encoders.errors import TaskError, UnsupportedModelError
from encoders.rerank_families import FAMILIES, find_family
from encoders.rerank_protocol import resolve_reranker
from encoders.reranker import Reranker
from tests.encoders.repositories import edit_json, write_json
from tests.encoders.rerank_repositories import write_classifier, write_language_model

QWEN3, ZERANK = FAMILIES
PAIRS = [("what is the capital of France?", "Paris"), ("Paris", "")]


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "classifier")


@pytest.fixture
def language_model(tmp_path: Path) -> Path:
    return write_language_model(tmp_path / "language-model")


def test_every_repository_of_the_table_is_of_one_family() -> None:
    names = [name for row in FAMILIES for name in row.repositories]
    assert len(set(names)) == len(names)
    for row in FAMILIES:
        for name in row.repositories:
            assert find_family(name, None) is find_family(name, row.name) is row


@pytest.mark.parametrize(
    "model",
    [
        "Qwen3-Reranker-0.6B",
        "me/Qwen3-Reranker-0.6B",
        "Qwen/Qwen3-Reranker-0.6B-seq-cls",
        "Qwen/Qwen3-Reranker",
    ],
)
def test_a_part_of_a_name_makes_no_family(model: str) -> None:
    assert find_family(model, None) is None


def test_a_model_that_is_known_is_of_no_other_family() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"is of the family 'qwen3-reranker', and 'zerank' was given"
    ):
        find_family("Qwen/Qwen3-Reranker-4B", "zerank")


def test_a_repository_of_the_hub_is_known_by_its_id(
    language_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub" / "models--Qwen--Qwen3-Reranker-0.6B"
    commit = "e61197ed45024b0ed8a2d74b80b4d909f1255473"
    copytree(language_model, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    reranker = Reranker.load("Qwen/Qwen3-Reranker-0.6B", device="cpu")
    assert (reranker.protocol.family, reranker.protocol.repository.revision) == (QWEN3, commit)
    named = Reranker.load(str(language_model), family="qwen3-reranker", device="cpu")
    assert reranker.score(PAIRS).tolist() == named.score(PAIRS).tolist()


def test_a_language_model_whose_family_nobody_names_is_an_error(language_model: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"name its family: qwen3-reranker, zerank"):
        resolve_reranker(str(language_model))
    with pytest.raises(UnsupportedModelError, match=r"no family 'qwen3' of rerankers; known: qwen3-reranker"):
        resolve_reranker(str(language_model), family="qwen3")


def test_a_family_is_no_classifier(classifier: Path) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"XLMRobertaForSequenceClassification \(xlm-roberta\), and"
    ):
        resolve_reranker(str(classifier), family="zerank")


def test_an_instruction_is_refused_where_there_is_no_place_for_it(
    classifier: Path, language_model: Path
) -> None:
    for folder, family in ((classifier, None), (language_model, "zerank")):
        with pytest.raises(
            TaskError, match=r"no place for an instruction, and 'Find it' was.*qwen3-reranker\)"
        ):
            resolve_reranker(str(folder), family=family, instruction="Find it")
    assert resolve_reranker(str(language_model), family="zerank").instruction is None
    protocol = resolve_reranker(str(language_model), family="qwen3-reranker")
    assert (
        protocol.instruction == "Given a web search query, retrieve relevant passages that answer the query"
    )


def test_the_length_is_the_familys_or_the_models_or_the_callers(
    classifier: Path, language_model: Path, tmp_path: Path
) -> None:
    long = write_language_model(tmp_path / "long", max_positions=40960)
    assert resolve_reranker(str(long), family="qwen3-reranker").max_seq_length == 8192
    assert resolve_reranker(str(long), family="zerank").max_seq_length == 32768
    assert resolve_reranker(str(language_model), family="zerank").max_seq_length == 4096
    assert resolve_reranker(str(long), family="zerank", max_seq_length=512).max_seq_length == 512
    assert resolve_reranker(str(classifier)).max_seq_length == 64
    write_json(classifier / "sentence_bert_config.json", {"max_seq_length": 32})
    assert resolve_reranker(str(classifier)).max_seq_length == 32
    with pytest.raises(UnsupportedModelError, match=r"has 66 positions, so a pair cannot have 67 tokens"):
        resolve_reranker(str(classifier), max_seq_length=67)
    edit_json(classifier / "config.json", max_position_embeddings=None)
    edit_json(classifier / "tokenizer_config.json", model_max_length=None)
    (classifier / "sentence_bert_config.json").unlink()
    with pytest.raises(UnsupportedModelError, match="does not say how many tokens"):
        resolve_reranker(str(classifier))


@pytest.mark.parametrize(
    ("place", "content", "activation"),
    [
        (
            "config_sentence_transformers.json",
            {"activation_fn": "torch.nn.modules.linear.Identity"},
            "Identity",
        ),
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.Identity"}}, "Identity"),
        (
            "config.json",
            {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
            "Identity",
        ),
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}}, "Sigmoid"),
        ("config.json", {}, "Sigmoid"),
    ],
)
def test_the_activation_is_the_one_that_the_files_name(
    place: str, content: dict[str, Any], activation: str, classifier: Path
) -> None:
    if not (classifier / place).exists():
        write_json(classifier / place, {})
    edit_json(classifier / place, **content)
    assert resolve_reranker(str(classifier)).activation == activation


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {"id2label": {"0": "no", "1": "yes"}}, "other than one label"),
        ("config.json", {"id2label": None}, "other than one label"),
        ("config.json", {"auto_map": {"AutoModel": "own.Model"}}, r"own \(auto_map\)"),
        ("config.json", {"architectures": None}, "is no architecture, which is no sequence classification"),
        ("config.json", {"sentence_transformers": {"activation_fn": "own.Code"}}, "go through own.Code"),
        (
            "config.json",
            {"sentence_transformers": {"activation_fn": "own.Sigmoid"}},
            "go through own.Sigmoid",
        ),
        ("adapter_config.json", {"peft_type": "LORA"}, "is an adapter"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "asks for {'do_lower_case': True}"),
        ("sentence_bert_config.json", {"query_length": 32}, "asks for {'query_length': 32}"),
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}, "has a chat template"),
        (
            "config_sentence_transformers.json",
            {"prompts": {"query": "query: "}, "default_prompt_name": "query"},
            "puts the prompt 'query: ' before every query",
        ),
    ],
)
def test_what_is_not_done_is_refused(
    file: str, content: dict[str, Any], message: str, classifier: Path
) -> None:
    if not (classifier / file).exists():
        write_json(classifier / file, {})
    edit_json(classifier / file, **content)
    with pytest.raises(UnsupportedModelError, match=message):
        resolve_reranker(str(classifier))


def test_modules_say_no_more_than_is_done(classifier: Path, language_model: Path) -> None:
    transformer = {"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    score = {
        "path": "1_LogitScore",
        "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
    }
    write_json(classifier / "modules.json", [transformer])
    assert resolve_reranker(str(classifier)).family is None
    write_json(classifier / "modules.json", [transformer, score])
    with pytest.raises(
        UnsupportedModelError, match="lists Transformer, LogitScore; only Transformer is done"
    ):
        resolve_reranker(str(classifier))
    write_json(language_model / "modules.json", [transformer, score])
    write_json(
        language_model / "1_LogitScore" / "config.json", {"true_token_id": 9693, "false_token_id": 2152}
    )
    assert resolve_reranker(str(language_model), family="qwen3-reranker").family is QWEN3
    with pytest.raises(
        UnsupportedModelError, match=r"takes the logits of the tokens \(9693, 2152\), and the fam"
    ):
        resolve_reranker(str(language_model), family="zerank")
