"""Read, encode and write turn a fragment into parts, rejects and a receipt; twice is once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders import attention
from encoders.batching import Batch
from encoders.encoder import Encoder
from encoders.errors import EncoderError
from encoders.protocol import resolve_protocol
from encoders.quantization import Ranges
from encoders.tasks import Role, View
from encoders.tokenizer import Tokenizer
from jobs.cargo import unpack_table
from jobs.encode import EncodeFragment
from jobs.errors import CorpusError, FileChangedError, OutputError, StorageError
from jobs.footers import Columns
from jobs.read import Reader
from jobs.records import RECEIPTS, LongTextRecord, Receipt
from jobs.run_spec import RunSpec, ViewSpec, Work
from jobs.storage import Location
from jobs.write import Writer
from tests.encoders.repositories import write_repository
from tests.jobs.builders import COLUMNS, only_fragment, run_spec, write_shard

QUERY, DOCUMENT = View("retrieval", Role.QUERY), View("retrieval", Role.DOCUMENT)
CLUSTERING = View("clustering", Role.DOCUMENT)
TEXTS = ["what is the capital of France?", "Paris", "solar panels " * 40, "", "über Größe"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = {"query": "query: ", "document": "", "clustering": "query: "}
    return write_repository(tmp_path_factory.mktemp("model"), settings={"prompts": prompts})


@dataclass
class Bench:
    """One corpus of one shard, one output, and the stages between them."""

    corpus: Path
    out: Path
    model: Path
    views: Sequence[View] = (QUERY, DOCUMENT)
    columns: Columns = COLUMNS
    precision: str = "float32"
    ranges: Ranges | None = None
    skip: bool = False
    long_text: LongTextRecord | None = None

    def run(self) -> tuple[RunSpec, Work]:
        _, fragment, reading = only_fragment(self.corpus, self.columns, long_text=self.long_text)
        protocol = resolve_protocol(str(self.model))
        specs = tuple(
            ViewSpec(
                view,
                protocol.prompt(view),
                protocol.space(view.task, self.precision),
                {"view": str(view)},
                adapter=protocol.adapter(view),
                ranges=self.ranges,
            )
            for view in self.views
        )
        spec = run_spec(
            self.corpus,
            self.out,
            reading,
            protocol,
            specs,
            skip_bad_shards=self.skip,
            precision=self.precision,
        )
        return spec, Work(fragment, {str(one.view): fragment.part_path(one.view, one.space) for one in specs})

    def embed(self) -> tuple[Receipt, dict[str, Any]]:
        spec, work = self.run()
        spent = Writer(spec)(EncodeFragment(spec)(Reader(spec)(row_of(work)))).to_pylist()[0]
        return Receipt.model_validate_json(spent["receipt"]), spent

    def part(self, receipt: Receipt, view: View) -> pa.Table:
        return pq.read_table(self.out / receipt.parts[str(view)].path, partitioning=None)

    def files(self) -> dict[str, tuple[bytes, int]]:
        """Content and time of every file, also hidden ones."""
        return {
            str(path): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in self.out.rglob("*")
            if path.is_file()
        }


def row_of(work: Work) -> pa.Table:
    return pa.table({"work": pa.array([work.to_json()], pa.binary())})


@pytest.fixture
def bench(tmp_path: Path, model: Path) -> Bench:
    table = {"id": range(5), "text": TEXTS, "title": ["a", "b", "c", "d", "e"]}
    write_shard(tmp_path / "corpus", "lang=en/s.parquet", table)
    return Bench(tmp_path / "corpus", tmp_path / "out", model)


def vectors_of(table: pa.Table) -> np.ndarray:
    vectors: np.ndarray = table["embedding"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    return vectors


@pytest.mark.parametrize("stage", [Reader, Writer])
def test_a_machine_that_does_not_see_corpus_and_output_gets_no_work(bench: Bench, stage: type) -> None:
    spec, _ = bench.run()
    here, gone = str(bench.corpus), str(bench.corpus / "gone")
    stage(replace(spec, landmarks=((here,), (gone, here))))  # a shard may have gone since
    other_disk = rf"does not see {gone}.*all nodes of the cluster share.*s3://"
    with pytest.raises(FileChangedError, match=f"{other_disk}.* or all of the corpus was written anew"):
        stage(replace(spec, landmarks=((gone,),)))
    gone = str(bench.out / "gone")
    for elsewhere in (
        spec,
        replace(spec, corpus=Location(str(bench.out))),
    ):  # the corpus's folder is missing too
        with pytest.raises(StorageError, match=rf"does not see {gone}") as caught:
            stage(replace(elsewhere, landmarks=((here,), (gone,))))
        assert not isinstance(caught.value, FileChangedError)


def test_each_view_gets_the_vectors_of_its_prompt(bench: Bench) -> None:
    receipt, _ = bench.embed()
    spec, _ = bench.run()
    tokenizer, encoder = Tokenizer(spec.protocol), Encoder.load(spec.protocol, device="cpu")
    for view, prompt in ((QUERY, "query: "), (DOCUMENT, "")):
        part = bench.part(receipt, view)
        texts = tokenizer.prepare(TEXTS, prompt)
        np.testing.assert_allclose(vectors_of(part), encoder.encode(texts).vectors, atol=1e-6)
        assert part["id"].to_pylist() == list(range(5))
        assert part["num_tokens"].to_pylist() == texts.lengths.tolist()
        assert part["truncated"].to_pylist() == [False, False, True, False, False]


def test_the_receipt_vouches_for_what_is_there(bench: Bench) -> None:
    receipt, _ = bench.embed()
    _, work = bench.run()
    assert receipt.fragment == work.fragment.id
    assert receipt.shard == "lang=en/s.parquet"
    assert (receipt.num_rows, receipt.num_rejected, receipt.balances) == (5, 0, True)
    assert {view: part.path for view, part in receipt.parts.items()} == work.parts
    for part in receipt.parts.values():
        assert (bench.out / part.path).stat().st_size == part.num_bytes
        assert part.path.split("/")[2] == "lang=en"
        assert (part.num_rows, part.num_truncated) == (5, 1)
    (written,) = (bench.out / RECEIPTS).iterdir()
    assert written.read_text() == receipt.model_dump_json()


def test_doing_it_twice_changes_nothing(bench: Bench) -> None:
    first, _ = bench.embed()
    before = bench.files()
    assert bench.embed()[0] == first
    assert bench.files() == before


def test_the_first_attempt_wins_and_the_second_vouches_for_it(bench: Bench) -> None:
    first, _ = bench.embed()
    path = bench.out / first.parts[str(QUERY)].path
    pq.write_table(
        pq.read_table(path, partitioning=None), path, compression="none"
    )  # the same rows in other bytes
    for receipt_file in (bench.out / RECEIPTS).iterdir():
        receipt_file.unlink()
    other = path.read_bytes()
    second, _ = bench.embed()
    assert path.read_bytes() == other
    assert second.parts[str(QUERY)].num_bytes == len(other) != first.parts[str(QUERY)].num_bytes


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"x" * 1000])
def test_a_part_that_is_no_part_is_an_error_and_stays(bench: Bench, content: bytes) -> None:
    _, work = bench.run()
    path = bench.out / work.parts[str(QUERY)]
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(OutputError, match=r"exists and does not hold the 5 rows .* remove it and run again"):
        bench.embed()
    assert path.read_bytes() == content
    assert not (bench.out / RECEIPTS).exists()


@pytest.mark.parametrize("column", ["id", "text_hash", "num_tokens", "truncated"])
def test_a_part_of_as_many_rows_that_are_others_is_an_error_and_stays(bench: Bench, column: str) -> None:
    first, _ = bench.embed()
    path = bench.out / first.parts[str(QUERY)].path
    table = pq.read_table(path, partitioning=None)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, table[column].take([4, 0, 1, 2, 3])), path)
    before = bench.files()
    with pytest.raises(OutputError, match=r"exists and does not hold the 5 rows .* remove it and run again"):
        bench.embed()
    assert bench.files() == before


def test_rejects_of_an_attempt_whose_machine_rejected_other_rows_are_an_error(
    tmp_path: Path, model: Path
) -> None:
    table = {"id": range(4), "text": ["a", None, "c", "d"], "title": ["x"] * 4}
    write_shard(tmp_path / "corpus", "s.parquet", table)
    bench = Bench(tmp_path / "corpus", tmp_path / "out", model)
    receipt, _ = bench.embed()
    assert receipt.rejects is not None
    path = bench.out / receipt.rejects.path
    rejects = pq.read_table(path, partitioning=None)
    other = pa.array([3], rejects.schema.field("row").type)
    pq.write_table(rejects.set_column(rejects.column_names.index("row"), "row", other), path)
    with pytest.raises(OutputError, match="does not hold the 1 rows"):
        bench.embed()


def test_a_number_that_is_none_in_a_kept_column_makes_no_two_attempts_differ(
    tmp_path: Path, model: Path
) -> None:
    columns = Columns("id", ("text",), ("score",))
    table = {"id": range(2), "text": ["a", "b"], "score": [float("nan"), 1.0]}
    write_shard(tmp_path / "corpus", "s.parquet", table)
    bench = Bench(tmp_path / "corpus", tmp_path / "out", model, columns=columns)
    first, _ = bench.embed()
    path = bench.out / first.parts[str(QUERY)].path
    pq.write_table(pq.read_table(path, partitioning=None), path, compression="none")  # in other bytes
    assert bench.embed()[0].parts[str(QUERY)].path == first.parts[str(QUERY)].path


def test_views_of_one_prompt_are_encoded_once(bench: Bench) -> None:
    bench.views = (QUERY,)
    _, alone = bench.embed()
    bench.out = bench.out.with_name("both")
    bench.views = (QUERY, CLUSTERING)
    receipt, both = bench.embed()
    assert both["num_encoded_tokens"] == alone["num_encoded_tokens"] > 0
    np.testing.assert_array_equal(
        vectors_of(bench.part(receipt, QUERY)), vectors_of(bench.part(receipt, CLUSTERING))
    )


def test_an_encoder_is_starved_between_fragments_and_not_before_the_first(bench: Bench) -> None:
    spec, work = bench.run()
    encode, row = EncodeFragment(spec), Reader(spec)(row_of(work))
    time.sleep(0.3)
    began = time.perf_counter()
    first = encode(row)
    time.sleep(0.3)
    second = encode(row)
    took = time.perf_counter() - began
    assert first["starved_seconds"].to_pylist() == [0.0]
    starved = second["starved_seconds"][0].as_py()
    at_work = [one["encode_seconds"][0].as_py() for one in (first, second)]
    assert starved >= 0.3
    assert min(at_work) > 0
    assert took - 0.1 < sum(at_work) + starved <= took
    assert encode(row)["starved_seconds"][0].as_py() < 0.1


def test_the_first_fragment_proves_the_encoder_and_the_rest_report_the_same(bench: Bench) -> None:
    spec, work = bench.run()
    encode, row = EncodeFragment(spec), Reader(spec)(row_of(work))
    for _ in range(2):
        spent = encode(row).to_pylist()[0]
        assert 0.99999 < spent["preflight_cosine"] <= 1.000001
        assert spent["preflight_compared"] == "the plain path"
    spent = EncodeFragment(replace(spec, preflight=False))(row).to_pylist()[0]
    assert spent["preflight_compared"] == ""


def test_an_encoder_that_gives_other_vectors_than_the_model_stops_the_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_one(batch: Batch) -> list[tuple[int, int, int]]:
        return [(0, 1, len(batch.token_ids))]

    spec, work = bench.run()
    encode, row = EncodeFragment(spec), Reader(spec)(row_of(work))
    # After the model is loaded: packing has looked at itself by then.
    monkeypatch.setattr(attention, "equal_lengths", as_one)
    with pytest.raises(EncoderError, match="encoded together in float32 have a cosine of"):
        encode(row)


def test_texts_that_are_tokenized_without_their_prompt_stop_the_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Tokenizer.prepare
    monkeypatch.setattr(Tokenizer, "prepare", lambda self, texts, _: real(self, texts))
    spec, work = bench.run()
    with pytest.raises(EncoderError, match="under the prompt 'query: ' was to be encoded as"):
        Reader(spec)(row_of(work))
    Reader(replace(spec, preflight=False))(row_of(work))  # nobody looked


def test_half_precision_is_the_rounded_full_precision(bench: Bench) -> None:
    full = vectors_of(bench.part(bench.embed()[0], DOCUMENT))
    bench.precision = "float16"
    half = vectors_of(bench.part(bench.embed()[0], DOCUMENT))
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, full.astype(np.float16))


def test_int8_is_the_full_precision_in_steps_of_its_ranges(bench: Bench) -> None:
    full = vectors_of(bench.part(bench.embed()[0], DOCUMENT))
    bench.precision, bench.ranges = "int8", Ranges.calibrated(full[:4])
    part = bench.part(bench.embed()[0], DOCUMENT)
    assert part.schema.field("embedding").type == pa.list_(pa.int8(), 32)
    np.testing.assert_array_equal(vectors_of(part), bench.ranges.quantize(full))


def test_int8_of_the_same_ranges_is_the_same_file_to_the_byte(bench: Bench) -> None:
    full = vectors_of(bench.part(bench.embed()[0], DOCUMENT))
    bench.precision, bench.ranges = "int8", Ranges.calibrated(full)
    receipts = []
    for name in ("one", "other"):
        bench.out = bench.out.with_name(name)
        receipts.append(bench.embed()[0])
    assert receipts[0] == receipts[1]


def test_binary_is_the_signs_of_the_full_precision(bench: Bench) -> None:
    full = vectors_of(bench.part(bench.embed()[0], DOCUMENT))
    bench.precision = "binary"
    part = bench.part(bench.embed()[0], DOCUMENT)
    assert part.schema.field("embedding").type == pa.list_(pa.uint8(), 4)
    np.testing.assert_array_equal(np.unpackbits(vectors_of(part), axis=1).astype(bool), full > 0)


@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_quantised_parts_without_rows_have_their_type(bench: Bench, precision: str) -> None:
    write_shard(bench.corpus, "lang=en/s.parquet", {"id": [1, 2], "text": pa.nulls(2)})
    bench.precision, bench.ranges = precision, Ranges((-1.0,) * 32, (1.0,) * 32)
    part = bench.part(bench.embed()[0], QUERY)
    kind = {"int8": pa.list_(pa.int8(), 32), "binary": pa.list_(pa.uint8(), 4)}[precision]
    assert (part.num_rows, part.schema.field("embedding").type) == (0, kind)


def test_rejects_are_named_in_a_file_and_counted_in_the_receipt(bench: Bench) -> None:
    table = {"id": ["a", None, "c"], "text": ["x", "y", None]}
    write_shard(bench.corpus, "lang=en/s.parquet", table)
    receipt, _ = bench.embed()
    assert receipt.rejected == {"null_id": 1, "null_text": 1}
    assert receipt.balances
    assert receipt.rejects is not None
    assert receipt.rejects.path.startswith("_rejects/lang=en/")
    rejects = pq.read_table(bench.out / receipt.rejects.path, partitioning=None).to_pylist()
    assert rejects == [
        {"id": None, "reason": "null_id", "shard": "lang=en/s.parquet", "row": 1},
        {"id": "c", "reason": "null_text", "shard": "lang=en/s.parquet", "row": 2},
    ]


def test_a_fragment_of_rejects_only_gives_parts_without_rows(bench: Bench) -> None:
    write_shard(bench.corpus, "lang=en/s.parquet", {"id": [1, 2], "text": pa.nulls(2)})
    receipt, spent = bench.embed()
    assert receipt.rejected == {"null_text": 2}
    assert receipt.balances
    part = bench.part(receipt, QUERY)
    assert (part.num_rows, part.schema.field("embedding").type) == (0, pa.list_(pa.float32(), 32))
    assert spent["num_encoded_tokens"] == 0


def damage_pages(bench: Bench) -> None:
    path = bench.corpus / "lang=en/s.parquet"
    write_shard(bench.corpus, "lang=en/s.parquet", {"id": range(500), "text": [f"t{n}" for n in range(500)]})
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 3000 + content[3004:])


def test_pages_that_cannot_be_decoded_fail_the_run(bench: Bench) -> None:
    damage_pages(bench)
    with pytest.raises(CorpusError, match=r"'lang=en/s\.parquet' cannot be read"):
        bench.embed()
    assert bench.files() == {}


def test_pages_that_cannot_be_decoded_are_rejects_where_that_is_wanted(bench: Bench) -> None:
    damage_pages(bench)
    bench.skip = True
    receipt, _ = bench.embed()
    assert receipt.rejected == {"unreadable_shard": 500}
    assert receipt.balances
    assert receipt.rejects is not None
    rows = pq.read_table(bench.out / receipt.rejects.path, partitioning=None)["row"].to_pylist()
    assert rows == list(range(500))


def test_a_shard_that_changed_since_it_was_listed_is_never_a_reject(bench: Bench) -> None:
    bench.skip = True
    spec, work = bench.run()
    write_shard(bench.corpus, "lang=en/s.parquet", {"id": [1], "text": ["another"]})
    with pytest.raises(StorageError, match="changed since it was listed"):
        Reader(spec)(row_of(work))


@pytest.fixture(scope="module")
def bare_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose tokenizer adds nothing of its own, so that an empty text has no token."""
    return write_repository(
        tmp_path_factory.mktemp("bare"),
        "qwen3",
        settings={"prompts": {"query": "query: ", "document": ""}},
        tokenizer={"eos": False},
    )


def test_a_text_without_a_token_is_a_reject(bench: Bench, bare_model: Path) -> None:
    bench.model, bench.views = bare_model, (DOCUMENT,)
    receipt, _ = bench.embed()
    assert receipt.rejected == {"no_tokens": 1}
    assert receipt.balances
    assert bench.part(receipt, DOCUMENT)["id"].to_pylist() == [0, 1, 2, 4]


def test_which_rows_a_view_holds_does_not_depend_on_what_else_is_made_with_it(
    bench: Bench, bare_model: Path
) -> None:
    bench.model = bare_model
    ids = []
    for name, views in (("both", (QUERY, DOCUMENT)), ("alone", (QUERY,))):
        bench.out, bench.views = bench.out.with_name(name), views
        ids.append(bench.part(bench.embed()[0], QUERY)["id"].to_pylist())
    assert ids[0] == ids[1]


def test_fragments_travel_as_json(bench: Bench) -> None:
    _, work = bench.run()
    assert Work.from_json(work.to_json()) == work
    odd = replace(
        work, fragment=replace(work.fragment, shard=replace(work.fragment.shard, path="a%20 \u00e9\u2028'.x"))
    )
    assert Work.from_json(odd.to_json()) == odd


def test_the_reader_reports_what_it_spent(bench: Bench) -> None:
    spec, work = bench.run()
    row = Reader(spec)(row_of(work))
    assert row.num_rows == 1
    assert row["read_seconds"][0].as_py() > 0
    assert unpack_table(row, "rows").column_names == ["id", "text_hash"]
