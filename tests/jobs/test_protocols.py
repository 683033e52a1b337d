"""--show-protocol: every byte that a model gets, without its weights and without a corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders.errors import EncoderError
from encoders.tasks import view_of
from jobs.cli import parse
from jobs.config import EncoderConfig, load_encoder
from jobs.embed import main
from jobs.errors import ConfigurationError
from jobs.protocols import resolve
from tests.encoders.adapter_repositories import backbone_of, write_adapter
from tests.encoders.family_repositories import write_family
from tests.encoders.repositories import write_repository


def shown(capsys: pytest.CaptureFixture[str], folder: Path, *flags: str) -> tuple[dict[str, Any], str]:
    """The JSON object on stdout, and what people read on stderr."""
    assert main(["--show-protocol", "--model", str(folder), *flags]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


@pytest.fixture(scope="module")
def zembed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_family(tmp_path_factory.mktemp("model") / "zembed", "zeroentropy/zembed-1")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A last-token model that says nothing of prompts."""
    return write_family(
        tmp_path_factory.mktemp("model") / "silent",
        "zeroentropy/zembed-1",
        transformer="sentence_transformers.models.Transformer",
        settings={"prompts": {"query": "", "document": ""}},
    )


def test_a_space_that_depends_on_the_corpus_is_not_guessed(
    zembed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--set", "encoder.protocol=zeroentropy/zembed-1", "--precision")
    facts, printed = shown(capsys, zembed, *flags, "int8")
    assert {view["space_id"] for view in facts["views"]} == {None}
    assert "known once its ranges are calibrated" in printed
    assert None not in {view["space_id"] for view in shown(capsys, zembed, *flags, "binary")[0]["views"]}


def test_all_that_goes_around_a_text_is_shown_without_weights(
    zembed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, printed = shown(capsys, zembed, "--set", "encoder.protocol=zeroentropy/zembed-1")
    assert (facts["row"], facts["licence"], facts["dim"]) == ("zeroentropy/zembed-1", "apache-2.0", 32)
    assert (facts["pooling"], facts["max_seq_length"]) == ("lasttoken", 32768)
    query, document = facts["views"]
    assert query["before"] == "<|im_start|>system\nquery<|im_end|>\n<|im_start|>user\n"
    assert document["before"] == "<|im_start|>system\ndocument<|im_end|>\n<|im_start|>user\n"
    assert query["behind"] == document["behind"] == "<|im_end|>\n"
    assert query["pooled_token"].startswith("'Ċ' (")
    assert query["space_id"] == document["space_id"]
    assert r"'<|im_end|>\n'" in printed


def test_the_space_is_that_of_a_run(silent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_encoder(
        None,
        [
            ("encoder.model", str(silent)),
            ("encoder.protocol", {"prompts": {"clustering": "c: "}, "pooling": "lasttoken"}),
        ],
    )
    facts, _ = shown(
        capsys, silent, "--set", 'encoder.protocol={prompts: {clustering: "c: "}, pooling: lasttoken}'
    )
    [clustering] = facts["views"]
    assert (clustering["task"], clustering["role"], clustering["before"]) == ("clustering", "document", "c: ")
    assert clustering["pooled_token"] == "the text's own"
    assert clustering["space_id"] == resolve(config).space("clustering", "float32").id


def test_raw_text_for_want_of_prompts_is_called_that(
    silent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, printed = shown(capsys, silent)
    assert facts["row"] is None
    assert {(view["before"], view["raw_text"]) for view in facts["views"]} == {("", True)}
    assert "no prompts: raw text" in " ".join(printed.split())


def test_a_view_that_wants_an_instruction_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = "intfloat/multilingual-e5-large-instruct"
    folder = write_family(tmp_path / "model", row)
    facts, _ = shown(capsys, folder, "--set", f"encoder.protocol={row}")
    views = {f"{view['task']}/{view['role']}": view for view in facts["views"]}
    assert "wants an instruction" in views["clustering/document"]["refused"]
    assert (
        views["text-matching/document"]["before"] == "Instruct: Retrieve semantically similar text.\nQuery: "
    )
    told = ("--set", "encoder.instruction={clustering: Group by topic}")
    facts, _ = shown(capsys, folder, "--set", f"encoder.protocol={row}", *told)
    views = {f"{view['task']}/{view['role']}": view for view in facts["views"]}
    assert views["clustering/document"]["before"] == "Instruct: Group by topic\nQuery: "


def test_a_task_without_adapter_beside_one_that_has_one_is_shown_as_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_repository(tmp_path / "model", "qwen3")
    mine = write_adapter(tmp_path / "mine", backbone_of(folder), r=4, target_modules=["q_proj"])
    facts, printed = shown(capsys, folder, "--set", f"encoder.adapters={{clustering: {mine}}}")
    views = {f"{view['task']}/{view['role']}": view for view in facts["views"]}
    assert views["clustering/document"]["adapter"] == "clustering"
    for name in (
        "retrieval/query",
        "retrieval/document",
        "text-matching/document",
        "classification/document",
    ):
        assert "has adapters for clustering, and none for" in views[name]["refused"]
    assert printed.count("and none for") == 4


def test_only_the_encoders_section_is_needed(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("encoder: {model: org/name, truncate_dim: 8}\n")
    config = parse([str(tmp_path / "job.yaml"), "--show-protocol", "--dtype", "bfloat16"]).config
    assert config == EncoderConfig(model="org/name", truncate_dim=8, dtype="bfloat16")
    with pytest.raises(ConfigurationError, match=r"encoder\.model: missing; give --model"):
        parse(["--show-protocol"])
    with pytest.raises(click.UsageError, match="shows every task and role; leave --task out"):
        parse(["--show-protocol", "--model", "org/name", "--task", "clustering"])
    with pytest.raises(ConfigurationError, match=r"encoder\.modle: unknown key"):
        parse(["--show-protocol", "--model", "org/name", "--set", "encoder.modle=x"])


def test_what_cannot_be_done_is_the_same_error_as_in_a_run(
    zembed: Path, silent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--show-protocol", "--model", str(zembed), "--set", "encoder.protocol=zeroentropy/zembed-1"]
    assert main([*flags, "--truncate-dim", "16"]) == 2
    assert "learned projections" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ConfigurationError, match="the configuration has"):
        load_encoder(None, [("encoder.model", "m"), ("encoder.force_truncate_dim", True)])
    config = EncoderConfig(
        model=str(silent), protocol={"forbidden_dtypes": ["float16"], "pooling": "lasttoken"}, dtype="float16"
    )
    with pytest.raises(EncoderError, match="overflows in float16"):
        resolve(config)


def test_mtebs_task_types_are_names_of_the_tasks() -> None:
    config = EncoderConfig(model="m", prompts={"STS": {"document": "s: "}}, instruction=None)
    assert config.prompts == {"text-matching": {"document": "s: "}}
    assert view_of("PairClassification") == view_of("similarity") == view_of("text-matching")


def test_a_task_type_that_the_model_tells_apart_is_refused_with_both_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = "google/embeddinggemma-300m"
    folder = write_family(tmp_path / "model", row)
    corpus = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": ["Paris"]}), corpus)
    run = ["--dry-run", "--input", str(corpus), "--output", str(tmp_path / "out"), "--model", str(folder)]
    run += ["--set", f"encoder.protocol={row}"]

    def plan(*flags: str) -> tuple[int, str]:
        code = main([*run, *flags])
        return code, " ".join(capsys.readouterr().err.split())

    code, said = plan("--task", "Summarization")
    assert code == 2
    assert "for which its prompt is 'task: sentence similarity | query: '" in said
    assert (
        "say 'task: summarization | query: ' for Summarization; say which is meant: the task text-matching"
        in said
    )
    mended = "encoder.prompts={text-matching: {document: 'task: summarization | query: '}}"
    assert mended in said
    assert (
        plan("--task", "BitextMining")[0] == plan("--task", "InstructionRetrieval", "--role", "query")[0] == 2
    )
    spaces = set()
    for flags in (("--task", "text-matching"), ("--task", "Summarization", "--set", mended)):
        code, said = plan(*flags)
        assert code == 0, said
        spaces.add(said.partition("view text-matching/document ")[2].split("(")[1][:12])
    assert "prompt 'task: summarization | query: '" in said
    assert len(spaces) == 2
    for same in (
        ("PairClassification",),
        ("Reranking", "--role", "query"),
        ("Reranking", "--role", "document"),
    ):
        assert plan("--task", *same)[0] == 0


def test_a_model_without_weights_is_refused_before_anything_starts(
    zembed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": ["Paris"]}), corpus)
    run = ["--input", str(corpus), "--output", str(tmp_path / "out"), "--model", str(zembed)]
    view = ["--set", "encoder.protocol=zeroentropy/zembed-1", "--task", "retrieval", "--role", "query"]
    assert main([*run, *view]) == 2
    assert "no safetensors weights" in " ".join(capsys.readouterr().err.split())


def test_a_plan_says_which_views_get_raw_text(
    silent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": ["Paris"]}), corpus)
    run = ["--dry-run", "--input", str(corpus), "--output", str(tmp_path / "out"), "--model", str(silent)]
    assert main([*run, "--task", "clustering"]) == 0
    assert "no prompts raw text for clustering/document" in " ".join(capsys.readouterr().err.split())
    row = ["--set", "encoder.protocol=zeroentropy/zembed-1"]
    assert main([*run, *row, "--task", "retrieval", "--role", "query"]) == 0
    printed = "".join(capsys.readouterr().err.split())
    assert "noprompts" not in printed
    assert r"prompt'<|im_start|>system\nquery<|im_end|>\n<|im_start|>user\n'...'<|im_end|>\n'" in printed
