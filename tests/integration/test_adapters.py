"""Five views of one model with four adapters, from one pass over a corpus: each has its own adapter's vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend

from examples.search import search
from tests.encoders.adapter_repositories import V5_TASKS, native_backbone, unmerged, write_jina_v5
from tests.encoders.reference import assert_same, cosines
from tests.encoders.repositories import MAX_TOKENS, TEXTS
from tests.integration.conftest import Dataset, Embed, manifest_of, parts, read_view, vectors_of

# View -> what its authors put before a text; the adapter has the task's name.
VIEWS = {
    "retrieval/query": "Query: ",
    "retrieval/document": "Document: ",
    "text-matching/document": "Document: ",
    "classification/document": "Document: ",
    "clustering/document": "Document: ",
}
ROWS = [f"{TEXTS[number % len(TEXTS)]} {number}" for number in range(24)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jina_v5(tmp_path_factory.mktemp("model") / "v5", "small")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model: Path, embed: Embed) -> Dataset:
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "corpus").mkdir()
    for number, name in enumerate(("a", "b")):
        some = range(12 * number, 12 * (number + 1))
        table = pa.table({"id": some, "text": [ROWS[row] for row in some]})
        pq.write_table(table, folder / "corpus" / f"{name}.parquet", row_group_size=6)
    arguments = (
        *("--input", str(folder / "corpus"), "--output", str(folder / "out"), "--model", str(model)),
        *("--set", f"output.views=[{', '.join(VIEWS)}]", "--fragment-rows", "6", "--max-actors", "1"),
        *("--dtype", "float32"),
    )
    outcome = embed(*arguments)
    assert outcome.exit_code == 0, outcome.stderr
    return Dataset(folder / "corpus", folder / "out", arguments, outcome)


@torch.no_grad()
def states_at_the_end(model: Path, task: str | None, prompt: str) -> np.ndarray:
    """What transformers and peft give: the text's last token, normalised; one text at a time, nothing merged."""
    backbone = native_backbone(json.loads((model / "config.json").read_text()))
    backbone.load_state_dict(load_file(model / "model.safetensors"))
    network = unmerged(backbone.float(), model / "adapters" / task) if task else backbone.float()
    backend = Backend.from_file(str(model / "tokenizer.json"))
    backend.no_padding()
    backend.enable_truncation(MAX_TOKENS)
    vectors = []
    for text in ROWS:
        ids = torch.tensor([backend.encode(prompt + text).ids])
        last = network(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, -1]
        vectors.append((last / last.norm()).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("view", VIEWS)
def test_each_partition_has_the_vectors_of_its_task_s_adapter(view: str, made: Dataset, model: Path) -> None:
    task, _, role = view.partition("/")
    table = read_view(made.out, role, task)
    assert table["id"].to_pylist() == list(range(len(ROWS)))
    vectors = vectors_of(table)
    assert_same(vectors, states_at_the_end(model, task, VIEWS[view]))
    for other in (None, *V5_TASKS):  # so that a wrong adapter could not have passed
        if other != task:
            assert cosines(vectors, states_at_the_end(model, other, VIEWS[view])).max() < 0.999


def test_five_views_have_four_spaces_and_each_part_says_whose_it_is(made: Dataset) -> None:
    views = manifest_of(made.out)["views"]
    assert set(views) == set(VIEWS)
    assert len({view["space_id"] for view in views.values()}) == 4
    assert views["retrieval/query"]["space_id"] == views["retrieval/document"]["space_id"]
    assert len({view["adapter"] for view in views.values()}) == 4
    seen = set()
    for path, content in parts(made.out).items():
        task, role = (folder.partition("=")[2] for folder in path.split("/")[:2])
        metadata = pq.read_schema(pa.BufferReader(content)).metadata
        assert metadata[b"taskvec.space_id"].decode() == views[f"{task}/{role}"]["space_id"]
        assert metadata[b"taskvec.adapter"].decode() == views[f"{task}/{role}"]["adapter"]
        seen.add(f"{task}/{role}")
    assert seen == set(VIEWS)


def test_texts_are_read_once_and_tokenized_once_for_each_prompt(made: Dataset, model: Path) -> None:
    said = " ".join(made.outcome.stderr.split())
    assert "fragments 4 read, each tokenized for 2 prompts and encoded 5 times" in said
    assert made.outcome.summary["embedded"] == 5 * len(ROWS)
    backend = Backend.from_file(str(model / "tokenizer.json"))
    backend.no_padding()
    backend.enable_truncation(MAX_TOKENS)
    tokens = [
        sum(len(backend.encode(prompt + text).ids) for text in ROWS) for prompt in ("Query: ", "Document: ")
    ]
    assert made.outcome.summary["tokens"] == tokens[0] + 4 * tokens[1]


def test_the_search_example_asks_with_the_adapter_and_prompt_of_queries(
    made: Dataset, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries, documents = (
        vectors_of(read_view(made.out, role, "retrieval")) for role in ("query", "document")
    )
    search(str(made.out), str(model), [ROWS[7]], num_answers=1)
    said = capsys.readouterr().out.split()
    scores = queries[7] @ documents.T
    assert said[-1] == str(scores.argmax())
    assert float(said[-2]) == pytest.approx(scores.max(), abs=0.001)
