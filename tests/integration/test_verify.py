"""A dataset that is right has no findings, and one that was damaged in any of these ways has some."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from jobs.accounts import check_manifest
from jobs.findings import Finding
from jobs.history import main as history
from jobs.records import Manifest
from jobs.verify import main as verify
from tests.chaos.plain import embed as embed_without_ray
from tests.integration.conftest import Outcome, arguments_for, table_of, write_corpus

pytestmark = pytest.mark.slow

QUERY, DOCUMENT = "retrieval/query", "retrieval/document"


def look(*arguments: str) -> Outcome:
    """The command in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        exit_code = verify(list(arguments))
    return Outcome(exit_code, stdout.getvalue(), stderr.getvalue(), 0)


def arguments_with_rejects(model: Path, corpus: Path, out: Path) -> tuple[str, ...]:
    """Three rows in a hundred get no vector here."""
    return (*arguments_for(model, corpus, out), "--set", "output.max_rejected_fraction=0.03")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 20 rows a fragment, and one with rows that get no vector."""
    folder = write_corpus(tmp_path_factory.mktemp("corpus"), ("lang=en/a.parquet", "lang=de/b.parquet"), 40)
    table = table_of(1000, 20).to_pydict()
    table["title"][3] = table["text"][3] = table["text"][4] = table["title"][4] = None
    table["id"][7] = None
    pq.write_table(pa.table(table, schema=table_of(1000, 20).schema), folder / "lang=en/c.parquet")
    return folder


@pytest.fixture(scope="module")
def right(corpus: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("right") / "out"
    assert embed_without_ray(*arguments_with_rejects(model, corpus, out))["rejected"] == 3
    return out


@dataclass
class Damaged:
    """A copy of a dataset to be damaged: its files, and its manifest as JSON."""

    out: Path
    manifest: dict[str, Any]

    @property
    def receipts(self) -> list[dict[str, Any]]:
        whole: list[dict[str, Any]] = [one for one in self.manifest["receipts"] if not one["rejects"]]
        return whole

    @property
    def rejecting(self) -> dict[str, Any]:
        one: dict[str, Any]
        (one,) = (one for one in self.manifest["receipts"] if one["rejects"])
        return one

    def part(self, number: int = 0, view: str = DOCUMENT) -> dict[str, Any]:
        record: dict[str, Any] = self.receipts[number]["parts"][view]
        return record

    def path(self, record: dict[str, Any]) -> Path:
        return self.out / record["path"]

    def put(self, record: dict[str, Any], content: bytes) -> None:
        """Other bytes under a record that says so."""
        self.path(record).write_bytes(content)
        record |= {"num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def rewrite(self, record: dict[str, Any], change: Callable[[pa.Table], pa.Table]) -> None:
        """Another table under a record that says so, but for its counts."""
        sink = io.BytesIO()
        pq.write_table(change(pq.read_table(self.path(record), partitioning=None)), sink)
        self.put(record, sink.getvalue())

    def column(self, record: dict[str, Any], name: str, change: Callable[[list[Any]], Any]) -> None:
        """Other values in one column, of the same type."""

        def changed(table: pa.Table) -> pa.Table:
            values = table[name].to_pylist()
            change(values)
            field = table.schema.field(name)
            return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))

        self.rewrite(record, changed)

    def verify(self, *arguments: str) -> Outcome:
        (self.out / "_manifest.json").write_bytes(sealed(self.manifest))
        return look(str(self.out), *arguments)


def sealed(manifest: dict[str, Any]) -> bytes:
    """A manifest's file with the checksum that belongs to it, as somebody would write it who edits with care."""
    content = json.dumps({name: value for name, value in manifest.items() if name != "checksum"}).encode()
    return content[:-1] + f',"checksum":"{hashlib.sha256(content).hexdigest()}"}}'.encode()


@pytest.fixture
def damaged(right: Path, tmp_path: Path) -> Damaged:
    shutil.copytree(right, tmp_path / "out")
    return Damaged(tmp_path / "out", json.loads((right / "_manifest.json").read_text()))


def test_a_dataset_that_is_right_has_no_findings(right: Path) -> None:
    outcome = look(str(right))
    summary = outcome.summary
    assert (outcome.exit_code, summary["ok"], summary["findings"]) == (0, True, [])
    assert (summary["files"], summary["rows"], summary["vectors"], summary["rejected"]) == (11, 100, 194, 3)
    assert outcome.stdout.count("\n") == 1
    assert "clean" in outcome.stderr


@pytest.mark.parametrize(
    "settings",
    [
        ("encoder.precision=float16",),
        ("encoder.precision=int8",),
        ("encoder.precision=binary",),
        ("encoder.long_text=chunk", "encoder.chunk_tokens=16", "encoder.chunk_overlap=4"),
        ("encoder.long_text=late_chunk", "encoder.chunk_tokens=8"),
        ("encoder.normalize=false",),
    ],
    ids=lambda settings: settings[0],
)
def test_datasets_of_every_kind_have_no_findings(
    corpus: Path, model: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    arguments = arguments_with_rejects(model, corpus, tmp_path / "out")
    embed_without_ray(*arguments, *(part for one in settings for part in ("--set", one)))
    assert look(str(tmp_path / "out")).summary["findings"] == []


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def swap(damaged: Damaged) -> None:
    one, other = damaged.path(damaged.part(0)), damaged.path(damaged.part(1))
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])


def move(damaged: Damaged, record: dict[str, Any], old: str, new: str) -> None:
    """The same file in another place that looks like ours."""
    before = damaged.path(record)
    record["path"] = re.sub(old, new, record["path"])
    damaged.path(record).parent.mkdir(parents=True, exist_ok=True)
    before.rename(damaged.path(record))


def set_vector(number: int, value: float | None, place: int = 5) -> Callable[[list[Any]], None]:
    def change(vectors: list[Any]) -> None:
        vectors[number][place] = value

    return change


def set_value(number: int, value: Any) -> Callable[[list[Any]], None]:
    def change(values: list[Any]) -> None:
        values[number] = value

    return change


def shorter_vectors(table: pa.Table) -> pa.Table:
    vectors = np.array(table["embedding"].to_pylist(), np.float32)[:, :16]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 16)
    return table.set_column(table.schema.get_field_index("embedding"), "embedding", column)


def with_label(name: str, value: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.replace_schema_metadata(
        {**(table.schema.metadata or {}), f"taskvec.{name}".encode(): value.encode()}
    )


def other_view(damaged: Damaged) -> None:
    """The vectors of queries where those of documents should be, under the checksum of what is there."""
    damaged.put(damaged.part(0, DOCUMENT), damaged.path(damaged.part(0, QUERY)).read_bytes())


def other_fragment(damaged: Damaged) -> None:
    """The part of another fragment, with its counts."""
    one, other = damaged.part(0), damaged.part(1)
    damaged.put(one, damaged.path(other).read_bytes())
    one |= {name: other[name] for name in ("num_tokens", "num_truncated")}


def double_row(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 19), table.slice(3, 1)]).replace_schema_metadata(
        table.schema.metadata
    )


Damage = Callable[[Damaged], Any]
BYTES: dict[str, tuple[Damage, str]] = {
    "a byte in a data page": (lambda d: flip(d.path(d.part()), 100), "sha256"),
    "a byte in the footer": (lambda d: flip(d.path(d.part()), -30), "sha256"),
    "the last byte": (lambda d: flip(d.path(d.part()), -1), "sha256"),
    "a byte of rejects": (lambda d: flip(d.path(d.rejecting["rejects"]), 30), "sha256"),
    "cut off": (lambda d: d.path(d.part()).write_bytes(d.path(d.part()).read_bytes()[:-100]), "bytes"),
    "longer": (lambda d: d.path(d.part()).write_bytes(d.path(d.part()).read_bytes() + b"0"), "bytes"),
    "empty": (lambda d: d.path(d.part()).write_bytes(b""), "bytes"),
    "deleted": (lambda d: d.path(d.part()).unlink(), "file"),
    "rejects deleted": (lambda d: d.path(d.rejecting["rejects"]).unlink(), "file"),
    "swapped": (swap, "(bytes|sha256)"),
}
MANIFEST_EDITS: dict[str, tuple[Damage, str]] = {
    "rows of a part": (lambda d: d.part().update(num_rows=21), "rows with a vector and rejects"),
    "rows of a receipt": (
        lambda d: d.receipts[0].update(num_rows=19),
        "rows (with a vector|of the fragments)",
    ),
    "rejects counted": (
        lambda d: d.rejecting.update(rejected={"null_text": 2}),
        "rows with a vector and rejects",
    ),
    "rejects of other reasons": (
        lambda d: d.rejecting.update(rejected={"null_text": 3}),
        "rejects by reason",
    ),
    "rejects that nobody counted": (
        lambda d: d.receipts[0].update(rejects=d.rejecting["rejects"]),
        "rejects of fragment",
    ),
    "a part of another partition": (
        lambda d: move(d, d.part(), "lang=..", "lang=fr"),
        "path of a part",
    ),
    "a part of another fragment's name": (
        lambda d: move(d, d.part(), "part-.*", f"part-{0:032}.parquet"),
        "path of a part",
    ),
    "rejects not named": (lambda d: d.rejecting.update(rejects=None), "rejects of fragment"),
    "a receipt lost": (lambda d: d.manifest["receipts"].pop(0), "rows of the fragments of shard"),
    "a receipt twice": (lambda d: d.manifest["receipts"].append(d.receipts[0]), "(times|parts of fragment)"),
    "a view of a fragment lost": (
        lambda d: d.receipts[0]["parts"].pop(QUERY),
        "parts of fragment .* by view",
    ),
    "a view lost": (lambda d: d.manifest["views"].pop(QUERY), "view"),
    "a shard lost": (lambda d: d.manifest["shards"].pop(0), "shard lang="),
    "rows of a cut": (
        lambda d: d.manifest["shards"][0]["cuts"][0].update(num_rows=3),
        "rows of the fragments",
    ),
    "another space": (
        lambda d: d.manifest["views"][QUERY].update(space_id="0" * 32),
        "label taskvec.space_id",
    ),
    "another dimension": (lambda d: d.manifest["views"][QUERY].update(dim=16), "column embedding"),
    "another precision": (
        lambda d: d.manifest["views"][QUERY].update(precision="float16"),
        "column embedding",
    ),
    "never normalised": (
        lambda d: d.manifest["views"][QUERY].update(normalized=False),
        "label taskvec.normalized",
    ),
    "ranges that are not there": (
        lambda d: d.manifest["views"][QUERY].update(ranges_digest="0" * 32),
        "ranges of",
    ),
    "a checksum": (lambda d: d.part().update(sha256="0" * 64), "sha256"),
    "a size": (lambda d: d.part().update(num_bytes=5), "bytes"),
    "tokens": (lambda d: d.part().update(num_tokens=5), "sum of num_tokens"),
    "truncated": (lambda d: d.part().update(num_truncated=20), "truncated rows"),
    "a path that is none": (lambda d: d.part().update(path="elsewhere/x.parquet"), "path of a part"),
    "one part for two": (lambda d: d.part(0).update(d.part(1)), "times that the manifest names it"),
    "another version of a shard": (
        lambda d: d.manifest["shards"][0].update(version="1-2"),
        "fragments of shard lang=",
    ),
    "other row groups": (
        lambda d: d.manifest["shards"][0]["cuts"][0].update(num_row_groups=7),
        "fragments of shard lang=",
    ),
    "texts joined otherwise": (
        lambda d: d.manifest["reading"].update(text_joiner=" and "),
        "fragments of shard lang=",
    ),
    "other columns": (
        lambda d: d.manifest["reading"].update(text_columns=["text"]),
        "fragments of shard lang=",
    ),
    "long texts rejected": (
        lambda d: d.manifest["reading"].update(
            long_text={"mode": "reject", "chunk_tokens": None, "chunk_overlap": 0, "prompts": []}
        ),
        "fragments of shard lang=",
    ),
    "rows left out that repeat an id": (
        lambda d: d.manifest.update(repeated_ids={d.receipts[0]["fragment"]: "0"}),
        "fragments of shard lang=",
    ),
    "another prompt": (
        lambda d: d.manifest["views"][QUERY].update(prompt="question: "),
        "label taskvec.prompt",
    ),
    "a suffix": (lambda d: d.manifest["views"][QUERY].update(suffix="?"), "label taskvec.suffix"),
    "another revision": (
        lambda d: d.manifest["views"][QUERY].update(revision="sha256:0"),
        "label taskvec.revision",
    ),
    "a model of the Hub": (
        lambda d: d.manifest["views"][QUERY].update(revision="0" * 40, model="org/model"),
        "label taskvec.(model|revision)",
    ),
}
# Nothing in the dataset contradicts these, so whoever makes them with care is not found out.
CARELESS_EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another corpus": lambda manifest: manifest.update(corpus="/elsewhere"),
    "another time": lambda manifest: manifest.update(committed_at="2001-01-01T00:00:00.000+00:00"),
    "another model folder": lambda manifest: manifest["views"][QUERY].update(model="/elsewhere"),
    "an adapter": lambda manifest: manifest["views"][QUERY].update(adapter="/elsewhere"),
    "a shard that was skipped": lambda manifest: manifest["bad_shards"].append(
        {"path": "x.parquet", "version": "1", "reason": "so"}
    ),
    "rows of a fragment": lambda manifest: manifest.update(fragment_rows=7),
    "bytes of a cut": lambda manifest: manifest["shards"][0]["cuts"][0].update(num_bytes=1),
    "another configuration": lambda manifest: manifest["run"]["configuration"]["output"].update(uri="/x"),
    "no checksum": lambda manifest: manifest.pop("checksum"),
}
VALUES: dict[str, tuple[Damage, str]] = {
    "not a number": (
        lambda d: d.column(d.part(), "embedding", set_vector(7, float("nan"))),
        "values of a vector",
    ),
    "infinite": (
        lambda d: d.column(d.part(), "embedding", set_vector(7, float("inf"))),
        "values of a vector",
    ),
    "too long": (lambda d: d.column(d.part(), "embedding", set_vector(19, 1.0)), "norm"),
    "zero": (lambda d: d.column(d.part(), "embedding", set_value(0, [0.0] * 32)), "norm"),
    # Arrow 25 cannot read lists of a fixed size with a null among them.
    "no vector": (
        lambda d: d.column(d.part(), "embedding", set_value(4, None)),
        "(null in embedding|content)",
    ),
    "a hole in a vector": (
        lambda d: d.column(d.part(), "embedding", set_vector(4, None)),
        "null in a vector",
    ),
    "fewer dimensions": (lambda d: d.rewrite(d.part(), shorter_vectors), "column embedding"),
    "an id twice in a part": (
        lambda d: d.column(d.part(), "id", set_value(3, 4)),
        "id of retrieval/document: .*4",
    ),
    "an id of another part": (
        lambda d: d.column(
            d.part(0),
            "id",
            set_value(3, pq.read_table(d.path(d.part(2)), partitioning=None)["id"][0].as_py()),
        ),
        "id of retrieval/document",
    ),
    "no id": (lambda d: d.column(d.part(), "id", set_value(3, None)), "null in id"),
    "another fragment's rows": (other_fragment, "id of retrieval/document"),
    "a row twice": (lambda d: d.rewrite(d.part(), double_row), "id of retrieval/document"),
    "a row less": (lambda d: d.rewrite(d.part(), lambda table: table.slice(1)), "rows in the footer"),
    "a foreign space": (
        lambda d: d.rewrite(d.part(), with_label("space_id", "f" * 32)),
        "label taskvec.space_id",
    ),
    "no labels": (
        lambda d: d.rewrite(d.part(), lambda table: table.replace_schema_metadata(None)),
        "label taskvec.task",
    ),
    "another view's vectors": (other_view, "label taskvec.role"),
    "a column lost": (
        lambda d: d.rewrite(d.part(), lambda table: table.drop_columns(["tags"])),
        "column tags",
    ),
    "a column of another type": (
        lambda d: d.rewrite(d.part(), lambda table: table.set_column(0, "id", table["id"].cast(pa.int32()))),
        "column id",
    ),
    "a column more": (
        lambda d: d.rewrite(d.part(), lambda table: table.append_column("x", table["id"])),
        "columns",
    ),
    "no tokens": (lambda d: d.column(d.part(), "num_tokens", set_value(2, 0)), "num_tokens"),
    "truncated otherwise": (
        lambda d: d.column(d.part(), "truncated", lambda v: v.__setitem__(0, not v[0])),
        "truncated rows",
    ),
    "no hash": (lambda d: d.column(d.part(), "text_hash", set_value(2, None)), "null in text_hash"),
    "no Parquet": (lambda d: d.put(d.part(), b"PAR1 and no more"), "content"),
    "rejects that are no Parquet": (lambda d: d.put(d.rejecting["rejects"], b"x"), "content"),
    "rejects of another reason": (
        lambda d: d.column(d.rejecting["rejects"], "reason", set_value(0, "no_tokens")),
        "rejects by reason",
    ),
    "a reject twice": (
        lambda d: d.column(d.rejecting["rejects"], "row", lambda rows: rows.__setitem__(0, rows[1])),
        "distinct rows of rejects",
    ),
    "rejects of another shard": (
        lambda d: d.column(d.rejecting["rejects"], "shard", set_value(0, "other.parquet")),
        "shards of rejects",
    ),
}


@pytest.mark.parametrize("name", [*BYTES, *MANIFEST_EDITS, *VALUES])
def test_damage_is_found(damaged: Damaged, name: str) -> None:
    damage, what = (BYTES | MANIFEST_EDITS | VALUES)[name]
    damage(damaged)
    outcome = damaged.verify()
    summary = json.loads(outcome.stdout)
    assert (outcome.exit_code, summary["ok"]) == (1, False)
    assert summary["num_findings"] == len(summary["findings"]) > 0
    found = [finding["what"] for finding in summary["findings"]]
    assert any(re.match(what, one) for one in found), summary["findings"]
    assert "Traceback" not in outcome.stderr
    assert found[0].split()[0] in outcome.stderr


@pytest.mark.parametrize("name", CARELESS_EDITS)
def test_an_edit_of_the_manifest_is_found_by_its_checksum(damaged: Damaged, name: str) -> None:
    CARELESS_EDITS[name](damaged.manifest)
    (damaged.out / "_manifest.json").write_text(json.dumps(damaged.manifest, separators=(",", ":")))
    outcome = look(str(damaged.out))
    (only,) = json.loads(outcome.stdout)["findings"]
    assert (outcome.exit_code, only["file"], only["what"]) == (
        1,
        "_manifest.json",
        "checksum of the manifest",
    )


def test_a_flipped_byte_of_the_manifest_is_found(damaged: Damaged) -> None:
    path = damaged.out / "_manifest.json"
    flip(path, path.read_bytes().index(b'"python":"') + 11)
    outcome = look(str(damaged.out))
    (only,) = json.loads(outcome.stdout)["findings"]
    assert (outcome.exit_code, only["what"]) == (1, "checksum of the manifest")


@pytest.mark.parametrize(("num_commits", "exit_code"), [(1, 0), (3, 2)])
def test_a_commit_and_its_clean_up_in_the_middle_are_no_damage(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_commits: int, exit_code: int
) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", ("a.parquet",), 20), tmp_path / "out"
    arguments = arguments_for(model, corpus, out)
    tidy = (*arguments, "--set", "output.keep_manifests=1", "--set", "output.orphan_grace_hours=0")
    embed_without_ray(*tidy)
    numbers = iter(range(1, num_commits + 1))

    def check(manifest: Manifest) -> list[Finding]:
        if (number := next(numbers, None)) is not None:  # read, and now every file of it goes
            pq.write_table(table_of(100 * number, 20), corpus / "a.parquet")
            assert embed_without_ray(*tidy)["embedded"] == 40
        return check_manifest(manifest)

    monkeypatch.setattr("jobs.verify.check_manifest", check)
    outcome = look(str(out))
    assert outcome.exit_code == exit_code, outcome.stderr
    assert outcome.stderr.count("A run has committed meanwhile") == num_commits
    assert "found" not in outcome.stderr
    if exit_code == 0:
        assert outcome.summary["findings"] == []
    else:
        assert outcome.stdout == ""


def test_damage_to_values_is_found_by_the_value_and_not_by_the_checksum(damaged: Damaged) -> None:
    damaged.column(damaged.part(), "embedding", set_vector(7, float("nan")))
    (only,) = json.loads(damaged.verify().stdout)["findings"]
    assert only["file"] == damaged.part()["path"]
    assert only["found"] == "in 1 rows, the first one is row 7"
    assert only["expected"] == "finite"


def test_a_great_many_findings_are_counted_and_the_first_are_told(damaged: Damaged) -> None:
    for receipt in damaged.manifest["receipts"]:
        receipt["num_rows"] += 1
        receipt["shard"] = "nowhere.parquet"
    damaged.column(damaged.part(), "id", lambda ids: ids.__setitem__(slice(None), [5000] * 20))
    outcome = damaged.verify()
    summary = json.loads(outcome.stdout)
    assert summary["num_findings"] > 10
    assert "20 times" in str(summary["findings"])


def test_the_corpus_own_repeated_ids_are_findings(model: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ("a.parquet",), 20)
    shutil.copy(corpus / "a.parquet", corpus / "b.parquet")
    everything = ("--set", "input.on_duplicate_id=keep_all")
    embed_without_ray(*arguments_with_rejects(model, corpus, tmp_path / "out"), *everything)
    summary = json.loads(look(str(tmp_path / "out")).stdout)
    assert not summary["ok"]
    assert {finding["found"].partition(":")[0] for finding in summary["findings"][:20]} == {"2 times"}
    assert summary["findings"][-1]["found"] == "40 stand more than once"


def test_an_earlier_dataset_is_checked_by_its_id(damaged: Damaged, model: Path) -> None:
    kept = damaged.out / "_manifests"
    corpus = write_corpus(damaged.out.parent / "other", ("a.parquet",), 20)
    embed_without_ray(*arguments_with_rejects(model, corpus, damaged.out), "--overwrite")
    assert history([str(damaged.out)]) == 0
    (one,) = (path.stem for path in kept.glob("*.json") if ".config" not in path.name)
    assert look(str(damaged.out), "--manifest", one).summary["rows"] == 100
    damaged.path(damaged.part()).unlink()
    assert look(str(damaged.out), "--manifest", one).exit_code == 1
    assert look(str(damaged.out)).summary["rows"] == 20


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"])
def test_without_a_manifest_there_is_nothing_to_check(damaged: Damaged, content: bytes | None) -> None:
    manifest = damaged.out / "_manifest.json"
    manifest.unlink() if content is None else manifest.write_bytes(content)
    outcome = look(str(damaged.out))
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert "manifest" in outcome.stderr


def test_on_s3_too(right: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-the-test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{uuid4().hex}"
    fs = S3FileSystem(endpoint_url=s3_server, use_listings_cache=False, skip_instance_cache=True)
    fs.mkdir(bucket)
    for path in right.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"{bucket}/out/{path.relative_to(right)}", path.read_bytes())
    arguments = (f"s3://{bucket}/out", "--endpoint-url", s3_server)
    summary = look(*arguments).summary
    assert (summary["ok"], summary["vectors"]) == (True, 194)
    manifest = json.loads((right / "_manifest.json").read_text())
    path = manifest["receipts"][0]["parts"][QUERY]["path"]
    content = bytearray((right / path).read_bytes())
    content[100] ^= 1
    fs.pipe_file(f"{bucket}/out/{path}", bytes(content))
    outcome = look(*arguments)
    assert outcome.exit_code == 1
    (only,) = json.loads(outcome.stdout)["findings"]
    assert (only["file"], only["what"]) == (path, "sha256")


def test_ids_whose_bits_are_equal_by_chance_are_no_findings(
    damaged: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.verify.bits_of", lambda ids, *_: np.zeros(len(ids), np.uint64))
    assert damaged.verify().summary["findings"] == []
    damaged.column(damaged.part(), "id", set_value(3, 4))
    findings = json.loads(damaged.verify().stdout)["findings"]
    assert [finding["found"].partition(":")[0] for finding in findings] == ["2 times"]


def test_a_file_that_nobody_may_read_is_no_finding_but_a_failure(damaged: Damaged) -> None:
    path = damaged.path(damaged.part())
    path.unlink()
    path.symlink_to("/proc/self/mem")  # opens, and cannot be read at its beginning, also by root
    damaged.part()["num_bytes"] = path.stat().st_size
    outcome = damaged.verify()
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert "could not read" in outcome.stderr
