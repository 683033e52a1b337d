"""No file makes us run its code, however it is written and whatever `import ray.data` has registered."""

from __future__ import annotations

import base64
import io
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
from ray.data._internal.object_extensions import arrow as object_types
from ray.data._internal.tensor_extensions import arrow as tensor_types

from jobs.carried import carried_hashes
from jobs.carry import CarryPlan, OldPart, Steps
from jobs.checks import check_part, part_schema
from jobs.corpus import list_corpus
from jobs.errors import CorpusError, OutputError
from jobs.findings import finding
from jobs.footers import BadShard, Columns, Footer, read_footer
from jobs.parquet import extensions, open_parquet, open_plain, quoted, read_plain_schema
from jobs.records import PartRecord
from jobs.rows import carried_types, read_rows
from jobs.run_spec import Work
from jobs.storage import Location, open_store
from tests.jobs.builders import COLUMNS, DOCUMENT, only_fragment, store_of, view_record, write_shard

TENSORS = ("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")
PICKLED = "ray.data.arrow_pickled_object"
NAMES = (
    *TENSORS,
    "ray.data.arrow_variable_shaped_tensor",
    PICKLED,
    "arrow.py_extension_type",
    "nobody.knows",
)
KEPT = Columns("id", ("text",), ("kept",))


class Marked:
    """What makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self._marker,)


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that no test may leave behind; Ray is told to trust every file, as its environment may tell it."""
    assert ray.data.DataContext.get_current() is not None
    monkeypatch.setattr(tensor_types, "_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA", True)
    monkeypatch.setenv(object_types.AUTOLOAD_PICKLE_OBJECT_SCALAR_ENV_VAR, "1")
    path = tmp_path / "marker"
    yield path
    assert not path.exists()


def crafted(name: str, marker: Path, values: pa.Array | None = None) -> tuple[pa.Field, pa.Array]:
    """A column that names an extension type, with a pickle in its metadata and, for some, in its values."""
    payload = pickle.dumps(Marked(marker))
    if values is None:
        values = pa.array([payload] * 2, pa.large_binary())
        if name not in (PICKLED, "arrow.py_extension_type"):
            values = pa.array([[1.0], [2.0]])
    metadata = {"ARROW:extension:name": name, "ARROW:extension:metadata": payload}
    return pa.field("kept", values.type, metadata=metadata), values


def at(depth: str, field: pa.Field, values: pa.Array) -> tuple[pa.Field, pa.Array]:
    """The column itself, or below a struct or a list."""
    if depth == "top":
        return field, values
    if depth == "struct":
        kind = pa.struct([field])
        return pa.field("kept", kind), pa.StructArray.from_arrays([values], fields=[field])
    kind = pa.list_(field)
    offsets = pa.array(range(len(values) + 1), pa.int32())
    return pa.field("kept", kind), pa.ListArray.from_arrays(offsets, values, type=kind)


def file_with(field: pa.Field, values: pa.Array, **others: pa.Array) -> bytes:
    columns = {"id": pa.array([1, 2]), "text": pa.array(["a", "b"]), **others}
    columns.pop(field.name, None)
    schema = pa.schema([*(pa.field(name, one.type) for name, one in columns.items()), field])
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([*columns.values(), values], schema=schema), sink)
    return sink.getvalue()


def footer_of(folder: Path, content: bytes, wanted: Columns) -> Footer | BadShard:
    folder.mkdir(exist_ok=True)
    (folder / "s.parquet").write_bytes(content)
    corpus = list_corpus(Location(str(folder)))
    return read_footer(open_store(corpus.location), corpus.shards[0], wanted)


@pytest.mark.parametrize("name", TENSORS)
def test_opening_such_a_file_by_other_means_does_run_its_code(marker: Path, name: str) -> None:
    content = file_with(*crafted(name, marker))
    with pytest.raises(TypeError):  # of what becomes of the shape, which is None now
        pq.ParquetFile(io.BytesIO(content))
    marker.rmdir()
    open_parquet(io.BytesIO(content))  # type: ignore[arg-type]


def test_looking_at_pickled_objects_by_other_means_does_run_their_code(marker: Path) -> None:
    content = file_with(*crafted(PICKLED, marker))
    pq.ParquetFile(io.BytesIO(content)).read()["kept"][0].as_py()
    marker.rmdir()
    rows = open_parquet(io.BytesIO(content)).read().to_pylist()  # type: ignore[arg-type]
    assert isinstance(rows[0]["kept"], bytes)


@pytest.mark.parametrize("depth", ["top", "struct", "list"])
@pytest.mark.parametrize("name", NAMES)
def test_a_column_of_such_a_type_is_refused_before_a_page_is_read(
    tmp_path: Path, marker: Path, name: str, depth: str
) -> None:
    content = file_with(*at(depth, *crafted(name, marker)))
    pages = len(content) - int.from_bytes(content[-8:-4], "little") - 8
    content = content[:4] + b"\0" * (pages - 4) + content[pages:]
    with pytest.raises(CorpusError, match=rf"column 'kept.*Arrow extension type '{name}'.*leave it out"):
        footer_of(tmp_path / "corpus", content, KEPT)


@pytest.mark.parametrize("role", ["id", "text"])
def test_ids_and_texts_of_such_a_type_are_refused(tmp_path: Path, marker: Path, role: str) -> None:
    field, values = crafted(PICKLED, marker)
    with pytest.raises(CorpusError, match=rf"column '{role}' has the Arrow extension type '{PICKLED}'"):
        footer_of(tmp_path / "corpus", file_with(field.with_name(role), values), COLUMNS)


@pytest.mark.parametrize("depth", ["top", "struct", "list"])
@pytest.mark.parametrize("name", NAMES)
def test_columns_that_nobody_asked_for_may_have_any_type_and_still_run_nothing(
    tmp_path: Path, marker: Path, name: str, depth: str
) -> None:
    content = file_with(*at(depth, *crafted(name, marker)))
    footer = footer_of(tmp_path / "corpus", content, COLUMNS)
    assert isinstance(footer, Footer)
    assert read_rows(*only_fragment(tmp_path / "corpus")).texts == ["a", "b"]


def test_types_that_only_arrow_knows_come_through_beside_one_that_is_refused(marker: Path) -> None:
    others = {
        "large": pa.array(["a", "b"], pa.large_string()),
        "when": pa.array([1, 2], pa.timestamp("us", "Europe/Berlin")),
        "coded": pa.array(["a", "a"]).dictionary_encode(),
        "took": pa.array([1, 2], pa.duration("ms")),
    }
    content = file_with(*crafted(PICKLED, marker), **others)
    read = open_parquet(io.BytesIO(content)).read(list(others))  # type: ignore[arg-type]
    assert {name: read[name].type for name in others} == {name: one.type for name, one in others.items()}


def test_a_footer_that_hides_its_schema_is_a_bad_shard(tmp_path: Path, marker: Path) -> None:
    content = file_with(*crafted(TENSORS[0], marker))
    place = content.index(b"ARROW:schema")
    for changed in (
        content[: place - 2] + b"\x19\x0c" + content[place:],  # another type of field
        content[: place + 12] + b"\x28" + content[place + 13 :],  # another field
        content[: place + 16] + b"\n" + content[place + 17 :],  # base64 that only some decoders take
        content[: place + 13] + b"\xff\xff\xff\xff\xff" + content[place + 18 :],  # a length without end
    ):
        bad = footer_of(tmp_path / "corpus", changed, COLUMNS)
        assert isinstance(bad, BadShard)
        assert "does not stand in the footer as writers write it" in bad.reason


def test_a_schema_that_stands_twice_is_disarmed_twice(marker: Path) -> None:
    field, values = crafted(TENSORS[0], marker)
    encoded = base64.b64encode(pa.schema([field]).serialize())
    twice = pa.schema([field], metadata={"ARROW:schema": encoded})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([values], schema=twice), sink)
    assert sink.getvalue().count(b"ARROW:schema") == 2
    parquet = open_parquet(io.BytesIO(sink.getvalue()))  # type: ignore[arg-type]
    assert [name for _, name in extensions(parquet.schema_arrow.field("kept"))] == [TENSORS[0]]


@pytest.mark.parametrize("num_columns", [1, 3000])
def test_a_file_reads_as_it_always_did(num_columns: int) -> None:
    table = pa.table({f"a column with a long name {n}": pa.array(range(500)) for n in range(num_columns)})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=100)
    assert (len(sink.getvalue()) > 2**20) == (num_columns > 1)
    parquet = open_parquet(io.BytesIO(sink.getvalue()))  # type: ignore[arg-type]
    assert parquet.read().equals(table)
    assert parquet.read_row_groups([3]).equals(table.slice(300, 100))


def test_pages_with_a_checksum_are_compared_with_it(tmp_path: Path) -> None:
    table = {"id": [f"id {n}" for n in range(100)], "text": [f"text {n}" for n in range(100)]}
    path = write_shard(tmp_path, "s.parquet", table, write_page_checksum=True, compression="none")
    path.write_bytes(path.read_bytes().replace(b"text 77", b"text 78", 1))
    with pytest.raises(CorpusError, match=r"'s\.parquet' cannot be read: .*checksum"):
        read_rows(*only_fragment(tmp_path))


# What the output holds is opened like anybody's file


def part_of(marker: Path, name: str) -> bytes:
    """A part that somebody put in the place of ours."""
    embedding = pa.array([[1.0, 0.0, 0.0, 0.0]] * 2, pa.list_(pa.float32(), 4))
    return file_with(
        *crafted(name, marker),
        view=pa.array([str(DOCUMENT.view)] * 2),
        embedding=embedding,
        num_tokens=pa.array([1, 1], pa.int32()),
        truncated=pa.array([False, False]),
        text_hash=pa.array([b"0" * 16, b"1" * 16], pa.binary(16)),
    )


@pytest.mark.parametrize("name", [TENSORS[0], PICKLED])
def test_carrying_over_refuses_such_parts(tmp_path: Path, marker: Path, name: str) -> None:
    content = part_of(marker, name)
    store_of(tmp_path / "out").create("p.parquet", content)
    record = PartRecord(
        path="p.parquet", num_bytes=len(content), sha256="", num_rows=2, num_tokens=2, num_truncated=0
    )
    write_shard(tmp_path / "corpus", "s.parquet", {"id": [1], "text": ["a"]})
    _, fragment, reading = only_fragment(tmp_path / "corpus")

    class Run:
        corpus = Location(str(tmp_path / "corpus"))
        output = Location(str(tmp_path / "out"))

    run: Any = Run()
    run.reading = reading
    steps = Steps(run, CarryPlan((), (OldPart(str(DOCUMENT.view), record),), ""))
    with pytest.raises(OutputError, match=r"is damaged: .*extension type"):
        steps.keys(0)
    work = Work(fragment, {str(DOCUMENT.view): "p"}, carried="p.parquet")
    with pytest.raises(OutputError, match=r"cannot be read: .*extension type"):
        carried_hashes(store_of(tmp_path / "out"), work)


@pytest.mark.parametrize("name", [TENSORS[0], PICKLED])
def test_verify_finds_such_parts(tmp_path: Path, marker: Path, name: str) -> None:
    write_shard(tmp_path, "s.parquet", {"id": [1], "text": ["a"], "kept": pa.array([[1.0]])})
    _, _, reading = only_fragment(tmp_path, KEPT)
    view = view_record(DOCUMENT)
    assert "kept" in part_schema(view, reading).names
    record = PartRecord(path="p", num_bytes=1, sha256="", num_rows=2, num_tokens=2, num_truncated=0)
    (found,) = check_part(record, view, reading, part_of(marker, name), lambda _: None)
    assert (found.what, "extension type" in found.found) == ("content", True)


def test_a_manifest_cannot_name_such_a_type_either(tmp_path: Path, marker: Path) -> None:
    write_shard(tmp_path, "s.parquet", {"id": [1], "text": ["a"]})
    _, _, reading = only_fragment(tmp_path)
    field, _ = crafted(TENSORS[0], marker)
    schema = pa.schema([field]).serialize().to_pybytes()
    record = reading.record().model_copy(update={"carried_schema": base64.b64encode(schema).decode()})
    with pytest.raises(OutputError, match="extension types"):
        carried_types(record)
    with pytest.raises(OutputError, match="cannot be read"):
        carried_types(reading.record().model_copy(update={"carried_schema": "AAAA"}))
    assert read_plain_schema(reading.carried.serialize()) == reading.carried


def test_our_own_files_are_plain(tmp_path: Path) -> None:
    path = write_shard(tmp_path, "s.parquet", {"id": [1], "text": ["a"]})
    with path.open("rb") as file:
        assert open_plain(file).read().num_rows == 1


# Errors repeat a piece of what a file says, and never a megabyte of it


def test_what_a_file_says_is_quoted_in_part(tmp_path: Path) -> None:
    assert quoted("a'b") == '"a\'b"'
    assert len(quoted("x" * 2_000_000)) == 80
    long = "n" * 2_000_000
    table = {long: pa.array([[{long: 1}]]), "text": ["a"], **{f"{n}{long[:300]}": [1] for n in range(50)}}
    write_shard(tmp_path, "s.parquet", table)
    for wanted in (COLUMNS, Columns(long, ("text",), ())):
        with pytest.raises(CorpusError) as caught:
            only_fragment(tmp_path, wanted)
        assert 50 < len(str(caught.value)) < 3000


def test_findings_are_short_whatever_they_are_about() -> None:
    found = finding("task=t/part.parquet", f"id of {'x' * 2_000_000}", "y" * 2_000_000, "once")
    assert sum(map(len, (found.what, found.found, found.expected))) < 500
