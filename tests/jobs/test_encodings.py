"""Views of one run share what they can: tokens by prompt, vectors by prompt and adapter, merges by adapter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from encoders.encoder import Encoder
from encoders.family import Prompt
from encoders.merging import AdaptedBackbone
from encoders.protocol import resolve_protocol
from encoders.tasks import View, view_of
from encoders.tokenizer import Tokenizer
from jobs.cargo import unpack_table
from jobs.embed import main
from jobs.encode import EncodeFragment
from jobs.read import Reader
from jobs.run_spec import Encoding
from tests.encoders.adapter_repositories import backbone_of, write_adapter, write_jina_v5
from tests.encoders.repositories import write_repository
from tests.jobs.builders import write_shard
from tests.jobs.test_stages import Bench, row_of, vectors_of

TEXTS = ["what is the capital of France?", "Paris", "how do batteries store energy?", "solar panels"]
VIEWS = (
    view_of("retrieval", "query"),
    view_of("retrieval", "document"),
    view_of("text-matching"),
    view_of("classification"),
    view_of("clustering"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jina_v5(tmp_path_factory.mktemp("model") / "v5", "small")


@pytest.fixture
def bench(tmp_path: Path, model: Path) -> Bench:
    write_shard(tmp_path / "corpus", "s.parquet", {"id": range(len(TEXTS)), "text": TEXTS})
    return Bench(tmp_path / "corpus", tmp_path / "out", model, VIEWS)


def alone(model: Path, view: View) -> np.ndarray:
    """A view's vectors from an encoder that serves nothing else."""
    protocol = resolve_protocol(str(model))
    encoder = Encoder.load(protocol, adapters=[protocol.adapter(view)], device="cpu")
    return encoder.encode(Tokenizer(protocol).prepare(TEXTS, protocol.prompt(view))).vectors


def test_each_view_gets_the_vectors_of_its_own_adapter(bench: Bench, model: Path) -> None:
    receipt, _ = bench.embed()
    vectors = {view: vectors_of(bench.part(receipt, view)) for view in VIEWS}
    for view in VIEWS:
        np.testing.assert_allclose(vectors[view], alone(model, view), atol=1e-6)
    for place, view in enumerate(VIEWS):
        for other in VIEWS[:place]:
            assert (vectors[view] * vectors[other]).sum(axis=1).max() < 0.999
    spec, work = bench.run()
    assert len(set(work.parts.values())) == 5
    assert len({one.space.id for one in spec.views}) == 4


def test_texts_are_tokenized_once_for_each_prompt_and_encoded_once_for_each_adapter_besides(
    bench: Bench,
) -> None:
    spec, work = bench.run()
    row = Reader(spec)(row_of(work))
    tokens = unpack_table(row, "tokens")
    assert [name for name in tokens.column_names if name.startswith("token_ids")] == [
        "token_ids_0",
        "token_ids_1",
    ]
    encoded = EncodeFragment(spec)(row).to_pylist()[0]
    assert (encoded["num_prompts"], encoded["num_encodings"]) == (2, 5)
    lengths = [
        len(tokens["token_ids_0"].combine_chunks().values),
        len(tokens["token_ids_1"].combine_chunks().values),
    ]
    assert encoded["num_encoded_tokens"] == lengths[0] + 4 * lengths[1]


@pytest.mark.parametrize("beginning", [0, 1, 64])
def test_a_text_is_empty_only_if_all_of_it_is(
    bench: Bench, beginning: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The raw text of this model has no token of the tokenizer's own, and none of the views embeds it raw."""
    monkeypatch.setattr("jobs.read._BEGINNING", beginning)
    write_shard(bench.corpus, "s.parquet", {"id": range(5), "text": ["", *TEXTS]})
    receipt, spent = bench.embed()
    assert receipt.rejected == {"no_tokens": 1}
    assert bench.part(receipt, VIEWS[0])["id"].to_pylist() == [1, 2, 3, 4]
    assert spent["num_prompts"] == 2


def test_a_fragment_begins_with_the_adapter_that_the_last_one_ended_with(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, work = bench.run()
    row = Reader(spec)(row_of(work))
    stage = EncodeFragment(spec)
    switches: list[str | None] = []
    activate = AdaptedBackbone.activate

    def counted(self: AdaptedBackbone, name: str | None) -> None:
        if name != self.active:
            switches.append(name)
        activate(self, name)

    monkeypatch.setattr(AdaptedBackbone, "activate", counted)
    stage(row)
    first, second = len(switches), stage(row)
    assert first <= 4
    assert len(switches) - first == 3
    anew = unpack_table(EncodeFragment(spec)(row), "vectors")
    assert unpack_table(second, "vectors").select(anew.column_names).equals(anew)


def test_a_run_of_one_task_keeps_no_other_adapter(bench: Bench) -> None:
    bench.views = VIEWS[:2]
    spec, work = bench.run()
    assert spec.adapters == ("retrieval",)
    assert spec.encodings(work) == [
        Encoding(Prompt("Query: "), "retrieval"),
        Encoding(Prompt("Document: "), "retrieval"),
    ]
    bench.embed()


@pytest.fixture
def plain_model(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "plain", "qwen3")


def dry_run(bench: Bench, model: Path, adapters: str, *tasks: str) -> int:
    asked = [flag for task in tasks for flag in ("--task", task)]
    where = ["--input", str(bench.corpus), "--output", str(bench.out), "--model", str(model)]
    return main([*where, *asked, "--set", f"encoder.adapters={adapters}", "--dry-run"])


def test_a_configuration_gives_a_task_its_own_adapter(
    bench: Bench, plain_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = write_adapter(tmp_path / "mine", backbone_of(plain_model), r=4, target_modules=["q_proj"])
    assert dry_run(bench, plain_model, f"{{clustering: {mine}}}", "clustering") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])
    both = f"{{clustering: {mine}, classification: none}}"
    assert dry_run(bench, plain_model, both, "clustering", "classification") == 0


def test_a_task_without_adapter_beside_one_that_has_one_is_refused_before_anything_is_read(
    bench: Bench, plain_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = write_adapter(tmp_path / "mine", backbone_of(plain_model), r=4, target_modules=["q_proj"])
    assert dry_run(bench, plain_model, f"{{clustering: {mine}}}", "clustering", "classification") == 2
    assert "none for classification/document" in capsys.readouterr().err
    assert dry_run(bench, plain_model, "{clustering: ./no-such-folder}", "clustering") == 2
    assert "no adapter './no-such-folder'" in capsys.readouterr().err
