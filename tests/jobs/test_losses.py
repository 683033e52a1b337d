"""A row of which the encoder makes no vector becomes a reject, and every count balances."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend

from encoders.errors import EncoderError
from jobs.cargo import pack, token_columns, tokens_of, unpack_table
from jobs.encode import EncodeFragment
from jobs.losses import only, without_deadly
from jobs.read import Reader
from jobs.records import Receipt
from jobs.write import Writer
from tests.encoders.repositories import edit_weights, write_repository
from tests.jobs.builders import texts_of, write_shard
from tests.jobs.test_long_texts import DOCUMENT, PROMPTS, QUERY, Bench, bench_of, vectors_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("model"), settings={"prompts": PROMPTS})


def embed_within(bench: Bench, num_tokens: int) -> tuple[Receipt, dict[str, Any]]:
    """The stages of a fragment, with an encoder that has memory for so many tokens."""
    spec, work = bench.run()
    spec = replace(spec, preflight=False)
    encode = EncodeFragment(spec)

    def hook(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].numel() > num_tokens:
            raise torch.OutOfMemoryError

    encode._encoder._adapted.module.register_forward_pre_hook(hook, with_kwargs=True)
    row = pa.table({"work": pa.array([work.to_json()], pa.binary())})
    spent = Writer(spec)(encode(Reader(spec)(row))).to_pylist()[0]
    return Receipt.model_validate_json(spent["receipt"]), spent


@pytest.mark.parametrize(("mode", "chunks"), [("reject", ()), ("chunk", (20,)), ("late_chunk", (20,))])
def test_a_row_that_does_not_fit_is_a_reject_of_all_views_with_all_its_chunks(
    tmp_path: Path, model: Path, mode: str, chunks: tuple[int, ...]
) -> None:
    bench = bench_of(tmp_path, model, mode, *chunks)
    whole, spent = bench.embed()
    assert not spent["budget_halved"]
    expected = {view: bench.part(whole, view) for view in (QUERY, DOCUMENT)}
    ids, tokens = (expected[QUERY][name].to_pylist() for name in ("id", "num_tokens"))
    # Texts go whole through a late chunker, so there rows 1 and 3 are the long ones.
    most = 40 if mode == "late_chunk" else max(tokens) - 1
    bench.out = tmp_path / "within"
    receipt, _ = embed_within(bench, most)
    lost = sorted(row for row, reason, _ in bench.rejects(receipt) if reason == "out_of_memory")
    assert 0 < len(lost) < len(set(ids))
    if mode == "late_chunk":
        assert lost == [1, 3]
    assert [number for _, reason, number in bench.rejects(receipt) if reason == "out_of_memory"] == lost
    assert receipt.balances
    assert receipt.rejected == {**whole.rejected, "out_of_memory": len(lost)}
    for view, table in expected.items():
        kept = table.filter(pa.array([one not in lost for one in table["id"].to_pylist()]))
        part = bench.part(receipt, view)
        assert part.drop_columns(["embedding"]).equals(kept.drop_columns(["embedding"]))
        np.testing.assert_allclose(vectors_of(part), vectors_of(kept), atol=1e-6)


def spoil(model: Path, tmp_path: Path, *words: str) -> Path:
    """A copy of a model that makes no numbers of texts with these words."""
    folder = tmp_path / "spoilt"
    shutil.copytree(model, folder)
    tokens = Backend.from_file(str(folder / "tokenizer.json"))
    name = "embeddings.word_embeddings.weight"
    weights = load_file(folder / "model.safetensors")[name]
    for word in words:
        weights[tokens.encode(word, add_special_tokens=False).ids[0]] = float("nan")
    edit_weights(folder, **{name: weights})
    return folder


@pytest.mark.parametrize(("mode", "chunks"), [("reject", ()), ("chunk", (20,)), ("late_chunk", (20,))])
def test_a_row_whose_vector_is_no_number_is_a_reject_of_all_views_and_no_other_is(
    tmp_path: Path, model: Path, mode: str, chunks: tuple[int, ...]
) -> None:
    bench = bench_of(tmp_path, model, mode, *chunks)
    expected = bench.part(bench.embed()[0], QUERY)
    kept = expected.filter(pa.array([one != 4 for one in expected["id"].to_pylist()]))
    bench = replace(bench, model=spoil(model, tmp_path, "capital"), out=tmp_path / "without")
    spec, work = bench.run()
    assert spec.preflight
    row = pa.table({"work": pa.array([work.to_json()], pa.binary())})
    (spent,) = Writer(spec)(EncodeFragment(spec)(Reader(spec)(row))).to_pylist()
    receipt = Receipt.model_validate_json(spent["receipt"])
    assert receipt.rejected["not_finite"] == 1
    assert (4, "not_finite", 4) in bench.rejects(receipt)
    assert receipt.balances
    for view in (QUERY, DOCUMENT):
        assert bench.part(receipt, view)["id"].equals(kept["id"])
    np.testing.assert_allclose(vectors_of(bench.part(receipt, QUERY)), vectors_of(kept), atol=1e-6)


def test_a_model_that_makes_no_numbers_of_most_texts_is_an_error(tmp_path: Path, model: Path) -> None:
    texts = [f"Paris {n}" if n % 10 else "energy" for n in range(15)]
    write_shard(tmp_path / "corpus", "s.parquet", {"id": range(len(texts)), "text": texts, "title": texts})
    bench = Bench(tmp_path / "corpus", tmp_path / "out", spoil(model, tmp_path, "Paris"), "reject")
    spec, work = bench.run()
    assert spec.preflight
    row = pa.table({"work": pa.array([work.to_json()], pa.binary())})
    with pytest.raises(
        EncoderError, match=r"13 of 15 vectors cannot be stored.*is not finite.*encoder\.dtype"
    ):
        EncodeFragment(spec)(Reader(spec)(row))


def test_smaller_batches_lose_nothing_and_are_reported(tmp_path: Path, model: Path) -> None:
    bench = bench_of(tmp_path, model, "chunk", 20)
    whole, _ = bench.embed()
    expected = vectors_of(bench.part(whole, QUERY))
    bench.out = tmp_path / "within"
    receipt, spent = embed_within(bench, 60)
    assert (spent["budget_halved"], spent["max_batch_tokens"]) == (True, 50)
    assert receipt.rejected == whole.rejected
    np.testing.assert_allclose(vectors_of(bench.part(receipt, QUERY)), expected, atol=1e-6)


def test_a_fragment_of_which_nothing_fits_gives_parts_without_rows(tmp_path: Path, model: Path) -> None:
    bench = bench_of(tmp_path, model, "chunk", 20)
    receipt, _ = embed_within(bench, 0)
    assert receipt.balances
    assert receipt.num_rejected == 5
    assert receipt.rejected["out_of_memory"] >= 4
    assert bench.part(receipt, QUERY).num_rows == 0


def test_rows_whose_vectors_are_carried_over_have_no_tokens_to_be_taken(tmp_path: Path, model: Path) -> None:
    bench = bench_of(tmp_path, model, "reject")
    spec, work = bench.run()
    schema = spec.reading.rejects_schema()
    row = pack(
        {
            "work": work.to_json(),
            "rows": pa.table({"id": [10, 11, 12, 13]}),
            "row_numbers": pa.table({"row": pa.array([0, 1, 3, 4], pa.int64())}),
            "rejects": schema.empty_table(),
            "sources": pa.table({"source": pa.array([None, 7, None, 8], pa.int32())}),
            "tokens": pa.table(token_columns(0, texts_of([[5], [6, 6]]))),
        }
    )
    for one, numbers in (
        (only(row, np.array([1, 2, 3])), [1, 3]),
        (without_deadly(row, np.array([0, 4])), [1, 3]),
    ):
        assert unpack_table(one, "row_numbers")["row"].to_pylist() == numbers
        assert unpack_table(one, "rows")["id"].to_pylist() == [11, 12]
        assert unpack_table(one, "sources")["source"].to_pylist() == [7, None]
        assert tokens_of(unpack_table(one, "tokens"), 0).token_ids.tolist() == [6, 6]
    rejects = unpack_table(one, "rejects").to_pydict()
    assert (rejects["id"], rejects["row"]) == ([10, 13], [0, 4])
    assert set(rejects["reason"]) == {"killed_worker"}


def test_a_few_new_texts_among_many_carried_ones_may_all_have_no_numbers(tmp_path: Path, model: Path) -> None:
    spec, work = bench_of(tmp_path, model, "reject").run()
    encode, vectors = EncodeFragment(spec), np.ones((12, 4), np.float32)
    vectors[:9] = np.nan
    many = replace(work, fragment=replace(work.fragment, num_rows=100))
    assert encode._spoilt(vectors, many).tolist() == list(range(9))
    with pytest.raises(EncoderError, match="9 of 12 vectors"):
        encode._spoilt(vectors, replace(work, fragment=replace(work.fragment, num_rows=12)))
