"""Long texts through read, encode and write: rejected, cut into chunks, or cut late; every row is accounted for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders.encoder import Encoder
from encoders.errors import EncoderError
from encoders.late_chunking import LateChunker
from encoders.protocol import resolve_protocol
from encoders.tasks import Role, View
from encoders.tokenizer import Tokenizer
from jobs.config import load_config
from jobs.encode import EncodeFragment
from jobs.errors import ConfigurationError
from jobs.footers import Columns
from jobs.parts import refuse_clashes
from jobs.read import Reader
from jobs.records import LongTextRecord, Receipt
from jobs.rows import Reading
from jobs.run_spec import RunSpec, ViewSpec, Work
from jobs.write import Writer
from tests.encoders.repositories import write_repository
from tests.jobs.builders import layout_of, only_fragment, run_spec, write_shard

QUERY, DOCUMENT = View("retrieval", Role.QUERY), View("retrieval", Role.DOCUMENT)
LONG = "How do batteries store energy, and why do they lose it over the years? Größe 🙂 " * 6
# 46 tokens fit bare, 44 behind the prompt.
BETWEEN = "a " * 45
TEXTS = ["Paris", LONG, "", BETWEEN, "what is the capital of France?"]
PROMPTS = {"query": "query: ", "document": ""}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("model"), settings={"prompts": PROMPTS})


@pytest.fixture(scope="module")
def bare_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose tokenizer adds nothing of its own; it pools the last token."""
    return write_repository(
        tmp_path_factory.mktemp("bare"),
        "qwen3",
        modules=[("Pooling", {"embedding_dimension": 32, "pooling_mode": "lasttoken"}), ("Normalize", {})],
        settings={"prompts": PROMPTS},
        tokenizer={"eos": False},
    )


@dataclass
class Bench:
    """One shard, one output, and the stages between them."""

    corpus: Path
    out: Path
    model: Path
    mode: str
    chunk_tokens: int | None = None
    chunk_overlap: int = 0
    missing: tuple[View, ...] = (QUERY, DOCUMENT)

    def run(self) -> tuple[RunSpec, Work]:
        protocol = resolve_protocol(str(self.model))
        specs = tuple(
            ViewSpec(
                view,
                protocol.prompt(view),
                protocol.space(view.task, "float32", late_chunk=self.mode == "late_chunk"),
                {},
            )
            for view in (QUERY, DOCUMENT)
        )
        long_text = LongTextRecord(
            mode=self.mode,
            chunk_tokens=self.chunk_tokens,
            chunk_overlap=self.chunk_overlap,
            prompts=(("", ""), ("query: ", "")),
        )
        columns = Columns("id", ("text",), ("title",))
        _, fragment, reading = only_fragment(self.corpus, columns, long_text=long_text)
        spec = run_spec(self.corpus, self.out, reading, protocol, specs, max_batch_tokens=100)
        paths = {
            str(one.view): fragment.part_path(one.view, one.space)
            for one in specs
            if one.view in self.missing
        }
        return spec, Work(fragment, paths)

    def embed(self) -> tuple[Receipt, dict[str, Any]]:
        spec, work = self.run()
        row = pa.table({"work": pa.array([work.to_json()], pa.binary())})
        spent = Writer(spec)(EncodeFragment(spec)(Reader(spec)(row))).to_pylist()[0]
        return Receipt.model_validate_json(spent["receipt"]), spent

    def part(self, receipt: Receipt, view: View) -> pa.Table:
        return pq.read_table(self.out / receipt.parts[str(view)].path, partitioning=None)

    def rejects(self, receipt: Receipt) -> list[tuple[int, str, int]]:
        if receipt.rejects is None:
            return []
        rows = pq.read_table(self.out / receipt.rejects.path, partitioning=None).to_pylist()
        return [(row["id"], row["reason"], row["row"]) for row in rows]


def bench_of(tmp_path: Path, model: Path, mode: str, *chunks: Any) -> Bench:
    table = {"id": range(5), "text": TEXTS, "title": ["a", "b", "c", "d", "e"]}
    write_shard(tmp_path / "corpus", "lang=en/s.parquet", table)
    return Bench(tmp_path / "corpus", tmp_path / "out", model, mode, *chunks)


def vectors_of(table: pa.Table) -> np.ndarray:
    vectors: np.ndarray = table["embedding"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    return vectors


def test_a_text_that_one_prompt_makes_too_long_is_rejected_from_all_views(
    tmp_path: Path, model: Path
) -> None:
    bench = bench_of(tmp_path, model, "reject")
    receipt, _ = bench.embed()
    assert receipt.rejected == {"too_long": 2}
    assert receipt.balances
    assert bench.rejects(receipt) == [(1, "too_long", 1), (3, "too_long", 3)]
    for view in (QUERY, DOCUMENT):
        part = bench.part(receipt, view)
        assert part.column_names == ["id", "title", "embedding", "num_tokens", "truncated", "text_hash"]
        assert part["id"].to_pylist() == [0, 2, 4]
        assert not any(part["truncated"].to_pylist())


@pytest.mark.parametrize(("mode", "tokens"), [("reject", None), ("chunk", None), ("late_chunk", 20)])
def test_which_rows_a_view_holds_does_not_depend_on_what_else_is_missing(
    tmp_path: Path, model: Path, mode: str, tokens: int | None
) -> None:
    bench = bench_of(tmp_path, model, mode, tokens)
    both = bench.part(bench.embed()[0], DOCUMENT)
    bench = replace(bench, out=tmp_path / "alone", missing=(DOCUMENT,))
    alone = bench.part(bench.embed()[0], DOCUMENT)
    assert both.drop_columns("embedding") == alone.drop_columns("embedding")
    np.testing.assert_allclose(vectors_of(both), vectors_of(alone), atol=1e-6)


def test_empty_and_too_long_texts_are_told_apart(tmp_path: Path, bare_model: Path) -> None:
    bench = bench_of(tmp_path, bare_model, "reject")
    receipt, _ = bench.embed()
    assert bench.rejects(receipt) == [(2, "no_tokens", 2), (1, "too_long", 1), (3, "too_long", 3)]
    assert receipt.balances


def test_each_chunk_is_a_row_with_the_vector_of_its_characters(tmp_path: Path, model: Path) -> None:
    bench = bench_of(tmp_path, model, "chunk", 20, 4)
    receipt, _ = bench.embed()
    protocol = resolve_protocol(str(model))
    tokenizer, encoder = Tokenizer(protocol), Encoder.load(protocol, device="cpu")
    for view, prompt in ((QUERY, "query: "), (DOCUMENT, "")):
        part = bench.part(receipt, view)
        assert part.column_names[:5] == ["id", "chunk_index", "char_start", "char_end", "title"]
        assert [part.schema.field(name).type for name in part.column_names[1:4]] == [
            pa.int32(),
            pa.int64(),
            pa.int64(),
        ]
        rows = part.to_pylist()
        pieces = [TEXTS[row["id"]][row["char_start"] : row["char_end"]] for row in rows]
        prepared = tokenizer.prepare(pieces, prompt)
        np.testing.assert_allclose(vectors_of(part), encoder.encode(prepared).vectors, atol=1e-6)
        assert part["num_tokens"].to_pylist() == prepared.lengths.tolist()
        assert not any(part["truncated"].to_pylist())
        assert [row["text_hash"] for row in rows] == [
            hashlib.blake2b(piece.encode(), digest_size=16).digest() for piece in pieces
        ]
        counts = np.bincount([row["id"] for row in rows])
        assert counts.tolist()[0] == counts.tolist()[2] == counts.tolist()[4] == 1
        assert counts[1] > 5
        assert [row["chunk_index"] for row in rows] == [place for count in counts for place in range(count)]
        assert [row["title"] for row in rows] == ["abcde"[row["id"]] for row in rows]


@pytest.mark.parametrize("mode", ["chunk", "late_chunk"])
def test_rows_with_chunks_and_rejects_are_the_rows_read(tmp_path: Path, bare_model: Path, mode: str) -> None:
    bench = bench_of(tmp_path, bare_model, mode, 20, 4)
    receipt, _ = bench.embed()
    assert bench.rejects(receipt) == [(2, "no_tokens", 2)]
    for view in (QUERY, DOCUMENT):
        record, part = receipt.parts[str(view)], bench.part(receipt, view)
        assert (receipt.num_rows, record.num_embedded, record.num_rows) == (5, 4, part.num_rows)
        assert set(part["id"].to_pylist()) == {0, 1, 3, 4}
    assert receipt.balances
    lost = receipt.parts[str(QUERY)].model_copy(update={"num_chunked": 3})
    assert not receipt.model_copy(update={"parts": {str(QUERY): lost}}).balances


@pytest.mark.parametrize("kind", ["mean", "last"])
def test_late_chunks_are_the_encoder_s(tmp_path: Path, model: Path, bare_model: Path, kind: str) -> None:
    bench = bench_of(tmp_path, model if kind == "mean" else bare_model, "late_chunk", 12, 3)
    receipt, spent = bench.embed()
    protocol = resolve_protocol(str(bench.model))
    chunks, tokenized = LateChunker(Tokenizer(protocol), ("", "query: "), 12, 3).cut_in_place(TEXTS)
    assert receipt.rejected == {"no_tokens": 1}
    encoder = Encoder.load(protocol, device="cpu")
    kept = np.flatnonzero(chunks.counts)
    for view, prompt in ((QUERY, "query: "), (DOCUMENT, "")):
        part, texts = bench.part(receipt, view), tokenized[prompt].take(kept)
        np.testing.assert_allclose(vectors_of(part), encoder.encode(texts).vectors, atol=1e-6)
        assert part["char_start"].to_pylist() == chunks.char_starts.tolist()
        assert part["num_tokens"].to_pylist() == texts.pooled_lengths.tolist()
        cut = {row["id"] for row in part.to_pylist() if row["truncated"]}
        assert cut == {1, 3}
    # Each text went through the model once for each prompt, whatever the overlap.
    assert spent["num_encoded_tokens"] == sum(texts.take(kept).lengths.sum() for texts in tokenized.values())


@pytest.mark.parametrize("mode", ["chunk", "late_chunk"])
def test_a_fragment_without_any_text_gives_parts_with_the_same_columns(
    tmp_path: Path, model: Path, mode: str
) -> None:
    bench = bench_of(tmp_path, model, mode, 20)
    full = bench.part(bench.embed()[0], QUERY)
    bench = replace(bench, out=tmp_path / "none")
    write_shard(bench.corpus, "lang=en/s.parquet", {"id": [1, 2], "text": pa.nulls(2), "title": ["a", "b"]})
    receipt, _ = bench.embed()
    assert (receipt.rejected, receipt.balances) == ({"null_text": 2}, True)
    part = bench.part(receipt, QUERY)
    assert part.num_rows == 0
    assert part.schema.remove_metadata() == full.schema.remove_metadata()


def test_what_decides_which_rows_exist_makes_other_fragments(tmp_path: Path, model: Path) -> None:
    bench = bench_of(tmp_path, model, "chunk", 20, 4)
    layout = layout_of(bench.corpus, Columns("id", ("text",), ()))
    record = LongTextRecord(
        mode="chunk", chunk_tokens=20, chunk_overlap=4, prompts=(("", ""), ("query: ", ""))
    )
    changes = ({"mode": "late_chunk"}, {"chunk_tokens": 21}, {"chunk_overlap": 5}, {"prompts": (("", ""),)})
    records = [None, record, *(record.model_copy(update=change) for change in changes)]
    readings = [Reading(Columns("id", ("text",), ()), " ", layout.carried, one).record() for one in records]
    assert len({one.digest for one in readings}) == len(records)
    # Of a corpus whose texts are truncated the parts keep the names that they had before there were other ways.
    assert "long_text" not in readings[0].model_dump(exclude={"long_text"})
    assert readings[0].digest == type(readings[0])(**readings[0].model_dump(exclude={"long_text"})).digest


def test_chunks_that_do_not_fit_are_refused(tmp_path: Path, model: Path) -> None:
    bench = bench_of(tmp_path, model, "chunk", 45)
    with pytest.raises(EncoderError, match=r"chunks of 45 tokens .* give at most 44, or null"):
        bench.embed()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk_tokens": 100}, "chunk_tokens and chunk_overlap are for long_text chunk and late_chunk"),
        ({"chunk_overlap": 1, "long_text": "reject"}, "long_text is reject; leave them out"),
        ({"long_text": "late_chunk"}, "give a number"),
        (
            {"long_text": "chunk", "chunk_tokens": 8, "chunk_overlap": 8},
            "chunk_overlap is 8; allowed: fewer than chunk_tokens, which is 8",
        ),
        ({"long_text": "chunk", "chunk_overlap": -1}, "integer from 0"),
        ({"long_text": "chunk", "chunk_tokens": 0}, "integer > 0"),
        ({"long_text": "split"}, r"allowed: truncate \| reject \| chunk \| late_chunk"),
    ],
)
def test_settings_that_would_be_ignored_or_make_no_sense_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    given = [
        ("input.uri", "in"),
        ("output.uri", "out"),
        ("output.views", "clustering"),
        ("encoder.model", "m"),
    ]
    load_config(None, given)
    with pytest.raises(ConfigurationError, match=message):
        load_config(None, [*given, *((f"encoder.{name}", value) for name, value in settings.items())])


def test_names_that_chunks_give_to_columns_are_refused_only_where_there_are_chunks() -> None:
    for keys, columns in (
        ([], Columns("id", ("text",), ("chunk_index",))),
        ([], Columns("char_start", ("text",), ())),
        (["char_end"], Columns("id", ("text",), ())),
    ):
        refuse_clashes(keys, columns)
        with pytest.raises(ConfigurationError, match=r"chunk_index|char_start|char_end"):
            refuse_clashes(keys, columns, chunks=True)
